"""Dated facts: what models cost and hold, what batches are billed at, and what became of models.

The newest word is always the server's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from batchrun.rules import money
from batchrun.rules.money import Tariff
from batchrun.rules.naming import Successor


@cache
def tariff() -> Tariff:
    """Prices and contexts of `prices.toml`, by model."""
    models: dict[str, dict[str, Any]] = _read("prices.toml")["model"]
    return Tariff(
        {name: money.price(m["input"], m["output"], m.get("cached")) for name, m in models.items() if "input" in m},
        {name: m["context"] for name, m in models.items() if "context" in m},
    )


@cache
def discounts() -> Mapping[str, float]:
    """What a batch is billed at, as a factor of the live price, by model; a model that is missing is not discounted."""
    found: dict[str, float] = _read("batch.toml")["discount"]
    return MappingProxyType(found)


@cache
def not_batchable() -> frozenset[str]:
    """Models that are not taken in batches."""
    return frozenset(_read("batch.toml")["not_batchable"]["models"])


@cache
def successors() -> Mapping[str, Successor]:
    """Models that were taken out of service or replaced; for advice only, never to switch by."""
    gone: dict[str, dict[str, str]] = _read("models.toml")["gone"]
    return MappingProxyType(
        {m: Successor(told.get("removed", ""), told.get("successor", "")) for m, told in gone.items()}
    )


@cache
def families() -> Mapping[str, tuple[str, ...]]:
    """Models near one another, by the family's name; for advice only."""
    return MappingProxyType({name: tuple(models) for name, models in _read("models.toml")["family"].items()})


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))
