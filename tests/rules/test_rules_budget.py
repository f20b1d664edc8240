"""What people are told about budgets: enough is enough, and a --max-tokens that answers fit into."""

from __future__ import annotations

import math
import random

import pytest

from batchrun.rules import budget
from batchrun.rules.estimate import Gauge, one_reply
from batchrun.rules.money import nano

CENT = nano(0.01)


def test_enough_is_what_is_spent_the_dearest_end_and_room_for_calls_in_whole_cents() -> None:
    assert budget.enough(nano(0.5), nano(3.0), nano(0.001), nano(0.001)) == nano(3.57)  # 64 calls are little beside 3
    assert budget.enough(nano(0.5), nano(3.0), nano(0.1), nano(0.1)) == nano(
        4.25
    )  # but never more than a quarter of it
    assert budget.enough(nano(0.5), nano(3.0), nano(18), nano(0.1)) == nano(21.5)  # the call that did not fit does now
    assert budget.enough(0, 0, 0, 0) == 0
    assert budget.enough(1, 0, 0, 0) == CENT


def test_enough_is_never_less_than_the_parts_it_is_made_of() -> None:
    dice = random.Random(5)
    for _ in range(2_000):
        spent, left, bound, mean = (dice.randrange(10**12) for _ in range(4))
        enough = budget.enough(spent, left, bound, mean)
        assert enough >= spent + left + bound
        assert enough % CENT == 0
        assert enough <= spent + left + max(bound, left // 4) + CENT


def gauge_of(*completions: int) -> Gauge:
    total = Gauge()
    for tokens in completions:
        total += Gauge(*one_reply(100, 25, tokens))
    return total


@pytest.mark.parametrize(
    ("seen", "suggested"),
    [
        (None, 4096),  # nothing seen: the high guess, rounded up
        (gauge_of(*[50] * 5), 4096),  # five replies tell nothing
        (gauge_of(*[50] * 30), 256),  # short ones: never below the least
        (gauge_of(*[1000] * 30), 1024),
        (gauge_of(*[1025] * 30), 2048),
        (gauge_of(*[200, 1800] * 30), 8192),  # 1,000 and six times 800
        (gauge_of(*[60_000] * 30), 65_536),
        (gauge_of(*[200_000] * 30), 65_536),
    ],
)
def test_a_suggested_max_tokens_is_a_power_of_two_well_above_what_was_seen(seen: Gauge | None, suggested: int) -> None:
    found = budget.max_tokens(seen)
    assert found == suggested
    assert math.log2(found).is_integer()
