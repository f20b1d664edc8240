"""Credits that run out around a batch: a pause that counts against no row, wherever the provider says it."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import Hurried, batching, misses, one_start, rows_by_state, surplus_of
from support import MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Job
from batchrun.records import ParkReason, Route
from batchrun.reports import Report
from batchrun.runner import Run
from batchrun.simulator import CreditsEnd, CreditsWord, Fault, FaultKind, Settings, Simulator

ROWS = 40
DONE = 15  # lines charged when credits end in the middle


class Probing(Hurried):
    """It tells when credits have been waited for a second time, so that a probe has come back in vain."""

    def __init__(self) -> None:
        self._long_waits = 0
        self.probed = asyncio.get_running_loop().create_future()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self._long_waits += 20 < seconds < math.inf
        if self._long_waits == 2 and not self.probed.done():
            self.probed.set_result(None)
        await super().wait(event, seconds)


def broke(after: int, **fields: Any) -> Settings:
    """A provider whose credits end after so many answers."""
    return Settings(latency=0.0, faults=(Fault(FaultKind.CREDITS_END, after=after),), **fields)


def assert_parked(report: Report, job: Job, *, answered: int) -> None:
    assert (report.exit_code, report.parked) == (3, ParkReason.CREDITS), report.message
    assert (report.answered, report.rejected, report.pending) == (answered, 0, ROWS - answered)
    assert misses(job) == 0
    assert report.maybe_twice == 0


async def assert_goes_on(simulator: Simulator, job: Job) -> None:
    """After the top-up the same start finishes, and every row was paid once."""
    simulator.top_up(5)
    report = await one_start(job)
    assert (report.exit_code, report.answered) == (0, ROWS), report.message
    assert_paid_once(simulator, job)


def assert_paid_once(simulator: Simulator, job: Job) -> None:
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
    assert job.output is not None
    assert [row["state"] for row in read_rows(job.output)] == ["answered"] * ROWS
    assert (rows_by_state(job), surplus_of(job)) == ({2: ROWS}, 0)


@pytest.mark.parametrize("word", list(CreditsWord))
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_no_credits_at_the_start_park_with_every_row_left(
    route: Route, word: CreditsWord, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(broke(0, batch_credits_word=word)) as simulator:
        job = make_job(simulator.url, source, **batching(route, lines=15))
        assert_parked(await one_start(job), job, answered=0)
        assert not simulator.batches.jobs
        assert_parked(await one_start(job), job, answered=0)
        # The first start may have parked before the last batch was uploaded.
        assert len(simulator.batches.files) <= 3, "a file was uploaded twice"
        await assert_goes_on(simulator, job)
        assert [job.lines for job in simulator.batches.jobs] == [15, 15, 10]


@pytest.mark.parametrize("end", list(CreditsEnd))
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_credits_that_end_inside_a_batch_keep_what_was_finished_and_park(
    route: Route, end: CreditsEnd, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(broke(DONE, batch_out_of_credits=end)) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        report = await one_start(job)
        assert_parked(report, job, answered=DONE)
        assert report.submitted == 0
        # A cancel without a word: one live call found out.
        assert simulator.account.statuses[402] == (1 if end is CreditsEnd.CANCEL else 0)
        again = await one_start(job)
        assert_parked(again, job, answered=DONE)
        await assert_goes_on(simulator, job)


async def test_credits_that_end_with_several_batches_running_keep_all_that_was_finished(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(broke(DONE)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=8))
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).exit_code == 7
        simulator.release_batches()
        await simulator.batches_ended(5)
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.rejected) == (3, ParkReason.CREDITS, 0)
        assert misses(job) == 0
        simulator.top_up(5)
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        assert_paid_once(simulator, job)


@pytest.mark.parametrize("end", list(CreditsEnd))
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_waiting_for_credits_goes_on_by_itself_after_the_top_up(
    route: Route, end: CreditsEnd, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(broke(DONE, batch_out_of_credits=end)) as simulator:
        job = make_job(simulator.url, source, limits={"wait_for_credits": True}, **batching(route, poll=1.0))
        clock = Probing()
        running = asyncio.create_task(Run(job, "any-key", clock=clock).go())
        await clock.probed
        assert not running.done()
        simulator.top_up(5)
        async with asyncio.timeout(20):
            report = await running
        assert (report.exit_code, report.answered, report.rejected) == (0, ROWS, 0), report.message
        assert misses(job) == 0
        assert_paid_once(simulator, job)


@pytest.mark.parametrize("word", list(CreditsWord))
async def test_waiting_for_credits_also_waits_before_the_first_batch(
    word: CreditsWord, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(broke(0, batch_credits_word=word)) as simulator:
        job = make_job(simulator.url, source, limits={"wait_for_credits": True}, **batching(poll=1.0))
        clock = Probing()
        running = asyncio.create_task(Run(job, "any-key", clock=clock).go())
        await clock.probed
        assert not running.done()
        simulator.top_up(5)
        async with asyncio.timeout(20):
            report = await running
        assert (report.exit_code, report.answered) == (0, ROWS), report.message
        assert_paid_once(simulator, job)


async def test_an_upload_refused_for_a_bad_key_parks_for_the_key(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.0, refused_keys=("any-key",))) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.rejected, report.pending) == (4, ParkReason.KEY, 0, ROWS)
        assert misses(job) == 0


async def test_out_of_credits_stops_a_batch_and_live_calls_together(tmp_path: Path, make_job: MakeJob) -> None:
    """Two models, one by batch and one live: what either finished is kept, and both go on after the top-up."""
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        for n in range(ROWS):
            model = "openai/gpt-oss-20b" if n % 2 else "openai/gpt-oss-120b"
            body = {"model": model, "messages": [{"role": "user", "content": prompt(n)}], "max_tokens": 100}
            file.write(msgspec.json.encode({"custom_id": f"r{n}", "id": n, "body": body}).decode() + "\n")
    async with Simulator(broke(DONE)) as simulator:
        job = make_job(simulator.url, source, **batching(Route.AUTO))
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.rejected) == (3, ParkReason.CREDITS, 0)
        assert report.answered + report.pending == ROWS
        simulator.top_up(5)
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS), report.message
        rows = read_rows(tmp_path / "out.jsonl")
        assert {(row["lane"], row["model"]) for row in rows} == {
            ("batch", "simulated/openai/gpt-oss-20b"),
            ("live", "simulated/openai/gpt-oss-120b"),
        }
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
