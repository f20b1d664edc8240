"""The end of the walk: rows of the input beside their outcomes, written as the user's output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from batchrun.api import wire
from batchrun.errors import InputError, Interrupted
from batchrun.files import sink
from batchrun.files.sink import Columns
from batchrun.files.source import Reader, Row, SourceFile
from batchrun.job import Job
from batchrun.records import Fault, Outcome, State
from batchrun.rules.fit import parsed_text
from batchrun.rules.money import usd
from batchrun.store.view import View

_Joined = tuple[Row, dict[str, Any]]

CHANGED = "The input has changed since it was read; every answer is kept."
AGAIN = "`batchrun resume`, or the same command again, reads the new input first."
GONE = "An input file is not there any more; every answer is kept."
BACK = "Put it back, or run again with the input there is."


class Stamp(msgspec.Struct, frozen=True):
    """How a written file looks from outside: size in bytes, modification time in nanoseconds."""

    size: int
    mtime_ns: int


def stamp(path: str) -> Stamp | None:
    """The file's stamp, None when it is not there."""
    try:
        facts = Path(path).stat()
    except OSError:
        return None
    return Stamp(facts.st_size, facts.st_mtime_ns)


def write(
    path: str,
    checkpoint: str,
    files: Sequence[SourceFile],
    columns: Columns,
    *,
    shared: bool,
    watch: Callable[[int], bool] = lambda _rows: False,
) -> Stamp | None:
    """Write the whole output, whatever is settled by now, and return its stamp. Slow: call it in a thread.

    Args:
        path: where to, `.jsonl` or `.parquet`.
        checkpoint: the checkpoint with the outcomes.
        files: the input, as pass 1 saw it.
        columns: the columns, as pass 1 settled them.
        shared: whether several rows may share one answer, so that its cost is shown at the first only.
        watch: told at every row how many are written; True leaves an earlier output as it was.

    Raises:
        Interrupted: `watch` said so.
        InputError: the input is not what pass 1 read.
        StorageError: the output cannot be written.
    """
    with View(checkpoint) as view, closing(join(view, files, shared=shared)) as rows:
        sink.write(path, columns, files, _watched(watch, rows))
    return stamp(path)


def write_stream(
    out: BinaryIO, checkpoint: str, files: Sequence[SourceFile], columns: Columns, *, shared: bool
) -> None:
    """The same as JSON lines to an open stream, such as standard output."""
    with View(checkpoint) as view, closing(join(view, files, shared=shared)) as rows:
        sink.write_stream(out, columns, rows)


def join(view: View, files: Sequence[SourceFile], *, shared: bool) -> Generator[_Joined]:
    """Every input row beside how it ended, in input order, streamed."""
    unchanged(files)
    is_json = _is_json(view)
    with closing(_rows(files)) as rows, closing(view.outcomes(once=shared)) as outcomes:
        for row, outcome in zip_longest(rows, outcomes):
            if row is None or outcome is None:
                raise InputError(CHANGED, AGAIN)
            yield row, cells(outcome, is_json=is_json)


def _rows(files: Sequence[SourceFile]) -> Generator[Row]:
    for chunk in Reader(files).chunks():
        yield from chunk


def _watched(watch: Callable[[int], bool], rows: Iterator[_Joined]) -> Iterator[_Joined]:
    for count, row in enumerate(rows):
        if watch(count):
            raise Interrupted
        yield row


def unchanged(files: Sequence[SourceFile]) -> None:
    """Raise `InputError` when an input file is not as pass 1 saw it."""
    for file in files:
        if stamp(file.path) is None:
            raise InputError(GONE, BACK)
        if stamp(file.path) != Stamp(file.size, file.mtime_ns):
            raise InputError(CHANGED, AGAIN)


def _is_json(view: View) -> bool:
    """Whether the stored job has a schema, so that its answers are JSON."""
    stored = view.job()
    return stored is not None and msgspec.json.decode(stored[1], type=Job).asking.schema is not None


def cells(outcome: Outcome, *, is_json: bool = False) -> dict[str, Any]:
    """An outcome as the output's own columns; `is_json`: whether answers were asked for by a schema."""
    answer, reasoning = wire.texts(outcome.body) if outcome.body is not None else (None, None)
    fits = is_json and outcome.fault != Fault.INVALID_OUTPUT
    return {
        # Where a row waits is no matter of the output's: it is pending until it has an outcome.
        "state": (State.PENDING if outcome.state is State.SUBMITTED else outcome.state).name.lower(),
        "answer": answer,
        "reasoning": reasoning,
        "finish_reason": outcome.finish_reason,
        "model": outcome.model,
        "parsed": parsed_text(answer) if fits else None,
        "repair": outcome.repair,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cached_tokens": outcome.cached_tokens,
        "cost_usd": None if outcome.cost_nano is None else usd(outcome.cost_nano),
        "lane": outcome.lane,
        "attempts": outcome.attempts,
        "latency_ms": outcome.latency_ms,
        "fault": outcome.fault,
        "fault_message": outcome.fault_message,
        "response_json": None if outcome.body is None else outcome.body.decode(),
    }
