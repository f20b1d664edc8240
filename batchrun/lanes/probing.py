"""One-token calls before a long run: a million rows must not start on a model that cannot be called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from batchrun.api.client import Client
from batchrun.clock import Clock
from batchrun.lanes import reading
from batchrun.lanes.lane import Counts
from batchrun.lanes.quota import LocalQuota
from batchrun.lanes.standins import StandIns
from batchrun.records import (
    Answer,
    Broken,
    Completion,
    Doubt,
    Endpoint,
    Fault,
    Lane,
    ParkReason,
    Reply,
    Request,
    Trouble,
)
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Hint
from batchrun.rules.probing import probe_request
from batchrun.store.keeper import Item

# Rows left from which a probe is worth its few tokens; the first calls of a shorter run find out as cheaply.
LONG_RUN = 10_000
# Models that rows name by themselves may be many; the largest so many are probed.
MOST_PROBES = 10
# Seconds; one token takes a second or two, a model that has to be loaded first takes longer.
LONGEST_PROBE = 60.0

Keep = Callable[[Item], Awaitable[int | None]]


class Prober:
    """Asks models for one token each, and tells `standins` which of them cannot be called."""

    def __init__(
        self,
        client: Client,
        quota: LocalQuota,
        keep: Keep,
        clock: Clock,
        tariff: Tariff,
        standins: StandIns,
        counts: Counts,
    ) -> None:
        self._client = client
        self._quota = quota
        self._keep = keep
        self._clock = clock
        self._tariff = tariff
        self._standins = standins
        self._counts = counts
        self._longest = LONGEST_PROBE

    async def probe(self, wanted: Iterable[str], endpoint: Endpoint, left: float, *, one_by_one: bool) -> None:
        """Probe these models and the fallbacks; park the run when no wanted one can be called or stood in for.

        Anything but a plain "no such model", an empty account or a refused key says nothing: the lanes will see.

        Args:
            wanted: the models that rows ask for.
            endpoint: what they are asked for.
            left: seconds until the deadline.
            one_by_one: whether a budget may have room for one at a time only.
        """
        self._longest = min(LONGEST_PROBE, left)
        asked = list(wanted)
        models = list(dict.fromkeys([*asked[:MOST_PROBES], *self._standins.fallbacks]))
        # The first one alone: an empty account or a wrong key is told by one call.
        troubles = [await self._one(model, endpoint) for model in models[:1]]
        if one_by_one:
            troubles += [await self._one(model, endpoint) for model in models[1:]]
        else:
            troubles += await asyncio.gather(*(self._one(model, endpoint) for model in models[1:]))
        found = zip(models, troubles, strict=True)
        missing = {m: t for m, t in found if t is not None and t.fault is Fault.MODEL_MISSING}
        for model, trouble in missing.items():
            self._standins.missing(model, model, trouble.message)
        if asked and missing and all(self._standins.pick(model) is None for model in asked):
            self._quota.park(ParkReason.MODEL, missing[asked[0]].message)

    async def _one(self, model: str, endpoint: Endpoint) -> Trouble | None:
        """What went wrong, None when it answered or was not asked since the budget has no room for it."""
        request = probe_request(model, endpoint)
        if not self._quota.purse.fits(self._tariff.upper_bound(request) or 0):
            return None
        lease = await self._quota.lease(request)
        if lease is None:
            return None
        spent = 0
        try:
            reply = await self._call(request)
            outcome = reading.read(self._client, reply, request)
            self._counts.made(outcome)
            self._quota.report(lease, outcome, Hint(None, None))
            if isinstance(outcome, Completion):
                spent = await self._book(request, outcome, reply.seconds, lease.reserved)
                return None
            if outcome.maybe_paid:
                spent = lease.reserved
                await self._keep(Doubt(lease.reserved))
            if outcome.fault is Fault.CREDITS:
                self._quota.out_of_credits(lease, outcome)
            elif outcome.fault is Fault.KEY:
                self._quota.park(ParkReason.KEY, outcome.message)
            return outcome
        finally:
            self._quota.settle(lease, spent)

    async def _call(self, request: Request) -> Reply | Broken:
        """A model that is slow to start must not hold the run up: its rows will see."""
        try:
            async with asyncio.timeout(self._longest):
                return await self._client.call(request)
        except TimeoutError:
            return Broken("The probe was not answered in time.", maybe_paid=True, garbled=False, seconds=self._longest)

    async def _book(self, request: Request, completion: Completion, seconds: float, reserved: int) -> int:
        """A probe is paid for like anything else, and is no row's answer; that it was cut short is as it should be."""
        completion = msgspec.structs.replace(completion, fault=None)
        cost = self._tariff.cost(request.model, completion.usage)
        answer = Answer(
            request.row, request.digest, request.model, len(request.body), completion, Lane.LIVE, cost,
            round(seconds * 1000), 1,
        )  # fmt: skip
        await self._keep(answer)
        if cost is None and reserved:
            await self._keep(Doubt(reserved, calls=0))
        self._counts.spent_nano += cost or 0
        self._counts.came_from(request.model, request.model, completion.model)
        return reserved if cost is None else cost
