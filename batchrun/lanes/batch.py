"""The batch lane: requests are packed into batches, and every batch is carried until it is over.

How one batch goes forward is the `carrier`'s. Rows that a batch brought no answer for are pending again; the lane reads
what is pending and packs it until nothing comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

from batchrun.files import lines
from batchrun.job import Batching
from batchrun.lanes.carrier import Carrier, Returned, Stay
from batchrun.lanes.errands import Errands
from batchrun.lanes.lane import Counts
from batchrun.lanes.mending import Mender
from batchrun.lanes.packing import Kind, Packer
from batchrun.lanes.provider import batch_folder
from batchrun.lanes.quota import LocalQuota
from batchrun.lanes.waiting import Asked
from batchrun.records import Fault, Rejection
from batchrun.rules import remote
from batchrun.rules.pack import Bounds
from batchrun.rules.remote import BatchState
from batchrun.store import batches
from batchrun.store.keeper import Item
from batchrun.store.store import Store

# A batch that the budget cuts short sets aside at least this part (one in so many) of what the first such one did.
_LEAST_SHARE = 10


Pass = Callable[[], AsyncGenerator[Asked]]
Keep = Callable[[Item], Awaitable[int | None]]
Probe = Callable[[Asked], Awaitable[None]]


class BatchLane:
    """Packs, and lets batches be carried, until there is nothing left to wait for.

    Attributes:
        packing: whether rows are being packed that are still pending in the checkpoint.
    """

    def __init__(
        self,
        store: Store,
        carrier: Carrier,
        errands: Errands,
        quota: LocalQuota,
        counts: Counts,
        keep: Keep,
        probe: Probe,
        packed: Callable[[], None],
        small: Callable[[Collection[str]], bool],
        mender: Mender,
        terms: Batching,
        stay: Stay,
    ) -> None:
        self._mender = mender
        self._store = store
        self._carrier = carrier
        self._errands = errands
        self._quota = quota
        self._counts = counts
        self._keep = keep
        self._probe = probe
        self._packed = packed
        self._small = small
        self._terms = terms
        self._stay = stay
        self._folder = batch_folder(store.path)
        self._packer = Packer(self._folder, Bounds(terms.lines))
        self._carrying = 0
        self._came_back = False
        self._suspicious = False
        self._looking = False
        self._anew = False
        self._cut_at = 0  # nano-dollars that the first batches held that the budget cut short
        self.packing = False

    def returned(self, returned: Returned) -> None:
        """A batch is over and brought nothing for some of its lines."""
        self._came_back = True
        self._suspicious = self._suspicious or returned.suspicious

    def came_back(self) -> None:
        """Rows of a batch are pending again while it is not over yet: they are sent otherwise."""
        self._came_back = True
        self._errands.wake()

    def pack_anew(self) -> None:
        """Other rows than before are to be packed: begin again with what is pending."""
        self._anew = self._came_back = True
        self._errands.wake()

    def turn(self) -> None:
        """Let what is in batches go another way; what they have finished is kept."""
        self._carrier.turning = True
        self._errands.wake()

    async def run(self, requests: Pass) -> None:
        """Carry what is at the provider, pack what is pending, and go on until nothing comes back."""
        unfinished = await batches.unfinished(self._store)
        lines.sweep(self._folder, await batches.files_needed(self._store))
        if self._terms.delete_remote:
            await self._carrier.delete_remote()
        async with asyncio.TaskGroup() as tasks:
            for batch in unfinished:
                self._carry(batch, tasks)
            await self._feed(requests, tasks)
        lines.sweep(self._folder, await batches.files_needed(self._store))

    async def _feed(self, requests: Pass, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._came_back = self._anew = False
            if self._may_pack():
                await self._pack_all(requests, tasks)
            while self._carrying and not self._came_back and self._quota.parked is None:
                await self._errands.pause(math.inf)
            self._anew = False
            if not self._came_back or not self._may_pack():
                return

    async def _pack_all(self, requests: Pass, tasks: asyncio.TaskGroup) -> None:
        self.packing = True
        try:
            await self._pack(requests, tasks)
        finally:
            self._quota.unhold(self._packer.discard(), 0)
            self.packing = False
            self._packed()

    def _may_pack(self) -> bool:
        return (
            not self._anew
            and self._stay is not Stay.COLLECT
            and not self._carrier.turning
            and self._quota.parked is None
        )

    async def _pack(self, requests: Pass, tasks: asyncio.TaskGroup) -> None:
        async with contextlib.aclosing(requests()) as stream:
            async for asked in stream:
                if not self._may_pack():
                    return
                if asked.misses >= remote.MOST_MISSES:
                    await self._reject(asked)
                elif self._suspicious:
                    if not await self._looked(asked):
                        return
                elif not await self._add(asked, tasks):
                    return
        for kind in self._packer.kinds:
            if not await self._submit(kind, tasks):
                return

    def _let_go(self) -> None:
        """Nothing is packed for now: a call that waits for the money of rows in an open file would wait for ever."""
        if self._packer.kinds:
            self._came_back = True
            self._quota.unhold(self._packer.discard(), 0)

    async def _add(self, asked: Asked, tasks: asyncio.TaskGroup) -> bool:
        """Pack what is sent for a row; False when no more can be packed in this start."""
        request, mended = self._mender.sent(asked), self._mender.usable(asked.repair)
        kind = Kind(request.model, asked.request.model)
        if self._packer.is_full(kind, request) and not await self._submit(kind, tasks):
            return False
        bound = self._quota.bound(request)
        while not self._quota.purse.hold(bound):
            if not await self._made_room(request.model, bound, tasks):
                return False
        self._packer.add(kind, request, bound, mended)
        return self._quota.parked is None

    async def _looked(self, asked: Asked) -> bool:
        """Whether one live call could be made, to see what ended a batch; it must not wait for this lane itself."""
        self._let_go()
        bound = self._quota.bound(asked.request)
        while not self._quota.purse.fits(bound):
            if not self._carrying and not self._quota.in_flight:
                if not self._quota.purse.lack(bound).later:
                    self._quota.out_of_budget("call", bound)
                return False
            await self._errands.pause(self._terms.poll)
            if not self._may_pack():
                return False
        self._suspicious, self._looking = False, True
        if not self._carrying:
            self._quota.leave()
        try:
            await self._probe(asked)
        finally:
            self._looking = False
            self._quota.purse.join()
        return True

    async def _made_room(self, model: str, bound: int, tasks: asyncio.TaskGroup) -> bool:
        """The budget has no room for a row: send what is packed, or wait for money; False when no more can be packed.

        Each batch may take a day, so what is packed goes out only when it is not little beside what went before: money
        that comes back from other batches and from calls makes it more.
        """
        if self._packer.kinds and self._packer.reserved * _LEAST_SHARE >= self._cut_at:
            self._cut_at = self._cut_at or self._packer.reserved
            for kind in self._packer.kinds:
                if not await self._submit(kind, tasks):
                    return False
            return True
        if self._carrying or self._quota.in_flight:
            await self._errands.pause(self._terms.poll)
            return self._may_pack()
        return self._rest_goes_another_way(model, bound)

    def _rest_goes_another_way(self, model: str, bound: int) -> bool:
        """No money comes back any more: the last cents go live, or wait for another start, or the run parks."""
        models = {model, *(kind.model for kind in self._packer.kinds)}
        packed, worthwhile = self._packer.discard(), self._cut_at // _LEAST_SHARE
        self._quota.unhold(packed, 0)
        if self._quota.purse.lack(bound).later:
            return False  # what this start leaves running holds the money
        if packed and self._small(models):
            return False
        if packed:
            self._quota.out_of_budget("batch of a worthwhile size", max(worthwhile, packed + bound))
        else:
            self._quota.out_of_budget("row", bound)
        return False

    async def _submit(self, kind: Kind, tasks: asyncio.TaskGroup) -> bool:
        """Write the open file of this kind down as a batch, once there is room for one more at the provider."""
        while self._running() >= self._terms.at_once:
            if not self._carrying:
                return False  # those that are left stay as they are in this start
            await self._errands.pause(math.inf)
            if not self._may_pack():
                return False
        draft = await self._packer.close(kind)
        self._carry(await batches.plan(self._store, draft), tasks)
        return True

    def _running(self) -> int:
        return sum(batch.state is not BatchState.ABANDONED for batch in self._carrier.open.values())

    def _carry(self, batch: remote.RemoteBatch, tasks: asyncio.TaskGroup) -> None:
        self._carrying += 1
        self._carrier.open[batch.id] = batch
        tasks.create_task(self._carried(batch))

    async def _carried(self, batch: remote.RemoteBatch) -> None:
        try:
            await self._carrier.carry(batch)
        finally:
            self._carrying -= 1
            if self._looking and not self._carrying:
                self._quota.leave()
            self._errands.wake()

    async def _reject(self, asked: Asked) -> None:
        """Under --route batch a row does not go live: it is given up."""
        request = asked.request
        message = f"{asked.misses} batches brought no answer for it; --route auto would send it live."
        if words := await batches.last_words(self._store, request.digest):
            message = f"{message} The provider's last words: {words}"
        await self._keep(Rejection(request.row, request.digest, Fault.SERVER, None, message, asked.misses))
        self._counts.rejected += 1
        self._quota.rejected(Fault.SERVER, message)

    def left_running(self) -> str:
        """What this start leaves at the provider, in words; "" when nothing."""
        left = [batch for batch in self._carrier.open.values() if batch.state is not BatchState.ABANDONED]
        rows = sum(batch.left for batch in left)
        if not left:
            return ""
        return f"{len(left)} batch{'' if len(left) == 1 else 'es'} with {rows:,} rows at the provider."
