"""Rows and outcomes as Parquet with explicit types, in row groups small enough to keep memory flat.

When every input file is Parquet with the same schema, its columns pass through as Arrow wrote them. Only called when a
Parquet file is really written, so it may import pyarrow at its top.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from batchrun.errors import InputError
from batchrun.files import parquet
from batchrun.files.columns import OUTCOME_COLUMNS, Column, Columns, Kind
from batchrun.files.row import Row

Outcome = dict[str, Any]

# A row group holds at most so many rows, and about so many bytes; what is still Python is turned into Arrow earlier.
GROUP_ROWS = 10_000
GROUP_BYTES = 64_000_000
_PART_ROWS = 1000
_PART_BYTES = 8_000_000

_TYPES = {
    Kind.BOOL: pa.bool_(),
    Kind.INT: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.STR: pa.string(),
    Kind.JSON: pa.string(),
}
_FITS: dict[Kind, set[type]] = {
    Kind.BOOL: {bool}, Kind.INT: {int}, Kind.FLOAT: {int, float}, Kind.STR: {str, bytes},
}  # fmt: skip
_LONG_COLUMNS = ("answer", "reasoning", "parsed", "response_json")
_CHANGED = "The input has changed. Run the same command again: answers are kept."

_encode = msgspec.json.Encoder().encode


def write(file: BinaryIO, columns: Columns, paths: Sequence[str], rows: Iterable[tuple[Row, Outcome]]) -> int:
    """Write all rows to the open file and return how many there were.

    Raises:
        InputError: a row does not fit the settled columns.
    """
    exact = common_schema(paths)
    schema = pa.schema([*(exact or _settled_fields(columns)), *_our_fields(columns)])
    with ParquetWriter(file, schema, compression="zstd") as writer:
        group = _Group(writer, schema)
        for part in _parts(rows):
            group.add(_batches(part, columns, exact, schema))
        group.flush()
    return group.written


class _Group:
    """The row group being gathered, as Arrow batches; written as soon as it is full."""

    def __init__(self, writer: ParquetWriter, schema: pa.Schema) -> None:
        self.written = 0
        self._writer = writer
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batches: list[pa.RecordBatch]) -> None:
        rows = sum(batch.num_rows for batch in batches)
        if self._rows + rows > GROUP_ROWS:
            self.flush()
        self._batches += batches
        self._rows += rows
        self._bytes += sum(batch.nbytes for batch in batches)
        if self._bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=GROUP_ROWS)
        self.written += self._rows
        self._batches, self._rows, self._bytes = [], 0, 0
        pa.default_memory_pool().release_unused()  # Arrow's pool would keep it, and grow from group to group


def common_schema(paths: Sequence[str]) -> pa.Schema | None:
    """The schema all these files share, whoever wrote them; None when they do not."""
    if not paths or not all(path.lower().endswith(".parquet") for path in paths):
        return None
    schemas = (_schema(path) for path in paths)
    first = next(schemas)
    return first if all(first.equals(other) for other in schemas) else None


def _schema(path: str) -> pa.Schema:
    file = parquet.opened(path)
    try:
        return file.schema_arrow
    finally:
        file.close()


def _settled_fields(columns: Columns) -> list[pa.Field]:
    return [pa.field(column.name, _TYPES[column.kind]) for column in columns.inputs]


def _our_fields(columns: Columns) -> list[pa.Field]:
    return [pa.field(name, _TYPES[ours.kind]) for name, ours in zip(columns.ours, OUTCOME_COLUMNS, strict=True)]


def _parts(rows: Iterable[tuple[Row, Outcome]]) -> Iterator[list[tuple[Row, Outcome]]]:
    """Rows in lots that are small both in number and in text."""
    part: list[tuple[Row, Outcome]] = []
    weight = 0
    for pair in rows:
        part.append(pair)
        weight += len(pair[0].text or b"") + sum(len(pair[1].get(name) or "") for name in _LONG_COLUMNS)
        if len(part) >= _PART_ROWS or weight >= _PART_BYTES:
            yield part
            part, weight = [], 0
    if part:
        yield part


def _batches(
    part: list[tuple[Row, Outcome]], columns: Columns, exact: pa.Schema | None, schema: pa.Schema
) -> list[pa.RecordBatch]:
    if exact is None:
        rows = [row for row, _ in part]
        _expect_known(rows, columns)
        theirs = [_column(rows, column) for column in columns.inputs]
        return [pa.record_batch([*theirs, *_ours(part)], schema=schema)]
    return [
        pa.record_batch([*_slice(part[start:end], exact), *_ours(part[start:end])], schema=schema)
        for start, end in pairwise(_breaks(part))
    ]


def _ours(part: list[tuple[Row, Outcome]]) -> list[pa.Array]:
    return [
        pa.array([outcome.get(column.name) for _, outcome in part], _TYPES[column.kind]) for column in OUTCOME_COLUMNS
    ]


def _breaks(part: list[tuple[Row, Outcome]]) -> list[int]:
    """Where a run of rows that stand side by side in one Arrow batch begins, and where the last one ends."""
    starts = [
        place
        for place, ((before, _), (row, _)) in enumerate(pairwise(part), 1)
        if row.batch is not before.batch or row.index != before.index + 1
    ]
    return [0, *starts, len(part)]


def _slice(run: list[tuple[Row, Outcome]], exact: pa.Schema) -> list[pa.Array]:
    first = run[0][0]
    if first.batch is None or not first.batch.schema.equals(exact):
        raise InputError(f"{first.where} does not have the columns of the other rows.", _CHANGED)
    columns: list[pa.Array] = first.batch.slice(first.index, len(run)).columns
    return columns


def _expect_known(rows: list[Row], columns: Columns) -> None:
    known = {column.name for column in columns.inputs}
    for row in rows:
        if row.cells is not None and not row.cells.keys() <= known:
            raise InputError(f"{row.where} has a column that was not there before.", _CHANGED)


def _column(rows: list[Row], column: Column) -> pa.Array:
    values = [None if row.cells is None else row.cells.get(column.name) for row in rows]
    if column.kind is Kind.JSON:
        return pa.array([None if value is None else _encode(value).decode() for value in values], pa.string())
    types = set(map(type, values)) - {type(None)}
    if not types <= _FITS[column.kind]:
        raise _misfit(rows, column)
    if bytes in types:
        values = [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in values]
    try:  # Arrow itself refuses a whole number that a float cannot hold exactly
        return pa.array(values, _TYPES[column.kind])
    except (pa.ArrowInvalid, OverflowError) as error:
        raise _misfit(rows, column) from error


def _misfit(rows: list[Row], column: Column) -> InputError:
    return InputError(
        f"Between {rows[0].where} and {rows[-1].where}, column {column.name!r} holds a value that is no "
        f"{column.kind.value} any more.",
        _CHANGED,
    )
