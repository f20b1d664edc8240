"""Live or batch: every situation has one answer, with a reason that a person understands."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest

from batchrun import data
from batchrun.records import Endpoint, Lane, Price, Route
from batchrun.rules import route, ways
from batchrun.rules.estimate import Load, Spread, tokens
from batchrun.rules.money import nano
from batchrun.rules.route import WORTH_WAITING, Choice, Part, Plan, choose, hint
from batchrun.rules.ways import ASSUMED_RATE, BATCH_SECONDS, Situation, Way, about, batches, rate

PRICE = Price(1040, 1040)
HOUR = 3600.0
MILLION = 1_000_000
LIVE, BATCH = Lane.LIVE, Lane.BATCH


def ordered(spread: Spread) -> bool:
    return 0 <= spread.low <= spread.likely <= spread.high


def situation(rows: int = 10_000, size: int = 800, oversized: int = 0, **more: Any) -> Situation:
    """So many rows of 200 tokens in and at most 256 out; oversized ones are 11 MB each. Half price as a batch."""
    load = Load(rows, (rows - oversized) * size + oversized * 11_000_000, rows * 256, 0, oversized)
    given: dict[str, Any] = {"price": PRICE, "discount": 0.5, **more}
    endpoint, wish = given.pop("endpoint", Endpoint.CHAT), given.pop("wish", Route.AUTO)
    return Situation("m", endpoint, wish, load, tokens(load), **given)


TABLE: dict[str, tuple[dict[str, Any], Lane, str]] = {
    # What the user says, and what is possible at all.
    "wish live": ({"wish": Route.LIVE}, LIVE, "you asked for live"),
    "wish batch": ({"wish": Route.BATCH, "discount": None, "rows": 3}, BATCH, "you asked for batch"),
    "wish live beats a deadline it misses": (
        {"wish": Route.LIVE, "rows": 10 * MILLION, "seconds_left": 30 * HOUR},
        LIVE,
        "not all rows are sure to be done by the deadline in 30 h: live calls take about 12 days",
    ),
    "wish batch beats a deadline it misses": (
        {"wish": Route.BATCH, "seconds_left": 2 * HOUR},
        BATCH,
        "not all rows are sure to be done by the deadline in 2 h: what is late moves to live",
    ),
    "wish batch after the deadline": (
        {"wish": Route.BATCH, "seconds_left": -1.0},
        BATCH,
        "the deadline has passed: only what is ready is collected",
    ),
    "wish batch over budget": ({"wish": Route.BATCH, "most_nano": 5, "budget_left": 4}, BATCH, "you asked for batch"),
    "wish batch, some rows too long": (
        {"wish": Route.BATCH, "oversized": 1},
        BATCH,
        "1 row is longer than the 10 MB a line of a batch may have: sent live",
    ),
    "completions": ({"endpoint": Endpoint.COMPLETIONS}, LIVE, "the completions endpoint takes no batches"),
    "not batchable": ({"batchable": False}, LIVE, "this model is not taken in batches"),
    "not batchable and late": ({"batchable": False, "seconds_left": 60.0}, LIVE, "not all rows are sure to be done"),
    "every row too long": ({"rows": 5, "oversized": 5}, LIVE, "every row is longer than the 10 MB"),
    "zero rows": ({"rows": 0}, LIVE, "nothing is left to send"),
    "zero rows after the deadline": ({"rows": 0, "seconds_left": -5.0}, LIVE, "nothing is left to send"),
    # The deadline.
    "tight deadline": (
        {"rows": 100_000, "seconds_left": 3 * HOUR},
        LIVE,
        "the deadline is in 3 h: a batch may take 24 h, live calls take about 2 h 47 min at an assumed 10 a second",
    ),
    "loose deadline": ({"seconds_left": 48 * HOUR}, BATCH, "saves about"),
    "only a batch makes it": (
        {"rows": 10 * MILLION, "seconds_left": 30 * HOUR, "discount": None},
        BATCH,
        "the deadline is in 30 h: live calls take about 12 days at an assumed 10 a second, a batch at most 24 h",
    ),
    "deadline in the past": ({"seconds_left": -60.0}, LIVE, "the deadline has passed: only what is ready is collected"),
    "deadline now": ({"seconds_left": 0.0}, LIVE, "the deadline has passed"),
    "both miss": (
        {"rows": MILLION, "seconds_left": 6 * HOUR},
        LIVE,
        "neither way is sure to make the deadline in 6 h; live calls get the most done, about 216,000 of 1,000,000",
    ),
    "the user's rpm makes live miss": (
        {"rows": 100_000, "rate_cap": 0.5, "seconds_left": 30 * HOUR, "discount": None},
        BATCH,
        "live calls take about 56 h at an assumed 0.5 a second",
    ),
    "the deadline before the budget": (
        {"rows": 10 * MILLION, "seconds_left": 80 * HOUR, "most_nano": 5, "budget_left": 4},
        BATCH,
        "the deadline is in 3 days: live calls take about 12 days at an assumed 10 a second, a batch at most 3 days",
    ),
    # The budget.
    "budget too small for a batch": (
        {"most_nano": nano(50), "budget_left": nano(12.5)},
        LIVE,
        "these rows can cost up to $50.00 and $12.50 of the budget is left",
    ),
    "budget for a batch after the other": (
        {"rows": MILLION, "most_nano": nano(400), "budget_left": nano(300)},
        BATCH,
        "the budget holds a part of them at a time: about 2 rounds of batches, one after the other",
    ),
    "budget that needs too many rounds": (
        {"rows": MILLION, "most_nano": nano(400), "budget_left": nano(60)},
        LIVE,
        "these rows can cost up to $400.00 and $60.00 of the budget is left",
    ),
    "rounds that miss the deadline": (
        {"rows": 100_000, "seconds_left": 30 * HOUR, "most_nano": nano(40), "budget_left": nano(30)},
        LIVE,
        "the deadline is in 30 h: a batch may take 48 h",
    ),
    "budget overdrawn": ({"most_nano": nano(50), "budget_left": -7}, LIVE, "and $0.00 of the budget is left"),
    "budget just enough": ({"most_nano": nano(50), "budget_left": nano(50)}, BATCH, "saves about"),
    "budget roomy": ({"most_nano": nano(50), "budget_left": nano(5_000)}, BATCH, "saves about"),
    "budget and no upper bound": ({"budget_left": nano(5)}, LIVE, "whose highest cost is unknown"),
    # Money.
    "discount and a million rows": (
        {"rows": MILLION},
        BATCH,
        "a batch is billed at 50% of the price and saves about $170.56",
    ),
    "ten rows": ({"rows": 10}, LIVE, "would save less than a cent, which is not worth waiting up to 24 h"),
    "a saving of nine cents": ({"rows": 527}, LIVE, "would save $0.09"),
    "a saving of ten cents": ({"rows": 590}, BATCH, "saves about $0.10"),
    "no discount known": (
        {"discount": None},
        LIVE,
        "no batch discount is known for this model, and live calls take about 17 min at an assumed 10 a second",
    ),
    "the user says no discount": ({"discount": 1.0, "rows": 100}, LIVE, "a batch costs the same, and live calls"),
    "the user says half price": ({"discount": 0.5}, BATCH, "billed at 50% of the price"),
    "a surcharge": ({"discount": 1.2, "rows": 100 * MILLION}, LIVE, "a batch is billed at 120% of the price"),
    "a model that costs nothing": ({"price": Price(0, 0)}, LIVE, "would save nothing"),
    "price unknown, discount, many rows": (
        {"price": None},
        BATCH,
        "a batch is billed at 50% of the price (which is unknown)",
    ),
    "price unknown, discount, few rows": ({"price": None, "rows": 999}, LIVE, "the price is unknown, and so few rows"),
    "price unknown, no discount": ({"price": None, "discount": None}, LIVE, "no batch discount is known"),
    "some rows too long": (
        {"oversized": 3},
        BATCH,
        "3 rows are longer than the 10 MB a line of a batch may have: sent live",
    ),
    # Equal price: how long live takes.
    "equal price, live slower than a day": (
        {"rows": MILLION, "discount": None},
        BATCH,
        "live calls take about 28 h at an assumed 10 a second, longer than the 24 h a batch is assumed to take",
    ),
    "equal price, a fast learned rate": (
        {"rows": MILLION, "discount": None, "live_rate": 80.0},
        LIVE,
        "live calls take about 3 h 28 min at 80 a second",
    ),
    "equal price, a slow learned rate": (
        {"rows": 100_000, "discount": 1.0, "live_rate": 0.9},
        BATCH,
        "live calls take about 31 h at 0.9 a second, longer than the 24 h",
    ),
    "equal price, the user's rpm makes live slow": (
        {"rows": 100_000, "discount": None, "live_rate": 80.0, "rate_cap": 1.0},
        BATCH,
        "live calls take about 28 h at 1 a second",
    ),
    "price unknown, live slower than a day": ({"rows": MILLION, "price": None, "discount": None}, BATCH, "28 h"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_lane_and_the_reason(name: str):
    given, lane, fragment = TABLE[name]
    choice = choose(situation(**given))
    assert choice.lane is lane, choice.reasons
    assert any(fragment in reason for reason in choice.reasons), choice.reasons


@pytest.mark.parametrize(
    ("given", "in_time"),
    [
        ({}, True),
        ({"seconds_left": 30 * HOUR}, True),
        ({"rows": 100_000, "seconds_left": 3 * HOUR}, True),
        ({"rows": 10 * MILLION, "seconds_left": 30 * HOUR}, True),
        ({"rows": MILLION, "seconds_left": 6 * HOUR}, False),
        ({"wish": Route.BATCH, "seconds_left": 2 * HOUR}, False),
        ({"wish": Route.BATCH, "seconds_left": 24 * HOUR}, True),
        ({"seconds_left": 0.0}, False),
        ({"rows": 0, "seconds_left": -1.0}, True),
    ],
)
def test_whether_it_is_done_in_time(given: dict[str, Any], in_time: bool):
    assert choose(situation(**given)).in_time is in_time


@pytest.mark.parametrize(
    ("given", "why_not"),
    [
        ({"endpoint": Endpoint.COMPLETIONS}, "the completions endpoint takes no batches"),
        ({"batchable": False}, "this model is not taken in batches"),
        ({"rows": 2, "oversized": 2}, "every row is longer than the 10 MB a line of a batch may have"),
    ],
)
def test_a_batch_that_cannot_be_is_chosen_only_when_asked_for_and_says_why_not(given: dict[str, Any], why_not: str):
    asked, left_to_us = choose(situation(**given, wish=Route.BATCH)), choose(situation(**given))
    assert (asked.lane, asked.way.possible, asked.way.why_not, asked.batches) == (BATCH, False, why_not, 0)
    assert asked.way.cost is asked.way.seconds is None
    assert (left_to_us.lane, left_to_us.way.possible) == (LIVE, True)


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ({"rows": 0}, 0),
        ({"rows": 1}, 1),
        ({"rows": 10_000}, 1),
        ({"rows": 10_001}, 2),
        ({"rows": 10_001, "oversized": 1}, 1),
        ({"rows": 10_001, "batch_lines": 50_000}, 1),
        ({"rows": 10_000, "size": 9_400}, 1),  # 95,000,000 bytes with the frames of the lines
        ({"rows": 10_000, "size": 9_401}, 2),
        ({"rows": 30, "size": 9_000_000}, 3),
    ],
)
def test_batch_files_by_lines_and_by_bytes(given: dict[str, Any], files: int):
    assert batches(situation(**given)) == choose(situation(**given)).batches == files


def test_rows_too_long_for_a_batch_pay_the_full_price_there():
    plain, mixed = choose(situation(10_000)), choose(situation(10_000, oversized=5))
    assert plain.live.cost is not None
    assert plain.batch.cost == plain.live.cost * 0.5
    assert mixed.live.cost is not None
    assert mixed.batch.cost is not None
    assert mixed.live.cost.likely * 0.5 < mixed.batch.cost.likely < mixed.live.cost.likely


def test_rows_too_long_for_a_batch_hold_it_up_where_live_is_slow():
    choice = choose(situation(10_000, oversized=2_000, live_rate=0.02))
    assert choice.batch.planned == 2_000 / 0.02 > BATCH_SECONDS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1.0, 10.0, 100.0)),
        ({"rate_cap": 5.0}, (1.0, 5.0, 5.0)),
        ({"live_rate": 20.0}, (14.0, 20.0, 30.0)),
        ({"live_rate": 20.0, "rate_cap": 20.0}, (14.0, 20.0, 20.0)),
        ({"live_rate": 0.0}, (1 / 60, 1 / 60, 1 / 60)),
    ],
)
def test_the_live_rate(given: dict[str, Any], expected: tuple[float, float, float]):
    found = rate(situation(**given))
    assert (found.low, found.likely, found.high) == pytest.approx(expected)
    assert ASSUMED_RATE == 10.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a minute"),
        (89, "a minute"),
        (91, "2 min"),
        (3_540, "59 min"),
        (3_580, "1 h"),
        (9_900, "2 h 45 min"),
        (86_400, "24 h"),
        (100_000, "28 h"),
        (1_000_000, "12 days"),
        (1e9, "11,574 days"),
    ],
)
def test_lengths_of_time(seconds: float, words: str):
    assert about(seconds) == words


def test_a_plan_counts_what_is_left():
    parts = tuple(Part(here, choose(here)) for here in (situation(10), situation(5)))
    assert Plan(parts, 20, 5).left == 15
    assert Plan((), 20, 20).left == 0


def test_the_dated_lists():
    assert data.discounts() == {"meta-llama/Llama-3.3-70B-Instruct-Turbo": 0.5}
    assert "deepseek-ai/DeepSeek-V4-Pro" in data.not_batchable()
    assert len(data.not_batchable()) == 8
    assert not data.not_batchable() & data.discounts().keys()


def any_situation(dice: random.Random) -> Situation:
    rows = dice.choice([0, 1, 10, 999, 1_000, 50_000, MILLION, 30 * MILLION])
    return situation(
        rows,
        dice.choice([20, 800, 20_000]),
        dice.choice([0, 0, 0, min(rows, 3), rows]),
        wish=dice.choice([Route.AUTO] * 4 + [Route.LIVE, Route.BATCH]),
        endpoint=dice.choice([Endpoint.CHAT] * 4 + [Endpoint.COMPLETIONS]),
        price=dice.choice([None, PRICE, PRICE, Price(0, 0), Price(1, 2), Price(5_000, 20_000, 100)]),
        discount=dice.choice([None, 1.0, 0.5, 0.9, 0.0, 1.3, dice.random()]),
        batchable=dice.random() < 0.8,
        batch_lines=dice.choice([1, 10_000, 50_000]),
        live_rate=dice.choice([None, None, dice.uniform(0, 1), dice.uniform(1, 500)]),
        rate_cap=dice.choice([None, None, dice.uniform(0.02, 50)]),
        seconds_left=dice.choice([None, None, dice.uniform(-100, 100), dice.uniform(0, 200_000), 86_400.0]),
        most_nano=dice.choice([None, 0, dice.randrange(nano(1_000))]),
        budget_left=dice.choice([None, None, dice.randrange(-5, nano(1_000))]),
    )


def other_way(choice: Choice) -> Choice:
    return msgspec.structs.replace(choice, lane=LIVE if choice.lane is BATCH else BATCH)


def test_promises_that_hold_in_every_situation():
    dice = random.Random(2026)
    lanes = set()
    for _ in range(20_000):
        here = any_situation(dice)
        choice = choose(here)
        lanes.add(choice.lane)
        assert choice.reasons
        assert all(reason.strip() and not reason.endswith(".") for reason in choice.reasons)
        assert len(set(choice.reasons)) == len(choice.reasons)
        for way in (choice.live, choice.batch):
            assert (way.cost is None) == (here.price is None or not way.possible)
            assert way.cost is None or ordered(way.cost)
            assert (way.seconds is None) == (not way.possible)
            assert way.seconds is None or (ordered(way.seconds) and math.isfinite(way.seconds.high))
            assert way.possible == (not way.why_not)
        if here.price is None:
            assert "$" not in "".join(choice.reasons) or here.budget_left is not None
        if here.wish is not Route.AUTO:
            assert choice.lane.value == here.wish.value
            continue
        assert choice.way.possible
        assert choice.lane is LIVE or here.endpoint is Endpoint.CHAT
        assert (choice.batches > 0) == (choice.batch.possible and here.load.rows > 0)
        if here.load.rows and here.seconds_left is not None:
            other = other_way(choice).way
            assert choice.in_time or here.seconds_left <= 0 or other.planned > here.seconds_left
    assert lanes == {LIVE, BATCH}


def test_a_larger_discount_never_moves_from_batch_to_live():
    dice = random.Random(77)
    moved = 0
    for _ in range(5_000):
        here = any_situation(dice)
        factors = sorted((dice.uniform(0, 1.5) for _ in range(6)), reverse=True)
        chosen = [choose(msgspec.structs.replace(here, discount=factor)).lane for factor in factors]
        assert chosen == sorted(chosen, key=lambda lane: lane is BATCH), (here, factors)
        moved += chosen[0] is not chosen[-1]
    assert moved > 100


def test_a_saving_is_worth_a_wait_from_ten_cents_on():
    for rows in range(1, 2_000, 7):
        choice = choose(situation(rows))
        assert choice.live.cost is not None
        assert choice.batch.cost is not None
        saving = choice.live.cost.likely - choice.batch.cost.likely
        assert (choice.lane is BATCH) == (saving >= WORTH_WAITING)


def a_plan(live: Way, batch: Way, lane: Lane = Lane.LIVE) -> Plan:
    here = situation()
    return Plan((Part(here, Choice(lane, ("because",), live, batch, 1, in_time=True)),), 1000, 0)


def a_way(dollars: float | None, seconds: float, *, possible: bool = True) -> Way:
    cost = None if dollars is None else Spread(0.0, dollars * 1e9, dollars * 2e9)
    return Way(cost, Spread(1.0, seconds, seconds), seconds, possible)


@pytest.mark.parametrize(
    ("live", "batch", "throttled", "took", "said"),
    [
        (a_way(2.0, 60), a_way(1.0, 86_400), 7, 60.0, "7 times: --route batch would have cost about $1.00 less"),
        (a_way(2.0, 60), a_way(1.0, 86_400), 0, 60.0, ""),
        (a_way(2.0, 60), a_way(2.0, 86_400), 7, 60.0, ""),
        (a_way(2.0, 60), a_way(2.0, 86_400), 7, 90_000.0, "would likely have been done sooner"),
        (a_way(None, 60), a_way(None, 86_400), 7, 60.0, ""),
        (a_way(2.0, 60), a_way(1.0, 86_400, possible=False), 7, 90_000.0, ""),
    ],
)
def test_after_429s_batches_are_spoken_of_only_when_they_would_have_been_cheaper_or_faster(
    live: Way, batch: Way, throttled: int, took: float, said: str
) -> None:
    told = hint(a_plan(live, batch), throttled, took)
    assert said in told if said else told == ""
    assert hint(a_plan(live, batch, Lane.BATCH), throttled, took) == ""


def test_rounds_are_as_many_as_filling_the_budget_again_and_again_takes() -> None:
    """Each round sets aside the most its rows can cost, and frees what they did not take."""
    dice = random.Random(11)
    for _ in range(300):
        here = situation(dice.randrange(1_000, 1_000_000), discount=dice.choice([0.5, 1.0]))
        cost = route.choose(here).batch.cost
        assert cost is not None
        most = cost.likely * dice.uniform(1.05, 8)
        budget = dice.uniform(cost.likely * 1.06, most * 1.2)
        told = ways.rounds(msgspec.structs.replace(here, most_nano=round(most), budget_left=round(budget)))
        done, left, filled = 0.0, budget, 0
        while done < 1 - 1e-6:
            share = min(1 - done, left / most)
            done, left, filled = done + share, left - share * cost.likely, filled + 1
        assert told == filled


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget_left": None}, 1),
        ({"most_nano": None, "budget_left": 5}, 1),
        ({"most_nano": nano(5), "budget_left": nano(5)}, 1),
        ({"most_nano": nano(5), "budget_left": 0}, ways.MOST_ROUNDS + 1),
        ({"most_nano": nano(5), "budget_left": nano(3), "price": None}, 1),
    ],
)
def test_rounds_at_the_edges(change: dict[str, Any], told: int) -> None:
    assert ways.rounds(situation(**change)) == told
