"""Money: prices read exactly, costs counted, and a bound that is one."""

from __future__ import annotations

import random

import pytest

from batchrun.records import Endpoint, Price, Request, Usage
from batchrun.rules.money import NANO, Tariff, cost, nano, price, upper_bound, usd

PRICE = Price(input=1200, output=4500, cached=200)


def request(body: bytes = b"x" * 100, max_tokens: int | None = 50, n: int = 1) -> Request:
    return Request(0, b"d" * 16, Endpoint.CHAT, "m", body, max_tokens, n)


@pytest.mark.parametrize(
    ("usd_per_million", "nano_a_token"),
    [
        (0.88, 880),
        (0.05, 50),
        (0.0, 0),
        (1.04, 1040),
        (0.3, 300),
        (0.1, 100),
        (0.29, 290),
        (1.74, 1740),
        (0.0001, 1),
        (0.00005, 1),
        (0.0015, 2),
        (0.2049, 205),
        (2, 2000),
        (75.0, 75_000),
    ],
)
def test_a_price_list_becomes_nano_dollars_a_token_rounded_up(usd_per_million: float, nano_a_token: int):
    assert price(usd_per_million, 0.0).input == nano_a_token
    assert price(0.0, usd_per_million).output == nano_a_token
    assert price(0.0, 0.0, usd_per_million).cached == nano_a_token


def test_every_price_in_cents_is_read_without_a_binary_remainder():
    for cents in range(10_000):
        assert price(cents / 100, cents / 100) == Price(cents * 10, cents * 10)


@pytest.mark.parametrize("dollars", [0.0, 0.01, 0.1, 1.1, 2.5, 1000.0, 12_345.678901234])
def test_dollars_there_and_back(dollars: float):
    assert usd(nano(dollars)) == pytest.approx(dollars, abs=1 / NANO)


@pytest.mark.parametrize(
    ("usage", "known", "expected"),
    [
        (Usage(10, 5), Price(2, 3), 35),
        (Usage(10, 5, 4), Price(2, 3), 35),
        (Usage(10, 5, 4), Price(2, 3, 1), 31),
        (Usage(10, 5, 10), Price(2, 3, 1), 25),
        (Usage(10, 5, 999), Price(2, 3, 1), 25),
        (Usage(10, 5, 4), Price(2, 3, 0), 27),
        (Usage(0, 0), Price(2, 3), 0),
        (Usage(2**61, 1), Price(2, 3), 2**62 + 3),
        (None, Price(2, 3), None),
        (Usage(10, 5), None, None),
        (None, None, None),
    ],
)
def test_the_cost_of_a_reply(usage: Usage | None, known: Price | None, expected: int | None):
    assert cost(usage, known) == expected


def test_the_upper_bound_by_hand():
    assert upper_bound(request(), PRICE, None) == 100 * 1200 + 50 * 4500
    assert upper_bound(request(n=3), PRICE, None) == 100 * 1200 + 3 * 50 * 4500
    assert upper_bound(request(max_tokens=None), PRICE, 1000) == 100 * 1200 + 1000 * 4500
    assert upper_bound(request(max_tokens=50), PRICE, 10) == 100 * 1200 + 50 * 4500
    assert upper_bound(request(max_tokens=0), PRICE, None) == 100 * 1200
    assert upper_bound(request(max_tokens=None), PRICE, None) is None


def test_no_reply_costs_more_than_its_upper_bound():
    dice = random.Random(20)
    for _ in range(5000):
        body = bytes(dice.randrange(1, 3000))
        context = dice.choice([None, dice.randrange(1, 200_000)])
        max_tokens = dice.choice([None, dice.randrange(200_000)])
        asked = request(body, max_tokens, dice.randrange(1, 6))
        known = Price(dice.randrange(5000), dice.randrange(20_000), dice.choice([None, dice.randrange(5000)]))
        most = upper_bound(asked, known, context)
        if max_tokens is None and context is None:
            assert most is None
            continue
        longest = max_tokens if max_tokens is not None else context or 0
        prompt_tokens = dice.choice([len(body), dice.randrange(len(body) + 1)])
        completion_tokens = asked.n * dice.choice([longest, dice.randrange(longest + 1)])
        paid = cost(Usage(prompt_tokens, completion_tokens, dice.randrange(prompt_tokens + 1)), known)
        assert paid is not None
        assert most is not None
        assert paid <= most


def test_a_tariff_knows_what_it_was_told():
    tariff = Tariff({"m": PRICE}, {"m": 1000})
    assert tariff.cost("m", Usage(10, 5)) == 10 * 1200 + 5 * 4500
    assert tariff.upper_bound(request()) == upper_bound(request(), PRICE, 1000)
    assert tariff.upper_bound(request(max_tokens=None)) == upper_bound(request(max_tokens=None), PRICE, 1000)


def test_what_a_tariff_does_not_know_stays_unknown_and_is_never_zero():
    assert Tariff().cost("m", Usage(10, 5)) is None
    assert Tariff().upper_bound(request()) is None
    assert Tariff({"m": PRICE}).cost("m", None) is None
    assert Tariff({"m": PRICE}).cost("M", Usage(10, 5)) is None
    assert Tariff({"m": PRICE}).upper_bound(request(max_tokens=None)) is None
    assert Tariff({}, {"m": 1000}).upper_bound(request(max_tokens=None)) is None
