"""Killed between any two steps of a batch run, run again: one job a line set, every line paid once, nothing left."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun import door
from batchrun.errors import StorageError
from batchrun.job import Batching, Job
from batchrun.records import Route
from batchrun.reports import Report
from batchrun.runner import Run
from batchrun.simulator import BatchFault, BatchFaultKind, Settings, Simulator

CHILD = Path(__file__).parent / "child.py"
ROWS, LINES = 12, 6


@asynccontextmanager
async def provider(**settings: Any) -> AsyncIterator[Simulator]:
    async with Simulator(Settings(**{"batch_speed": None, "latency": 0.0, **settings})) as simulator:
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
    assert report.spent_nano == report.useful_nano == simulator.account.spent
    assert job.output is not None
    assert [row["id"] for row in read_rows(job.output)] == list(range(ROWS))
    assert {row["state"] for row in read_rows(job.output)} == {"answered"}
    assert left_here(job) == []
    assert report.maybe_twice in {0, LINES, ROWS}  # creates that went out again
    kept = 0 if job.batching.delete_remote else ROWS // LINES
    assert len(announced(simulator)) == kept
    assert len([file for file in simulator.batches.files if file.job]) == kept
    return report


async def survives(number: int, tmp_path: Path, make_job: MakeJob, **batching: Any) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, **batching)
        killed = await killed_at(job, tmp_path, "*", number)
        await proven(simulator, job)
        if not killed:
            pytest.skip("the run passed fewer steps this time")


TWO_AT_ONCE: dict[str, Any] = {"at_once": 2}
ONE_AFTER_THE_OTHER: dict[str, Any] = {"at_once": 1, "delete_remote": True}
# How many steps a start passes varies a little with the order of replies; later ones than the last are skipped.
LAST = {"two at once": 56, "one after the other": 64}
WAYS = {"two at once": TWO_AT_ONCE, "one after the other": ONE_AFTER_THE_OTHER}
EVERY = [(way, number) for way, last in LAST.items() for number in range(1, last + 1)]
SOME = [*EVERY[4:52:5], *EVERY[62::9]]


@pytest.mark.parametrize(("way", "number"), SOME)
async def test_killed_before_some_step_the_next_start_finishes(
    way: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await survives(number, tmp_path, make_job, **WAYS[way])


@pytest.mark.soak
@pytest.mark.parametrize(("way", "number"), [point for point in EVERY if point not in SOME])
async def test_killed_before_any_other_step_the_next_start_finishes(
    way: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await survives(number, tmp_path, make_job, **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
async def test_these_are_all_the_steps_there_are(way: str, tmp_path: Path, make_job: MakeJob) -> None:
    async with provider() as simulator:
        steps = await steps_of(job_on(simulator, tmp_path, make_job, **WAYS[way]))
    calls = {"upload", "put", "preprocess", "create", "list", "download"}
    calls |= {"delete"} if WAYS[way].get("delete_remote") else set()
    assert {"commit", "rename", *calls, *(f"{call} answered" for call in calls)} <= set(steps)
    assert len(steps) <= LAST[way]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_killed_before_it_removes_a_file_of_its_own_nothing_is_left_over(
    number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job)
        assert await killed_at(job, tmp_path, "remove", number)
        await proven(simulator, job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
async def test_killed_twice_in_a_row_the_third_start_finishes(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    dice = random.Random(seed)
    way = dice.choice(list(WAYS))
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, **WAYS[way])
        await killed_at(job, tmp_path, "*", dice.randrange(1, LAST[way]))
        await killed_at(job, tmp_path, "*", dice.randrange(1, LAST[way] // 2))
        await proven(simulator, job)


async def test_killed_before_a_cancel_goes_out_it_is_asked_for_again(tmp_path: Path, make_job: MakeJob) -> None:
    twins = BatchFault(BatchFaultKind.DUPLICATE)
    async with provider(batch_speed=6.0, batch_faults=(twins,)) as simulator:
        job = job_on(simulator, tmp_path, make_job, lines=ROWS)
        assert await killed_at(job, tmp_path, "cancel", 1)
        assert {made.status for made in simulator.batches.jobs} == {"IN_PROGRESS"}
        report = await start(job)
        assert (report.exit_code, report.answered, report.maybe_twice) == (0, ROWS, 0)
        assert sorted(made.status for made in simulator.batches.jobs) == ["CANCELLED", "COMPLETED"]
        assert len(simulator.account.charges) < 2 * ROWS


@pytest.mark.parametrize("step", ["cancel", "cancel answered"])
async def test_killed_while_it_turns_to_live_calls_no_row_is_paid_twice(
    step: str, tmp_path: Path, make_job: MakeJob
) -> None:
    stuck = BatchFault(BatchFaultKind.STUCK, progress=50)
    async with provider(batch_faults=(stuck,)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        assert (await start(job, detach=True)).exit_code == 7
        while sum(made.done for made in simulator.batches.jobs) < ROWS // 2:
            await simulator.batches.catch_up()
        job = msgspec.structs.replace(job, route=Route.LIVE)
        assert await killed_at(job, tmp_path, step, 1)
        report = await start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        assert {made.status for made in simulator.batches.jobs} == {"CANCELLED"}
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
        assert left_here(job) == []


@pytest.mark.parametrize("step", ["upload answered", "put", "put answered", "preprocess answered"])
async def test_killed_in_an_upload_and_turned_to_live_calls_no_file_is_left_at_the_provider(
    step: str, tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job)
        assert await killed_at(job, tmp_path, step, 1)
        report = await start(msgspec.structs.replace(job, route=Route.LIVE))
        assert (report.exit_code, report.answered, report.maybe_twice) == (0, ROWS, 0)
        assert (announced(simulator), simulator.batches.jobs, left_here(job)) == ([], [], [])


# --- stopped without being killed ------------------------------------------------------------------------------------


class Tripwire:
    """Does something at the n-th step, of one kind or of any."""

    def __init__(self, number: int, act: Callable[[], None], step: str = "*") -> None:
        self._left = number
        self._act = act
        self._step = step

    def __call__(self, step: str) -> None:
        self._left -= self._step in (step, "*")
        if self._left == 0:
            self._left = -1
            self._act()


async def interrupted_at(number: int, times: int, tmp_path: Path, make_job: MakeJob) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, **TWO_AT_ONCE)
        run = Run(job, "any-key")
        door.watch(Tripwire(number, lambda: [run.interrupt() for _ in range(times)] and None))
        report = await run.go()
        door.watch(None)
        assert report.exit_code in {0, 130}
        await proven(simulator, job)


SOME_MOMENTS = range(4, LAST["two at once"], 8)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", SOME_MOMENTS)
async def test_interrupted_at_some_step_softly_or_at_once_the_next_start_finishes(
    number: int, times: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await interrupted_at(number, times, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [n for n in range(1, LAST["two at once"]) if n not in SOME_MOMENTS])
async def test_interrupted_at_any_other_step_softly_or_at_once_the_next_start_finishes(
    number: int, times: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await interrupted_at(number, times, tmp_path, make_job)


def full_disk() -> None:
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    "number", [number if number % 3 else pytest.param(number, marks=pytest.mark.soak) for number in range(1, 20)]
)
async def test_when_a_commit_fails_the_run_stops_and_the_next_start_finishes(
    number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, **TWO_AT_ONCE)
        door.watch(Tripwire(number, full_disk, "commit"))
        try:
            report = await start(job)
        except StorageError:
            pass
        else:
            assert report.exit_code == 0, "nothing but the last words were lost"
        door.watch(None)
        await proven(simulator, job)
