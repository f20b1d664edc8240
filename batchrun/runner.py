"""The shell of a run: pass 1, the sending and the sink, put together and taken apart in order.

It decides nothing about requests and shows nothing: faces read the `Progress` it hands out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from batchrun import diary, herald, output, reckoning, wanted
from batchrun.clock import Clock, RealClock
from batchrun.errors import BatchrunError, BusyError, Interrupted, StorageError, first_of
from batchrun.files.source import SourceFile, discover
from batchrun.herald import Herald, Notify
from batchrun.job import Job, checked
from batchrun.lanes.lane import Counts, Parked
from batchrun.lanes.quota import LocalQuota
from batchrun.records import ParkReason
from batchrun.reports import BatchStanding, Progress, Report, Stage, Sums
from batchrun.sending import Announce, Confirm, Sending
from batchrun.store import batches
from batchrun.store.ingest import find_twins, share_with_twins
from batchrun.store.store import Hidden, Kept, Store
from batchrun.wanted import Wanted

_RATE_WINDOW = 10.0


class Options(msgspec.Struct, frozen=True):
    """What the user says for one start only; never stored.

    `confirm` is asked whether the plan may be carried out, before anything is sent; `announce` is told the plan then;
    `notify` is told when the run finishes, parks, recovers or fails, and returns why it could not pass that on.
    """

    new_requests: bool = False
    accept_loss: bool = False
    retry_rejected: bool = False
    detach: bool = False
    announce: Announce = lambda _plan: None
    confirm: Confirm | None = None
    notify: Notify | None = None


class Run:
    """One start of a job. `go` does it; the rest may be called meanwhile, from the same event loop.

    Attributes:
        interrupted: whether the user said stop.
    """

    def __init__(self, job: Job, key: str | None, clock: Clock | None = None, options: Options | None = None) -> None:
        self._job = job
        self._key = key
        self._clock = clock or RealClock()
        self._options = options or Options()
        self._began = self._clock.monotonic()
        self.interrupted = False
        self._stop_code = reckoning.INTERRUPTED
        self._cut_short = False
        self._going: asyncio.Task[Any] | None = None
        self._sending: Sending | None = None
        self._store: Store | None = None
        self._stage = Stage.READING
        self._rows = 0
        self._start = Kept(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._cut_off = Hidden(0, 0)
        self._hidden = Hidden(0, 0)
        self._herald = Herald(self._options.notify, self._undelivered)
        self._beats: deque[tuple[float, int, int]] = deque()

    # --- from outside ------------------------------------------------------------------------------------------------

    def interrupt(self, exit_code: int = reckoning.INTERRUPTED) -> None:
        """Stop softly: nothing new starts, calls in flight finish and are kept. A second time: end at once."""
        self._stop_code = exit_code
        if self.interrupted:
            self._herald.give_up()
        if self.interrupted and not self._cut_short:
            self._cut_short = True
            if (quota := self._quota) is not None:
                self._cut_off = Hidden(quota.in_flight, quota.reserved)
            if not (self._sending is not None and self._sending.cancel()) and self._going is not None:
                self._going.cancel()
        self.interrupted = True
        if (quota := self._quota) is not None:
            quota.park(ParkReason.INTERRUPTED, "Interrupted.")

    @property
    def _quota(self) -> LocalQuota | None:
        return self._sending.quota if self._sending is not None else None

    @property
    def _batches(self) -> tuple[BatchStanding, ...]:
        return self._sending.batches if self._sending is not None else ()

    @property
    def _counts(self) -> Counts:
        return self._sending.counts if self._sending is not None else Counts()

    def progress(self) -> Progress:
        """How the run stands."""
        now = self._clock.monotonic()
        answers, tokens = self._rates(now)
        start, counts, quota = self._start, self._counts, self._quota
        left = start.pending - counts.answered - counts.rejected
        return Progress(
            stage=Stage.ASKING if self._sending is not None and self._sending.is_asking else self._stage,
            rows=self._rows,
            total=self._total(),
            answered=start.answered + counts.answered,
            rejected=start.rejected + counts.rejected,
            in_flight=quota.in_flight if quota else 0,
            limit=quota.limit if quota else 0,
            answers_per_second=answers,
            tokens_per_second=tokens,
            throttled=quota.throttled if quota else 0,
            spent_nano=start.cost_nano + counts.spent_nano,
            unpriced=start.unpriced + (self._store.unpriced_now if self._store is not None else 0),
            seconds_left=left / answers if answers > 0 else None,
            waiting=quota.waiting if quota else "",
            wait_seconds=max(0.0, quota.waiting_until - now) if quota and quota.waiting else 0.0,
            batches=self._batches,
            requests=counts.requests,
            faults={fault.value: times for fault, times in counts.faults.items()},
        )

    def _total(self) -> int:
        return self._start.pending + self._start.answered + self._start.rejected

    def _rates(self, now: float) -> tuple[float, float]:
        """Answers and tokens a second over the last ten seconds."""
        self._beats.append((now, self._counts.answered, self._counts.tokens))
        while now - self._beats[0][0] > _RATE_WINDOW:
            self._beats.popleft()
        (then, answered, tokens), (_, answered_now, tokens_now) = self._beats[0], self._beats[-1]
        seconds = max(now - then, 1e-3)
        return (answered_now - answered) / seconds, (tokens_now - tokens) / seconds

    def _watching(self, stage: Stage) -> Callable[[int], bool]:
        """What a long reading or writing tells how far it is, and asks whether to stop."""
        self._stage, self._rows = stage, 0

        def watch(rows: int) -> bool:
            self._rows = rows
            return self.interrupted

        return watch

    # --- the walk ----------------------------------------------------------------------------------------------------

    async def go(self) -> Report:
        """Do the job, or go on with it, as far as it goes.

        Raises:
            BatchrunError: something it cannot go on from; everything counted so far is kept.
        """
        try:
            async with self._herald.working():
                return await self._told()
        except BaseExceptionGroup as group:
            raise first_of(group) from group
        finally:
            if self._store is not None:
                await self._store.release()

    async def _told(self) -> Report:
        """The walk; an error it ends with is told, while the lock is still held, but not that another run has it."""
        try:
            files = discover(self._job.inputs)
            store = await Store.open(
                self._job.checkpoint,
                self._clock,
                provider=self._job.provider,
                accept_loss=self._options.accept_loss,
            )
            store.when_noted(self._heard)
            self._going, self._store = asyncio.current_task(), store
            return await self._with(store, files)
        except BusyError:
            raise
        except Exception as error:
            self._herald.put(herald.failed(error, self._clock.now(), self._job.checkpoint, await self._sums()))
            raise

    async def _with(self, store: Store, files: Sequence[SourceFile]) -> Report:
        try:
            settled = await wanted.settle(
                store, self._job, files, new_requests=self._options.new_requests, watch=self._watching(Stage.READING)
            )
            if self._options.retry_rejected:
                await store.retry_rejections()
            if self._job.dedupe:
                await find_twins(store)
            self._start, self._hidden = await store.kept(), await store.hidden()
            await store.note("opened", f"{self._start.pending} rows to send")
            parked = await self._send(store, settled)
            if self._job.dedupe:
                await share_with_twins(store)
            return await self._close(store, settled, parked)
        except (Interrupted, asyncio.CancelledError):
            if not self.interrupted or self._going is None:
                raise
            self._going.uncancel()
            return await self._close(store, None, Parked(ParkReason.INTERRUPTED, "Interrupted."))
        except BatchrunError as error:
            # Not so when it comes as a group, from the middle of sending: then the run stays open in the checkpoint,
            # and the next start counts what this one may hide.
            with contextlib.suppress(StorageError):
                await store.end("failed", error.message, doubt=self._cut_off)
            raise

    async def _send(self, store: Store, settled: Wanted) -> Parked | None:
        idle = not self._start.pending and not self._start.again and not await batches.unfinished(store)
        if idle and not (self._job.batching.delete_remote and await batches.left_remote(store)):
            return None
        self._stage = Stage.SENDING
        self._sending = Sending(
            self._job, self._key, self._clock, store, settled, self._start,
            leaving=self._options.detach, announce=self._options.announce, confirm=self._options.confirm,
        )  # fmt: skip
        return await self._sending.go(interrupted=lambda: self.interrupted)

    async def _close(self, store: Store, settled: Wanted | None, parked: Parked | None) -> Report:
        """Write the output when the job is done, write down how the run ended, and say so."""
        self._going = None  # from here on it ends by itself
        kept = await store.kept()
        written = False
        if settled is not None and kept.pending == 0 and not (kept.again and _is_interrupted(parked)):
            # Answers that could be better are answers all the same.
            parked = parked if kept.again else None
            try:
                written = await self._write_output(store, settled)
            except Interrupted:
                parked = Parked(ParkReason.INTERRUPTED, "Interrupted while the output was written.")
        report = await self._report(store, kept, parked, written=written)
        await store.note(*reckoning.ending(report))
        if report.parked is not None:
            await store.note("why", report.message)
        learned = self._quota.learned() if self._quota else {}
        await store.end(
            "finished" if parked is None else "parked",
            None if parked is None else parked.reason.value,
            learned=msgspec.json.encode(learned).decode() if learned else None,
            doubt=self._cut_off,
        )
        self._herald.put(herald.ended(report, self._clock.now()))
        return report

    async def _write_output(self, store: Store, settled: Wanted) -> bool:
        """Write the output unless the one that is there shows all there is; returns whether it was written."""
        path = self._job.output
        if path is None:
            return False
        revision = (await store.sql.one("revision") or (0,))[0]
        before = await store.sql.one("written", path=path)
        there = output.stamp(path)
        if before is not None and there is not None and before == (there.size, there.mtime_ns, revision):
            return False
        stamp = await asyncio.to_thread(
            output.write, path, store.path, settled.files, settled.seen.columns,
            shared=self._job.dedupe, watch=self._watching(Stage.WRITING),
        )  # fmt: skip
        self._stage = Stage.SENDING
        if stamp is not None:
            async with store.transaction() as sql:
                await sql.execute(
                    "note_written", path=path, size=stamp.size, mtime_ns=stamp.mtime_ns, revision=revision
                )
                await sql.note(store.now_ms(), "written", f"{self._total()} rows, {stamp.size} bytes: {path}")
        return True

    # --- telling -----------------------------------------------------------------------------------------------------

    def _heard(self, kind: str, detail: str) -> None:
        """A line has come into the diary."""
        if kind == diary.Kind.RECOVERED:
            now = self.progress()
            sums = Sums(
                now.total, now.answered, now.rejected, now.total - now.answered - now.rejected, now.spent_nano,
                self._counts.spent_nano, self._hidden.nano,
            )  # fmt: skip
            self._herald.put(herald.recovered(detail, self._clock.now(), self._job.checkpoint, sums))

    async def _sums(self) -> Sums | None:
        """Where the checkpoint stands, when it can still be read."""
        if self._store is None or self._options.notify is None:
            return None
        try:
            kept, hidden = await self._store.kept(), await self._store.hidden()
        except (StorageError, ValueError):  # the disk, or a connection that is closed
            return None
        total = kept.pending + kept.answered + kept.rejected
        now = self._counts.spent_nano
        return Sums(total, kept.answered, kept.rejected, kept.pending, kept.cost_nano, now, hidden.nano)

    async def _undelivered(self, told: str) -> None:
        """Write down that a notice was not delivered; the log has it also where the disk does not take it."""
        if self._store is not None:
            with contextlib.suppress(StorageError, ValueError):
                await self._store.note_apart("notify", told)
                return
        diary.tell(int(self._clock.now() * 1000), "notify", told, self._job.checkpoint)

    async def _report(self, store: Store, kept: Kept, parked: Parked | None, *, written: bool) -> Report:
        sending, seconds = self._sending, self._clock.monotonic() - self._began
        start = reckoning.Start(
            counts=self._counts,
            seconds=seconds,
            throttled=self._quota.throttled if self._quota else 0,
            cut_off=self._cut_off,
            batches=self._batches,
            hint="" if sending is None else sending.hint(seconds),
            written=written,
            stop_code=self._stop_code,
            rest=None if sending is None or parked is None else await sending.rest(kept),
        )
        return await reckoning.report(store, self._job, kept, parked, start)


def _is_interrupted(parked: Parked | None) -> bool:
    return parked is not None and parked.reason is ParkReason.INTERRUPTED


def run(job: Job, key: str | None = None, options: Options | None = None) -> Report:
    """Do a job, or go on with it, and return how it ended; for use from Python.

    Args:
        job: what is asked for.
        key: the API key; None when the server needs none.
        options: what holds for this start only.

    Raises:
        BatchrunError: something it cannot go on from; everything counted so far is kept.
    """
    return asyncio.run(Run(checked(job), key, options=options).go())
