"""Some rows of the input as an input file of their own: the input's columns and nothing else, every value as it was.

A line of JSON is written as it stood, and rows of Parquet as Arrow read them. Which rows is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any, BinaryIO

import msgspec

from batchrun.errors import UsageError
from batchrun.files import atomic
from batchrun.files.prompt import _without_nulls as without_nulls
from batchrun.files.row import Row
from batchrun.files.sink import Form, form_of
from batchrun.files.source import Reader, SourceFile

# Read and written in lots of so many rows; a row group of Parquet holds one lot.
LOT = 2000
_SENT_WHOLE = ("body", "messages")

_encode = msgspec.json.Encoder().encode


def picked(files: Sequence[SourceFile], numbers: Iterable[int], skipped: Callable[[Row], None]) -> Generator[Row]:
    """The rows with these ascending numbers, streamed; `skipped` is told of lines that cannot be read.

    Raises:
        InputError: a file is not what it was, or has fewer rows.
    """
    numbers = iter(numbers)
    with closing(Reader(files)) as reader:
        while lot := list(islice(numbers, LOT)):
            for row in reader.take(lot):
                if row.cells is None:
                    skipped(row)
                else:
                    yield row


def write(path: str, files: Sequence[SourceFile], rows: Iterable[Row], *, templated: bool) -> int:
    """Write the rows and return how many there were. Without any, nothing is written and an earlier file stays.

    Args:
        path: where to, `.jsonl` or `.parquet`.
        files: the input the rows are from.
        rows: rows that could be read.
        templated: whether a template sees the columns, so that a null in them may matter.

    Raises:
        UsageError: Parquet is asked for, and the input is not all Parquet of one schema.
        InputError: the input is not what it was.
        StorageError: the file cannot be written.
    """
    schema = _schema(path, files) if form_of(path) is Form.PARQUET else None
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return 0
    with atomic.replacing(path) as file:
        if schema is None:
            return write_stream(file, chain([first], rows), templated=templated)
        return _write_parquet(file, schema, chain([first], rows))


def write_stream(out: BinaryIO, rows: Iterable[Row], *, templated: bool) -> int:
    """The same as JSON lines to an open stream, such as standard output."""
    count = 0
    for row in rows:
        out.write(_line(row, templated=templated))
        count += 1
    out.flush()
    return count


def _line(row: Row, *, templated: bool) -> bytes:
    if row.text is not None:
        return row.raw + b"\n"
    cells = row.cells or {}
    if not templated:  # as a request is made from Parquet; in JSON a null would be sent
        cells = {name: without_nulls(value) if name in _SENT_WHOLE else value for name, value in cells.items()}
    return _encode(cells) + b"\n"


def _schema(path: str, files: Sequence[SourceFile]) -> Any:
    from batchrun.files import parquet_out

    schema = parquet_out.common_schema([file.path for file in files])
    if schema is None:
        raise UsageError(
            f"{path} cannot hold these rows as they are: the input is not all Parquet with the same columns.",
            "Export them to a .jsonl file.",
        )
    return schema


def _write_parquet(file: BinaryIO, schema: Any, rows: Iterator[Row]) -> int:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    count = 0
    with ParquetWriter(file, schema, compression="zstd") as writer:
        while lot := list(islice(rows, LOT)):
            writer.write_table(pa.Table.from_batches(_batches(lot), schema))
            count += len(lot)
            del lot
            pa.default_memory_pool().release_unused()
    return count


def _batches(lot: Sequence[Row]) -> list[Any]:
    """Copies of the rows alone: a slice would hold on to the whole batch each stands in."""
    taken: list[tuple[Any, list[int]]] = []
    for row in lot:
        if not taken or taken[-1][0] is not row.batch:
            taken.append((row.batch, []))
        taken[-1][1].append(row.index)
    return [batch.take(indices) for batch, indices in taken]
