"""How long to stay away, how fast one may go, and which models there are at what price."""

from __future__ import annotations

import random
from email.utils import formatdate
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict

from batchrun.api import wire
from batchrun.api.wire import ModelInfo
from batchrun.records import Price

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0"}, 0.0),
        ({"retry-after-ms": "250.5", "retry-after": "9", "x-ratelimit-reset": "8"}, 0.2505),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"Retry-After": "9"}, 9.0),
        ({"RETRY-AFTER": " 9 "}, 9.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "9s"}, 9.0),
        ({"retry-after": "1e2"}, 100.0),
        ({"retry-after": "9", "x-ratelimit-reset": "8"}, 9.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:10 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 01:00:10 +0100"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:10"}, 10.0),
        ({"retry-after": "Thursday, 01-Jan-26 00:00:10 GMT"}, 10.0),
        ({"retry-after": "Thu Jan  1 00:00:10 2026"}, 10.0),
        ({"retry-after": str(int(NOW) + 20)}, 20.0),
        ({"x-ratelimit-reset": "2"}, 2.0),
        ({"x-ratelimit-reset": "0.031"}, 0.031),
        ({"x-ratelimit-reset": "2s"}, 2.0),
        ({"x-ratelimit-reset": str(NOW + 12.5)}, 12.5),
        ({"x-ratelimit-reset": str(NOW - 12.5)}, 0.0),
        ({"x-ratelimit-reset": str(int(NOW * 1000) + 12_500)}, 12.5),
        ({"retry-after": "later", "x-ratelimit-reset": "3"}, 3.0),
        ({"retry-after": "-5", "x-ratelimit-reset": "3"}, 3.0),
        *[
            ({name: value}, None)
            for name in ("retry-after-ms", "retry-after", "x-ratelimit-reset")
            for value in ("", " ", "later", "-1", "-0.5", "nan", "inf", "-inf", "1e999", "1m30s", "0x10", "5, 6", "s")
        ],
        ({"retry-after": "1 Jan 99999999999999999999 00:00:00 +0000"}, None),
        ({"retry-after": "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2026 00:00:00 +99999999999999999999"}, None),
        ({"retry-after": "Mon, 99 Jan 2026 00:00:00 GMT"}, None),
    ],
)
def test_how_long_the_server_asks_to_wait(headers: dict[str, str], expected: float | None):
    got = wire.wait_seconds(CIMultiDict(headers), NOW)
    assert got == (expected if expected is None else pytest.approx(expected, abs=1e-6))


def test_no_header_of_any_server_breaks_the_reading_of_a_wait():
    dice = random.Random(3)
    words = ["Mon,", "01", "Jan", "2026", "00:00:00", "GMT", "+0100", "99999999999", "-", ":", ",", "(", "é", "\x01"]
    for _ in range(5000):
        value = dice.choice([" ", ""]).join(dice.choices(words, k=dice.randrange(8)))
        waits = [wire.wait_seconds({name: value}, NOW) for name in ("retry-after", "x-ratelimit-reset")]
        assert all(wait is None or wait >= 0 for wait in waits), value


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (None, None)),
        ({"x-ratelimit-limit": "10"}, (10.0, None)),
        ({"x-tokenlimit-limit": "5000"}, (None, 5000.0)),
        ({"X-RateLimit-Limit": "10", "X-RateLimit-Limit-Dynamic": "2.5"}, (2.5, None)),
        ({"x-tokenlimit-limit": "10", "x-tokenlimit-limit-dynamic": "20"}, (None, 20.0)),
        ({"x-ratelimit-limit": "10", "x-ratelimit-limit-dynamic": ""}, (10.0, None)),
        ({"x-ratelimit-limit": "0"}, (None, None)),
        ({"x-ratelimit-limit": "-3", "x-tokenlimit-limit": "nan"}, (None, None)),
        ({"x-ratelimit-limit": "many", "x-tokenlimit-limit": "inf"}, (None, None)),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1"}, (None, None)),
    ],
)
def test_how_fast_the_server_lets_us_go(headers: dict[str, str], expected: tuple[float | None, float | None]):
    assert wire.limits(CIMultiDict(headers)) == expected


FULL = {
    "id": "moonshotai/Kimi-K2.6",
    "object": "model",
    "type": "chat",
    "context_length": 262_144,
    "pricing": {"hourly": 0, "input": 1.2, "output": 4.5, "base": 0, "finetune": 0, "cached_input": 0.2},
}


@pytest.mark.parametrize("wrapped", [[FULL], {"data": [FULL]}, {"object": "list", "data": [FULL]}])
def test_models_come_as_a_bare_array_or_inside_data(wrapped: Any):
    expected = ModelInfo("moonshotai/Kimi-K2.6", "chat", 262_144, Price(1200, 4500, 200))
    assert wire.models(msgspec.json.encode(wrapped)) == [expected]


@pytest.mark.parametrize(
    "body", [b"", b"null", b"5", b'"x"', b"{}", b'{"data":null}', b'{"data":{}}', b"<html>", b"[" * 100_000, b"\xff"]
)
def test_what_is_no_model_list_is_none(body: bytes):
    assert wire.models(body) is None


def test_items_that_are_no_models_are_left_out():
    listed = wire.models(msgspec.json.encode([None, 5, "m", [], {}, {"id": None}, {"id": 5}, {"id": "m"}]))
    assert listed == [ModelInfo("m", "", None, None)]


@pytest.mark.parametrize("context", [None, 0, -1, "4096", 4096.0, True, 10**30])
def test_a_context_that_is_no_length_is_unknown(context: Any):
    listed = wire.models(msgspec.json.encode([FULL | {"context_length": context}]))
    assert listed is not None
    assert listed[0].context is None


@pytest.mark.parametrize(
    ("pricing", "expected"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"input": 0, "output": 0}, None),
        ({"input": 0.0, "output": 0.0, "cached_input": 0.1}, None),
        ({"input": 0.3}, None),
        ({"output": 0.3}, None),
        ({"input": None, "output": 0.3}, None),
        ({"input": "0.3", "output": "0.3"}, None),
        ({"input": -0.3, "output": 0.3}, None),
        ({"input": 10**400, "output": 0.3}, None),
        ({"input": 1e300, "output": 0.3}, None),
        ({"input": 0.02, "output": 0}, Price(20, 0)),
        ({"input": 0, "output": 0.2}, Price(0, 200)),
        ({"input": 0.88, "output": 0.88}, Price(880, 880)),
        ({"input": 1, "output": 2}, Price(1000, 2000)),
        ({"input": 0.3, "output": 1.2, "cached_input": 0}, Price(300, 1200)),
        ({"input": 0.3, "output": 1.2, "cached_input": None}, Price(300, 1200)),
        ({"input": 0.3, "output": 1.2, "cached_input": "free"}, Price(300, 1200)),
        ({"input": 0.3, "output": 1.2, "cached_input": 0.06}, Price(300, 1200, 60)),
    ],
)
def test_a_price_is_known_or_unknown_and_never_zero_by_mistake(pricing: Any, expected: Price | None):
    item = msgspec.json.encode(FULL["id"]), msgspec.json.encode(pricing)
    listed = wire.models(b'[{"id":%b,"pricing":%b}]' % item)
    assert listed == [ModelInfo("moonshotai/Kimi-K2.6", "", None, expected)]


@pytest.mark.parametrize(
    ("pricing", "expected"),
    [
        (None, None),
        ({}, None),
        ({"hourly": 0}, None),
        ({"hourly": -1}, None),
        ({"hourly": True}, None),
        ({"hourly": "2.4"}, None),
        ({"hourly": 1e300}, None),
        ({"hourly": 2}, 2.0),
        ({"hourly": 2.4, "input": 0, "output": 0}, 2.4),
        ({"hourly": 2.4, "input": 0.3, "output": 0.3}, 2.4),
    ],
)
def test_an_hourly_price_is_a_price_or_unknown(pricing: Any, expected: float | None):
    listed = wire.models(msgspec.json.encode([FULL | {"pricing": pricing}]))
    assert listed is not None
    assert listed[0].hourly == expected


def test_a_model_sold_by_the_hour_alone_has_no_price_by_the_token():
    listed = wire.models(msgspec.json.encode([FULL | {"pricing": {"hourly": 2.4, "input": 0, "output": 0}}]))
    assert listed == [ModelInfo("moonshotai/Kimi-K2.6", "chat", 262_144, None, 2.4)]
