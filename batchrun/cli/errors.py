"""`errors`: rejected rows by reason, put back, or written as an input file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import click
import msgspec

from batchrun.cli.words import newest_checkpoint
from batchrun.errors import UsageError
from batchrun.job import Job
from batchrun.records import Fault

if TYPE_CHECKING:
    from batchrun.files.source import Row
    from batchrun.store.view import Rejected, View

_ALL = "all"
_LINES_NAMED = 5


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--retry",
    is_flag=False,
    flag_value=_ALL,
    metavar="[FAULT]",
    help="Put rejected rows back, all or those of FAULT, for the next run to send.",
)
@click.option(
    "--export",
    "target",
    metavar="FILE",
    help="Write the rejected rows as an input file: .jsonl or .parquet; - for JSON lines on stdout.",
)
@click.option("--fault", metavar="FAULT", help="Only rows rejected for this fault.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a rejected row.")
@click.option("--groups", is_flag=True, help="All groups as one JSON object.")
@click.option("--show", type=click.IntRange(1), default=3, show_default=True, help="Example rows for each group.")
def errors(
    checkpoint: str | None, retry: str | None, target: str | None, fault: str | None, show: int, *, as_json: bool,
    groups: bool,
) -> None:  # fmt: skip
    """Show why rows were rejected and what to do, group by group.

    Rows whose messages differ only in numbers, ids and quotations are one
    group; rows are numbered from 0. Marked answers (cut short, filtered, not
    as the schema wants) are counted after them. Without CHECKPOINT: the
    newest in checkpoints/.

    --retry puts rows back and sends nothing: `batchrun resume` does. --export
    writes rows as they stand in the input, for a run of their own with the
    same options.
    """
    if retry is not None:
        if target is not None or groups:
            raise UsageError("--retry goes with neither --export nor --groups.", "Do one after the other.")
        checkpoint, fault = _what_to_retry(checkpoint, retry, fault)
    _check_fault(fault)
    path = newest_checkpoint(checkpoint)
    if retry is not None:
        rows, said = _retried(path, fault)
        click.echo(msgspec.json.encode({"rows": rows}) if as_json else said, err=not as_json)
    elif target is not None:
        _exported(path, target, fault)
    elif as_json and not groups:
        _listed(path, fault)
    else:
        _grouped(path, fault, show, as_json=groups)


def _what_to_retry(checkpoint: str | None, word: str, fault: str | None) -> tuple[str | None, str | None]:
    """The checkpoint and the fault that are meant: the word after --retry may be either.

    Raises:
        UsageError: it can be neither, or contradicts --fault.
    """
    if word == _ALL:
        return checkpoint, fault
    if word in set(Fault):
        if fault not in {None, word}:
            raise UsageError(f"--retry {word} and --fault {fault} are two faults.", "Name one of them.")
        return checkpoint, word
    if checkpoint is None and os.path.exists(word):  # noqa: PTH110 - as typed
        return word, fault
    if checkpoint is None:
        raise UsageError(f"{word!r} is neither a fault nor a checkpoint that is there.", _known())
    raise UsageError(f"There is no fault {word!r}.", _known())


def _check_fault(fault: str | None) -> None:
    from batchrun.faces.errors import MARKS

    if fault is None:
        return
    if fault not in set(Fault):
        raise UsageError(f"There is no fault {fault!r}.", _known())
    if fault in MARKS:
        raise UsageError(
            f"{fault} marks answers; no row is rejected for it.",
            "`batchrun errors` without it tells what to do about them.",
        )


def _known() -> str:
    from batchrun.faces.errors import MARKS

    return "Known: " + ", ".join(fault for fault in Fault if fault not in MARKS)


def _rejected(view: View, fault: str | None) -> Iterator[Rejected]:
    return (row for row in view.rejected() if fault is None or row.fault == fault)


def _listed(path: str, fault: str | None) -> None:
    from batchrun.store.view import View

    encode = msgspec.json.Encoder().encode
    with View(path) as view:
        for row in _rejected(view, fault):
            sys.stdout.buffer.write(encode(row) + b"\n")
    sys.stdout.buffer.flush()


def _grouped(path: str, fault: str | None, show: int, *, as_json: bool) -> None:
    from batchrun.faces import errors as face
    from batchrun.store.view import View

    grouping = face.Grouping(show)
    with View(path) as view:
        stored = view.job()
        grouping.add(_rejected(view, fault))
        marked = view.marked_answers() if fault is None else {}
    job = msgspec.json.decode(stored[1], type=Job) if stored is not None else None
    if as_json:
        click.echo(msgspec.json.encode(face.table(grouping.kinds(), marked, path, job)))
    else:
        click.echo(face.text(grouping.kinds(), marked, path, job))


def _exported(path: str, target: str, fault: str | None) -> None:
    from batchrun.faces.words import rows as counted
    from batchrun.files import rejected as writing
    from batchrun.files.source import SourceFile
    from batchrun.output import unchanged
    from batchrun.store.view import View
    from batchrun.wanted import check_place

    with View(path) as view:
        stored, sources = view.job(), view.sources()
        if stored is None:
            raise UsageError("This checkpoint has no job yet: its input was never read.", "Start it: `batchrun run`.")
        job = msgspec.json.decode(stored[1], type=Job)
        files = [SourceFile(name, size, mtime) for name, size, mtime, _ in sources]
        if target != "-":
            check_place(os.path.abspath(target), job.inputs, files)  # noqa: PTH100 - links not followed
        unchanged(files)
        unread = _Unread()
        templated = job.asking.template is not None
        with closing(writing.picked(files, (row.row for row in _rejected(view, fault)), unread.add)) as rows:
            if target == "-":
                count = writing.write_stream(sys.stdout.buffer, rows, templated=templated)
            else:
                count = writing.write(target, files, rows, templated=templated)
    if count:
        click.echo(f"Wrote {counted(count)}{'' if target == '-' else f' to {target}'}.{unread}", err=True)
    else:
        click.echo(f"There is no such row, so nothing was written.{unread}", err=True)


class _Unread:
    """Lines that are no rows and so cannot be exported: how many, and where the first of them stand."""

    def __init__(self) -> None:
        self.count = 0
        self._places: list[str] = []

    def add(self, row: Row) -> None:
        self.count += 1
        if len(self._places) < _LINES_NAMED:
            self._places.append(row.where)

    def __str__(self) -> str:
        if not self.count:
            return ""
        places = ", ".join(self._places) + (", ..." if self.count > len(self._places) else "")
        lines = "line that cannot be read is" if self.count == 1 else "lines that cannot be read are"
        return f" {self.count:,} {lines} left out: {places}"


def _retried(path: str, fault: str | None) -> tuple[int, str]:
    """Put rows back, if there are any that can be; how many went back, and what to say of it."""
    import asyncio

    from batchrun.faces.words import place
    from batchrun.faces.words import rows as counted
    from batchrun.store.view import View

    with View(path) as view:
        stored, rejected = view.job(), view.rejections_by_fault()
    meant = {name for name in rejected if fault is None or name == fault}
    if stored is None or not meant - {Fault.BAD_ROW}:
        return 0, _nothing_to_retry(rejected, fault)
    rows = asyncio.run(_put_back(path, stored[0], fault))
    return rows, f"{counted(rows)} pending again. Send {'it' if rows == 1 else 'them'}: batchrun resume {place(path)}"


def _nothing_to_retry(rejected: Mapping[str, int], fault: str | None) -> str:
    if not rejected:
        return "No row is rejected, so there is none to put back."
    if fault is not None and fault not in rejected:
        return f"No row is rejected for {fault}, so there is none to put back."
    return "Only lines of the input that make no request are rejected (bad_row): mend them there and run again."


async def _put_back(path: str, provider: str, fault: str | None) -> int:
    """Under the lock, as a start that sends nothing: how the run before ended stays told."""
    from batchrun.clock import RealClock
    from batchrun.faces.words import rows as counted
    from batchrun.store.store import Store

    store = await Store.open(path, RealClock(), provider=provider)
    try:
        rows = await store.retry_rejections(fault)
        await store.note("retry", f"{counted(rows)} pending again ({fault or _ALL})")
        await store.withdraw()
    finally:
        await store.release()
    return rows
