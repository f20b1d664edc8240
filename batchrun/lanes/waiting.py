"""The requests of one model that are not in flight: fresh ones, and those that go again at a time of their own."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import msgspec

from batchrun.clock import Clock
from batchrun.lanes.lane import Quota
from batchrun.records import Before, Request
from batchrun.rules.repair import AS_ASKED, Repair

# Requests read ahead of the pace, for each model: so many that slots freed together are filled together, and no more
# bytes than that.
READ_AHEAD = 256
READ_AHEAD_BYTES = 16_000_000


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A row's request as a lane gets it.

    Attributes:
        request: what the row asks for.
        misses: how many batches brought it no answer.
        repair: what is to be sent in place of it.
        before: the answer it holds, when it wants a better one.
    """

    request: Request
    misses: int = 0
    repair: Repair = AS_ASKED
    before: Before | None = None


class Attempt:
    """A request on its way, with what it has been through: `tries` in this run, `earlier` in batches."""

    __slots__ = ("before", "begun", "charged", "earlier", "repair", "request", "tries")

    def __init__(self, asked: Asked) -> None:
        self.request = asked.request
        self.repair = asked.repair
        self.before = asked.before
        self.earlier = 0 if asked.before else asked.misses + asked.repair.refusals
        if asked.before is not None:
            self.earlier += asked.before.retries + 1
        self.begun = False
        self.tries = 0
        self.charged = 0

    @property
    def sent(self) -> int:
        """How often it was sent, by either lane."""
        return self.earlier + self.tries


class WaitingRoom:
    """Where attempts at rows that ask for one model wait, whichever model they are sent to."""

    def __init__(self, capacity: Callable[[], int], quota: Quota, clock: Clock) -> None:
        self._capacity = capacity
        self._quota = quota
        self._clock = clock
        self._fresh: deque[Attempt] = deque()
        self._again: list[tuple[float, int, Attempt]] = []
        self._ahead = 0  # bytes of the fresh ones
        self._entered = 0
        self._out = 0
        self._closed = False

    async def offer(self, asked: Asked) -> None:
        """Take a fresh request when there is room for it, or leave it when the run is parked."""
        while self._full() and self._quota.parked is None:
            await self._quota.wait(math.inf)
        self._fresh.append(Attempt(asked))
        self._ahead += len(asked.request.body)
        self._quota.changed()

    def _full(self) -> bool:
        if len(self._fresh) >= READ_AHEAD or self._ahead >= READ_AHEAD_BYTES:
            return True
        return len(self._again) + self._out >= self._capacity()

    async def next(self) -> Attempt | None:
        """The next attempt whose time has come; None when all is done or the run is parked."""
        while self._quota.parked is None:
            due = self._again[0][0] - self._clock.monotonic() if self._again else math.inf
            if due <= 0:
                return self._take(heapq.heappop(self._again)[2])
            if self._fresh:
                attempt = self._fresh.popleft()
                self._ahead -= len(attempt.request.body)
                self._quota.changed()  # there is room for the next
                return self._take(attempt)
            if self._closed and not self._again and self._out == 0:
                return None
            await self._quota.wait(due)
        return None

    def _take(self, attempt: Attempt) -> Attempt:
        self._out += 1
        return attempt

    def again(self, attempt: Attempt, at: float) -> None:
        """Let it go again, not before `at` (monotonic seconds)."""
        self._entered += 1
        heapq.heappush(self._again, (at, self._entered, attempt))

    def back(self) -> None:
        """An attempt that was taken has come to an end, whichever."""
        self._out -= 1
        self._quota.changed()

    def close(self) -> None:
        """No fresh request will come."""
        self._closed = True
        self._quota.changed()
