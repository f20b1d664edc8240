"""The columns of the output: the input's with their kinds, then ours, settled before money is spent.

Writing them is `sink`'s; the checkpoint stores `Columns` as JSON.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from batchrun.files.row import Row


class Kind(enum.StrEnum):
    """What a column holds in Parquet; `json` is any value as JSON text."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    STR = "str"
    JSON = "json"


class Column(msgspec.Struct, frozen=True):
    """A column and its kind."""

    name: str
    kind: Kind


class Columns(msgspec.Struct, frozen=True):
    """The input's columns in order of first appearance, and the names our own go by, in the order of ours."""

    inputs: tuple[Column, ...]
    ours: tuple[str, ...]


OUTCOME_COLUMNS: tuple[Column, ...] = (
    Column("state", Kind.STR),
    Column("answer", Kind.STR),
    Column("reasoning", Kind.STR),
    Column("finish_reason", Kind.STR),
    Column("model", Kind.STR),
    Column("parsed", Kind.STR),
    Column("repair", Kind.STR),
    Column("prompt_tokens", Kind.INT),
    Column("completion_tokens", Kind.INT),
    Column("cached_tokens", Kind.INT),
    Column("cost_usd", Kind.FLOAT),
    Column("lane", Kind.STR),
    Column("attempts", Kind.INT),
    Column("latency_ms", Kind.INT),
    Column("fault", Kind.STR),
    Column("fault_message", Kind.STR),
    Column("response_json", Kind.STR),
)

# Whole numbers up to here are exact as floats; up to 64 bits they fit a Parquet integer.
_EXACT_FLOAT = 1 << 53
_LARGEST = (1 << 63) - 1


class _Wide:
    """Stands for a whole number that a float cannot hold exactly."""


class _Huge:
    """Stands for a whole number beyond 64 bits."""


_NULL = type(None)
_TEXTS = frozenset({str, bytes})
_WHOLE = frozenset({int, _Wide})
_NUMBERS = frozenset({int, float})


class ColumnScan:
    """Watches rows pass and remembers which types each column holds."""

    def __init__(self) -> None:
        self._seen: dict[str, set[type]] = {}

    def see(self, rows: Iterable[Row]) -> None:
        """Take note of these rows; unreadable ones have no columns."""
        seen = self._seen
        for row in rows:
            if row.cells is None:
                continue
            for name, value in row.cells.items():
                kind: type = type(value)
                if kind is int and not -_EXACT_FLOAT <= value <= _EXACT_FLOAT:
                    kind = _Wide if -_LARGEST - 1 <= value <= _LARGEST else _Huge
                try:
                    seen[name].add(kind)
                except KeyError:
                    seen[name] = {kind}

    def settle(self) -> Columns:
        """The columns as the output will have them."""
        inputs = tuple(Column(name, kind_for(types)) for name, types in self._seen.items())
        return Columns(inputs, our_names(self._seen))


def kind_for(types: set[type]) -> Kind:
    """The narrowest kind that holds values of all these types without loss; a column of nulls is text."""
    there = types - {_NULL}
    if there <= _TEXTS:
        return Kind.STR
    if there <= {bool}:
        return Kind.BOOL
    if there <= _WHOLE:
        return Kind.INT
    if there <= _NUMBERS:
        return Kind.FLOAT
    return Kind.JSON


def our_names(taken: Iterable[str]) -> tuple[str, ...]:
    """What our columns are called beside the input's; in SQL `State` and `state` are one name, so also here."""
    used = {name.casefold() for name in taken}
    names = []
    for column in OUTCOME_COLUMNS:
        name, turn = column.name, 1
        while name in used:
            name = f"batchrun_{column.name}" if turn == 1 else f"batchrun_{turn}_{column.name}"
            turn += 1
        names.append(name)
    return tuple(names)
