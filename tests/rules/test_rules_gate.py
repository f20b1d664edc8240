"""When a job is hopeless: a table of runs, each a row of outcomes, and the outcome at which it parks (None: never)."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from batchrun.records import Fault
from batchrun.rules.gate import FIRST_OUTCOMES, LATER_WINDOW, Gate, shape

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


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([WRONG] * 10_000, 40, id="all wrong"),
        pytest.param([WRONG] * 39, None, id="a small job, all wrong"),
        pytest.param([WRONG] * 39 + [GOOD] * 10, None, id="nearly forty wrong and then none"),
        pytest.param([GOOD] * 2 + [WRONG] * 38, 40, id="38 of 40, the good ones first"),
        pytest.param([WRONG] * 38 + [GOOD] * 2 + [WRONG], 41, id="38 of 40, the good ones last"),
        pytest.param([WRONG] * 39 + [OTHER] + [WRONG], 41, id="the fortieth is wrong for another reason"),
        pytest.param([GOOD] * 3 + [WRONG] * 36 + [GOOD] * 1000, None, id="36 of 39"),
        pytest.param([GOOD] * 3 + [WRONG] * 1000, 60, id="the first rows are fine and no other"),
        pytest.param([GOOD] * 1000 + [WRONG] * 1000, 1190, id="a good beginning and then all wrong"),
        pytest.param([GOOD] * 1000 + [WRONG] * 189 + [GOOD] * 1000, None, id="a bad stretch that ends"),
        pytest.param(([GOOD] * 9 + [WRONG]) * 1000, None, id="a bad row in ten"),
        pytest.param(([GOOD] + [WRONG] * 9) * 1000, None, id="nine bad rows in ten"),
        pytest.param([WRONG, OTHER] * 1000, None, id="two reasons, half and half"),
        pytest.param(([WRONG] * 47 + [OTHER] * 3) * 100, 40, id="one reason and now and then another"),
        pytest.param(([OTHER] * 3 + [WRONG] * 37) * 100, None, id="another reason three times in forty"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_a_job_is_hopeless_when_nearly_every_row_is_wrong_for_one_reason(outcomes: list[str], expected: int | None):
    assert parks_at(outcomes) == expected


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_rows_may_be_wrong_in_any_order(seed: int):
    assert parks_at(shuffled(seed, (GOOD, 1000), (WRONG, 1000))) is None


@pytest.mark.parametrize("seed", range(20))
def test_38_wrong_of_40_park_in_any_order_at_the_latest_with_the_next_wrong_one(seed: int):
    at = parks_at([*shuffled(seed, (GOOD, 2), (WRONG, 38)), WRONG])
    assert at in (40, 41)


@pytest.mark.parametrize("seed", range(20))
def test_a_job_gone_wrong_late_parks_within_a_window(seed: int):
    begun = shuffled(seed, (GOOD, 3000), (WRONG, 500))
    at = parks_at([*begun, *[WRONG] * LATER_WINDOW])
    assert at is not None
    assert len(begun) < at <= len(begun) + LATER_WINDOW


def test_an_answer_never_parks():
    gate = Gate()
    for _ in range(FIRST_OUTCOMES - 1):
        gate.rejected(Fault.BAD_REQUEST, WRONG)
    gate.answered()
    assert gate.rejected(Fault.BAD_REQUEST, OTHER) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Given: 80125 tokens and 4096", "Given: 9 tokens and 12", True),
        ("value … is not allowed", "value 5 is not allowed", True),
        ("x" * 80 + "one", "x" * 80 + "other", True),
        ("1" * 300 + " is too much", "2 is too much", True),
        ("temperature is too high", "temperature is too low", False),
        ("", "HTTP status 400", False),
    ],
)
def test_numbers_and_quotations_do_not_make_a_reason_of_their_own(one: str, other: str, *, same: bool):
    assert (shape(Fault.BAD_REQUEST, one) == shape(Fault.BAD_REQUEST, other)) is same


def test_the_same_sentence_under_two_faults_is_two_reasons():
    assert shape(Fault.BAD_REQUEST, WRONG) != shape(Fault.TOO_LONG, WRONG)
    gate = Gate()
    for number in range(1000):
        assert gate.rejected(Fault.BAD_REQUEST if number % 2 else Fault.TOO_LONG, WRONG) is None
