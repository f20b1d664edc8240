"""That a job gets further: the same command, start after start, until it ends or lacks more than its limit leaves."""

from __future__ import annotations

import asyncio
import re

from batch_jobs import looking_into
from money_world import Fast, World, books_of

from batchrun.job import Job
from batchrun.records import ParkReason
from batchrun.reports import Report
from batchrun.simulator import Simulator

MOST_IDLE = 5  # starts in a row that may bring nothing: what befell a batch earlier is found out step by step

_LACK = re.compile(
    r"The next (?:row|call|try to create a batch .*) could cost \$([\d.]+); \$[\d.]+ of --(max-cost-run|max-cost) "
)


async def goes_on(world: World, job: Job, *, detach: bool) -> Report | None:
    """The same command for as long as it parks at a limit or leaves batches, which come to their ends in between.

    Each start settles rows, gets better answers or submits batches, or says of one row that it could cost more than
    the limit leaves. Nothing may go wrong meanwhile. Returns the last report, None when a batch does not end.
    """
    idle, before = 0, (-1, -1, -1)
    while await _all_ended(world.simulator):
        report = await world.start(job, detach=detach)
        assert report is not None
        if report.parked not in {ParkReason.BUDGET, ParkReason.REMOTE}:
            return report
        now = (report.answered + report.rejected, report.replaced, len(world.simulator.batches.jobs))
        if now == before and report.parked is ParkReason.BUDGET and not _at_work(job):
            _lacks(job, report)
            return report
        idle, before = (idle + 1 if now == before else 0), now
        assert idle < MOST_IDLE, f"{report.message}\n{_at_work(job)}\n{books_of(job)}"
        if idle:
            await Fast().sleep(job.batching.patience)  # a job that vanished is given up only then
    return None


async def _all_ended(simulator: Simulator) -> bool:
    try:
        async with asyncio.timeout(0.5):
            await simulator.batches_ended(len(simulator.batches.jobs))
    except TimeoutError:
        return False
    return True


def _at_work(job: Job) -> list[tuple[int, str]]:
    """Batches that can go on by themselves; one whose create was not answered cannot, without money for a second."""
    with looking_into(job) as sql:
        return sql.execute(
            "select id, state from batch where state not in ('collected', 'abandoned', 'creating')"
        ).fetchall()


def _lacks(job: Job, report: Report) -> None:
    """What a park says is true: one row, or a batch that may be made twice, could cost more than its limit leaves."""
    if "has no upper bound of cost" in report.message:
        return
    said = _LACK.match(report.message)
    assert said is not None, report.message
    if said[2] == "max-cost":
        held = books_of(job).open_nano
        left = (job.limits.max_cost_nano or 0) - report.spent_nano - report.maybe_twice_nano - held
    else:
        left = (job.limits.max_cost_run_nano or 0) - report.spent_now_nano
    assert float(said[1]) * 1e9 + 1000 > left, f"{left} left: {report.message}"  # it is told to a millionth of a dollar
