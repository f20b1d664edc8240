"""Which model takes a request: a table of standings, and what a reply's own name tells."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest

from batchrun.rules.standins import Pick, Standing, has_other, is_another, order, pick

MISSING = Standing(missing=True)
RESTS = Standing(until=100.0)
LOOKED_AT = Standing(until=100.0, looking=True)
BEFORE, AFTER = 99.9, 100.0

TABLE: list[tuple[Mapping[str, Standing], float, Pick | None]] = [
    ({}, BEFORE, Pick("a")),
    ({"a": MISSING}, BEFORE, Pick("b")),
    ({"a": MISSING, "b": MISSING}, BEFORE, Pick("c")),
    ({"a": MISSING, "b": MISSING, "c": MISSING}, AFTER, None),
    ({"b": MISSING, "c": RESTS}, BEFORE, Pick("a")),
    ({"a": RESTS}, BEFORE, Pick("b")),
    ({"a": RESTS}, AFTER, Pick("a", look=True)),
    ({"a": LOOKED_AT}, AFTER, Pick("b")),
    ({"a": RESTS, "b": MISSING}, BEFORE, Pick("c")),
    ({"a": RESTS, "b": MISSING, "c": MISSING}, BEFORE, Pick("a")),
    ({"a": RESTS, "b": RESTS, "c": RESTS}, BEFORE, Pick("a")),
    ({"a": MISSING, "b": RESTS, "c": RESTS}, BEFORE, Pick("b")),
    ({"a": LOOKED_AT, "b": RESTS}, AFTER, Pick("b", look=True)),
    ({"a": LOOKED_AT, "b": LOOKED_AT, "c": LOOKED_AT}, AFTER, Pick("a")),
]


@pytest.mark.parametrize(("standings", "now", "wanted"), TABLE)
def test_the_first_model_that_can_be_called_takes_it(
    standings: Mapping[str, Standing], now: float, wanted: Pick | None
) -> None:
    assert pick(("a", "b", "c"), standings, now) == wanted


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_missing_model_is_never_picked_and_there_is_a_pick_unless_all_are_missing(names: tuple[str, ...]) -> None:
    for kinds in itertools.product([None, MISSING, RESTS, LOOKED_AT], repeat=len(names)):
        standings = {name: kind for name, kind in zip(names, kinds, strict=True) if kind is not None}
        for now in (BEFORE, AFTER):
            found = pick(names, standings, now)
            assert (found is None) == all(kind is MISSING for kind in kinds)
            assert found is None or standings.get(found.model) is not MISSING
            assert found is None or not found.look or standings[found.model] is RESTS


def test_the_model_asked_for_comes_first_and_once() -> None:
    assert order("a", ("b", "a", "c")) == ("a", "b", "c")
    assert order("x", ("b", "c")) == ("x", "b", "c")
    assert order("a", ()) == ("a",)


def test_another_one_is_there_when_it_is_neither_missing_nor_resting() -> None:
    assert has_other("a", ("a", "b"), {"a": RESTS})
    assert not has_other("a", ("a", "b"), {"b": RESTS})
    assert not has_other("a", ("a", "b"), {"b": MISSING})
    assert not has_other("a", ("a",), {})
    assert has_other("b", ("a", "b"), {})


SAME = [
    ("openai/gpt-oss-20b", "openai/gpt-oss-20b"),
    ("openai/gpt-oss-20b", "simulated/openai/gpt-oss-20b"),
    ("openai/gpt-oss-20b", "OpenAI/GPT-OSS-20B"),
    ("openai/gpt-oss-20b", "gpt-oss-20b"),
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("gpt-4o-2024-08-06", "gpt-4o"),
    ("gpt-4o", "gpt-4o-20240806"),
    ("gpt-4o", "gpt-4o-2024-08"),
    ("models/gemini-pro", "gemini-pro"),
    ("openai/gpt-oss-20b", ""),
]
OTHER = [
    ("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    ("openai/gpt-oss-20b", "openai/gpt-oss-20b-turbo"),
    ("Qwen/Qwen3-235B", "Qwen/Qwen3-235B-A22B"),
    ("meta-llama/Llama-3-70B", "meta-llama/Llama-3.3-70B"),
    ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
    ("gpt-4o", "gpt-4o-mini-2024-07-18"),
    ("openai/gpt-oss-20b", "openai/gpt-oss-2"),
]


@pytest.mark.parametrize(("asked", "answered"), SAME)
def test_an_organisation_a_date_or_capitals_make_no_other_model(asked: str, answered: str) -> None:
    assert not is_another(asked, answered)


@pytest.mark.parametrize(("asked", "answered"), OTHER)
def test_any_other_name_is_another_model(asked: str, answered: str) -> None:
    assert is_another(asked, answered)


def test_no_name_is_another_than_itself_whatever_it_looks_like() -> None:
    dice = random.Random(4)
    for _ in range(500):
        name = "".join(dice.choice("ab-/.0129 ") for _ in range(dice.randrange(12)))
        assert not is_another(name, name)
        assert not is_another(name, f"simulated/{name}")
