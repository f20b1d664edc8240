"""Pass 2: what is pending goes out by the lanes chosen for it, until nothing is left or the run has to stop.

Each row belongs to one lane at a time: the filters of the two never let the same row through.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping

import msgspec

from batchrun import choice, deadline, kit, rows, terms
from batchrun.api.client import Client
from batchrun.clock import Clock
from batchrun.errors import InputError
from batchrun.files import lines
from batchrun.job import Job
from batchrun.kit import Hooks, Kit
from batchrun.lanes.batch import BatchLane
from batchrun.lanes.carrier import Carrier, Returned, Stay
from batchrun.lanes.lane import Counts, Parked
from batchrun.lanes.live import LiveLane
from batchrun.lanes.mending import Mender
from batchrun.lanes.probing import LONG_RUN
from batchrun.lanes.provider import batch_folder
from batchrun.lanes.quota import LocalQuota
from batchrun.lanes.waiting import Asked
from batchrun.records import Fault, ParkReason, Route, Trouble
from batchrun.reports import BatchStanding
from batchrun.rows import Split
from batchrun.rules import route
from batchrun.rules.estimate import Load
from batchrun.rules.remote import MOST_MISSES, RemoteBatch
from batchrun.rules.route import Plan
from batchrun.store import batches
from batchrun.store.keeper import Keeper
from batchrun.store.store import Kept, Store
from batchrun.wanted import Wanted

Announce = Callable[[Plan], None]
Confirm = Callable[[Plan], Awaitable[bool]]


class Sending:
    """One start's sending.

    Attributes:
        is_asking: whether it waits for the user's word on what it may cost.
    """

    def __init__(
        self,
        job: Job,
        key: str | None,
        clock: Clock,
        store: Store,
        settled: Wanted,
        start: Kept,
        *,
        leaving: bool,
        announce: Announce,
        confirm: Confirm | None,
    ) -> None:
        self._job = job
        self._key = key
        self._clock = clock
        self._store = store
        self._settled = settled
        self._start = start
        self._leaving = leaving
        self._announce = announce
        self._confirm = confirm
        self.is_asking = False
        self._may_go_live = job.route is not Route.BATCH
        self._batch_models: frozenset[str] = frozenset()
        self._chosen: Plan | None = None
        self._loads: Mapping[str, Load] = settled.seen.loads
        self._turned = False
        self._split = Split(frozenset(), None, turned=False, may_go_live=self._may_go_live)
        self._passing = False
        self._more_live = False
        self._missed = False
        self._batches_done = True
        self._news = asyncio.Event()
        self._failure: InputError | None = None
        self._lanes_task: asyncio.Task[None] | None = None
        self._kit: Kit | None = None
        self._carrier: Carrier | None = None
        self._batch_lane: BatchLane | None = None

    @property
    def counts(self) -> Counts:
        """What it has brought so far."""
        return self._kit.counts if self._kit is not None else Counts()

    @property
    def quota(self) -> LocalQuota | None:
        """Pace, money and the stop flag; None until prices are known."""
        return self._kit.quota if self._kit is not None else None

    @property
    def _mender(self) -> Mender | None:
        return self._kit.mender if self._kit is not None else None

    def hint(self, seconds: float) -> str:
        """What to say of batches after so many seconds of sending, "" when nothing."""
        throttled = self.quota.throttled if self.quota is not None else 0
        return "" if self._chosen is None else route.hint(self._chosen, throttled, seconds)

    @property
    def batches(self) -> tuple[BatchStanding, ...]:
        """Batches that are not over."""
        return self._carrier.standing() if self._carrier is not None else ()

    def cancel(self) -> bool:
        """End at once, if it has begun; what is in flight is lost."""
        return self._lanes_task is not None and self._lanes_task.cancel()

    async def go(self, *, interrupted: Callable[[], bool]) -> Parked | None:
        """Send what is pending; why it stopped, None when nothing is left to send.

        Raises:
            BatchrunError: something it cannot go on from.
        """
        loads = self._settled.seen.loads
        async with Client(self._job.base_url, self._key, self._job.timeouts, self._clock) as client:
            tools = self._kit = await kit.pack(
                self._job, self._store, self._clock, client, self._start, loads, leaving=self._stay is not Stay.WAIT
            )
            quota, keeper = tools.quota, tools.keeper
            quota.when_parked(self._news.set)
            if interrupted():
                quota.park(ParkReason.INTERRUPTED, "Interrupted.")
            async with asyncio.TaskGroup() as group:
                group.create_task(keeper.run())
                self._lanes_task = group.create_task(self._work(tools))
                await asyncio.wait({self._lanes_task})
                keeper.close()
            self._lanes_task = None
        if self._failure is not None:
            raise self._failure
        if quota.parked is not None and quota.parked.reason is ParkReason.HOPELESS:
            await self._store.retry_rejections(quota.parked.fault, this_run=True)
        return terms.advised(quota.parked, tools.standins.gone(loads), tools.listed)

    async def _work(self, tools: Kit) -> None:
        """Find out which models can be called, choose the lanes, and send."""
        job, quota, known, tariff, now = self._job, tools.quota, tools.known, tools.tariff, self._clock.now()
        if not await self._agreed(choice.plan(job, known, tariff, now)):
            quota.park(ParkReason.INTERRUPTED, "You did not agree to what it may cost.")
        if quota.parked is None and self._start.pending - self._start.submitted >= LONG_RUN and not self._past:
            await kit.probe(tools)
        if quota.parked is not None:
            return
        tools.standins.when_missing(lambda: self._model_gone(tools))
        here = known.with_stand_ins(tools.standins.lasting)
        self._loads = here.loads
        self._chosen = chosen = choice.plan(job, here, tariff, now)
        self._batch_models = choice.batch_models(chosen) | choice.may_return(job, here, tariff, chosen, now)
        if not self._may_go_live:
            self._batch_models |= frozenset(tools.standins.fallbacks)
        self._tell(chosen, tools.keeper)
        self._split = Split(self._batch_models, tools.mender.frozen(), self._turned, self._may_go_live)
        await self._make_batch_lane(tools)
        await self._lanes(lambda: kit.live_lane(tools))

    async def _make_batch_lane(self, tools: Kit) -> None:
        """The batch lane, when there is anything for it to do."""
        left_behind = self._job.batching.delete_remote and bool(await batches.left_remote(self._store))
        if not self._batch_models and not left_behind and not await batches.unfinished(self._store):
            lines.sweep(batch_folder(self._store.path), ())  # a start that packed and died may have left files
            return
        hooks = Hooks(self._wanted_again, self._returned, self._refused, self._missing, self._news.set, self._small)
        self._batches_done = False
        self._batch_lane, self._carrier = kit.batch_lane(tools, self._stay, hooks)

    async def _agreed(self, plan: Plan) -> bool:
        """Whether the user has nothing against what it may cost; asked before anything is sent."""
        if self._confirm is None:
            return True
        self.is_asking = True
        try:
            return await self._confirm(plan)
        finally:
            self.is_asking = False

    def _tell(self, plan: Plan, keeper: Keeper) -> None:
        """Say the plan to whoever watches, and to the diary a line a model."""
        self._announce(plan)
        for part in plan.models:
            if part.situation.load.rows:
                keeper.note("plan", route.told(part))

    async def rest(self, kept: Kept) -> Plan | None:
        """What is left, batches at work included, planned as a start would now; None when sending never began."""
        tools = self._kit
        if tools is None:
            return None
        known = msgspec.structs.replace(
            tools.known,
            kept=msgspec.structs.replace(kept, submitted=0),
            gauges=await self._store.gauges(),
            spent=kept.cost_nano + (await self._store.hidden()).nano,
        )
        return choice.plan(self._job, known.with_stand_ins(tools.standins.lasting), tools.tariff, self._clock.now())

    @property
    def _past(self) -> bool:
        deadline = self._job.limits.deadline
        return deadline is not None and self._clock.now() >= deadline

    @property
    def _stay(self) -> Stay:
        if self._past:
            return Stay.COLLECT
        return Stay.LEAVE if self._leaving else Stay.WAIT

    # --- the lanes ---------------------------------------------------------------------------------------------------

    async def _lanes(self, live: Callable[[], LiveLane]) -> None:
        async with asyncio.TaskGroup() as tasks:
            lane = self._batch_lane
            past = self._past
            if lane is not None and self._job.route is Route.LIVE:
                self._turn()
            working = {tasks.create_task(self._send_batches(lane))} if lane is not None else set()
            if not past:
                working.add(tasks.create_task(self._send_live(live)))
            watch = tasks.create_task(self._watch_deadline())
            if working:
                await asyncio.wait(working)
            watch.cancel()
            if past:
                self._park_deadline()
            if self._carrier is not None:
                self._carrier.park_in_doubt()
            if lane is not None and (running := lane.left_running()) and self.quota is not None:
                self.quota.park(ParkReason.REMOTE, running)

    async def _send_batches(self, lane: BatchLane) -> None:
        try:
            if self.quota is not None:
                self.quota.purse.join()
            await lane.run(lambda: self._pending(self._goes_into_a_batch))
        finally:
            self._batches_done = True
            self._news.set()
            if self.quota is not None:
                self.quota.leave()

    async def _send_live(self, live: Callable[[], LiveLane]) -> None:
        """Pass after pass over what is pending, for as long as batches may give rows back."""
        lane, more = live(), await self._starts_live()
        while self._parked() is None:
            self._split = self._now()
            if more:
                self._passing = True
                async with contextlib.aclosing(self._pending(self._split.goes_live)) as stream:
                    await lane.run(stream)
                self._passing = False
            await self._ask_better(lane)
            more = await self._more()
            if not more:
                await self._ask_better(lane)
                return

    async def _ask_better(self, lane: LiveLane) -> None:
        """Ask again for answers that are not good enough: after those that are none, so that these get the money."""
        said = self._job.repairs
        for _ in range(max(said.length_retries, said.invalid_retries)):
            if self._parked() is not None or not (await self._store.kept()).again:
                return
            async with contextlib.aclosing(self._pending(lambda _asked: True, again=True)) as stream:
                await lane.run(stream)

    async def _starts_live(self) -> bool:
        """Whether any row goes live from the start; looking for them means reading the whole input."""
        loads = self._loads
        if not loads.keys() <= self._batch_models or any(load.oversized for load in loads.values()):
            return True
        odd = await self._store.any_repair() or await self._store.has_missed(MOST_MISSES)
        return self._may_go_live and odd

    async def _more(self) -> bool:
        """Wait until rows go live that were in batches; False when that cannot happen any more."""
        while self._parked() is None:
            if (self._more_live or self._missed) and not (self._batch_lane is not None and self._batch_lane.packing):
                more, self._more_live, self._missed = self._more_live, False, False
                if more or await self._store.has_missed(MOST_MISSES):
                    return True
            elif self._batches_done:
                return False
            else:
                self._news.clear()
                await self._news.wait()
        return False

    def _now(self) -> Split:
        """How rows are split between the lanes from now on."""
        batched = frozenset() if self._batches_done and self._may_go_live else self._batch_models
        return Split(batched, self._mender and self._mender.frozen(), self._turned, self._may_go_live)

    def _goes_into_a_batch(self, asked: Asked) -> bool:
        now = Split(self._batch_models, self._mender, self._turned, self._may_go_live)
        return not self._split.goes_live(asked) and not now.goes_live(asked)

    def _look_again(self) -> None:
        """Rows go other ways than before: the batch lane begins anew, and what it leaves is live's in its next pass.

        Live reads pages ahead, so which rows are its own must not change under way: while a pass runs, a row is the
        batch lane's only if it was so when the pass began.
        """
        if not self._passing:
            self._split = self._now()
        if self._batch_lane is not None and not self._batches_done:
            self._batch_lane.pack_anew()

    def _parked(self) -> Parked | None:
        return self.quota.parked if self.quota is not None else None

    # --- from batches to live ----------------------------------------------------------------------------------------

    def _returned(self, returned: Returned) -> None:
        """Lines came back without an outcome."""
        if self._batch_lane is not None:
            self._batch_lane.returned(returned)
        if self._may_go_live:
            asked = returned.batch.asked
            takes = asked if self._mender is None else self._mender.standins.lasting(asked)
            freed = self._turned or takes not in self._batch_models
            self._more_live, self._missed = self._more_live or freed, True
            self._news.set()

    def _wanted_again(self) -> None:
        """A batch brought rows that are to be asked otherwise, or for a better answer."""
        self._more_live = True
        self._news.set()
        if self._batch_lane is not None and not self._may_go_live:
            self._batch_lane.came_back()

    def _missing(self, batch: RemoteBatch, message: str) -> bool:
        """A batch's model cannot be called: whether another one takes its rows."""
        return self._mender is not None and self._mender.standins.missing(batch.model, batch.asked, message)

    def _model_gone(self, tools: Kit) -> None:
        """A model cannot be called: its rows go another way, which is chosen anew, and said."""
        counts, kept = tools.counts, tools.known.kept
        left = max(kept.submitted, kept.pending - counts.answered - counts.rejected)
        kept = msgspec.structs.replace(kept, pending=left, answered=kept.answered + counts.answered)
        now = msgspec.structs.replace(tools.known, kept=kept).with_stand_ins(tools.standins.lasting)
        self._chosen = choice.plan(self._job, now, tools.tariff, self._clock.now())
        self._tell(self._chosen, tools.keeper)
        self._more_live = True
        self._news.set()
        if not self._batches_done:
            self._batch_models |= choice.batch_models(self._chosen)
        self._look_again()

    def _refused(self, batch: RemoteBatch, trouble: Trouble) -> None:
        """The provider makes no batches of this model: another one stands in, its rows go live, or nowhere."""
        if trouble.fault is Fault.MODEL_MISSING and self._missing(batch, trouble.message):
            return
        if self._may_go_live:
            self._batch_models -= {batch.model}
            self._more_live = True
            self._news.set()
            self._look_again()
        elif self.quota is not None and trouble.fault is Fault.MODEL_MISSING:
            self.quota.park(ParkReason.MODEL, trouble.message)
        elif self.quota is not None:
            said = trouble.message.rstrip(".")
            self.quota.park(
                ParkReason.HOPELESS, f"The provider makes no batch of this: {said}. Live calls may do: --route auto."
            )

    def _small(self, models: Collection[str]) -> bool:
        """What is left of the budget makes no batch worth a wait: whether the rows of these models may go live."""
        if not self._may_go_live:
            return False
        self._batch_models -= frozenset(models)
        self._more_live = True
        self._news.set()
        self._look_again()
        return True

    def _turn(self) -> None:
        """What is in batches goes live; what they have finished is kept."""
        self._turned = self._more_live = True
        if self._batch_lane is not None:
            self._batch_lane.turn()
        self._news.set()

    async def _watch_deadline(self) -> None:
        """Turn while live calls can still make it, and stop at the deadline."""
        at, limits = self._job.limits.deadline, self._job.limits
        if at is not None and not self._past:
            await deadline.watch(
                at,
                self._clock,
                lambda: deadline.live_seconds(self.batches, self.quota, limits.rpm),
                lambda: self._may_go_live and not self._turned and not self._batches_done,
                self._turn_in_time,
            )
            self._park_deadline()

    async def _turn_in_time(self, told: str) -> None:
        await self._store.note("deadline", told)
        self._turn()

    def _park_deadline(self) -> None:
        if self.quota is not None:
            self.quota.park(ParkReason.DEADLINE, "The deadline has passed.")

    async def _pending(self, wanted: Callable[[Asked], bool], *, again: bool = False) -> AsyncGenerator[Asked]:
        """Rows for a lane. When the input has changed, calls in flight finish and are kept before that is raised."""
        try:
            async with contextlib.aclosing(
                rows.pending(self._store, self._job, self._settled, wanted, again=again)
            ) as stream:
                async for asked in stream:
                    yield asked
        except InputError as error:
            self._failure = error
            if self.quota is not None:
                self.quota.park(ParkReason.INTERRUPTED, error.message)
