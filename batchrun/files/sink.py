"""Rows and their outcomes as one output file, JSONL or Parquet by its ending, whole or not at all.

Which columns there are is settled in `columns`; what an outcome says is the caller's.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from batchrun.errors import InputError, UsageError
from batchrun.files import atomic
from batchrun.files.columns import OUTCOME_COLUMNS, Column, Columns, ColumnScan, Kind
from batchrun.files.row import Row
from batchrun.files.source import SourceFile

__all__ = [
    "OUTCOME_COLUMNS", "Column", "ColumnScan", "Columns", "Form", "Kind", "check_output", "form_of", "write",
    "write_stream",
]  # fmt: skip

Outcomes = Iterable[tuple[Row, dict[str, Any]]]

_encode = msgspec.json.Encoder().encode


class Form(enum.StrEnum):
    """The forms an output file can have."""

    JSONL = "jsonl"
    PARQUET = "parquet"


def form_of(path: str) -> Form:
    """The form a path asks for by its ending.

    Raises:
        UsageError: the ending is neither .jsonl nor .parquet.
    """
    ending = Path(path).suffix.lower()
    if ending not in {".jsonl", ".parquet"}:
        raise UsageError(f"The output {path} ends in neither .jsonl nor .parquet.", "Give it one of these endings.")
    return Form(ending[1:])


def check_output(path: str) -> None:
    """Look before money is spent whether `path` can be written as far as anyone can tell.

    Raises:
        UsageError: unknown ending, no such folder, no right to write there, or something that is no file is in the way.
    """
    form_of(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UsageError(f"The folder of the output {path} does not exist.", f"mkdir -p {target.parent}")
    if target.exists() and not target.is_file():
        raise UsageError(f"The output {path} exists and is not a file.", "Choose another name.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"The folder of the output {path} may not be written to.", "Choose another place.")


def write(path: str, columns: Columns, files: Sequence[SourceFile], rows: Outcomes) -> int:
    """Write every row with its outcome and return how many there were; an earlier file stays until all is written.

    Outcomes go by the names in `OUTCOME_COLUMNS`; what one leaves out is null.

    Raises:
        UsageError: the ending is not known.
        InputError: a row does not fit the settled columns.
        StorageError: the file cannot be written.
    """
    form = form_of(path)
    with atomic.replacing(path) as file:
        if form is Form.JSONL:
            return write_stream(file, columns, rows)
        from batchrun.files import parquet_out

        return parquet_out.write(file, columns, [source.path for source in files], rows)


def write_stream(out: BinaryIO, columns: Columns, rows: Outcomes) -> int:
    """Write the JSONL form to an open stream, such as standard output, and return how many rows there were.

    Raises:
        InputError: a row has a column by the name of one of ours.
    """
    count = 0
    for line in _lines(columns, rows):
        out.write(line)
        count += 1
    out.flush()
    return count


def _lines(columns: Columns, rows: Outcomes) -> Iterator[bytes]:
    names = tuple(zip((column.name for column in OUTCOME_COLUMNS), columns.ours, strict=True))
    empty: dict[str, Any] = {column.name: None for column in columns.inputs}
    for row, outcome in rows:
        cells = empty if row.cells is None else row.cells
        line = {**cells, **{ours: outcome.get(name) for name, ours in names}}
        if len(line) < len(cells) + len(names):
            raise InputError(
                f"{row.where} has a column with the name of an output column that was not there before.",
                "The input has changed. Run the same command again: answers are kept.",
            )
        yield _encode(line) + b"\n"
