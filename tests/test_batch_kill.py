"""Killed between any two steps of a batch run, run again: one job a line set, every line paid once, nothing left over."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun import door
from batchrun.job import Batching, Job
from batchrun.records import Report, Route
from batchrun.simulator import Settings, Simulator

CHILD = Path(__file__).parent / "child.py"
ROWS, LINES = 12, 6


@asynccontextmanager
async def provider(**settings: Any) -> AsyncIterator[Simulator]:
    async with Simulator(Settings(batch_speed=None, latency=0.0, **settings)) as simulator:
        yield simulator


def job_on(simulator: Simulator, folder: Path, make_job: MakeJob, **batching: Any) -> Job:
    source = write_prompts(folder / "in.jsonl", range(ROWS))
    said = {"lines": LINES, "poll": 0.02, "grace": 0.4, **batching}
    return make_job(simulator.url, source, route=Route.BATCH, batching=Batching(**said))


async def killed_at(job: Job, folder: Path, step: str, number: int) -> bool:
    """Run the job in a process that kills itself at that step; False when it ended before."""
    stored = folder / "job.json"
    stored.write_bytes(msgspec.json.encode(job))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(stored), step, str(number),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert process.returncode in {-9, 0}, said.decode()
    return process.returncode == -9


async def steps_of(job: Job) -> list[str]:
    """Every step that one undisturbed start of the job passes, in order."""
    passed: list[str] = []
    door.watch(passed.append)
    report = await start(job)
    door.watch(None)
    assert report.exit_code == 0, report.message
    return passed


def left_here(job: Job) -> list[str]:
    folder = Path(f"{job.checkpoint}.batches")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def announced(simulator: Simulator) -> list[str]:
    """Names of the request files at the provider, whether their bytes came or not."""
    files = [file for file in simulator._files.by_id.values() if simulator._files.get(file.file_id) is not None]
    return [file.name for file in files if not file.job]


async def proven(simulator: Simulator, job: Job) -> Report:
    """The next start finishes; the provider's books and shelves say that nothing was done twice or left over."""
    report = await start(job)
    assert (report.exit_code, report.answered, report.pending) == (0, ROWS, 0), report.message
    assert [made.lines for made in simulator.batches.jobs] == [LINES] * (ROWS // LINES)
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
    assert job.output is not None
    assert [row["id"] for row in read_rows(job.output)] == list(range(ROWS))
    assert {row["state"] for row in read_rows(job.output)} == {"answered"}
    assert left_here(job) == []
    kept = 0 if job.batching.delete_remote else ROWS // LINES
    assert len(announced(simulator)) == kept
    assert len([file for file in simulator.batches.files if file.job]) == kept
    return report


async def survives(number: int, tmp_path: Path, make_job: MakeJob, **batching: Any) -> Report | None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, **batching)
        if not await killed_at(job, tmp_path, "*", number):
            return None
        return await proven(simulator, job)


async def test_record(tmp_path, make_job):
    for at_once, deleting in ((50, False), (1, True)):
        (tmp_path / str(at_once)).mkdir()
        async with provider() as simulator:
            job = job_on(simulator, tmp_path / str(at_once), make_job, at_once=at_once, delete_remote=deleting)
            job = msgspec.structs.replace(job, checkpoint=str(tmp_path / f"{at_once}.db"))
            s = await steps_of(job)
            print(at_once, len(s), s)
            await proven(simulator, job)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, 80))
async def test_every(number: int, tmp_path, make_job):
    if await survives(number, tmp_path, make_job, at_once=2) is None:
        pytest.skip("x")


@pytest.mark.soak
@pytest.mark.parametrize("number", range(1, 80))
async def test_every_del(number: int, tmp_path, make_job):
    if await survives(number, tmp_path, make_job, at_once=1, delete_remote=True) is None:
        pytest.skip("x")
