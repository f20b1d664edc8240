"""A plan as people read it, whole, and as JSON."""

from __future__ import annotations

import json
import random
from typing import Any

from batchrun.faces.plan import as_json, text
from batchrun.records import Endpoint, Price, Route
from batchrun.rules.estimate import Gauge, Load, one_reply, tokens
from batchrun.rules.route import Part, Plan, choose
from batchrun.rules.ways import Situation

LLAMA = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
SEEN = Gauge()
for out in (90, 100, 110) * 100:
    SEEN = SEEN + Gauge(*one_reply(800, 200, out))


def part(model: str = LLAMA, rows: int = 1_000_000, oversized: int = 0, **more: Any) -> Part:
    load = Load(rows, rows * 800 + oversized * 11_000_000, rows * 256, 0, oversized)
    gauge = more.pop("gauge", None)
    given: dict[str, Any] = {"price": Price(1040, 1040), "discount": 0.5, **more}
    endpoint, wish = given.pop("endpoint", Endpoint.CHAT), given.pop("wish", Route.AUTO)
    here = Situation(model, endpoint, wish, load, tokens(load, gauge), **given)
    return Part(here, choose(here))


def test_nothing_seen_yet():
    assert text(Plan((part(),), 1_000_000, 0)) == (
        """\
1,000,000 rows: 0 answered, 1,000,000 to send.

meta-llama/Llama-3.3-70B-Instruct-Turbo: batch, 1,000,000 rows. A batch is billed at 50% of the
  price and saves about $170.56.
  way      batches  cost: low   likely     high  time
  > batch      100     $82.65  $170.56  $341.12  10 min to 24 h
    live              $165.29  $341.12  $682.24  28 h (2 h 47 min to 12 days)
  Cost is a guess: too few answers were seen yet. Live time assumes 10 answers a second."""
    )


def test_what_was_seen_is_no_guess():
    assert text(Plan((part(gauge=SEEN, live_rate=40.0, rows=900_000, oversized=2),), 1_000_000, 99_000, 1_000)) == (
        """\
1,000,000 rows: 99,000 answered, 1,000 rejected, 900,000 to send.

meta-llama/Llama-3.3-70B-Instruct-Turbo: batch, 900,000 rows. A batch is billed at 50% of the price
  and saves about $140.69; 2 rows are longer than the 10 MB a line of a batch may have: sent live.
  way      batches  cost: low   likely     high  time
  > batch       90    $141.65  $145.83  $150.02  10 min to 24 h
    live              $278.32  $286.52  $294.72  6 h 15 min (4 h 10 min to 8 h 56 min)"""
    )


def test_ten_rows():
    assert text(Plan((part(rows=10),), 10, 0)) == (
        """\
10 rows: 0 answered, 10 to send.

meta-llama/Llama-3.3-70B-Instruct-Turbo: live, 10 rows. A batch would save less than a cent, which
  is not worth waiting up to 24 h; live calls take less than a minute.
  way      batches  cost: low   likely     high  time
    batch        1    < $0.01  < $0.01  < $0.01  10 min to 24 h
  > live              < $0.01  < $0.01  < $0.01  a minute
  Cost is a guess: too few answers were seen yet. Live time assumes 10 answers a second."""
    )


def test_an_unknown_price_is_called_unknown_and_told_how_to_name():
    assert text(Plan((part("some/model", price=None, discount=None, rows=1_000),), 1_000, 0)) == (
        """\
1,000 rows: 0 answered, 1,000 to send.

some/model: live, 1,000 rows. No batch discount is known for this model, and live calls take about 2
  min at an assumed 10 a second.
  way      batches  cost: low   likely  high  time
    batch        1             unknown        10 min to 24 h
  > live                       unknown        2 min (a minute to 17 min)
  The price is unknown: `--price some/model=IN/OUT` names it, in dollars per million tokens. Live
  time assumes 10 answers a second."""
    )


def test_several_models_a_closed_way_and_a_note():
    parts = (
        part("a/one", rows=20_000, gauge=SEEN, live_rate=25.0, batchable=False),
        part("b/two", rows=1, gauge=SEEN, live_rate=25.0, wish=Route.LIVE, endpoint=Endpoint.COMPLETIONS),
        part("c/three", rows=0),
    )
    assert text(Plan(parts, 30_000, 9_999, notes=("This model is leaving soon.",))) == (
        """\
30,000 rows: 9,999 answered, 20,001 to send.

a/one: live, 20,000 rows. This model is not taken in batches.
  way     batches  cost: low  likely   high  time
  > live               $6.06   $6.24  $6.42  13 min (9 min to 19 min)

b/two: live, 1 row. You asked for live.
  way     batches  cost: low   likely     high  time
  > live             < $0.01  < $0.01  < $0.01  a minute
  No batch: the completions endpoint takes no batches.

All of it costs about $6.24 ($6.06 to $6.42).

This model is leaving soon."""
    )


def test_a_sum_with_an_unknown_part_is_unknown():
    plan = Plan((part("a/one"), part("b/two", price=None)), 2_000_000, 0)
    assert "All of it costs: unknown." in text(plan)
    assert as_json(plan)["cost_usd"] is None


def test_nothing_left():
    assert text(Plan((), 10, 9, 1)) == "10 rows: 9 answered, 1 rejected. Nothing is left to send."
    assert text(Plan((part(rows=0),), 1, 1)) == "1 row: 1 answered. Nothing is left to send."


def test_a_model_without_a_price_to_pay_costs_nothing_and_one_of_unknown_price_is_not_written_as_nothing():
    assert "$0.00" in text(Plan((part(price=Price(0, 0)),), 1_000_000, 0))
    assert "$" not in text(Plan((part(price=None),), 1_000_000, 0))


def test_no_line_is_longer_than_a_hundred_columns():
    dice = random.Random(5)
    for _ in range(500):
        one = part(
            rows=dice.choice([1, 5_000, 30_000_000]),
            oversized=dice.choice([0, 1]),
            discount=dice.choice([None, 1.0, 0.5]),
            price=dice.choice([None, Price(1040, 1040), Price(75_000, 75_000)]),
            live_rate=dice.choice([None, 0.3, 70.0]),
            seconds_left=dice.choice([None, -1.0, 4_000.0, 100_000.0]),
            wish=dice.choice(list(Route)),
            most_nano=dice.choice([None, 10**15]),
            budget_left=dice.choice([None, 10**12]),
        )
        assert max(map(len, text(Plan((one,), 30_000_000, 0)).splitlines())) <= 100


def test_json_says_everything_in_plain_values():
    told = as_json(Plan((part(gauge=SEEN, rows=10_000, live_rate=25.0),), 10_000, 0, notes=("n",)))
    assert json.loads(json.dumps(told)) == told
    assert {key: told[key] for key in ("total", "answered", "rejected", "left", "notes")} == {
        "total": 10_000, "answered": 0, "rejected": 0, "left": 10_000, "notes": ["n"],
    }  # fmt: skip
    model = told["models"][0]
    assert told["cost_usd"] == model["batch"]["cost_usd"]
    assert model["live"]["cost_usd"]["likely"] == 3.12
    assert (model["lane"], model["batches"], model["basis"]) == ("batch", 1, "observed")
    assert model["live"]["seconds"] == {"low": 267, "likely": 400, "high": 571}
    assert model["reasons"] == ["a batch is billed at 50% of the price and saves about $1.56"]


def test_json_has_null_for_what_is_unknown():
    model = as_json(Plan((part(price=None, discount=None, batchable=False),), 1_000_000, 0))["models"][0]
    assert model["live"]["cost_usd"] is model["batch"]["cost_usd"] is model["batch"]["seconds"] is None
    assert model["rate_assumed"] is True
    assert model["batch"]["why_not"] == "this model is not taken in batches"
