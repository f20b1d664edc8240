"""Killed at any moment, run again: no row lost, none paid twice beyond what the high-water mark allows."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Job
from batchrun.simulator import Settings, Simulator

CHILD = Path(__file__).parent / "child.py"
ROWS = 300


async def launch(job: Job, folder: Path, *words: str) -> asyncio.subprocess.Process:
    stored = folder / "job.json"
    stored.write_bytes(msgspec.json.encode(job))
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(stored), *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def finish(job: Job, folder: Path) -> dict[str, Any]:
    process = await launch(job, folder)
    out, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    report: dict[str, Any] = msgspec.json.decode(out)
    return report


def marks(checkpoint: str) -> int:
    """The sum of the high-water marks of crashed runs, as a stranger would read it."""
    connection = sqlite3.connect(f"file:{checkpoint}?mode=ro", uri=True)
    try:
        (calls,) = connection.execute("select coalesce(sum(mark_calls), 0) from run where state = 'crashed'").fetchone()
    finally:
        connection.close()
    return int(calls)


async def proven(simulator: Simulator, job: Job, folder: Path) -> None:
    """The next run finishes, the bound holds, and a last run changes nothing."""
    report = await finish(job, folder)
    assert (report["answered"], report["pending"]) == (ROWS, 0)
    paid = paid_for(simulator.account.charges)
    assert set(paid) == {content(prompt(n)) for n in range(ROWS)}
    assert sum(paid.values()) - ROWS <= marks(job.checkpoint) <= report["maybe_twice"] <= 16
    assert job.output is not None
    assert [row["id"] for row in read_rows(job.output)] == list(range(ROWS))
    before, requests = Path(job.output).read_bytes(), simulator.account.requests
    last = await finish(job, folder)
    assert (last["answered_now"], simulator.account.requests) == (0, requests)
    assert Path(job.output).read_bytes() == before


def job_on(simulator: Simulator, tmp_path: Path, make_job: MakeJob) -> Job:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    return make_job(simulator.url, source, limits={"concurrency": 16})


async def killed_after_answers(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    dice = random.Random(seed)
    async with Simulator(Settings(latency=0.01, seed=seed)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        process = await launch(job, tmp_path)
        await simulator.reached(answers=dice.randrange(1, ROWS))
        process.kill()
        await process.communicate()
        await proven(simulator, job, tmp_path)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_a_seeded_moment_the_next_run_finishes(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await killed_after_answers(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 23))
async def test_killed_at_twenty_more_seeded_moments(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await killed_after_answers(seed, tmp_path, make_job)


STEPS = [("commit", 1), ("commit", 2), ("commit", 5), ("call", 1), ("call", 40), ("rename", 1)]


@pytest.mark.parametrize(("step", "number"), STEPS, ids=str)
async def test_killed_before_a_durable_step_the_next_run_finishes(
    step: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(Settings(latency=0.01)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        process = await launch(job, tmp_path, step, str(number))
        await process.communicate()
        assert process.returncode == -9
        await proven(simulator, job, tmp_path)


async def test_killed_again_and_again_it_still_gets_there(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(Settings(latency=0.01)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        for answers in (40, 90, 160):
            process = await launch(job, tmp_path)
            await simulator.reached(answers=answers)
            process.kill()
            await process.communicate()
        report = await finish(job, tmp_path)
        paid = paid_for(simulator.account.charges)
        assert (report["answered"], set(paid)) == (ROWS, {content(prompt(n)) for n in range(ROWS)})
        assert sum(paid.values()) - ROWS <= report["maybe_twice"] == 48
