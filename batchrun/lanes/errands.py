"""Calls about files and jobs that may be repeated: tried until they bring a value, a refusal that stays, or a park.

Creating a job may not be repeated; that is `batch`'s own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from batchrun.clock import Clock
from batchrun.lanes.quota import LocalQuota
from batchrun.records import Broken, Fault, ParkReason, Refusal, RemoteJob, Trouble
from batchrun.rules import faults
from batchrun.rules.verdicts import backoff

T = TypeVar("T")

UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
_STAYS = frozenset({Fault.BAD_REQUEST, Fault.MODEL_MISSING, Fault.TOO_LONG})


class Errands:
    """Runs calls about files and jobs for as long as the user's patience lasts."""

    def __init__(
        self, quota: LocalQuota, clock: Clock, patience: float, key_works: Callable[[], Awaitable[bool | None]]
    ):
        self._quota = quota
        self._clock = clock
        self._patience = patience
        self._key_works = key_works
        self._failing: dict[object, tuple[float, int]] = {}  # since when, and how often
        self._wake = asyncio.Event()
        quota.when_parked(self._wake.set)

    def wake(self) -> None:
        """Let whoever waits look around again."""
        self._wake.set()

    async def pause(self, seconds: float) -> None:
        """Wait so many seconds, or until the run is parked or somebody says `wake`."""
        if self._quota.parked is None:
            self._wake.clear()
            await self._clock.wait(self._wake, seconds)

    async def rest(self, seconds: float) -> None:
        """Wait so many seconds, whoever says `wake`, or until the run is parked."""
        due = self._clock.monotonic() + seconds
        while (left := due - self._clock.monotonic()) > 0 and self._quota.parked is None:
            await self.pause(left)

    async def run(self, call: Callable[[], Awaitable[T | Refusal | Broken]]) -> T | Trouble | None:
        """The value, a refusal that would come again, or None when the run is parked."""
        errand = object()
        while self._quota.parked is None:
            seen = await call()
            if not isinstance(seen, Refusal | Broken):
                self._failing.pop(errand, None)
                return seen
            trouble = await self.judged(seen)
            if self.stays(trouble):
                self._failing.pop(errand, None)
                return trouble
            if self.parks(trouble) or not await self.back_off(errand, trouble):
                return None
        return None

    async def back_off(self, errand: object, trouble: Trouble) -> bool:
        """Wait before this errand is tried again; False when the user's patience with it is over."""
        now = self._clock.monotonic()
        since, tries = self._failing.get(errand, (now, 0))
        self._failing[errand] = since, tries + 1
        wait = trouble.wait or 0.0
        if now - since >= self._patience or wait > self._patience:
            self._quota.park(ParkReason.OVERLOAD, f"The provider's batch service fails: {trouble.message}")
            return False
        await self.rest(max(wait, backoff(tries + 1, self._clock.random())))
        return self._quota.parked is None

    def recovered(self, errand: object) -> None:
        """It went well: patience begins anew."""
        self._failing.pop(errand, None)

    def stays(self, trouble: Trouble) -> bool:
        """Whether asking again would bring the same refusal."""
        return trouble.fault in _STAYS

    async def judged(self, seen: Refusal | Broken) -> Trouble:
        """What went wrong. Uploads are refused with 401 also when credits are used up: another call tells."""
        trouble = faults.trouble(seen)
        if trouble.fault is Fault.KEY and await self._key_works():
            return Trouble(Fault.CREDITS, trouble.status, trouble.message)
        if trouble.status == FORBIDDEN and trouble.fault is Fault.BAD_REQUEST:
            return Trouble(Fault.KEY, trouble.status, trouble.message)
        return trouble

    def parks(self, trouble: Trouble) -> bool:
        """Park the run where nothing but a person can help."""
        match trouble.fault:
            case Fault.CREDITS:
                self._quota.park(ParkReason.CREDITS, f"Out of credits: {trouble.message}")
            case Fault.KEY:
                self._quota.park(ParkReason.KEY, trouble.message)
            case _:
                return False
        return True


class Board:
    """What the provider lists: one call for however many batches look at it."""

    def __init__(
        self, errands: Errands, list_jobs: Callable[[], Awaitable[list[RemoteJob] | Refusal | Broken]], clock: Clock
    ):
        self._errands = errands
        self._list_jobs = list_jobs
        self._clock = clock
        self._jobs: list[RemoteJob] = []
        self._asked = float("-inf")
        self._one_at_a_time = asyncio.Lock()

    async def look(self, since: float) -> tuple[float, list[RemoteJob]] | None:
        """A listing asked for after `since` (seconds since the epoch), and when; None when the run is parked."""
        async with self._one_at_a_time:
            if self._asked <= since:
                asked = self._clock.now()
                jobs = await self._errands.run(self._list_jobs)
                while isinstance(jobs, Trouble):  # without the list nothing can be known to be safe
                    if not await self._errands.back_off(self, jobs):
                        return None
                    asked = self._clock.now()
                    jobs = await self._errands.run(self._list_jobs)
                if jobs is None:
                    return None
                self._errands.recovered(self)
                self._asked, self._jobs = asked, jobs
        return self._asked, self._jobs
