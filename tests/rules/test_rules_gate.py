"""When a job is hopeless: tables of runs, each a row of outcomes, and the outcome at which it parks (None: never).

They justify the thresholds: a single bad row in ten must not stop a run, whatever comes back first; a parameter that is
wrong for all must stop it within the first few dozen calls.
"""

from __future__ import annotations

import heapq
import random
import uuid
from collections.abc import Callable, Iterable
from math import comb

import pytest

from batchrun.records import Fault
from batchrun.rules.gate import FIRST_OUTCOMES, HOPELESS_SHARE, LATER_WINDOW, Gate, shape

GOOD = ""
WRONG = "temperature must be between 0 and 2"
OTHER = "unknown parameter"


def parks_at(outcomes: Iterable[str]) -> int | None:
    gate = Gate()
    for number, message in enumerate(outcomes, start=1):
        if message == GOOD:
            gate.answered()
        elif gate.rejected(Fault.BAD_REQUEST, message) is not None:
            return number
    return None


def shuffled(seed: int, *parts: tuple[str, int]) -> list[str]:
    outcomes = [message for message, count in parts for _ in range(count)]
    random.Random(seed).shuffle(outcomes)
    return outcomes


def each(count: int, message: Callable[[random.Random], str]) -> list[str]:
    """So many rejections, each in words of its own."""
    dice = random.Random(7)
    return [message(dice) for _ in range(count)]


def an_id(dice: random.Random) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128)))


def a_word(dice: random.Random) -> str:
    return "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=8))


SITUATIONS = [
    # One reason for all: within the first few dozen.
    pytest.param([WRONG] * 10_000, 40, id="all wrong"),
    pytest.param([WRONG] * 540, 40, id="all wrong, and 500 were in flight: the others still come back"),
    pytest.param([GOOD] * 2 + [WRONG] * 38, 40, id="38 of 40, the good ones first"),
    pytest.param([WRONG] * 38 + [GOOD] * 2 + [WRONG], 41, id="38 of 40, the good ones last"),
    pytest.param([WRONG] * 39 + [OTHER] + [WRONG], 41, id="the fortieth is wrong for another reason"),
    pytest.param(([WRONG] * 47 + [OTHER] * 3) * 100, 40, id="one reason and now and then another"),
    # Later: within a window after the turn.
    pytest.param([GOOD] * 3 + [WRONG] * 1000, 60, id="the first rows are fine and no other"),
    pytest.param([GOOD] * 1000 + [WRONG] * 1000, 1190, id="a good beginning and then all wrong"),
    pytest.param([GOOD] * 10_000 + [WRONG] * 10_000, 10_190, id="all wrong from the middle of the file on"),
    # Nothing is answered at all, for more reasons than one: that is as hopeless, but is given a whole window.
    pytest.param([WRONG, OTHER] * 1000, 200, id="two reasons, half and half"),
    pytest.param([WRONG, OTHER, "no such tool", "bad seed"] * 100, 200, id="four reasons in turn"),
    pytest.param(([OTHER] * 3 + [WRONG] * 37) * 100, 200, id="another reason three times in forty"),
    pytest.param(each(1000, a_word), 200, id="each row for a reason of its own"),
    pytest.param(([WRONG, OTHER] * 99 + [WRONG, GOOD]) * 50, None, id="two reasons, and one in 200 is answered"),
    # Rows that are bad, in a job that is not.
    pytest.param([], None, id="nothing"),
    pytest.param([WRONG] * 39, None, id="a small job, all wrong"),
    pytest.param([WRONG] * 39 + [GOOD] * 10, None, id="nearly forty wrong and then none"),
    pytest.param([GOOD] * 3 + [WRONG] * 36 + [GOOD] * 1000, None, id="36 of 39"),
    pytest.param([WRONG] * 30 + [GOOD] * 10_000, None, id="a sorted file: thirty rows too long, then none"),
    pytest.param([GOOD] * 1000 + [WRONG] * 189 + [GOOD] * 1000, None, id="a bad stretch that ends"),
    pytest.param(([GOOD] * 9 + [WRONG]) * 1000, None, id="a bad row in ten"),
    pytest.param(([WRONG] + [GOOD] * 9) * 1000, None, id="a bad row in ten, the first"),
    pytest.param([GOOD, WRONG] * 5000, None, id="every other row is bad"),
    pytest.param(([GOOD] + [WRONG] * 9) * 1000, None, id="nine bad rows in ten"),
    # One reason in many words.
    pytest.param(each(99, lambda d: f"Given: {d.randrange(10**6)} tokens"), 40, id="a number of its own in each"),
    pytest.param(each(99, lambda d: f"request {an_id(d)} is invalid"), 40, id="a UUID of its own in each"),
    pytest.param(each(99, lambda d: f"{d.getrandbits(64):016x} is invalid"), 40, id="hex of its own in each"),
    pytest.param(each(99, lambda d: f"unknown tool '{a_word(d)}'"), 40, id="a quoted word of its own in each"),
    pytest.param(each(99, lambda d: f'unknown tool "{a_word(d)} {a_word(d)}" here'), 40, id="a quotation in each"),
]


@pytest.mark.parametrize(("outcomes", "expected"), SITUATIONS)
def test_a_job_is_hopeless_when_nearly_every_row_is_wrong_for_one_reason(outcomes: list[str], expected: int | None):
    assert parks_at(outcomes) == expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("bad", [1, 10, 50])
def test_half_of_the_rows_may_be_wrong_in_any_order(bad: int, seed: int):
    assert parks_at(shuffled(seed, (GOOD, 10_000 - 100 * bad), (WRONG, 100 * bad))) is None


@pytest.mark.parametrize("seed", range(20))
def test_97_wrong_in_a_hundred_park_in_any_order_within_two_windows(seed: int):
    at = parks_at(shuffled(seed, (GOOD, 300), (WRONG, 9700)))
    assert at is not None
    assert FIRST_OUTCOMES <= at <= 2 * LATER_WINDOW


@pytest.mark.parametrize("seed", range(20))
def test_38_wrong_of_40_park_in_any_order_at_the_latest_with_the_next_wrong_one(seed: int):
    at = parks_at([*shuffled(seed, (GOOD, 2), (WRONG, 38)), WRONG])
    assert at in (40, 41)


@pytest.mark.parametrize("seed", range(20))
def test_a_job_gone_wrong_late_parks_within_a_window(seed: int):
    begun = shuffled(seed, (GOOD, 9500), (WRONG, 500))
    at = parks_at([*begun, *[WRONG] * LATER_WINDOW])
    assert at is not None
    assert len(begun) < at <= len(begun) + LATER_WINDOW


def odds(share: float, of: int) -> float:
    """How likely a job with this share of bad rows, in random order, looks hopeless at the n-th outcome."""
    return sum(
        comb(of, bad) * share**bad * (1 - share) ** (of - bad) for bad in range(of + 1) if bad >= HOPELESS_SHARE * of
    )


@pytest.mark.parametrize(
    ("share", "of", "least", "most"),
    [
        (0.1, FIRST_OUTCOMES, 0.0, 1e-30),
        (0.5, FIRST_OUTCOMES, 0.0, 1e-9),
        (0.75, FIRST_OUTCOMES, 0.0, 2e-3),
        (0.9, FIRST_OUTCOMES, 0.1, 0.3),  # nearly every row: either is right
        (0.99, FIRST_OUTCOMES, 0.99, 1.0),
        (0.75, LATER_WINDOW, 0.0, 1e-12),
        (0.99, LATER_WINDOW, 0.999, 1.0),
    ],
)
def test_chance_hardly_ever_parks_a_job_worth_running(share: float, of: int, least: float, most: float):
    assert least <= odds(share, of) <= most


# --- what comes back first -------------------------------------------------------------------------------------------


def parks_in_flight(bad: float, *, in_flight: int, calls: int = 3000, again: float = 0.0) -> int | None:
    """How many calls had started when it parked. Refusals take 50 ms, answers 5 s or so, as many at a time as given.

    `again` is the share of calls that bring nothing (a 429, say), so that their rows go again.
    """
    gate, dice = Gate(), random.Random(int(bad * 1000) + in_flight)
    out: list[tuple[float, int, str | None]] = []
    now, started = 0.0, 0
    while out or started < calls:
        while len(out) < in_flight and started < calls:
            started += 1
            outcome = None if dice.random() < again else WRONG if dice.random() < bad else GOOD
            seconds = dice.uniform(2, 8) if outcome == GOOD else dice.uniform(0.04, 0.06)
            heapq.heappush(out, (now + seconds, gate.started(), outcome))
        now, call, outcome = heapq.heappop(out)
        if outcome == GOOD:
            gate.answered(call)
        elif outcome and gate.rejected(Fault.BAD_REQUEST, outcome, call) is not None:
            return started
        gate.ended(call)
    return None


@pytest.mark.parametrize("in_flight", [1, 4, 40, 500, 2000])
@pytest.mark.parametrize("bad", [0.1, 0.25, 0.5])
def test_bad_rows_do_not_park_a_job_because_refusals_come_back_before_answers(bad: float, in_flight: int):
    assert parks_in_flight(bad, in_flight=in_flight) is None
    assert parks_in_flight(bad, in_flight=in_flight, again=0.5) is None


@pytest.mark.parametrize("in_flight", [1, 4, 40, 500, 2000])
def test_a_job_that_is_all_wrong_parks_once_the_calls_in_flight_came_back(in_flight: int):
    started = parks_in_flight(1.0, in_flight=in_flight)
    assert started is not None
    assert started < 2 * in_flight + FIRST_OUTCOMES


@pytest.mark.parametrize(
    ("answered", "rejected", "parks"),
    [
        (9000, 1000, False),
        (5000, 5000, False),
        (1000, 9000, False),
        (300, 9700, True),
        (0, 10_000, True),
        (0, 40, True),
        (0, 39, False),
        (3, 37, False),
        (0, 0, False),
        (10_000, 0, False),
    ],
)
def test_a_batch_is_judged_by_its_shares_whatever_is_told_first(answered: int, rejected: int, *, parks: bool):
    gate = Gate()
    told = [(Fault.BAD_REQUEST, WRONG)] * min(rejected, 400)
    assert (gate.took_in(answered, rejected, told) is not None) is parks


def test_batch_after_batch_is_judged_like_one():
    gate = Gate()
    said = [gate.took_in(0, 15, [(Fault.BAD_REQUEST, WRONG)] * 15) is not None for _ in range(3)]
    assert said == [False, False, True]
    assert gate.took_in(200, 0, []) is None
    assert gate.rejected(Fault.BAD_REQUEST, WRONG) is None


def test_calls_that_bring_no_outcome_do_not_keep_a_hopeless_job_going():
    started = parks_in_flight(1.0, in_flight=4, again=0.7)
    assert started is not None
    assert started < 8 * FIRST_OUTCOMES


def test_a_call_that_is_still_out_counts_as_answered_and_a_late_refusal_counts_where_it_started():
    gate = Gate()
    calls = [gate.started() for _ in range(FIRST_OUTCOMES)]
    said = [gate.rejected(Fault.BAD_REQUEST, WRONG, call) for call in reversed(calls)]
    assert said[:37] == [None] * 37
    assert None not in said[37:]


def test_a_refusal_older_than_the_window_tells_nothing_any_more():
    gate = Gate()
    late = gate.started()
    for _ in range(LATER_WINDOW):
        gate.answered(gate.started())
    assert gate.rejected(Fault.BAD_REQUEST, WRONG, late) is None
    gate.ended(late)
    assert not gate._reasons


def test_memory_is_the_window_and_the_calls_in_flight():
    gate = Gate()
    for number in range(5000):
        gate.rejected(Fault.BAD_REQUEST, a_word(random.Random(number)), gate.started())
    assert (len(gate._window), len(gate._ahead), len(gate._reasons)) == (LATER_WINDOW, 0, LATER_WINDOW)


def test_an_answer_never_parks():
    gate = Gate()
    for _ in range(FIRST_OUTCOMES - 1):
        gate.rejected(Fault.BAD_REQUEST, WRONG)
    gate.answered()
    assert gate.rejected(Fault.BAD_REQUEST, OTHER) is None


# --- what the same reason is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Given: 80125 tokens and 4096", "Given: 9 tokens and 12", True),
        ("value … is not allowed", "value 5 is not allowed", True),
        ("value abc… is not allowed", "value …xyz is not allowed", True),
        ("x" * 80 + "one", "x" * 80 + "other", True),
        ("1" * 300 + " is too much", "2 is too much", True),
        ("0.5 is too much", "-1 is too much", True),
        ("tokens [1, 22, 333] are banned", "tokens [4] are banned", True),
        ("no model called 'a/b'", "no model called 'c'", True),
        ("the word 'don't' is banned", "the word 'do' is banned", True),
        ('he said "one two', 'he said "three', True),
        ("`seed` must be a number", "`stop` must be a number", True),
        ("request o3LiXw4-2kFHot-99 failed", "request p-1 failed", True),
        ("request deadbeefcafe failed", "request 00ff00ff00ff failed", True),
        ("the model's context is small", "the user's context is small", False),
        ("temperature is too high", "temperature is too low", False),
        ("", "HTTP status 400", False),
    ],
)
def test_numbers_ids_and_quotations_do_not_make_a_reason_of_their_own(one: str, other: str, *, same: bool):
    assert (shape(Fault.BAD_REQUEST, one) == shape(Fault.BAD_REQUEST, other)) is same


def test_the_same_sentence_under_two_faults_is_two_reasons():
    assert shape(Fault.BAD_REQUEST, WRONG) != shape(Fault.TOO_LONG, WRONG)
    gate = Gate()
    for number in range(LATER_WINDOW - 1):
        assert gate.rejected(Fault.BAD_REQUEST if number % 2 else Fault.TOO_LONG, WRONG) is None
