"""Pass 1: the input is read whole, every bad line is found, and what is wanted is settled. Nothing is sent in it.

An input that has not changed is not read again. A change that would leave paid answers unused is refused unless the
user says so.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batchrun.errors import GuardError, InputError, Interrupted, UsageError
from batchrun.files.prompt import Prompter
from batchrun.files.sink import Columns, ColumnScan, check_output
from batchrun.files.source import Reader, Row, SourceFile
from batchrun.job import Asking, Job
from batchrun.records import BadRow, Request
from batchrun.rules.estimate import Load
from batchrun.rules.money import usd
from batchrun.rules.pack import fits_a_line
from batchrun.store.ingest import Change, Ingest, write_sources
from batchrun.store.statements import Statements
from batchrun.store.store import Store
from batchrun.store.view import View

PROBLEMS_SHOWN = 20

_sorted = msgspec.json.Encoder(order="sorted").encode


class Seen(msgspec.Struct, frozen=True):
    """What pass 1 settled besides the rows, stored with the job.

    Attributes:
        columns: names and kinds of the output's columns.
        loads: what each model is asked for; empty when an earlier version of batchrun did not count it.
    """

    columns: Columns
    loads: dict[str, Load] = {}


class Wanted(msgspec.Struct, frozen=True):
    """The input as settled: its files in order, and what was seen in them."""

    files: Sequence[SourceFile]
    seen: Seen


async def settle(
    store: Store, job: Job, files: Sequence[SourceFile], *, new_requests: bool, watch: Callable[[int], bool]
) -> Wanted:
    """Make the checkpoint want what the input files ask for, and return what that is.

    `watch` is told now and then how many rows have been read; True from it means stop.

    Raises:
        InputError: the input cannot be read, or has bad rows and `--skip-bad-rows` was not given.
        GuardError: paid answers would be left unused.
        Interrupted: `watch` said so.
    """
    if job.output is not None:
        check_place(job.output, job.inputs, files)
    before = await stored(store)
    if before is not None and before[1].loads and await _unchanged(store, before[0], job, files):
        async with store.transaction() as sql:
            await _write_job(sql, job, before[1], before[0])
        settled = Wanted(files, before[1])
    else:
        settled = await _rebuilt(store, job, files, before and before[0], new_requests=new_requests, watch=watch)
    await store.want_better(job.repairs)
    return settled


def is_current(job: Job, files: Sequence[SourceFile]) -> bool:
    """Whether the checkpoint, read without its lock, holds just these files asked for in just this way."""
    if not Path(job.checkpoint).exists():
        return False
    with View(job.checkpoint) as view:
        before, sources = view.job(), view.sources()
    if before is None or before[0] != job.provider:
        return False
    seen = msgspec.json.decode(before[2], type=Seen)
    return bool(seen.loads) and _same(msgspec.json.decode(before[1], type=Job), job, sources, files)


def _same(before: Job, job: Job, sources: Iterable[tuple[Any, ...]], files: Sequence[SourceFile]) -> bool:
    """The same files, as far as size and time tell, asked in the same way."""
    listed = [(path, size, mtime) for path, size, mtime, _ in sources]
    known = listed == [(file.path, file.size, file.mtime_ns) for file in files]
    return known and not _changes(before.asking, job.asking)


def _changes(before: Asking, now: Asking) -> list[str]:
    """What is asked otherwise, by the bytes of a body: 1, 1.0 and true are equal in Python, and three digests."""
    names = Asking.__struct_fields__
    return [name for name in names if _sorted(getattr(before, name)) != _sorted(getattr(now, name))]


async def stored(store: Store) -> tuple[Job, Seen] | None:
    """The job of the last start and what its pass 1 settled, None in a new checkpoint."""
    row = await store.sql.one("read_job")
    if row is None:
        return None
    return msgspec.json.decode(row[1], type=Job), msgspec.json.decode(row[2], type=Seen)


def check_place(output: str, inputs: Sequence[str], files: Sequence[SourceFile]) -> None:
    """Raise `UsageError` when the output cannot be written there, or the next run would take it for input."""
    check_output(output)
    real = os.path.realpath(output)
    if (
        any(os.path.realpath(file.path) == real for file in files)
        or any(os.path.realpath(typed) == str(Path(real).parent) for typed in inputs)
        or any(_matches(real, typed) for typed in inputs)
    ):
        raise UsageError("The output lies among the input files.", "Write it to another folder.")


def _matches(real: str, typed: str) -> bool:
    """Whether a glob, as it was typed, would find this file."""
    folder, name = os.path.split(typed)
    pattern = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 - no path but a pattern
    if "**" in pattern:
        return fnmatch.fnmatch(real, pattern.replace("**/", "*"))
    parts, wanted = Path(real).parts, Path(pattern).parts
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatch, parts, wanted))


async def _unchanged(store: Store, before: Job, job: Job, files: Sequence[SourceFile]) -> bool:
    """Whether rows would come out as they are: the same files, asked in the same way."""
    if not _same(before, job, await store.sql.all("sources"), files):
        return False
    bad = await store.sql.one("has_bad_rows")
    return job.skip_bad_rows or not (bad and bad[0])


async def _rebuilt(
    store: Store,
    job: Job,
    files: Sequence[SourceFile],
    before: Job | None,
    *,
    new_requests: bool,
    watch: Callable[[int], bool],
) -> Wanted:
    reader, ingest, notes = Reader(files), Ingest(store), _Notes()
    prompter = Prompter(job.asking)
    await ingest.begin()
    try:
        for chunk in reader.chunks():
            await ingest.add(notes.take(chunk, prompter))
            if watch(notes.rows):
                raise Interrupted
        notes.check(skip=job.skip_bad_rows)
        seen = Seen(notes.scan.settle(), notes.loads())
        async with store.transaction() as sql:
            change = await ingest.replace(sql)
            lost = change.unused + change.running
            if before is not None and _changes(before.asking, job.asking) and lost > 0 and not new_requests:
                raise _guard(before.asking, job.asking, change)
            await sql.execute("outdate_written")  # other columns may have changed that no digest shows
            sources = zip(files, reader.rows_per_file, strict=True)
            await write_sources(sql, [(file.path, file.size, file.mtime_ns, rows) for file, rows in sources])
            await _write_job(sql, job, seen, before)
    finally:
        await ingest.end()
    return Wanted(files, seen)


class _Count:
    """A `Load` being counted."""

    __slots__ = ("largest", "longest", "max_tokens", "open_ended", "oversized", "rows", "size")

    def __init__(self) -> None:
        self.rows = self.size = self.max_tokens = self.open_ended = self.oversized = self.largest = self.longest = 0

    def add(self, request: Request) -> None:
        self.rows += 1
        self.size += len(request.body)
        self.largest = max(self.largest, len(request.body))
        self.oversized += not fits_a_line(request.body)
        if request.max_tokens is None:
            self.open_ended += request.n
        else:
            self.max_tokens += request.max_tokens * request.n
            self.longest = max(self.longest, request.max_tokens * request.n)

    def load(self) -> Load:
        return Load(self.rows, self.size, self.max_tokens, self.open_ended, self.oversized, self.largest, self.longest)


class _Notes:
    """What pass 1 notices besides requests: columns, models, and the first bad rows."""

    def __init__(self) -> None:
        self.scan = ColumnScan()
        self._counted: dict[str, _Count] = {}
        self.rows = 0
        self.bad = 0
        self.problems: list[tuple[str, str]] = []

    def take(self, chunk: Sequence[Row], prompter: Prompter) -> list[Request | BadRow]:
        self.scan.see(chunk)
        self.rows += len(chunk)
        made = [prompter.request(row) for row in chunk]
        for request in made:
            if isinstance(request, BadRow):
                self.bad += 1
                if len(self.problems) < PROBLEMS_SHOWN:
                    self.problems.append((request.where, request.message))
            else:
                self._counted.setdefault(request.model, _Count()).add(request)
        return made

    def loads(self) -> dict[str, Load]:
        return {model: count.load() for model, count in self._counted.items()}

    def check(self, *, skip: bool) -> None:
        if self.rows == 0:
            raise InputError("The input has no rows.", "Check the path.")
        if self.bad and not skip:
            shown = self._shown()
            more = f" (the first {len(shown)} are shown)" if self.bad > len(shown) > 1 else ""
            raise InputError(
                f"{self.bad} of {self.rows} rows cannot be sent{more}. Nothing was sent.",
                "Mend them, or use --skip-bad-rows to have them in the output as rejected.",
                shown,
            )

    def _shown(self) -> list[str]:
        """The first problems; one line when they are all the same."""
        lines = [f"{where}: {message}" for where, message in self.problems]
        if len(lines) == PROBLEMS_SHOWN and len({message for _, message in self.problems}) == 1:
            return [f"{lines[0]} (and so on: the first {PROBLEMS_SHOWN} bad rows all say this)"]
        return lines


async def _write_job(sql: Statements, job: Job, seen: Seen, before: Job | None) -> None:
    """The newest job; under another word on repairs, what was planned to be sent holds no more."""
    if before is not None and before.repairs != job.repairs:
        await sql.execute("forget_all_repairs")
    await sql.execute(
        "write_job",
        provider=job.provider,
        job=msgspec.json.encode(job).decode(),
        columns=msgspec.json.encode(seen).decode(),
    )


def _guard(before: Asking, now: Asking, change: Change) -> GuardError:
    names = _changes(before, now)
    changed = " and ".join({"params": "parameters"}.get(name, name) for name in names)
    have = "have" if len(names) > 1 or names == ["params"] else "has"
    running = f" and {change.running:,} rows in running batches" if change.running else ""
    return GuardError(
        f"The {changed} {have} changed: {change.unused:,} kept answers (${usd(change.unused_nano):.4f}){running} would "
        "not be used. Nothing was sent.",
        "--new-requests asks anew and pays again; another --checkpoint keeps both.",
    )
