"""The tools of one start, put together: client, prices, keeper, mender and quota, and the lanes that work with them.

When which lane works on which rows is `sending`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import msgspec

from batchrun import choice, rows, terms
from batchrun.api.client import Client
from batchrun.api.remote import Remote
from batchrun.api.wire import ModelInfo
from batchrun.clock import Clock
from batchrun.job import Job, allowed_rejections
from batchrun.lanes.batch import BatchLane
from batchrun.lanes.carrier import Carrier, Returned, Stay
from batchrun.lanes.collecting import Collector
from batchrun.lanes.errands import Board, Errands
from batchrun.lanes.lane import Counts
from batchrun.lanes.live import LiveLane
from batchrun.lanes.mending import Mender
from batchrun.lanes.probing import Prober
from batchrun.lanes.provider import Provider
from batchrun.lanes.quota import LocalQuota
from batchrun.lanes.standins import StandIns
from batchrun.lanes.uploading import Uploader
from batchrun.records import Route, Trouble, Usage
from batchrun.rules.estimate import Load
from batchrun.rules.money import Tariff
from batchrun.rules.remote import RemoteBatch
from batchrun.store import batches
from batchrun.store.keeper import Keeper
from batchrun.store.store import Kept, Store
from batchrun.store.till import Till


class Kit(msgspec.Struct, frozen=True):
    """What a start works with.

    Attributes:
        job: what is asked for.
        store: the checkpoint.
        clock: time and dice.
        client: the server.
        listed: the models it lists.
        tariff: prices and contexts.
        known: what the checkpoint knew at the start.
        till: books what is paid.
        keeper: commits outcomes.
        mender: repairs, stand-ins, and what answers have to fit.
        quota: pace, money and the stop flag.
        counts: what the start has brought so far.
    """

    job: Job
    store: Store
    clock: Clock
    client: Client
    listed: Sequence[ModelInfo]
    tariff: Tariff
    known: choice.Known
    till: Till
    keeper: Keeper
    mender: Mender
    quota: LocalQuota
    counts: Counts

    @property
    def may_go_live(self) -> bool:
        """Whether the user allows live calls."""
        return self.job.route is not Route.BATCH

    @property
    def standins(self) -> StandIns:
        """Which model takes a request."""
        return self.mender.standins


async def pack(
    job: Job, store: Store, clock: Clock, client: Client, start: Kept, loads: dict[str, Load], *, leaving: bool
) -> Kit:
    """Put the tools together.

    Args:
        job: what is asked for.
        store: the checkpoint.
        clock: time and dice.
        client: the server, ready to be asked.
        start: where the checkpoint stands.
        loads: what each model is asked for.
        leaving: whether this start ends while batches run.

    Raises:
        UsageError: a limit on money cannot be kept, or the schema cannot be used.
    """
    listed = await client.models() or []
    tariff = terms.tariff(listed, job, loads)
    spent = await terms.spent(store, job, tariff)
    held = await batches.reserved(store)
    known = choice.Known(
        start, loads, await store.gauges(), terms.learned(await store.learned()), spent + sum(held.values())
    )
    till = await Till.on(store)
    keeper = Keeper(store, till)
    standins = StandIns(job.repairs.fallbacks, clock, keeper.note)
    quota = LocalQuota(
        job.limits,
        clock,
        tariff,
        spent=spent,
        raise_marks=store.raise_marks,
        note=keeper.note,
        learned=known.learned,
        rejected=start.rejected,
        allowed=allowed_rejections(job.limits.max_rejected, start.pending + start.answered + start.rejected),
        ceiling=terms.ceiling(job.limits.concurrency),
        held=held,
        leaving=leaving,
        proven=start.answered > 0,
        standins=standins,
    )
    mender = Mender(job.repairs, standins, tariff, terms.fit(job.asking.schema))
    return Kit(job, store, clock, client, listed, tariff, known, till, keeper, mender, quota, Counts())


async def probe(kit: Kit) -> None:
    """Ask each model and fallback for one token, the one with the most rows first; see `lanes/probing.py`."""
    prober = Prober(kit.client, kit.quota, kit.keeper.keep, kit.clock, kit.tariff, kit.standins, kit.counts)
    deadline = kit.job.limits.deadline
    left = math.inf if deadline is None else deadline - kit.clock.now()
    models = sorted(kit.known.loads, key=lambda model: -kit.known.loads[model].rows)
    await prober.probe(models, kit.job.asking.endpoint, left, one_by_one=kit.quota.purse.has_limit)


def live_lane(kit: Kit) -> LiveLane:
    """A lane of live calls."""
    return LiveLane(
        kit.client, kit.quota, kit.keeper.keep, kit.clock, kit.tariff, kit.mender,
        job_model=kit.job.asking.model, patience=kit.job.limits.overload_patience, counts=kit.counts,
    )  # fmt: skip


class Hooks(msgspec.Struct, frozen=True):
    """What the batch lane tells of rows that go another way; see `Collector`, `Carrier` and `BatchLane`."""

    again: Callable[[], None]
    returned: Callable[[Returned], None]
    refused: Callable[[RemoteBatch, Trouble], None]
    missing: Callable[[RemoteBatch, str], bool]
    packed: Callable[[], None]
    small: Callable[[Collection[str]], bool]


def batch_lane(kit: Kit, stay: Stay, hooks: Hooks) -> tuple[BatchLane, Carrier]:
    """The lane of batches, and who carries them."""
    job, store, clock, quota = kit.job, kit.store, kit.clock, kit.quota

    def cost(model: str, usage: Usage | None) -> int | None:
        full = kit.tariff.cost(model, usage)
        return None if full is None else math.ceil(full * choice.discount(job, model))

    remote = Remote(kit.client)
    errands = Errands(quota, clock, job.limits.overload_patience, remote.key_works)
    board = Board(errands, remote.jobs, clock)
    provider = Provider(remote, board, errands, Uploader(remote, errands), kit.client.redacted)
    collector = Collector(
        store, kit.till, provider, quota, clock, kit.counts, job.batching, cost, kit.mender, hooks.again,
        job_model=job.asking.model, waits=stay is Stay.WAIT,
    )  # fmt: skip
    carrier = Carrier(
        store, provider, collector, quota, clock, job.batching, stay,
        may_go_live=kit.may_go_live, patient=job.limits.wait_for_credits,
        on_returned=hooks.returned, on_refused=hooks.refused, on_missing=hooks.missing,
    )  # fmt: skip
    lane = BatchLane(
        store, carrier, errands, quota, kit.counts, kit.keeper.keep,
        lambda asked: live_lane(kit).run(rows.only(asked)), hooks.packed, hooks.small, kit.mender, job.batching, stay,
    )  # fmt: skip
    return lane, carrier
