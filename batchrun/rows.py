"""Rows that want an answer, as the lanes get them: made into requests again, and checked against what pass 1 wanted.

Here too: which lane a row belongs to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from batchrun import output
from batchrun.errors import InputError
from batchrun.files.prompt import Prompter
from batchrun.files.source import Reader
from batchrun.job import Job
from batchrun.lanes.mending import Mender
from batchrun.lanes.waiting import Asked
from batchrun.records import BadRow, Request
from batchrun.rules.pack import fits_a_line
from batchrun.rules.remote import MOST_MISSES
from batchrun.rules.repair import AS_ASKED
from batchrun.store.store import Pending, Store
from batchrun.wanted import Wanted


class Split(msgspec.Struct, frozen=True):
    """Which rows go into batches, and which live; a row belongs to one lane at a time.

    Attributes:
        batched: models whose rows go into batches.
        mender: how rows are sent, by which model they go; None: as they ask.
        turned: whether what was meant for batches goes live.
        may_go_live: whether a row of such a model may go live at all.
    """

    batched: frozenset[str]
    mender: Mender | None
    turned: bool
    may_go_live: bool

    def goes_live(self, asked: Asked) -> bool:
        """Whether it is sent live: nothing else is possible, or batches did not do."""
        if not self.batched:
            return True
        request = asked.request if self.mender is None else self.mender.sent(asked)
        if request.model not in self.batched or not fits_a_line(request.body):
            return True
        odd = asked.misses >= MOST_MISSES or asked.repair is not AS_ASKED
        return self.may_go_live and (self.turned or odd)


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
