"""However a batch ends, and whatever files it leaves: every row comes home once, and the ledger says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import (
    Hurried,
    batches_by_state,
    batching,
    diary,
    looking_into,
    misses,
    one_start,
    rows_by_state,
    surplus_of,
)
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Asking, Job
from batchrun.records import ParkReason, Report, Route
from batchrun.simulator import BatchFault, BatchFaultKind, Files, Settings, Simulator, Status, batch_work
from batchrun.simulator.batch_lines import Failed, failed

ROWS = 12
STATUSES = [Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED]

# What a job leaves: the end, and what happens on the way to it.
LEFT: dict[str, tuple[dict[str, Any], tuple[BatchFault, ...]]] = {
    "no files": ({"files": Files.NONE}, ()),
    "output only": ({"files": Files.OUTPUT, "share": 0.5}, ()),
    "error file only": ({"files": Files.ERROR}, ()),
    "both files": ({"files": Files.BOTH, "share": 1.0}, ()),
    "lines missing": ({"share": 1.0}, (BatchFault(BatchFaultKind.LOSE_LINES, share=0.3),)),
    "lines repeated": ({"share": 1.0}, (BatchFault(BatchFaultKind.REPEAT_LINES, share=1.0),)),
    "a garbage line": ({"share": 0.5}, (BatchFault(BatchFaultKind.GARBAGE_LINE),)),
}


def ending(status: Status, left: str, *, lasting: bool) -> tuple[BatchFault, ...]:
    """Jobs that end so: all of them, or the first."""
    said, on_the_way = LEFT[left]
    jobs = () if lasting else (1,)
    end = BatchFault(BatchFaultKind.OUTPUT_ONLY, jobs=jobs, status=status, **{"files": None, "failing": 0.0, **said})
    if said.get("files") in (Files.ERROR, Files.BOTH):
        end = BatchFault(BatchFaultKind.OUTPUT_ONLY, jobs=jobs, status=status, **said)
    return (end, *(BatchFault(fault.kind, jobs=jobs, share=fault.share) for fault in on_the_way))


def home(simulator: Simulator, job: Job, report: Report) -> list[dict[str, Any]]:
    """The output; every row is in it once, and what is answered was paid once."""
    assert report.output is not None
    rows = read_rows(report.output)
    assert [row["id"] for row in rows] == list(range(len(rows)))
    answered = [row["id"] for row in rows if row["state"] == "answered"]
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in answered}
    assert all(row["fault"] and row["fault_message"] for row in rows if row["state"] == "rejected")
    assert set(rows_by_state(job)) <= {2, 3}
    assert set(batches_by_state(job)) == {"collected"}
    assert surplus_of(job) == 0
    return rows


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_one_job_that_ends_oddly_costs_nothing_twice_and_its_rows_go_again(
    route: Route, status: Status, left: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    faults = ending(status, left, lasting=False)
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.submitted) == (0, ROWS, 0), report.message
        rows = home(simulator, job, report)
        if status is Status.CANCELLED and len(simulator.account.charges) > simulator.account.batch_charges:
            # A cancel nobody asked for: one row goes live, to see whether there are credits.
            assert [row["lane"] for row in rows].count("live") == 1
        else:
            assert {row["lane"] for row in rows} == {"batch"}
        assert len(simulator.batches.jobs) <= 2


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_when_every_job_ends_oddly_a_row_goes_into_three_batches_and_then_live_or_is_given_up(
    route: Route, status: Status, left: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    faults = ending(status, left, lasting=True)
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        report = await one_start(job)
        assert report.answered + report.rejected == ROWS, report.message
        rows = home(simulator, job, report)
        # Three that were cancelled and asked about are nobody's fault; then three that count.
        assert len(simulator.batches.jobs) <= (6 if status is Status.CANCELLED else 3)
        given_up = [row for row in rows if row["state"] == "rejected"]
        if route is Route.AUTO:
            assert (report.exit_code, given_up) == (0, [])
        else:
            assert report.exit_code == (10 if given_up else 0)
        assert {row["fault"] for row in given_up} <= {"server"}
        if left in ("no files", "error file only"):
            live = {row["lane"] for row in rows if row["state"] == "answered"}
            assert live <= {"live"}
