"""Rows that want an answer, as the lanes get them: made into requests again, and checked against what pass 1 wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

from batchrun import output
from batchrun.errors import InputError
from batchrun.files.prompt import Prompter
from batchrun.files.source import Reader
from batchrun.job import Job
from batchrun.lanes.waiting import Asked
from batchrun.records import BadRow, Request
from batchrun.store.store import Pending, Store
from batchrun.wanted import Wanted


async def pending(
    store: Store, job: Job, settled: Wanted, wanted: Callable[[Asked], bool], *, again: bool = False
) -> AsyncGenerator[Asked]:
    """Those that `wanted` lets through, in input order, streamed; `again`: those that want a better answer.

    Raises:
        InputError: the input is not what pass 1 read.
    """
    reader, prompter = Reader(settled.files), Prompter(job.asking)
    try:
        async for page in store.pending(leaders=job.dedupe, again=again):
            for row, seen in zip(reader.take([seen.row for seen in page]), page, strict=True):
                asked = Asked(_as_wanted(prompter.request(row), seen), seen.misses, seen.repair, seen.before)
                if wanted(asked):
                    yield asked
    finally:
        reader.close()


async def only(asked: Asked) -> AsyncIterator[Asked]:
    """One row by itself."""
    yield asked


def _as_wanted(request: Request | BadRow, seen: Pending) -> Request:
    if isinstance(request, BadRow) or request.digest != seen.digest:
        raise InputError(output.CHANGED, output.AGAIN)
    return request
