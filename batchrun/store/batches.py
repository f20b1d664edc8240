"""Batches as written down: every step forward is one transaction, taken before the remote step it announces.

What the step is, `rules/remote.py` decides; taking in what a job left is `results`'.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from batchrun.records import Doubt, RemoteJob, State
from batchrun.rules.remote import BatchState, Excuse, KnownJob, RemoteBatch
from batchrun.rules.repair import AS_ASKED, Repair
from batchrun.store.statements import Statements
from batchrun.store.store import Store


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line as it was packed.

    Attributes:
        row: the row it was made from.
        digest: what that asks for.
        size: bytes of the body.
        repair: how what is sent differs from what was asked.
    """

    row: int
    digest: bytes
    size: int
    repair: Repair = AS_ASKED


class Draft(msgspec.Struct, frozen=True):
    """A request file on this machine, not yet written down as a batch."""

    model: str
    file_name: str
    nonce: str
    size: int
    sha256: bytes
    reserved_nano: int
    lines: Sequence[Line]
    stands_for: str | None = None


async def plan(store: Store, draft: Draft) -> RemoteBatch:
    """Write a batch down: from now on its rows wait for it."""
    names = ("model", "file_name", "nonce", "size", "sha256", "reserved_nano", "stands_for")
    fields = {name: getattr(draft, name) for name in names}
    async with store.transaction() as sql:
        row = await sql.one("add_batch", lines=len(draft.lines), planned_ms=store.now_ms(), **fields)
        number = row[0] if row else 0
        numbered = enumerate(draft.lines)
        await sql.many("add_line", [_line(number, place, line) for place, line in numbered])
        taken = await sql.many("take_row", [{"row": line.row, "digest": line.digest} for line in draft.lines])
        moved = ((State.PENDING, -taken), (State.SUBMITTED, taken))
        await sql.many("count_state", [{"state": state, "by": by} for state, by in moved])
    return await read(store, number)


def _line(batch: int, place: int, line: Line) -> dict[str, Any]:
    plan = None if line.repair == AS_ASKED else msgspec.json.encode(line.repair).decode()
    return {"batch": batch, "line": place, "digest": line.digest, "size": line.size, "plan": plan}


async def unfinished(store: Store) -> list[RemoteBatch]:
    """Batches that are not collected, oldest first; abandoned ones may still bring something."""
    return [await _with_jobs(store, row) for row in await store.sql.all("read_batches", batch=None)]


async def read(store: Store, number: int) -> RemoteBatch:
    """One batch."""
    (row,) = await store.sql.all("read_batches", batch=number)
    return await _with_jobs(store, row)


async def _with_jobs(store: Store, row: tuple[Any, ...]) -> RemoteBatch:
    number, state, model, file_name, nonce, lines, left, size, sha256, reserved, planned, *rest = row
    file_id, creating, creates, excuse, stands_for = rest
    jobs = tuple(_job(job) for job in await store.sql.all("read_jobs", batch=number))
    return RemoteBatch(
        number, BatchState(state), model, file_name, nonce, lines, left, size, sha256, reserved, planned / 1000,
        file_id, _seconds(creating), creates, None if excuse is None else Excuse(excuse), jobs, stands_for,
    )  # fmt: skip


def _job(row: tuple[Any, ...]) -> KnownJob:
    number, status, progress, output, errors, error, seen, moved, cancelled, collected = row
    return KnownJob(
        number, status, progress, output, errors, error, seen / 1000, moved / 1000, _seconds(cancelled),
        _seconds(collected),
    )  # fmt: skip


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


# --- steps forward ---------------------------------------------------------------------------------------------------


async def uploading(store: Store, batch: RemoteBatch) -> RemoteBatch:
    """The upload is about to begin."""
    return await _step(store, batch, "set_uploading")


async def uploaded(store: Store, batch: RemoteBatch, file_id: str) -> RemoteBatch:
    """The provider has the file."""
    async with store.transaction() as sql:
        await sql.execute("set_uploaded", batch=batch.id, file_id=file_id)
        await sql.execute("set_left_remote", batch=batch.id, left=1)
    return await read(store, batch.id)


async def creating(store: Store, batch: RemoteBatch, doubt: Doubt | None) -> RemoteBatch:
    """A create is about to go out; `doubt` when an earlier one may have been heard after all."""
    calls, nano = (doubt.calls, doubt.nano) if doubt else (0, 0)
    async with store.transaction(doubt_calls=calls, doubt_nano=nano) as sql:
        await sql.execute("set_creating", batch=batch.id, now_ms=store.now_ms())
        if doubt is not None:
            told = f"batch {batch.id}: no job has shown for the last create; created again"
            await sql.note(store.now_ms(), "batch", told)
    return await read(store, batch.id)


async def uncreated(store: Store, batch: RemoteBatch) -> RemoteBatch:
    """The provider refused to create the job: nothing runs, the file is there."""
    return await _step(store, batch, "set_uncreated")


async def told(store: Store, batch: RemoteBatch, jobs: Sequence[RemoteJob]) -> RemoteBatch:
    """Write down what the provider says of the jobs on this file, when it is anything new."""
    known = {job.id: job for job in batch.jobs}
    news = [job for job in jobs if _is_news(known.get(job.id), job)]
    if not news:
        return batch
    async with store.transaction() as sql:
        for job in news:
            await _tell(store, sql, batch, job)
        await sql.execute("set_running", batch=batch.id)
        strangers = [job for job in news if job.id not in known]
        if strangers and (known or batch.creates > 1 or len(strangers) > 1):
            await sql.note(store.now_ms(), "batch", f"batch {batch.id}: another job showed on its file, {news[-1].id}")
    return await read(store, batch.id)


def _is_news(known: KnownJob | None, job: RemoteJob) -> bool:
    if known is None:
        return True
    if known.collected is not None:
        return False
    return (known.status, known.progress, known.output_file_id, known.error_file_id, known.error) != (
        job.status, job.progress, job.output_file_id, job.error_file_id, job.error
    )  # fmt: skip


async def _tell(store: Store, sql: Statements, batch: RemoteBatch, job: RemoteJob) -> None:
    await sql.execute(
        "told_job", id=job.id, batch=batch.id, status=job.status, progress=job.progress,
        output_file_id=job.output_file_id, error_file_id=job.error_file_id, error=job.error, now_ms=store.now_ms(),
    )  # fmt: skip


async def cancelling(store: Store, batch: RemoteBatch, job: str, why: str, excuse: Excuse | None) -> RemoteBatch:
    """A job is about to be cancelled."""
    async with store.transaction() as sql:
        await sql.execute("cancel_job", id=job, now_ms=store.now_ms())
        if excuse is not None:
            await sql.execute("set_excuse", batch=batch.id, excuse=excuse)
        await sql.note(store.now_ms(), "batch", f"batch {batch.id}: cancelled job {job}, {why}")
    return await read(store, batch.id)


async def over(
    store: Store, batch: RemoteBatch, state: BatchState, *, misses: int, doubt: Doubt | None = None, told: str
) -> None:
    """The batch is over: rows whose lines brought nothing are pending again, and `misses` are counted against them."""
    calls, nano = (doubt.calls, doubt.nano) if doubt else (0, 0)
    async with store.transaction(doubt_calls=calls, doubt_nano=nano) as sql:
        if batch.left and batch.state is not BatchState.ABANDONED:
            await _give_back(sql, batch, misses)
        if state is BatchState.COLLECTED or not batch.jobs:
            await sql.execute("forget_lines", batch=batch.id)
        await sql.execute("set_over", batch=batch.id, state=state, now_ms=store.now_ms())
        await sql.note(store.now_ms(), "batch", told)


async def _give_back(sql: Statements, batch: RemoteBatch, misses: int) -> None:
    await begin_arrivals(sql)
    await sql.execute("lines_back", batch=batch.id)
    await sql.execute("settle_arrived")
    if misses:
        await sql.execute("count_misses", batch=batch.id, times=misses)
    await sql.execute("drop_arrived")
    await sql.recount()


async def begin_arrivals(sql: Statements) -> None:
    """An empty table for what lines bring."""
    for name in ("arrived_table", "drop_arrived"):
        await sql.execute(name)


async def _step(store: Store, batch: RemoteBatch, name: str, **fields: Any) -> RemoteBatch:
    async with store.transaction() as sql:
        await sql.execute(name, batch=batch.id, **fields)
    return await read(store, batch.id)


# --- beside the steps ------------------------------------------------------------------------------------------------


async def reserved(store: Store) -> dict[int, int]:
    """Nano-dollars set aside for batches that are not over, by their numbers."""
    return {number: nano for number, nano in await store.sql.all("reserved_by_batches")}  # noqa: C416 - typed


async def files_needed(store: Store) -> Collection[str]:
    """Names of the request files that are still needed here."""
    return {name for (name,) in await store.sql.all("files_kept")}


async def left_remote(store: Store) -> list[tuple[int, list[str]]]:
    """Batches from which nothing more will come, with the files they left at the provider."""
    found = []
    for number, file_id in await store.sql.all("left_remote"):
        jobs = (await read(store, number)).jobs
        files = [file_id, *(f for job in jobs for f in (job.output_file_id, job.error_file_id))]
        found.append((number, [name for name in files if name]))
    return found


async def lines_left(store: Store, batch: RemoteBatch) -> Collection[int]:
    """Numbers of the lines that have no outcome."""
    return {line for (line,) in await store.sql.all("lines_left", batch=batch.id)}


async def repairs(store: Store, batch: RemoteBatch) -> dict[int, Repair]:
    """How lines of the batch differ from what their rows asked, by the number of the line."""
    lines = await store.sql.all("repairs_of", batch=batch.id)
    return {line: msgspec.json.decode(plan, type=Repair) for line, plan in lines}


async def last_words(store: Store, digest: bytes) -> str:
    """What the provider last said of a line that asked this and failed; "" when nothing."""
    row = await store.sql.one("last_words", digest=digest)
    return str(row[0]) if row else ""


async def doubted(store: Store, batch: RemoteBatch, doubt: Doubt, told: str) -> None:
    """Some of its lines may have been paid for, and what was paid for cannot be had."""
    async with store.transaction(doubt_calls=doubt.calls, doubt_nano=doubt.nano) as sql:
        await sql.note(store.now_ms(), "batch", f"batch {batch.id}: {told}")


async def cleared(store: Store, number: int) -> None:
    """Its files are gone from the provider."""
    async with store.transaction() as sql:
        await sql.execute("set_left_remote", batch=number, left=0)
