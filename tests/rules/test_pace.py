"""The pace against models of servers, half an hour of virtual time each, and its rules one by one."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pace_servers import (
    MEAN_S,
    Bucket,
    Client,
    Flaky,
    Queue,
    Server,
    Slots,
    client,
    lognormal,
    run,
)

from batchrun.rules.limits import Room
from batchrun.rules.pace import Bounds, Hint, Learned, Pace, Reason, Start

HALF_HOUR = 1800.0


@dataclass(frozen=True)
class Trial:
    """A server, what it could have answered, and what we ask of every seed and of their mean (per cent)."""

    server: Callable[[], Server]
    possible: float
    goodput: tuple[float, float]  # mean and worst, at least
    refused: tuple[float, float]  # mean and worst, at most
    wire: float = 0.0
    until: float = HALF_HOUR
    seeds: int = 10
    tokens: Callable[[random.Random], int] = lambda _: 0


def drops_and_comes_back(at: float) -> float:
    return 3.0 if 600 <= at < 1200 else 10.0


def triples(at: float) -> float:
    return 10.0 if at < 900 else 30.0


def costs(dice: random.Random) -> int:
    return max(1, int(dice.lognormvariate(math.log(600), 0.8)))


MEAN_COST = 600 * math.exp(0.8**2 / 2)
FORTY = 40 / MEAN_S * HALF_HOUR
SIXTY_FOUR = 64 / MEAN_S * HALF_HOUR
TEN = 10 * HALF_HOUR + 10

TRIALS = {
    "ten_a_second": Trial(Bucket, TEN, (98.5, 98), (0.35, 0.5)),
    "ten_then_three_then_ten": Trial(lambda: Bucket(rate=drops_and_comes_back), 13_810, (97, 97), (0.5, 0.7)),
    "forty_at_once": Trial(Slots, FORTY, (98, 97), (0.3, 0.5)),
    "ten_a_second_on_a_wire": Trial(Bucket, TEN, (98.5, 98), (0.35, 0.5), wire=0.05, seeds=5),
    "forty_at_once_on_a_wire": Trial(Slots, FORTY, (96, 94), (0.4, 0.8), wire=0.05),
    "two_hundred_a_second": Trial(
        lambda: Bucket(latency=lognormal(0.2), rate=lambda _: 200.0), 24_010, (94, 93), (0.5, 0.7), until=120, seeds=3
    ),
    "tokens_a_minute": Trial(
        lambda: Bucket(rate=lambda _: 10_000.0, burst=600_000.0, costs=True),
        18_600_000 / MEAN_COST,
        (97, 95),
        (1.5, 2.5),
        tokens=costs,
        seeds=5,
    ),
    "tokens_a_second": Trial(
        lambda: Bucket(rate=lambda _: 10_000.0, burst=10_000.0, costs=True),
        18_010_000 / MEAN_COST,
        (80, 75),
        (1, 1.5),
        tokens=costs,
        seeds=5,
    ),
    "queue_of_sixty_four": Trial(Queue, SIXTY_FOUR, (97, 95), (0, 0), seeds=5),
    "errors_and_an_outage": Trial(
        lambda: Flaky(inner=Bucket(), down=900.0, up=960.0), 17_420, (97, 96), (0.5, 0.7), seeds=5
    ),
    "headers": Trial(lambda: Bucket(header=lambda _: 10.0), TEN, (98, 97.5), (0.05, 0.1), seeds=5),
    "ten_then_thirty": Trial(lambda: Bucket(rate=triples), 36_010, (96, 95), (0.3, 0.5), seeds=5),
}


def play(trial: Trial) -> list[Client]:
    clients = []
    for seed in range(trial.seeds):
        clients.append(client())
        run(trial.server(), clients[-1:], until=trial.until, seed=seed, wire=trial.wire, tokens=trial.tokens)
    return clients


@pytest.mark.parametrize("name", TRIALS)
def test_a_limit_nobody_told_us_is_used_nearly_in_full_and_hardly_ever_exceeded(name: str) -> None:
    trial = TRIALS[name]
    clients = play(trial)
    goodput = [100 * client.good / trial.possible for client in clients]
    refused = [100 * client.share_429 for client in clients]
    assert (sum(goodput) / len(goodput), min(goodput)) >= trial.goodput
    assert min(goodput) >= trial.goodput[1]
    assert sum(refused) / len(refused) <= trial.refused[0]
    assert max(refused) <= trial.refused[1]


def test_ninety_per_cent_of_ten_a_second_within_half_a_minute() -> None:
    for seed in range(5):
        sender = client()
        run(Bucket(), [sender], until=60, seed=seed)
        assert sender.time_to(9.0) < 30


def test_a_server_that_queues_answers_nearly_as_fast_as_an_idle_one() -> None:
    sender = client()
    run(Queue(), [sender])
    assert sender.latency < 1.5 * MEAN_S
    assert sender.pace.limit < 2 * 64


def test_answers_that_only_grow_longer_are_not_taken_for_a_queue() -> None:
    seconds = lognormal()
    sender = client()
    run(Server(latency=lambda dice: 3 * seconds(dice)), [sender], until=600)
    assert sender.pace.limit == Bounds().ceiling


def test_two_hundred_short_rows_are_done_in_seconds() -> None:
    sender = client(rows=200)
    run(Server(latency=lognormal(0.3)), [sender])
    assert sender.good == 200
    assert sender.last_good < 8


def test_two_clients_share_one_limit() -> None:
    one, other = client(), client()
    run(Bucket(), [one, other], seed=1)
    assert one.good + other.good > 0.95 * TEN
    assert min(one.good, other.good) > 0.2 * (one.good + other.good)
    assert max(one.share_429, other.share_429) < 0.03


class TestTheUsersWord:
    def test_concurrency_is_reached_at_the_first_instant(self) -> None:
        pace = Pace(Bounds(concurrency=256), 0.0)
        assert len(list(all_now(pace, 0.0))) == 256
        assert pace.wait(0.0) == math.inf
        assert pace.reason is Reason.SLOTS

    def test_concurrency_is_kept_against_a_server_without_limits(self) -> None:
        sender = client(Bounds(concurrency=256))
        run(Server(), [sender], until=300)
        assert sender.peak == 256
        assert sender.good > 0.97 * 256 / MEAN_S * 300 - 256

    def test_concurrency_far_beyond_the_limit_is_cut_after_the_start(self) -> None:
        sender = client(Bounds(concurrency=256))
        run(Bucket(), [sender])
        later = sender.accepted(60, HALF_HOUR)
        assert later > 0.95 * 10 * (HALF_HOUR - 60)
        assert sender.refused_between(5, HALF_HOUR) < 0.01 * later

    def test_concurrency_beyond_a_full_room_finds_the_room(self) -> None:
        sender = client(Bounds(concurrency=256))
        run(Slots(slots=lambda _: 200), [sender])
        assert sender.good > 0.93 * 200 / MEAN_S * HALF_HOUR
        assert sender.refused_between(60, HALF_HOUR) < 0.01 * sender.good

    def test_requests_a_minute_are_spread_evenly_from_the_start(self) -> None:
        sender = client(Bounds(rpm=600))
        run(Server(), [sender], until=120)
        assert sender.started == pytest.approx(1200, abs=3)
        gaps = [later - earlier for earlier, later in zip(sender.starts, sender.starts[1:], strict=False)]
        assert min(gaps) > 0.07

    def test_requests_a_minute_are_never_exceeded_however_clean_it_stays(self) -> None:
        sender = client(Bounds(rpm=600))
        run(Bucket(rate=lambda _: 100.0), [sender])
        assert sender.started <= 600 * 30 + 2

    def test_tokens_a_minute_are_kept_when_every_estimate_is_wrong(self) -> None:
        sender = client(Bounds(concurrency=64, tpm=600_000))
        run(Server(latency=lognormal(1.0)), [sender], until=600, tokens=costs, estimate=100)
        assert sender.tokens <= 600_000 * 10 * 1.02 + 64 * MEAN_COST
        assert sender.tokens >= 600_000 * 10 * 0.9

    def test_never_more_in_flight_than_the_ceiling(self) -> None:
        sender = client(Bounds(ceiling=20))
        run(Server(), [sender], until=120)
        assert sender.peak == 20


class TestHeaders:
    @pytest.mark.parametrize("lie", [0.0, -5.0, math.nan, math.inf, 1e12])
    def test_nonsense_is_ignored(self, lie: float) -> None:
        sender = client()
        run(Bucket(header=lambda _: lie), [sender], until=600)
        assert sender.good > 0.95 * 6000
        assert sender.share_429 < 0.01

    def test_a_limit_far_too_high_never_rushes(self) -> None:
        sender = client()
        run(Bucket(header=lambda _: 900_000.0), [sender])
        assert sender.good > 0.97 * TEN
        assert sender.share_429 < 0.005

    def test_a_true_limit_is_where_the_ramp_stops(self) -> None:
        sender = client()
        run(Bucket(header=lambda _: 10.0), [sender], until=60)
        assert sender.refused_between(0, 20) == 0
        assert sender.refused <= 2  # one probe of the header's word

    def test_a_limit_far_too_low_slows_a_run_only_for_a_while(self) -> None:
        sender = client()
        run(Bucket(header=lambda _: 0.5), [sender])
        assert sender.good > 0.85 * TEN
        assert sender.accepted(300, 900) > 0.95 * 6000

    def test_a_low_limit_that_jitters_is_not_believed_again(self) -> None:
        sender = client()
        run(Bucket(header=lambda at: 0.5 + 0.1 * math.sin(at)), [sender])
        assert sender.accepted(900, 1500) > 0.95 * 6000

    def test_a_true_limit_that_moves_is_followed_without_a_refusal(self) -> None:
        sender = client()
        run(Bucket(rate=drops_and_comes_back, header=drops_and_comes_back), [sender])
        assert sender.good > 0.96 * 13_810
        assert sender.share_429 < 0.003

    def test_a_token_limit_of_nearly_nothing_leaves_a_start_a_second(self) -> None:
        pace = Pace(Bounds(concurrency=8), 0.0)
        start = pace.started(0.0, 5000)
        pace.answered(1.0, start, 5000, Hint(tokens_per_second=0.01))
        pace.finished(1.0, start)
        pace.started(1.0, 5000)
        assert 0.9 < pace.wait(1.0) <= 1.0
        assert pace.reason is Reason.TOKENS


class TestFailures:
    def test_they_stop_growth_and_cut_nothing(self) -> None:
        pace = ramped()
        rate, now = pace.rate, 60.0
        for _ in range(9):
            start = pace.started(now)
            pace.failed(now + 0.1, start)
            pace.finished(now + 0.1, start)
            now += 0.5
        assert pace.rate == rate
        assert pace.limit == Bounds().ceiling

    def test_ten_in_a_row_leave_one_probe_at_a_time_until_the_first_answer(self) -> None:
        pace = ramped()
        rate, now = pace.rate, 60.0
        fail(pace, now, times=10)
        delay = pace.wait(now)
        assert pace.reason is Reason.STORM
        assert 0 < delay <= 5
        now += delay
        probe = pace.started(now)
        assert pace.wait(now) == math.inf
        pace.answered(now + 1, probe)
        assert pace.wait(now + 1) == 0.0
        assert pace.rate == rate

    def test_a_server_that_fails_every_other_call_is_not_sent_more_and_more(self) -> None:
        clean, failing = client(), client()
        run(Server(), [clean], until=60)
        run(Flaky(share=0.5), [failing], until=60)
        assert clean.pace.rate > 30
        assert failing.pace.rate < 30

    def test_a_probe_given_up_does_not_end_the_run(self) -> None:
        pace = ramped()
        fail(pace, 60.0, times=10)
        probe = pace.started(66.0)
        pace.finished(67.0, probe)
        assert pace.wait(67.0) < 10

    def test_an_outage_of_a_minute_costs_little_more_than_the_minute(self) -> None:
        sender = client()
        run(Flaky(inner=Bucket(), share=0.0, down=300.0, up=360.0), [sender], until=600)
        assert sender.errors < 200
        assert sender.accepted(370, 590) > 0.95 * 2200


class TestRefusals:
    def test_one_cut_for_all_the_calls_that_started_before_it(self) -> None:
        pace = ramped()
        starts = [pace.started(60.0 + i / 10) for i in range(5)]
        pace.throttled(60.6, starts[0])
        rate = pace.rate
        for start in starts[1:]:
            pace.throttled(60.7, start)
        assert pace.rate == rate

    def test_the_first_takes_a_ramp_back_to_between_its_last_two_steps(self) -> None:
        pace = ramped()
        before = pace.rate
        starts = [pace.started(60.0 + i / before) for i in range(round(before))]
        pace.throttled(61.0, starts[-1])
        assert before / 2 < pace.rate < before

    def test_two_in_a_row_tell_the_limit(self) -> None:
        sender = client()
        run(Bucket(), [sender], until=40)
        assert sender.pace.learned is not None
        assert sender.pace.learned.rate == pytest.approx(10, rel=0.03)

    def test_refused_for_ever_it_goes_down_to_a_crawl_and_not_to_a_stop(self) -> None:
        sender = client()
        run(Bucket(rate=lambda _: 0.0, burst=0.0), [sender], until=HALF_HOUR)
        assert 10 < sender.started < 400
        assert sender.pace.wait(HALF_HOUR) < 120

    def test_a_limit_of_one_in_ten_seconds_is_found(self) -> None:
        sender = client()
        run(Bucket(rate=lambda _: 0.1, burst=1.0), [sender])
        assert sender.good > 0.7 * 180

    def test_a_room_that_shrinks_and_grows_is_followed(self) -> None:
        sender = client()
        run(Slots(slots=lambda at: 15 if 600 <= at < 1200 else 40), [sender])
        assert sender.share_429 < 0.02
        assert sender.good > 0.85 * (2 * 40 + 15) / MEAN_S * 600

    def test_a_limit_that_fell_and_came_back_is_found_within_a_minute(self) -> None:
        sender = client()
        run(Bucket(rate=drops_and_comes_back), [sender], until=1500)
        assert sender.refused_between(1200, 1260) <= 4
        assert sender.accepted(1260, 1490) > 0.97 * 2300

    def test_refusals_at_ever_fewer_calls_are_not_a_room(self) -> None:
        room = Room(512)
        assert room.refused(0.0, 41)
        assert room.refused(1.0, 41)
        assert room.refused(2.0, 38)
        assert not room.refused(3.0, 35)

    def test_hold_keeps_every_start_back_and_nothing_else(self) -> None:
        pace = Pace(Bounds(), 0.0)
        pace.hold(7.0)
        pace.hold(5.0)
        assert pace.wait(4.0) == 3.0
        assert pace.reason is Reason.HELD
        assert pace.wait(7.0) == 0.0

    @pytest.mark.parametrize("until", [math.nan, math.inf, -math.inf])
    def test_hold_ignores_what_is_no_time(self, until: float) -> None:
        pace = Pace(Bounds(), 0.0)
        pace.hold(until)
        assert pace.wait(0.0) == 0.0


class TestClocks:
    def test_one_that_stands_still_lets_no_burst_through(self) -> None:
        pace = ramped()
        assert len(list(all_now(pace, 60.0))) <= 1 + pace.rate * 0.025

    def test_one_that_jumps_an_hour_lets_no_burst_through(self) -> None:
        pace = ramped()
        assert len(list(all_now(pace, 3660.0))) <= 1 + pace.rate * 0.025

    def test_a_laptop_that_slept_for_an_hour_goes_on_as_before(self) -> None:
        sender = client()
        run(Bucket(), [sender], until=1200, sleeps=(600.0, 3600.0))
        assert sender.accepted(4210, 4790) > 0.95 * 5800
        assert sender.refused_between(4200, 4800) < 0.01 * 5800


def test_a_rate_learnt_by_an_earlier_run_shortens_the_ramp_and_is_not_trusted_blindly() -> None:
    first, cold, warm, misled = client(), client(), client(), client()
    run(Bucket(), [first], until=300)
    assert first.pace.learned is not None
    warm.pace = Pace(Bounds(), 0.0, first.pace.learned)
    misled.pace = Pace(Bounds(), 0.0, Learned(500.0))
    for sender in (cold, warm, misled):
        run(Bucket(), [sender], until=300, seed=1)
    assert warm.time_to(9.0) < cold.time_to(9.0)
    assert warm.share_429 < 0.01
    assert misled.accepted(60, 290) > 0.9 * 2300


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "bounds",
    [Bounds(), Bounds(concurrency=7), Bounds(rpm=300), Bounds(concurrency=30, tpm=50_000), Bounds(ceiling=3)],
    ids=str,
)
def test_whatever_happens_the_promises_hold(bounds: Bounds, seed: int) -> None:
    dice = random.Random(seed)
    pace, now, open_calls = Pace(bounds, 0.0), 0.0, list[Start]()
    most = min(bounds.ceiling, bounds.concurrency or bounds.ceiling)
    for _ in range(600):
        now += dice.choice([0.0, 0.001, 0.05, 1.0, 5.0])
        begun = 0
        while pace.wait(now) == 0.0 and begun < 1000 and dice.random() < 0.9:
            limit = pace.limit
            open_calls.append(pace.started(now, dice.choice([0, 0, 500])))
            begun += 1
            assert pace.in_flight <= limit <= most
        assert begun < 1000
        for _ in range(dice.randrange(4)):
            if open_calls:
                end(pace, now, open_calls.pop(dice.randrange(len(open_calls))), dice)
        if dice.random() < 0.02:
            pace.hold(now + dice.choice([0.5, 10.0]))
        assert pace.in_flight == len(open_calls)
        assert 1 <= pace.limit <= most
        assert 0 < pace.rate <= (bounds.rpm or math.inf) / 60
        assert pace.wait(now) >= 0.0
    for start in open_calls:
        pace.answered(now, start)
        pace.finished(now, start)
    assert pace.wait(now + 600) == 0.0  # nothing in flight: it always goes on some day


def end(pace: Pace, now: float, start: Start, dice: random.Random) -> None:
    hint = dice.choice([None, None, Hint(dice.choice([0.0, 0.1, 5.0, math.nan]), dice.choice([None, 1.0, -1.0]))])
    match dice.choice(["answered", "throttled", "failed", "failed"]):
        case "answered":
            pace.answered(now, start, dice.choice([0, 900]), hint)
        case "throttled":
            pace.throttled(now, start, hint)
        case _:
            pace.failed(now, start)
    pace.finished(now, start)


def all_now(pace: Pace, now: float) -> Iterator[Start]:
    while pace.wait(now) == 0.0:
        yield pace.started(now)


def ramped() -> Pace:
    """After a minute without a refusal, nothing in flight."""
    sender = client(rows=300)
    run(Server(latency=lambda _: 0.5), [sender], until=60)
    assert sender.good == 300
    assert sender.pace.in_flight == 0
    return sender.pace


def fail(pace: Pace, now: float, times: int) -> None:
    for _ in range(times):
        start = pace.started(now)
        pace.failed(now, start)
        pace.finished(now, start)
