"""A job that is left to its batches night after night comes to its end under a limit that suffices.

The long ones: `pytest -m soak tests/test_progress_stories.py`.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
from money_progress import goes_on
from money_world import Ending, Fast, World, write_rows
from support import MakeJob
from test_money_stories import AMPLE, Deal, asking, batched, bound

from batchrun.job import Repairs
from batchrun.records import Route
from batchrun.simulator import BatchFault, BatchFaultKind, Settings, Simulator


async def test_what_is_ready_is_collected_though_a_new_row_is_dearer_than_the_limit_of_a_start(
    tmp_path: Path, make_job: MakeJob
) -> None:
    rows = asking(range(5))
    async with Simulator(Settings(latency=0.0)) as simulator:
        world, source = World(simulator, tmp_path), write_rows(tmp_path / "in.jsonl", rows)
        job = batched(simulator, source, make_job, max_cost_run_nano=bound(rows))
        simulator.hold_batches()
        await world.start(job, detach=True)
        simulator.release_batches()
        await simulator.batches_ended(1)
        write_rows(source, [*rows, *asking(range(5, 6), max_tokens=1000)])
        report = await world.start(msgspec.structs.replace(job, route=Route.AUTO))
    assert report is not None
    assert (report.exit_code, report.answered, report.submitted) == (6, 5, 0), report.message


async def test_a_create_in_doubt_that_may_not_go_out_again_keeps_no_other_batch_from_its_end(
    tmp_path: Path, make_job: MakeJob
) -> None:
    rows = asking(range(10))
    lost = BatchFault(BatchFaultKind.CREATE_ERROR, times=1, http=502)
    async with Simulator(Settings(latency=0.0, batch_faults=(lost,))) as simulator:
        world, source = World(simulator, tmp_path), write_rows(tmp_path / "in.jsonl", rows)
        job = batched(simulator, source, make_job, lines=5, max_cost_nano=round(bound(rows) * 1.02))
        await world.start(job, Ending("crash", 1, "create answered"))
        for _ in range(3):
            await Fast().sleep(job.batching.grace)
            report = await world.start(job, detach=True)
            await simulator.batches_ended(len(simulator.batches.jobs))
    assert report is not None
    assert report.answered >= 5, report.message


async def left_alone(seed: int, folder: Path, make_job: MakeJob) -> None:
    """Night after night the same command with --detach, under a limit that is just what the job costs, and one row."""
    dice = random.Random(seed)
    deal = Deal(dice)
    deal.repairs = Repairs(too_long=deal.repairs.too_long)
    rows = deal.rows = [msgspec.structs.replace(row, max_tokens=row.max_tokens or 60) for row in deal.rows]
    source = write_rows(folder / "in.jsonl", rows)
    async with Simulator(Settings(latency=0.001, seed=seed)) as simulator:
        job = deal.job(simulator.url, source, make_job, Route.LIVE, max_cost_nano=AMPLE)
        await World(simulator, folder).start(msgspec.structs.replace(job, checkpoint=str(folder / "first.db")))
        cost = simulator.account.spent
    dearest = max(deal.bounds(row)[1] for row in rows)
    limits = dice.choice([{"max_cost_nano": cost + dearest}, {"max_cost_run_nano": max(1, dearest, cost // 3)}])
    async with Simulator(Settings(latency=0.001, seed=seed)) as simulator:
        job = deal.job(simulator.url, source, make_job, dice.choice([Route.BATCH, Route.AUTO]), **limits)
        report = await goes_on(World(simulator, folder), job, detach=True)
        assert report is None or report.exit_code in {0, 10}, report.message


@pytest.fixture(autouse=True)
def _worth_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discount decides for these few rows as it does for many."""
    monkeypatch.setattr("batchrun.rules.route.WORTH_WAITING", 1000)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 21, 49])
async def test_a_job_left_to_its_batches_comes_to_its_end(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await left_alone(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 104))
async def test_100_more_jobs_left_to_their_batches_come_to_their_ends(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await left_alone(seed, tmp_path, make_job)


async def test_a_look_at_what_ended_a_batch_waits_for_no_money_that_nobody_brings(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """Of two batches left running one is cancelled, the other goes on, and the limit has no room for a call."""
    rows = asking(range(12))
    ended = BatchFault(BatchFaultKind.CANCELLED_BY_SERVER, jobs=(1,), share=0.5)
    stuck = BatchFault(BatchFaultKind.STUCK, jobs=(2,), progress=50.0, seconds=None)
    async with Simulator(Settings(latency=0.0, batch_faults=(ended, stuck))) as simulator, asyncio.timeout(60):
        source = write_rows(tmp_path / "in.jsonl", rows)
        job = batched(simulator, source, make_job, lines=6, max_cost_nano=2 * bound(rows))
        job = msgspec.structs.replace(job, batching=msgspec.structs.replace(job.batching, patience=1e9))
        world = World(simulator, tmp_path)
        await world.start(job, detach=True)
        await simulator.batches_ended(1)
        less = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, max_cost_nano=bound(rows) // 2))
        for _ in range(3):
            await Fast().sleep(job.batching.grace)  # until then the job may begin again under another id
            report = await world.start(less, detach=True)
        assert report is not None
        assert (report.exit_code, report.answered) == (7, 3), report.message
        assert simulator.account.requests == 0  # there was no room for the look
