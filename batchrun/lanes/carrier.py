"""Carries one batch after the other through its life: each step is written down, then taken.

Which step is next, `rules/remote.py` says. Nothing here knows rows: what a batch's lines come to, `store` settles.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec

from batchrun.clock import Clock
from batchrun.job import Batching
from batchrun.lanes.collecting import Collector
from batchrun.lanes.errands import NOT_FOUND
from batchrun.lanes.provider import Provider, batch_folder, remove
from batchrun.lanes.quota import LocalQuota
from batchrun.records import Broken, Doubt, Fault, ParkReason, Refusal, RemoteJob, Trouble
from batchrun.reports import BatchStanding
from batchrun.rules import credit, faults, remote
from batchrun.rules.remote import BatchState, Excuse, RemoteBatch
from batchrun.store import batches
from batchrun.store.store import Store

SERVER_ERROR = 500
# A create refused with one of these was refused before anything was made; with any other status below 500 as well.
_MAY_HAVE_BEEN_HEARD = frozenset({408, 409, 425})


class Stay(enum.Enum):
    """How long a start stays with its batches."""

    WAIT = enum.auto()  # until they are over
    LEAVE = enum.auto()  # until every one of them runs
    COLLECT = enum.auto()  # not at all: what is ready is taken, nothing begins


class Returned(msgspec.Struct, frozen=True):
    """A batch is over, and lines of it brought nothing: `misses` more are counted against them."""

    batch: RemoteBatch
    misses: int
    suspicious: bool


class Carrier:
    """Takes batches as far as they go.

    Attributes:
        open: batches that are not over, as they stand, by number.
        turning: set to let rows go another way: nothing new begins, what runs is cancelled, what it finished is kept.
    """

    def __init__(
        self,
        store: Store,
        provider: Provider,
        collector: Collector,
        quota: LocalQuota,
        clock: Clock,
        terms: Batching,
        stay: Stay,
        *,
        may_go_live: bool,
        patient: bool,
        on_returned: Callable[[Returned], None],
        on_refused: Callable[[RemoteBatch, Trouble], None],
        on_missing: Callable[[RemoteBatch, str], bool],
    ) -> None:
        self._store = store
        self._provider = provider
        self._collector = collector
        self._errands = provider.errands
        self._quota = quota
        self._clock = clock
        self._terms = terms
        self._stay = stay
        self._may_go_live = may_go_live
        self._patient = patient
        self._on_returned = on_returned
        self._on_refused = on_refused
        self._on_missing = on_missing
        self._folder = Path(batch_folder(store.path))
        self._looked: dict[int, float] = {}
        self._worried: set[str] = set()
        self._shut: credit.Shut | None = None
        self._seen_running: set[int] = set()
        self._unasked = 0
        self._began = math.floor(clock.now() * 1000) / 1000  # as the checkpoint would have it
        self._in_doubt: list[RemoteBatch] = []
        self.open: dict[int, RemoteBatch] = {}
        self.turning = False

    def standing(self) -> tuple[BatchStanding, ...]:
        """How the batches stand, for faces."""
        now = self._clock.now()
        return tuple(standing(batch, now) for batch in self.open.values() if batch.state is not BatchState.ABANDONED)

    async def carry(self, batch: RemoteBatch) -> None:
        """Take it as far as it goes in this start."""
        self.open[batch.id] = batch
        following: RemoteBatch | None = batch
        while following is not None:
            self.open[batch.id] = following
            following = None if self._quota.parked is not None else await self._advance(following)

    async def _advance(self, batch: RemoteBatch) -> RemoteBatch | None:
        """The next step; None when the batch is over, or left as it stands."""
        terms = remote.Terms(self._terms.grace, self._terms.patience, self._began, self.turning)
        step = remote.next_step(batch, self._looked.get(batch.id), self._clock.now(), terms)
        match step:
            case remote.Upload():
                return None if self._stay is Stay.COLLECT else await self._upload(batch)
            case remote.Create(again):
                return None if self._stay is Stay.COLLECT else await self._create(batch, again=again)
            case remote.Look():
                return await self._look(batch, self._clock.now())
            case remote.Wait():
                return await self._wait(batch)
            case remote.Cancel(job, why):
                return await self._cancel(batch, job, why)
            case remote.Collect(job):
                return await self._collector.collect(batch, job)
            case remote.Finish(doubtful):
                await self._finish(batch, doubtful=doubtful)
            case remote.Abandon(doubtful):
                await self._abandon(batch, doubtful=doubtful)
            case _:
                assert_never(step)
        return None

    # --- to the provider ---------------------------------------------------------------------------------------------

    async def _upload(self, batch: RemoteBatch) -> RemoteBatch | None:
        path = self._folder / batch.file_name
        if not path.exists():
            await self._withdraw(batch)
            await self._over(batch, BatchState.ABANDONED, 0, "its request file is gone; its rows are pending")
            return None
        await self._until_credits()
        if self._quota.parked is not None:
            return None
        again = batch.state is BatchState.UPLOADING
        batch = await batches.uploading(self._store, batch)
        done = await self._provider.uploader.upload(batch, str(path), again=again)
        if done is None:
            return None
        if isinstance(done, Trouble):
            return await self._turned_away(batch, done)
        return await batches.uploaded(self._store, batch, done)

    async def _create(self, batch: RemoteBatch, *, again: bool) -> RemoteBatch | None:
        """Send one create. It is written down before, and never sent again while it may have been heard."""
        await self._until_credits()
        if self._quota.parked is not None:
            return None
        doubt = Doubt(batch.reserved_nano, batch.lines) if again else None
        if doubt is not None:
            # What is set aside for the batch may be spent already: another create may cost as much again.
            if not self._quota.purse.fits(doubt.nano):
                self._in_doubt.append(batch)  # it stays as it is; the others go on
                return None
            self._quota.purse.spend(doubt.nano)
        batch = await batches.creating(self._store, batch, doubt)
        seen = await self._provider.remote.create(batch.file_id or "")
        if isinstance(seen, RemoteJob):
            self._shut = None
            self._seen_running.add(batch.id)
            return await batches.told(self._store, batch, [seen])
        if _may_have_been_heard(seen):
            await self._store.note("batch", f"batch {batch.id}: no answer to its create; looking for the job")
            return batch if await self._errands.back_off(batch.id, faults.trouble(seen)) else None
        batch = await batches.uncreated(self._store, batch)
        return await self._turned_away(batch, await self._errands.judged(seen))

    def park_in_doubt(self) -> None:
        """At the end: a create that may have been heard could not go out again for want of money."""
        if self._in_doubt and self._quota.parked is None:
            first, stuck = self._in_doubt[0], sum(batch.reserved_nano for batch in self._in_doubt)
            what = "try to create a batch whose create was not answered"
            self._quota.out_of_budget(what, first.reserved_nano, stuck)

    async def _turned_away(self, batch: RemoteBatch, trouble: Trouble) -> RemoteBatch | None:
        """The provider takes no file or makes no job, now or ever."""
        if trouble.fault is Fault.CREDITS and self._patient:
            self._shut = credit.refused(
                self._shut, self._clock.monotonic(), trouble.wait, patient=True, probe=self._shut is not None
            )
            return batch
        if self._errands.parks(trouble):
            return None
        if self._errands.stays(trouble):
            await self._refused(batch, trouble)
            return None
        return batch if await self._errands.back_off(batch.id, trouble) else None

    async def _until_credits(self) -> None:
        """Out of credits and told to wait for them: the next upload or create is the probe."""
        while self._shut is not None and self._quota.parked is None:
            rest = self._shut.until - self._clock.monotonic()
            if rest <= 0:
                return
            await self._errands.pause(rest)

    async def _refused(self, batch: RemoteBatch, trouble: Trouble) -> None:
        """The provider will not make a batch of this: its rows go live, or the job has to be mended."""
        told = f"the provider makes no batch of it: {trouble.message}"
        await self._withdraw(batch)
        self._on_refused(batch, trouble)
        await self._over(batch, BatchState.ABANDONED, 0, told)

    async def _withdraw(self, batch: RemoteBatch) -> None:
        """What tries left at the provider is found by its name, which nobody knows once the batch is over."""
        if batch.state is BatchState.UPLOADING:
            await self._provider.uploader.withdraw(batch)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self, batch: RemoteBatch) -> RemoteBatch | None:
        looked = self._looked.get(batch.id)
        if looked is None:
            return await self._look(batch, self._clock.now() - self._terms.poll)
        if self._stay is Stay.COLLECT or batch.state is BatchState.ABANDONED:
            return None
        if self._stay is Stay.LEAVE and batch.state is BatchState.RUNNING and not self.turning:
            return None
        turning, age = self.turning, self._clock.now() - batch.begun
        due = self._clock.monotonic() + remote.poll_after(age, self._terms.poll, self._clock.random())
        while (rest := due - self._clock.monotonic()) > 0 and turning is self.turning:
            await self._errands.pause(rest)
            if self._quota.parked is not None:
                return None
        if turning is not self.turning:
            return batch
        return await self._look(batch, self._clock.now() - self._terms.poll)

    async def _look(self, batch: RemoteBatch, since: float) -> RemoteBatch | None:
        """See what the provider lists of our file, and write down what is new."""
        listing = await self._provider.board.look(since)
        if listing is None:
            return None
        asked, listed = listing
        mine = [job for job in listed if job.input_file_id == batch.file_id]
        for known in batch.jobs:
            if not known.over and all(job.id != known.id for job in mine):
                unlisted = await self._unlisted(batch, known)
                mine += [unlisted] if unlisted is not None else []
        self._looked[batch.id] = asked
        batch = await batches.told(self._store, batch, mine)
        if any(not job.over for job in batch.jobs):
            self._seen_running.add(batch.id)
        await self._worry(batch)
        return batch

    async def _unlisted(self, batch: RemoteBatch, known: remote.KnownJob) -> RemoteJob | None:
        """A job that the list does not show: new ones show late, others have vanished."""
        seen = await self._errands.run(lambda: self._provider.remote.job(known.id))
        if isinstance(seen, RemoteJob):
            return seen
        young = self._clock.now() - known.seen < self._terms.grace
        if not isinstance(seen, Trouble) or seen.status != NOT_FOUND or young:
            return None
        return RemoteJob(known.id, batch.file_id or "", remote.VANISHED)

    async def _worry(self, batch: RemoteBatch) -> None:
        """Say once what is odd about a job."""
        for job in batch.jobs:
            odd = "" if job.over else remote.worry(job, self._clock.now())
            if odd and job.id not in self._worried:
                self._worried.add(job.id)
                await self._store.note("batch", f"batch {batch.id}: {job.status}, {odd}")

    async def _cancel(self, batch: RemoteBatch, job: str, why: remote.Why) -> RemoteBatch | None:
        excuse = Excuse.TURNED if why is remote.Why.TURNED else None
        batch = await batches.cancelling(self._store, batch, job, why, excuse)
        seen = await self._errands.run(lambda: self._provider.remote.cancel(job))
        if seen is None:
            return None
        return await self._look(batch, self._clock.now())  # a refused cancel: it has ended meanwhile, or vanished

    # --- home again --------------------------------------------------------------------------------------------------

    async def _finish(self, batch: RemoteBatch, *, doubtful: bool) -> None:
        misses, suspicious = remote.misses(batch, may_go_live=self._may_go_live), False
        if batch.excuse is None and remote.cancelled_by_provider(batch):
            self._unasked += 1
            suspicious = self._unasked <= remote.MOST_MISSES
            misses = 0 if suspicious else misses
        told = f"{batch.lines - batch.left} of {batch.lines} lines settled"
        told += "; the provider may bill the others" if doubtful else ""
        doubt = await self._collector.doubt(batch) if doubtful else None
        await self._over(batch, BatchState.COLLECTED, misses, told, doubt=doubt, suspicious=suspicious)
        self._follow_excuse(batch)

    def _follow_excuse(self, batch: RemoteBatch) -> None:
        """Stop where nothing but a person, or a top-up, can help."""
        said = self._collector.said.get(batch.id)
        if not batch.left or said is None:
            return  # nothing is left, or an earlier start stopped for it already and said so
        if batch.excuse is Excuse.CREDITS and batch.id not in self._seen_running:
            return  # they ran out while nobody looked: the next create, or call, tells whether there are any by now
        if batch.excuse is Excuse.CREDITS and self._patient:
            self._shut = credit.refused(None, self._clock.monotonic(), None, patient=True, probe=False)
        elif batch.excuse is Excuse.CREDITS:
            self._quota.park(ParkReason.CREDITS, f"Out of credits: {said}")
        elif batch.excuse is Excuse.KEY:
            self._quota.park(ParkReason.KEY, said)
        elif batch.excuse is Excuse.MODEL and not self._on_missing(batch, said):
            self._quota.park(ParkReason.MODEL, said)

    async def _abandon(self, batch: RemoteBatch, *, doubtful: bool) -> None:
        misses = remote.misses(batch, may_go_live=self._may_go_live) if batch.jobs else 0
        doubt = await self._collector.doubt(batch) if doubtful else None
        await self._withdraw(batch)
        told = f"given up with {batch.left} lines; the provider may bill them" if doubtful else "not begun"
        await self._over(batch, BatchState.ABANDONED, misses, told, doubt=doubt)

    async def _over(
        self,
        batch: RemoteBatch,
        state: BatchState,
        misses: int,
        told: str,
        *,
        doubt: Doubt | None = None,
        suspicious: bool = False,
    ) -> None:
        held = batch.state is not BatchState.ABANDONED
        # Before the commit: afterwards nobody may come to look for it, and every step before can do without it.
        remove(self._folder / batch.file_name)
        await batches.over(
            self._store, batch, state, misses=misses, doubt=doubt, told=f"batch {batch.id}: {state}, {told}"
        )
        del self.open[batch.id]
        if held:
            self._quota.unhold(batch.reserved_nano, 0 if doubt is None else doubt.nano, batch.id)
        if self._terms.delete_remote:
            await self.delete_remote(batch.id)
        if batch.left and held:
            self._on_returned(Returned(batch, misses, suspicious))

    async def delete_remote(self, *numbers: int) -> None:
        """Remove the files of batches that are over from the provider; what fails is tried at the next start."""
        for number, files in await batches.left_remote(self._store):
            if numbers and number not in numbers:
                continue
            gone = [await self._errands.run(partial(self._provider.remote.delete, name)) for name in files]
            if all(done is True for done in gone):
                await batches.cleared(self._store, number)


def standing(batch: RemoteBatch, now: float) -> BatchStanding:
    """A batch as people want to see it."""
    job = batch.jobs[-1] if batch.jobs else None
    return BatchStanding(
        number=batch.id,
        model=batch.model,
        lines=batch.lines,
        state=batch.state if job is None else job.status,
        progress=None if job is None else job.progress,
        age=max(0.0, now - batch.begun),
        job=None if job is None else job.id,
        worry="" if job is None or job.over else remote.worry(job, now),
    )


def _may_have_been_heard(seen: Refusal | Broken) -> bool:
    """Whether a create that was not answered well may have made a job all the same."""
    if isinstance(seen, Broken):
        return seen.maybe_paid
    return seen.status >= SERVER_ERROR or seen.status in _MAY_HAVE_BEEN_HEARD
