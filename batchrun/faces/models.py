"""The table of models, for people and as JSON; what is not known is called unknown, and never 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

_UNKNOWN = "unknown"
_HEADER = ("model", "type", "context", "in", "out", "cached", "in batches", "callable")
_FIGURES = range(2, 6)


class Entry(msgspec.Struct, frozen=True):
    """One model. Prices are US dollars per million tokens; None is unknown.

    Attributes:
        id: the name to call it by.
        type: as the server says, "" when it does not.
        context: tokens.
        input: price of input.
        output: price of output.
        cached: price of input that the server has seen before.
        price_from: `server`, or `table` for the dated list that comes with batchrun; None without a price.
        hourly: US dollars an hour of a dedicated endpoint.
        batches: whether it is taken in batches.
        discount: what a batch is billed at, as a factor of the price.
        callable: whether a probe was answered; None when none was, or when it did not tell.
        reason: why not, or why nobody knows.
    """

    id: str
    type: str
    context: int | None
    input: float | None
    output: float | None
    cached: float | None
    price_from: str | None
    hourly: float | None
    batches: bool | None
    discount: float | None
    callable: bool | None = None
    reason: str = ""


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Plain JSON values, one object a model."""
    plain: list[dict[str, Any]] = msgspec.to_builtins(list(entries))
    return plain


def table(entries: Sequence[Entry]) -> str:
    """Columns for people; the last one, which may hold a sentence, is not cut."""
    rows = [_HEADER, *(_row(entry) for entry in entries)]
    width = [max(len(row[at]) for row in rows) for at in range(len(_HEADER))]
    lines = ["  ".join(_padded(cell, at, width[at]) for at, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_notes(entries)])


def _padded(cell: str, at: int, width: int) -> str:
    return cell.rjust(width) if at in _FIGURES else cell.ljust(width)


def _row(entry: Entry) -> tuple[str, ...]:
    mark = "*" if entry.price_from == "table" else ""
    return (
        entry.id,
        entry.type or _UNKNOWN,
        _UNKNOWN if entry.context is None else f"{entry.context:,}",
        *_prices(entry, mark),
        _in_batches(entry),
        _callable(entry),
    )


def _prices(entry: Entry, mark: str) -> tuple[str, str, str]:
    if entry.input is None or entry.output is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    cached = "same" if entry.cached is None else _dollars(entry.cached) + mark
    return _dollars(entry.input) + mark, _dollars(entry.output) + mark, cached


def _dollars(usd: float) -> str:
    """Two digits, and more where the price has them; only a side that is really free is written 0."""
    return f"${usd:.2f}" if round(usd, 2) == usd else f"${usd:.6f}".rstrip("0")


def _in_batches(entry: Entry) -> str:
    if entry.batches is None:
        return _UNKNOWN
    if not entry.batches:
        return "no batches"
    return f"{1 - entry.discount:.0%} off" if entry.discount is not None and entry.discount < 1 else "same price"


def _callable(entry: Entry) -> str:
    said = {True: "yes", False: "no", None: "not probed" if not entry.reason else "not known"}[entry.callable]
    if entry.input is None and entry.hourly is not None and not entry.reason:
        said += f", dedicated endpoint ${entry.hourly:,.2f} an hour"
    return f"{said}: {entry.reason}" if entry.reason else said


def _notes(entries: Sequence[Entry]) -> list[str]:
    notes = [f"{len(entries):,} model{'' if len(entries) == 1 else 's'}. Prices in US dollars per million tokens."]
    if any(entry.price_from == "table" for entry in entries):
        notes.append("* The server lists no price; this one is from the dated list that comes with batchrun.")
    if any(entry.callable is None and not entry.reason for entry in entries):
        notes.append("Being listed does not mean callable: --probe asks each for one token.")
    return notes
