"""The batch jobs: created, done as they fall due, ended, and taken up again after a restart. HTTP is `batch_api`'s."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from uuid import uuid4

from batchrun.simulator import errors
from batchrun.simulator.account import Account, Milestones
from batchrun.simulator.batch_calls import Calls
from batchrun.simulator.batch_faults import CANCELLABLE, TERMINAL, Files, Status
from batchrun.simulator.batch_lines import UNREADABLE, first_model
from batchrun.simulator.batch_records import Job, StoredFile
from batchrun.simulator.batch_work import Work, WorkEnd
from batchrun.simulator.file_store import FileStore
from batchrun.simulator.settings import CreditsEnd, Settings

_SLICE = 0.004  # seconds of work at a stretch: the event loop has others to serve
_TICK = 0.05
_PATIENCE = 0.05  # how long a call waits for the lines that are due


class Batches:
    """All jobs, in the order they were created, and the one task that works on them."""

    def __init__(
        self,
        settings: Settings,
        account: Account,
        store: FileStore,
        calls: Calls,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.jobs: list[Job] = []
        self.created = Milestones()
        self.ended = Milestones()
        self._settings = settings
        self._account = account
        self._store = store
        self._calls = calls
        self._clock = clock
        self._held = False
        self._work: dict[str, Work] = {}
        self._nudged = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def requests(self) -> Counter[str]:
        """How often each call of both APIs was made, by the words of `Call`."""
        return self._calls.requests

    @property
    def files(self) -> list[StoredFile]:
        """The files that are stored and not deleted."""
        return self._store.stored

    def open(self, known: Iterable[Job]) -> None:
        """Take up the jobs of an earlier life, first the lines that a kill left charged and in no file; then work."""
        self.jobs = list(known)
        for job in self.jobs:
            if job.status is Status.IN_PROGRESS and not job.gone:
                self._settle(job)
        self._tell()
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def close(self) -> None:
        """Stop where it is."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for work in self._work.values():
            work.close()

    def hold(self) -> None:
        """Leave every job where it is until `release`."""
        self._held = True

    def release(self) -> None:
        """Let the jobs go on."""
        self._held = False
        self._nudged.set()

    async def catch_up(self) -> None:
        """Give the lines that are due a moment to be done."""
        if self._task is not None and self._task.done():
            self._task.result()
        self._caught_up.clear()
        self._nudged.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._caught_up.wait()

    def get(self, job_id: str) -> Job | None:
        """The job, unless it is unknown or gone."""
        return next((job for job in self.jobs if job.job_id == job_id and not job.gone), None)

    def listed(self) -> list[Job]:
        """The jobs in the list, newest first: those that are not gone, nor too new for it."""
        newest = self._clock() - self._settings.batch_list_lag
        return [job for job in reversed(self.jobs) if not job.gone and job.created <= newest]

    def create(self, file: StoredFile, endpoint: str, model: str, after: Job | None = None) -> Job:
        """A new job; with `after`, one that does what that job has left undone."""
        number = len(self.jobs) + 1
        job = Job(
            job_id=str(uuid4()),
            number=number,
            input_file_id=file.file_id,
            endpoint=endpoint,
            created=self._clock(),
            output_id=f"file-{uuid4()}",
            error_id=f"file-{uuid4()}",
            shuffle=f"order {self._settings.seed} {number}" if after is None else after.shuffle,
            file_bytes=file.bytes,
            model_id=model,
            first=0 if after is None else after.first + after.done,
            answers=self._account.answers,
        )
        if after is None:
            job.plan = self._calls.script.plan(number, model or first_model(self._store.path(file.file_id)))
        self.jobs.append(job)
        if job.plan.vanishes and not job.plan.share and not job.plan.restarts:
            job.gone = True
        self._keep(job)
        self._nudged.set()
        return job

    def cancel(self, job: Job) -> bool:
        """Begin to cancel it, if that is still possible."""
        if job.status not in CANCELLABLE:
            return False
        job.status = Status.CANCELING
        job.cancel_at = self._clock() + self._settings.batch_cancel_seconds
        self._keep(job)
        return True

    def is_stuck(self, job: Job) -> bool:
        """Whether it stays where it is just now because a fault says so."""
        plan = job.plan
        if plan.stuck is None or job.status in TERMINAL or job.status is Status.CANCELING:
            return False
        return plan.stuck_seconds is None or self._clock() < job.created + plan.stuck_seconds

    def _settle(self, job: Job) -> None:
        with contextlib.suppress(FileNotFoundError):  # the input was deleted: the job will fail when it is its turn
            if self._working(job).settle():
                self._keep(job)

    async def _go_on(self) -> None:
        while True:
            self._nudged.clear()
            while await self._round():
                pass
            self._caught_up.set()
            waiting = any(job.status not in TERMINAL and not job.gone for job in self.jobs)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK if waiting else None):
                    await self._nudged.wait()

    async def _round(self) -> bool:
        """A slice of work for each job; whether there is more to do at once."""
        busy = False
        for job in [job for job in self.jobs if job.status not in TERMINAL and not job.gone]:
            busy = self._step(job, time.monotonic() + _SLICE) or busy
            await asyncio.sleep(0)
        return busy

    def _step(self, job: Job, until: float) -> bool:
        if self._held or job.gone:
            return False
        try:
            match job.status:
                case Status.VALIDATING:
                    return self._validate(job, until)
                case Status.IN_PROGRESS:
                    return self._do_lines(job, until)
                case Status.CANCELING if self._clock() >= job.cancel_at:
                    self._end(job, Status.CANCELLED)
        except FileNotFoundError:  # the input was deleted
            self._end(job, Status.FAILED, UNREADABLE)
        return False

    def _validate(self, job: Job, until: float) -> bool:
        """Look through the file, and let the job begin when its time has come."""
        work = self._working(job)
        work.scan.go_on(until)
        if not work.scan.over:
            return True
        job.model_id = job.model_id or work.scan.model
        begins = job.created + self._settings.batch_validation
        if self._clock() < begins or (self.is_stuck(job) and job.plan.stuck is Status.VALIDATING):
            return False
        if work.scan.mistake is not None:
            self._end(job, Status.FAILED, f"Invalid input file: {work.scan.mistake}")
        elif job.plan.invalid:
            self._end(job, Status.FAILED, job.plan.error)
        else:
            job.status = Status.IN_PROGRESS
            job.lines = work.scan.lines
            job.started = begins if job.plan.stuck is not Status.VALIDATING else self._clock()
            self._keep(job)
        return True

    def _do_lines(self, job: Job, until: float) -> bool:
        """Do the lines that are due, and end the job after the last of them."""
        work = self._working(job)
        if not work.scan.over:  # after a restart
            work.scan.go_on(until)
            return True
        before, due = job.done, work.due(self._clock(), stuck=self.is_stuck(job))
        end = work.go_on(due, until)
        if job.done > before:
            self._keep(job)
        if end is WorkEnd.NO_CREDITS:
            self._end_without_credits(job)
        elif job.done >= work.goal and not self.is_stuck(job):
            self._finish(job)
        else:
            return job.done < due
        return False

    def _end_without_credits(self, job: Job) -> None:
        if self._settings.batch_out_of_credits is CreditsEnd.CANCEL:
            self._end(job, Status.CANCELLED)
        else:
            self._end(job, Status.FAILED, errors.NO_CREDITS.message)

    def _finish(self, job: Job) -> None:
        """The last line that was planned is done."""
        if job.plan.vanishes:
            job.gone = True
        self._end(job, job.plan.status, job.plan.error)
        source = self._store.get(job.input_file_id)
        if job.plan.restarts and source is not None:
            self.create(source, job.endpoint, job.model_id, after=job)

    def _end(self, job: Job, status: Status, error: str = "") -> None:
        """Close the job and show the files that are there to be shown."""
        work = self._work.pop(job.job_id, None)
        if work is not None:
            work.close()
        job.status, job.error, job.ended = status, error, self._clock()
        job.output_shown = self._show(job, job.output_id, job.output_bytes, Files.OUTPUT)
        job.error_shown = self._show(job, job.error_id, job.error_bytes, Files.ERROR)
        if job.output_shown:
            self._account.delivered_batch(job.job_id)
        self._keep(job)

    def _show(self, job: Job, file_id: str, size: int, which: Files) -> bool:
        shown = size > 0 and not job.gone and job.plan.files in (None, which, Files.BOTH)
        if shown:
            os.truncate(self._store.path(file_id), size)  # a kill may have left more than was recorded
            self._store.add_result(file_id, f"{job.job_id}.jsonl", job.number)
        else:
            self._store.path(file_id).unlink(missing_ok=True)
        return shown

    def _working(self, job: Job) -> Work:
        """The open files of a job, opened when it is first worked on in this life."""
        work = self._work.get(job.job_id)
        if work is None:
            work = self._work[job.job_id] = Work(job, self._settings, self._account, self._store, self._calls)
        return work

    def _keep(self, job: Job) -> None:
        self._account.record(job)
        self._tell()

    def _tell(self) -> None:
        self.created.reach(len(self.jobs))
        self.ended.reach(sum(job.status in TERMINAL for job in self.jobs))
