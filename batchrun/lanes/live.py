"""Concurrent live calls: each request goes out when the quota lets it, and ends as an answer, a rejection, or left.

A call's slot comes back after its outcome is committed. A row that has to go again waits here without a slot; a row
that is left when the run parks simply stays pending in the checkpoint.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import assert_never

from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.clock import Clock
from batchrun.lanes.lane import Counts, Lease, Quota
from batchrun.records import (
    Answer,
    Broken,
    Completion,
    Doubt,
    Lane,
    ParkReason,
    Refusal,
    Rejection,
    Reply,
    Request,
    Trouble,
)
from batchrun.rules import faults, verdicts
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Hint
from batchrun.store.keeper import Item

# Requests read ahead of the pace, for each model: so many that slots freed together are filled together, and no more
# bytes than that.
READ_AHEAD = 256
READ_AHEAD_BYTES = 16_000_000

Keep = Callable[[Item], Awaitable[None]]


class Attempt:
    """A request on its way, with what it has been through in this run."""

    __slots__ = ("charged", "request", "tries")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tries = 0
        self.charged = 0


class WaitingRoom:
    """The requests of one model that are not in flight: fresh ones, and those that go again at a time of their own."""

    def __init__(self, model: str, quota: Quota, clock: Clock) -> None:
        self._model = model
        self._quota = quota
        self._clock = clock
        self._fresh: deque[Attempt] = deque()
        self._again: list[tuple[float, int, Attempt]] = []
        self._ahead = 0  # bytes of the fresh ones
        self._entered = 0
        self._out = 0
        self._closed = False

    async def offer(self, request: Request) -> None:
        """Take a fresh request when there is room for it, or leave it when the run is parked."""
        while self._full() and self._quota.parked is None:
            await self._quota.wait(math.inf)
        self._fresh.append(Attempt(request))
        self._ahead += len(request.body)
        self._quota.changed()

    def _full(self) -> bool:
        if len(self._fresh) >= READ_AHEAD or self._ahead >= READ_AHEAD_BYTES:
            return True
        return len(self._again) + self._out >= self._quota.room(self._model)

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


class LiveLane:
    """Calls the server for one request after the other, as many at a time as the quota lets it."""

    def __init__(
        self,
        client: Client,
        quota: Quota,
        keep: Keep,
        clock: Clock,
        tariff: Tariff,
        *,
        job_model: str | None,
        patience: float,
        counts: Counts,
    ) -> None:
        self._client = client
        self._quota = quota
        self._keep = keep
        self._clock = clock
        self._tariff = tariff
        self._job_model = job_model
        self._patience = patience
        self._counts = counts
        self._rooms: dict[str, WaitingRoom] = {}

    async def run(self, requests: AsyncIterator[Request]) -> None:
        """Send every request. A throttled model holds the others up only when READ_AHEAD rows of it come in a row."""
        self._rooms = {}
        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                if self._quota.parked is not None:
                    break
                await self._room(request.model, tasks).offer(request)
            for room in self._rooms.values():
                room.close()

    def _room(self, model: str, tasks: asyncio.TaskGroup) -> WaitingRoom:
        if model not in self._rooms:
            self._rooms[model] = WaitingRoom(model, self._quota, self._clock)
            tasks.create_task(self._dispatch(self._rooms[model], tasks))
        return self._rooms[model]

    async def _dispatch(self, room: WaitingRoom, tasks: asyncio.TaskGroup) -> None:
        while (attempt := await room.next()) is not None:
            lease = await self._quota.lease(attempt.request)
            if lease is None:
                return
            tasks.create_task(self._attempt(room, lease, attempt))

    async def _attempt(self, room: WaitingRoom, lease: Lease, attempt: Attempt) -> None:
        """One call from start to committed outcome."""
        spent = 0
        try:
            reply = await self._client.call(lease.request)
            attempt.tries += 1
            outcome = self._judged(reply, lease.request)
            self._quota.report(lease, outcome, _hint(reply))
            if isinstance(outcome, Completion):
                spent = await self._keep_answer(lease, attempt, outcome, reply.seconds)
            else:
                spent = await self._follow(room, lease, attempt, outcome)
        finally:
            self._quota.settle(lease, spent)
            room.back()

    def _judged(self, reply: Reply | Broken, request: Request) -> Completion | Trouble:
        """The walk from what came back to what it means: wire, redaction, faults."""
        seen = wire.read(reply, self._clock.now()) if isinstance(reply, Reply) else reply
        if isinstance(seen, Completion):
            return seen
        if isinstance(seen, Refusal):
            message = self._client.redacted(seen.message, request.body)
            seen = Refusal(seen.status, seen.kind, seen.code, message, seen.wait)
        return faults.trouble(seen)

    async def _keep_answer(self, lease: Lease, attempt: Attempt, completion: Completion, seconds: float) -> int:
        """Commit the answer; returns what it cost, or what it may have cost when the server did not count."""
        request = lease.request
        cost = self._tariff.cost(request.model, completion.usage)
        answer = Answer(
            request.row, request.digest, request.model, len(request.body), completion, Lane.LIVE, cost,
            round(seconds * 1000), attempt.tries,
        )  # fmt: skip
        if cost is None and lease.reserved:
            await asyncio.gather(self._keep(answer), self._keep(Doubt(lease.reserved, calls=0)))
        else:
            await self._keep(answer)
        self._counts.answered += 1
        self._counts.spent_nano += cost or 0
        if completion.usage is not None:
            self._counts.tokens += completion.usage.prompt_tokens + completion.usage.completion_tokens
        return lease.reserved if cost is None else cost

    async def _follow(self, room: WaitingRoom, lease: Lease, attempt: Attempt, trouble: Trouble) -> int:
        """Do what the verdict says; returns what the call may have cost all the same."""
        here = verdicts.Situation(
            tries=attempt.tries,
            charged=attempt.charged,
            others_answered=self._quota.others_answered(),
            model_from_job=lease.request.model == self._job_model,
            patience=self._patience,
            now=self._clock.monotonic(),
            dice=self._clock.random(),
        )
        verdict = verdicts.verdict(trouble, here)
        spent = 0
        if trouble.maybe_paid:
            await self._keep(Doubt(lease.reserved))
            spent = lease.reserved
        match verdict:
            case verdicts.Retry(at, charged):
                attempt.charged += charged
                room.again(attempt, at)
            case verdicts.Reject():
                await self._reject(lease.request, attempt, trouble)
            case verdicts.Park(reason):
                self._stop(room, lease, attempt, trouble, reason)
            case _:
                assert_never(verdict)
        return spent

    async def _reject(self, request: Request, attempt: Attempt, trouble: Trouble) -> None:
        message = trouble.message
        await self._keep(Rejection(request.row, request.digest, trouble.fault, trouble.status, message, attempt.tries))
        self._counts.rejected += 1
        self._quota.rejected(trouble.fault, message)

    def _stop(self, room: WaitingRoom, lease: Lease, attempt: Attempt, trouble: Trouble, reason: ParkReason) -> None:
        """Park the run; out of credits, the row may wait for the next probe instead."""
        if reason is ParkReason.CREDITS:
            if self._quota.out_of_credits(lease, trouble):
                room.again(attempt, self._clock.monotonic())
        else:
            self._quota.park(reason, trouble.message)


def _hint(reply: Reply | Broken) -> Hint:
    requests, tokens = wire.limits(reply.headers) if isinstance(reply, Reply) else (None, None)
    return Hint(requests, tokens)
