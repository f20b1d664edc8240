"""Concurrent live calls: each request goes out when the quota lets it, and ends as an answer, a rejection, or left.

A call's slot comes back after its outcome is committed. A row that has to go again waits here without a slot; a row
that is left when the run parks simply stays pending in the checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import assert_never

import msgspec

from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.clock import Clock
from batchrun.lanes import reading
from batchrun.lanes.lane import Counts, Lease, Quota
from batchrun.lanes.mending import Mender
from batchrun.lanes.waiting import Asked, Attempt, WaitingRoom
from batchrun.records import (
    Answer,
    Broken,
    Completion,
    Content,
    Doubt,
    Fault,
    Lane,
    ParkReason,
    Rejection,
    Reply,
    Trouble,
)
from batchrun.rules import repair, verdicts
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Hint
from batchrun.rules.repair import Repair
from batchrun.rules.standins import Pick
from batchrun.store.keeper import Item

Keep = Callable[[Item], Awaitable[int | None]]

# Seconds that a row steps aside when the one model that can take it is not ready.
_ASIDE = 1.0
# Seconds that may be waited for a model without a thought for the rows behind.
_SHORT = 0.25

# Faults that a later start may not meet.
_PASSING = frozenset({Fault.SERVER, Fault.NETWORK, Fault.GARBLED, Fault.OVERLOADED, Fault.THROTTLED})


class LiveLane:
    """Calls the server for one request after the other, as many at a time as the quota lets it."""

    def __init__(
        self,
        client: Client,
        quota: Quota,
        keep: Keep,
        clock: Clock,
        tariff: Tariff,
        mender: Mender,
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
        self._mender = mender
        self._standins = mender.standins
        self._job_model = job_model
        self._patience = patience
        self._counts = counts
        self._rooms: dict[str, WaitingRoom] = {}

    async def run(self, rows: AsyncIterator[Asked]) -> None:
        """Send every row. A throttled model holds the others up only when READ_AHEAD rows of it come in a row."""
        self._rooms = {}
        async with asyncio.TaskGroup() as tasks:
            async for asked in rows:
                if self._quota.parked is not None:
                    break
                await self._room(asked.request.model, tasks).offer(asked)
            for room in self._rooms.values():
                room.close()

    def _room(self, model: str, tasks: asyncio.TaskGroup) -> WaitingRoom:
        if model not in self._rooms:
            self._rooms[model] = WaitingRoom(
                lambda: self._quota.room(self._pick(model).model), self._quota, self._clock
            )
            tasks.create_task(self._dispatch(self._rooms[model], tasks))
        return self._rooms[model]

    async def _dispatch(self, room: WaitingRoom, tasks: asyncio.TaskGroup) -> None:
        while (attempt := await room.next()) is not None:
            if not self._has_anything_to_send(attempt):
                tasks.create_task(self._content(room, attempt))
                continue
            if self._would_hold_up_others(attempt.repair.model):
                room.again(attempt, self._clock.monotonic() + _ASIDE)
                room.back()
                continue
            lease = await self._leased(attempt)
            if lease is None:
                return
            tasks.create_task(self._attempt(room, lease, attempt))

    def _would_hold_up_others(self, model: str | None) -> bool:
        """Whether waiting for the one model that can take a row would keep the rows behind it waiting."""
        return model is not None and self._quota.pause(model) > _SHORT

    def _has_anything_to_send(self, attempt: Attempt) -> bool:
        """A row that holds an answer is sent for a better one only, with what that takes."""
        if attempt.before is None or attempt.begun:
            return True
        attempt.begun = True
        sent = repair.applied(attempt.request, attempt.repair)
        better = self._mender.instead_of(sent, attempt.repair, attempt.before)
        attempt.repair = better or attempt.repair
        return better is not None

    def _pick(self, model: str) -> Pick:
        """The model that takes a row asking for this one; when none can be called, the server may say so itself."""
        pick = self._standins.pick(model)
        if pick is not None and pick.look and self._quota.pause(pick.model) > 0:
            pick = self._standins.pick(model, looks=False)  # a look must not keep the others waiting
        return pick or Pick(model)

    async def _leased(self, attempt: Attempt) -> Lease | None:
        """Leave to send it to the model that takes it by then; None when the run is parked."""
        asked = attempt.request
        while self._quota.parked is None:
            pick, mended = self._taker(attempt), attempt.repair
            if pick.model != asked.model:
                mended = msgspec.structs.replace(mended, model=pick.model)
            sent = repair.applied(asked, mended)
            lease = await self._quota.lease(sent, lambda: self._taker(attempt) == pick)  # noqa: B023 - called at once
            if lease is not None:
                if pick.look:
                    self._standins.looking(pick.model)
                return lease
        return None

    def _taker(self, attempt: Attempt) -> Pick:
        """The model that takes it by now."""
        attempt.repair = self._mender.usable_now(attempt.repair)
        own = attempt.repair.model
        return self._pick(attempt.request.model) if own is None else Pick(own)

    async def _attempt(self, room: WaitingRoom, lease: Lease, attempt: Attempt) -> None:
        """One call from start to committed outcome."""
        spent = 0
        try:
            reply = await self._client.call(lease.request)
            attempt.tries += 1
            outcome = reading.read(self._client, reply, lease.request)
            if isinstance(outcome, Completion):
                outcome = self._mender.marked(outcome)
            self._counts.made(outcome)
            self._quota.report(lease, outcome, _hint(reply))
            if isinstance(outcome, Completion):
                spent = await self._keep_answer(lease, attempt, outcome, reply.seconds)
            else:
                spent = await self._follow(room, lease, attempt, outcome)
        finally:
            self._quota.settle(lease, spent)
            room.back()

    async def _keep_answer(self, lease: Lease, attempt: Attempt, completion: Completion, seconds: float) -> int:
        """Commit the answer; returns what it cost, or what it may have cost when the server did not count."""
        sent, before = lease.request, attempt.before
        cost = self._tariff.cost(sent.model, completion.usage)
        retries = before.retries + 1 if before else 0
        better = self._mender.after_reply(sent, attempt.repair, completion, retries)
        answer = Answer(
            sent.row, sent.digest, sent.model, len(sent.body), completion, Lane.LIVE, cost, round(seconds * 1000),
            attempt.sent, repair.told(attempt.request.model, sent.model, attempt.repair), before, better is not None,
            _plan(attempt.repair) if completion.fault is not None else None,
            before is not None and better is None and self._mender.would_ask_again(completion.fault, retries),
        )  # fmt: skip
        if cost is None and lease.reserved:
            await asyncio.gather(self._keep(answer), self._keep(Doubt(lease.reserved, calls=0)))
        else:
            await self._keep(answer)
        self._count(attempt.request.model, answer)
        return lease.reserved if cost is None else cost

    def _count(self, wanted: str, answer: Answer) -> None:
        usage = answer.completion.usage
        self._counts.answered += answer.before is None
        self._counts.better += answer.before is not None
        self._counts.spent_nano += answer.cost_nano or 0
        self._counts.tokens += usage.prompt_tokens + usage.completion_tokens if usage is not None else 0
        self._counts.came_from(wanted, answer.asked, answer.completion.model)

    async def _content(self, room: WaitingRoom, attempt: Attempt) -> None:
        """A better answer cannot be had: the row keeps the one it has."""
        try:
            await self._keep(Content(attempt.request.row, attempt.request.digest, final=True))
        finally:
            room.back()

    async def _follow(self, room: WaitingRoom, lease: Lease, attempt: Attempt, trouble: Trouble) -> int:
        """Repair the request, or do what the verdict says; returns what the call may have cost all the same."""
        sent, spent = lease.request, 0
        if trouble.maybe_paid:
            await self._keep(Doubt(lease.reserved))
            spent = lease.reserved
        # For a better reply nothing else is changed: a whole answer must not give way to one to half a prompt.
        mended = None if attempt.before else self._mender.after_refusal(sent, attempt.repair, trouble)
        if mended is not None:
            attempt.repair = mended
            room.again(attempt, self._clock.monotonic())
        elif self._moves(sent.model, attempt, trouble):
            room.again(attempt, self._clock.monotonic())
        else:
            await self._obey(room, lease, attempt, trouble)
        return spent

    def _moves(self, model: str, attempt: Attempt, trouble: Trouble) -> bool:
        """Whether another model takes the row from now on, since this one cannot be called, or not for long."""
        if trouble.fault is Fault.MODEL_MISSING and self._standins.fallbacks:
            return self._standins.missing(model, attempt.request.model, trouble.message)
        if attempt.repair.model is not None:
            return False
        return verdicts.is_too_long_a_wait(trouble, self._patience) and self._quota.rest(
            model, attempt.request.model, trouble
        )

    async def _obey(self, room: WaitingRoom, lease: Lease, attempt: Attempt, trouble: Trouble) -> None:
        here = verdicts.Situation(
            tries=attempt.tries,
            charged=attempt.charged,
            others_answered=self._quota.others_answered(),
            model_from_job=attempt.request.model == self._job_model,
            patience=self._patience,
            now=self._clock.monotonic(),
            dice=self._clock.random(),
        )
        verdict = verdicts.verdict(trouble, here)
        match verdict:
            case verdicts.Retry(at, charged):
                attempt.charged += charged
                room.again(attempt, at)
            case verdicts.Reject():
                await self._give_up(lease, attempt, trouble)
            case verdicts.Park(reason):
                self._stop(room, lease, attempt, trouble, reason)
            case _:
                assert_never(verdict)

    async def _give_up(self, lease: Lease, attempt: Attempt, trouble: Trouble) -> None:
        """The row is rejected; one that holds an answer keeps it."""
        request, message = attempt.request, trouble.message
        if attempt.before is not None:
            await self._keep(Content(request.row, request.digest, final=trouble.fault not in _PASSING))
            return
        await self._keep(Rejection(request.row, request.digest, trouble.fault, trouble.status, message, attempt.sent))
        self._counts.rejected += 1
        self._quota.rejected(trouble.fault, message, lease)

    def _stop(self, room: WaitingRoom, lease: Lease, attempt: Attempt, trouble: Trouble, reason: ParkReason) -> None:
        """Park the run; out of credits, the row may wait for the next probe instead."""
        if reason is ParkReason.CREDITS:
            if self._quota.out_of_credits(lease, trouble):
                room.again(attempt, self._clock.monotonic())
        else:
            self._quota.park(reason, trouble.message)


def _plan(mended: Repair) -> str | None:
    """How it is to be sent for a better answer too: where it fits. How many tokens that takes, its answer tells."""
    if mended.model is None and mended.message is None:
        return None
    return msgspec.json.encode(msgspec.structs.replace(mended, max_tokens=None, was=0, seed=None)).decode()


def _hint(reply: Reply | Broken) -> Hint:
    requests, tokens = wire.limits(reply.headers) if isinstance(reply, Reply) else (None, None)
    return Hint(requests, tokens)
