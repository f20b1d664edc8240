"""Estimates: sums that come close once replies are seen, honest guesses before, and never a cost out of nothing."""

from __future__ import annotations

import math
import random

import pytest

from batchrun.records import Price
from batchrun.rules.estimate import Basis, Estimate, Gauge, Load, Spread, cost, one_reply, tokens


def gauge_of(replies: list[tuple[int, int, int]]) -> Gauge:
    gauge = Gauge()
    for size, tokens_in, out in replies:
        gauge = gauge + Gauge(*one_reply(size, tokens_in, out))
    return gauge


def test_loads_add_up():
    one, other = Load(1, 100, 50, 0, 0), Load(2, 10, 0, 2, 1)
    assert one + other == Load(3, 110, 50, 2, 1)
    assert one + Load() == one


def test_a_load_is_scaled_to_the_rows_left():
    load = Load(1000, 80_000, 64_000, 100, 10)
    assert load.scaled(500) == Load(500, 40_000, 32_000, 50, 5)
    assert load.scaled(1000) == load
    assert load.scaled(0) == Load()
    assert Load().scaled(0) == Load().scaled(5) == Load()
    assert Load(3, 30_000_000, 0, 3, 3).scaled(1).oversized == 1


def test_gauges_add_up_reply_by_reply():
    assert Gauge(*one_reply(100, 30, 7)) == Gauge(1, 100, 30, 10_000, 3_000, 7, 49)
    replies = [(100, 30, 7), (200, 55, 9), (50, 20, 1)]
    assert gauge_of(replies) == gauge_of(replies[:1]) + gauge_of(replies[1:])


def test_nothing_observed_is_a_guess_by_bytes_and_max_tokens():
    guess = tokens(Load(10, 12_000, 1_000))
    assert guess == Estimate(Spread(2_000, 3_000, 6_000), Spread(100, 500, 1_000), Basis.GUESSED)


def test_nothing_observed_and_no_max_tokens_is_a_guess_a_choice():
    assert tokens(Load(10, 12_000, 0, 10)).completion == Spread(1_000, 4_000, 40_000)
    mixed = tokens(Load(10, 12_000, 1_000, 5))
    assert mixed.completion == Spread(100 + 500, 500 + 2_000, 1_000 + 20_000)
    assert mixed.basis is Basis.GUESSED


def test_nineteen_replies_are_a_guess_and_twenty_an_observation():
    replies = [(400, 100, 20)] * 20
    load = Load(100, 40_000, 25_600)
    early, enough = tokens(load, gauge_of(replies[:19])), tokens(load, gauge_of(replies))
    assert early.basis is Basis.GUESSED
    assert early.completion == tokens(load).completion
    assert enough.basis is Basis.OBSERVED
    assert enough.completion.likely == 2_000


def test_a_few_replies_already_tell_how_many_bytes_make_a_token():
    assert tokens(Load(100, 40_000, 25_600), gauge_of([(400, 200, 20)])).prompt.likely == 20_000


def test_a_line_is_found_where_sizes_differ():
    """A template of 30 tokens a row, then 5 bytes a token: rows ten times as long are not ten times as many tokens."""
    gauge = gauge_of([(size, 30 + size // 5, 10) for size in range(100, 1100, 10)])
    assert tokens(Load(10, 100_000, 1_000), gauge).prompt.likely == pytest.approx(10 * 30 + 20_000, rel=0.001)


def test_one_size_is_a_ratio():
    assert tokens(Load(10, 8_000, 1_000), gauge_of([(400, 100, 5)] * 50)).prompt.likely == pytest.approx(2_000)


@pytest.mark.parametrize(
    "replies",
    [
        [(size, 1_000 - size // 2, 5) for size in range(100, 1000, 10)],  # longer is fewer
        [(size, max(0, size // 2 - 200), 5) for size in range(500, 1000, 10)],  # nothing is less than nothing
        [(size, 3 * size, 5) for size in range(100, 1000, 10)],  # pictures: more tokens than bytes
    ],
    ids=["falling", "negative", "steep"],
)
def test_a_line_that_makes_no_sense_is_dropped_for_the_ratio(replies: list[tuple[int, int, int]]):
    gauge = gauge_of(replies)
    likely = tokens(Load(10, 5_000, 100), gauge).prompt.likely
    assert likely == pytest.approx(5_000 * gauge.prompt_tokens / gauge.bytes)


def test_the_spread_narrows_with_observations():
    dice = random.Random(3)
    load = Load(100_000, 50_000_000, 51_200_000)
    seen: list[tuple[int, int, int]] = []
    widths = []
    for replies in (20, 200, 2_000, 20_000):
        while len(seen) < replies:
            size = dice.randrange(200, 800)
            seen.append((size, 20 + size // 4, dice.randrange(50, 150)))
        found = tokens(load, gauge_of(seen))
        widths.append(tuple((each.high - each.low) / each.likely for each in (found.prompt, found.completion)))
    for of_prompt_or_completion in zip(*widths, strict=True):
        assert list(of_prompt_or_completion) == sorted(of_prompt_or_completion, reverse=True)
    assert max(widths[-1]) < 0.05


def test_the_spread_widens_away_from_the_sizes_that_were_seen():
    gauge = gauge_of([(size, 10 + size // 4, 5) for size in range(300, 500, 5)])
    near, far = (tokens(Load(100, 100 * size, 100_000), gauge).prompt for size in (400, 4_000))
    assert (far.high - far.low) / far.likely > 2 * (near.high - near.low) / near.likely


def test_sums_come_close():
    """400 corpora: what a tenth of the rows told holds for the rest, within the spread nearly always."""
    dice = random.Random(11)
    inside = {"prompt": 0, "completion": 0}
    for _ in range(400):
        template, per, mean = dice.randrange(40), dice.uniform(2.5, 6), dice.uniform(20, 400)
        rows = []
        for _ in range(2_200):
            size = int(dice.lognormvariate(6, 0.7)) + 80
            out = min(512, int(dice.expovariate(1 / mean)) + 1)
            rows.append((size, int((template + size / per) * dice.lognormvariate(0, 0.15)), out))
        seen, left = rows[:200], rows[200:]
        found = tokens(Load(len(left), sum(r[0] for r in left), 512 * len(left)), gauge_of(seen))
        inside["prompt"] += found.prompt.low <= sum(r[1] for r in left) <= found.prompt.high
        inside["completion"] += found.completion.low <= sum(r[2] for r in left) <= found.completion.high
    assert min(inside.values()) >= 0.93 * 400, inside


def test_high_is_never_above_what_max_tokens_allows():
    gauge = gauge_of([(400, 100, 500)] * 30)
    assert tokens(Load(10, 4_000, 1_000), gauge).completion == Spread(1_000, 1_000, 1_000)
    assert tokens(Load(10, 4_000, 0, 10), gauge).completion.likely == 5_000


def test_no_rows_take_no_tokens():
    nothing = Spread(0, 0, 0)
    for gauge in (None, Gauge(), gauge_of([(400, 100, 5)] * 30)):
        found = tokens(Load(), gauge)
        assert (found.prompt, found.completion) == (nothing, nothing)


def test_estimates_are_always_in_order_and_finite():
    dice = random.Random(7)
    for _ in range(3000):
        rows = dice.choice([0, 1, 2, 10, 1_000_000])
        named = dice.randrange(rows + 1)
        load = Load(
            rows, rows * dice.randrange(2, 3000), named * dice.randrange(5000), (rows - named) * dice.randrange(1, 4)
        )
        seen = [
            (dice.randrange(2, 3000), dice.randrange(3000), dice.randrange(5000))
            for _ in range(dice.choice([0, 1, 19, 20, 60]))
        ]
        found = tokens(load, gauge_of(seen))
        for each in (found.prompt, found.completion):
            assert 0 <= each.low <= each.likely <= each.high
            assert math.isfinite(each.high)
        if not load.open_ended:
            assert found.completion.high <= load.max_tokens


def test_the_cost_of_an_estimate():
    estimate = Estimate(Spread(10, 20, 40), Spread(1, 2, 4), Basis.GUESSED)
    assert cost(estimate, Price(2, 3)) == Spread(23, 46, 92)
    assert cost(estimate, Price(2, 3), 0.5) == Spread(11.5, 23, 46)
    assert cost(estimate, Price(2, 3, cached=0)) == cost(estimate, Price(2, 3))
    assert cost(estimate, Price(0, 0)) == Spread(0, 0, 0)


def test_an_unknown_price_is_no_cost_and_never_zero():
    assert cost(tokens(Load(10, 1_000, 100)), None) is None
    assert cost(tokens(Load()), None, 0.5) is None
