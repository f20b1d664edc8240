"""Takes what an ended job has left: both files, either or none are downloaded, judged, and settled by the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batchrun.clock import Clock
from batchrun.files.bodies import Bodies
from batchrun.job import Batching
from batchrun.lanes.errands import NOT_FOUND
from batchrun.lanes.judging import Judge, as_request
from batchrun.lanes.lane import Counts
from batchrun.lanes.mending import Mender
from batchrun.lanes.provider import Provider, batch_folder, remove
from batchrun.lanes.quota import LocalQuota
from batchrun.records import Doubt, Trouble, Usage
from batchrun.rules import remote
from batchrun.rules.remote import RemoteBatch
from batchrun.store import batches
from batchrun.store.results import Results
from batchrun.store.store import Store
from batchrun.store.till import Till

# Lines of a request file that are read before others may go on.
_READ_AT_ONCE = 500


class Collector:
    """Collects jobs.

    Attributes:
        said: what the provider said of a batch that came back in part, by the batch's number; safe to show.
    """

    def __init__(
        self,
        store: Store,
        till: Till,
        provider: Provider,
        quota: LocalQuota,
        clock: Clock,
        counts: Counts,
        terms: Batching,
        cost: Callable[[str, Usage | None], int | None],
        mender: Mender,
        on_again: Callable[[], None],
        *,
        job_model: str | None,
        waits: bool,
    ) -> None:
        self._store = store
        self._till = till
        self._provider = provider
        self._quota = quota
        self._clock = clock
        self._counts = counts
        self._grace = terms.grace
        self._poll = terms.poll
        self._cost = cost
        self._mender = mender
        self._on_again = on_again
        self._job_model = job_model
        self._waits = waits
        self._folder = Path(batch_folder(store.path))
        self.said: dict[int, str] = {}

    async def collect(self, batch: RemoteBatch, number: str) -> RemoteBatch | None:
        """Take what an ended job has left, whatever its status says."""
        job = next(job for job in batch.jobs if job.id == number)
        paths: list[str] = []
        with contextlib.suppress(OSError):  # what is wrong with it, the download will say
            self._folder.mkdir(mode=0o700, exist_ok=True)  # of a batch that was given up nothing is kept here
        try:
            for kind, file_id in (("output", job.output_file_id), ("error", job.error_file_id)):
                if file_id is None:
                    continue
                path = self._folder / f"batchrun-{batch.nonce}-{len(paths)}.part"
                got = await self._download(file_id, str(path), job.moved)
                if got is None:
                    return None
                paths += [str(path)] if got else []
                if not got:
                    await self._not_there(batch, kind, f"the {kind} file of {job.id} is not there")
            return await self._take(batch, job, paths)
        finally:
            for left in paths:
                remove(left)

    async def _download(self, file_id: str, path: str, ended: float) -> bool | None:
        """Whether the file is there now; None when the run is parked, or is not to wait for it.

        A file that is not there may show late, as jobs do: it is asked for until the grace time is over.
        """
        while True:
            got = await self._provider.errands.run(lambda: self._provider.remote.download(file_id, path))
            if got is None:
                return None
            if not isinstance(got, Trouble):
                return True
            if got.status != NOT_FOUND or self._clock.now() - ended >= self._grace:
                return False
            if not self._waits:
                return None
            await self._provider.errands.rest(self._poll)

    async def _not_there(self, batch: RemoteBatch, kind: str, told: str) -> None:
        """Answers in a file that cannot be had are paid for, and their lines will be asked again."""
        if kind == "output" and (batch.left or len(batch.jobs) > 1):
            # Of several jobs on a file each may have done every line, also those that another one has answered.
            several = len(batch.jobs) > 1
            doubt = Doubt(batch.reserved_nano, batch.lines) if several else await self.doubt(batch)
            await batches.doubted(self._store, batch, doubt, told)
            self._quota.purse.spend(doubt.nano, batch.id)
        else:
            await self._store.note("batch", f"batch {batch.id}: {told}")

    async def doubt(self, batch: RemoteBatch) -> Doubt:
        """What its lines without an outcome may have cost all the same: the most that each of them can cost.

        Lines differ, so no share of the whole is a bound; without the request file, the whole is.
        """
        nano, left = batch.reserved_nano, await batches.lines_left(self._store, batch)
        if len(left) < batch.lines:
            bounds: list[int] = []
            with contextlib.suppress(OSError):
                for line, body in enumerate(Bodies(str(self._folder / batch.file_name)).all()):
                    if line in left:
                        bounds.append(self._quota.bound(as_request(batch.model, body)))
                    if line % _READ_AT_ONCE == 0:
                        await asyncio.sleep(0)
            nano = min(nano, sum(bounds)) if len(bounds) == len(left) and all(bounds) else nano
        return Doubt(nano, batch.left)

    async def _take(self, batch: RemoteBatch, job: remote.KnownJob, paths: list[str]) -> RemoteBatch:
        judge = Judge(
            batch, str(self._folder / batch.file_name), self._provider.redact, self._mender,
            await batches.repairs(self._store, batch), job_model=self._job_model, now=self._clock.now(),
        )  # fmt: skip
        judge.whole_job(job.error)
        results = Results(self._store, self._till, batch, job.id, partial(self._cost, batch.model))
        collected = await results.take(judge.results(paths), judge.excuse)
        brought = results.collected
        self._counts.answered += brought.answered
        self._counts.rejected += brought.rejected
        self._counts.tokens += brought.tokens
        self._counts.spent_nano += brought.cost_nano
        self._counts.requests += judge.read
        self._counts.faults.update(judge.faults)
        self._quota.purse.spend(brought.cost_nano + brought.doubt_nano, batch.id)
        self._quota.took_in(
            brought.answered, brought.rejected, [(refused.fault, refused.message) for refused in judge.refused]
        )
        for model, replies in brought.models.items():
            self._counts.came_from(batch.asked, batch.model, model, replies)
        if brought.repaired or brought.again:
            self._on_again()
        if judge.message or judge.error:
            self.said[batch.id] = judge.message or judge.error
        await self._store.note("batch", _told(collected, job, results, judge))
        return collected


def _told(batch: RemoteBatch, job: remote.KnownJob, results: Results, judge: Judge) -> str:
    brought = results.collected
    parts = [f"batch {batch.id}: {job.status}, {brought.answered} answers", f"{brought.rejected} refused"]
    parts += [f"{brought.repaired} repaired and sent again"] if brought.repaired else []
    parts += [f"{brought.again} answers asked for once more"] if brought.again else []
    parts += [f"{judge.unread} lines unreadable"] if judge.unread else []
    parts += [f"{batch.left} of {batch.lines} lines without an outcome"] if batch.left else []
    if judge.message or judge.error:
        parts.append(judge.message or judge.error)
    return ", ".join(parts)
