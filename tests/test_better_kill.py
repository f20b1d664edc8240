"""Killed between a reply and the better one that is wanted, run again: nothing kept is lost, nothing more is paid for.

What a start may pay is known beforehand: the same job, undisturbed, on a simulator of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import assert_sound, batching, looking_into, one_start
from support import MODEL, MakeJob, paid_for, read_rows, write_prompts

from batchrun import door
from batchrun.job import Asking, Job, Repairs
from batchrun.records import Route
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

CHILD = Path(__file__).parent / "child.py"
ROWS, KINDS = 8, 5
FEW = 6
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
BAD = Settings(latency=0.0, faults=(Fault(FaultKind.MISFIT, first=2),))
PLAIN = Settings(latency=0.0)

Fields = dict[str, Any]


def cut_off() -> Fields:
    return {"asking": Asking(model=MODEL, params={"max_tokens": FEW}), "repairs": Repairs(length_retries=3)}


def shared() -> Fields:
    return {**cut_off(), "dedupe": True}


def in_batches() -> Fields:
    return {**batching(Route.AUTO, lines=5), **cut_off()}


def misfits() -> Fields:
    asking = Asking(model=MODEL, params={"max_tokens": 300, "seed": 3}, schema=SCHEMA)
    return {"asking": asking, "repairs": Repairs(invalid_retries=2)}


WAYS: dict[str, tuple[Callable[[], Fields], Settings]] = {
    "cut off": (cut_off, PLAIN),
    "shared": (shared, PLAIN),
    "misfits": (misfits, BAD),
    "in batches": (in_batches, PLAIN),
}


def job_on(simulator: Simulator, folder: Path, make_job: MakeJob, fields: Fields, name: str = "checkpoint") -> Job:
    source = write_prompts(folder / "in.jsonl", [n % KINDS for n in range(ROWS)])
    return make_job(
        simulator.url, source, limits={"concurrency": 3}, checkpoint=str(folder / f"{name}.db"),
        output=str(folder / f"{name}.jsonl"), **fields,
    )  # fmt: skip


async def killed_at(job: Job, folder: Path, number: int) -> bool:
    """Run the job in a process that kills itself at its n-th commit; False when it ended before."""
    stored = folder / "job.json"
    stored.write_bytes(msgspec.json.encode(job))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(stored), "commit", str(number),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert process.returncode in {-9, 0}, said.decode()
    return process.returncode == -9


async def undisturbed(folder: Path, make_job: MakeJob, fields: Fields, settings: Settings) -> tuple[Any, Any]:
    """What each prompt is charged, and the answers, when nothing breaks."""
    async with Simulator(settings) as simulator:
        job = job_on(simulator, folder, make_job, fields, "undisturbed")
        report = await one_start(job)
        assert report.exit_code == 0, report.message
        return paid_for(simulator.account.charges), answers(job)


def answers(job: Job) -> list[Any]:
    return [(row["state"], row["fault"], row["answer"]) for row in read_rows(job.output or "")]


async def survives(way: str, number: int, tmp_path: Path, make_job: MakeJob) -> None:
    fields, settings = WAYS[way][0](), WAYS[way][1]
    expected, outcome = await undisturbed(tmp_path, make_job, fields, settings)
    async with Simulator(settings) as simulator:
        job = job_on(simulator, tmp_path, make_job, fields)
        killed = await killed_at(job, tmp_path, number)
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0), report.message
        if way != "misfits":  # there a reply that was lost uses up one of the bad ones
            assert answers(job) == outcome
        paid = paid_for(simulator.account.charges)
        lost = len(simulator.account.charges) - replies(job)
        assert lost <= report.maybe_twice
        assert sum((paid - expected).values()) <= report.maybe_twice
        assert killed or paid == expected
        requests = simulator.account.requests
        last = await one_start(job)
        assert (last.exit_code, last.written, simulator.account.requests) == (0, False, requests)
    if not killed:
        pytest.skip("the run passed fewer commits this time")


def replies(job: Job) -> int:
    with looking_into(job) as sql:
        (count,) = sql.execute("select count(*) from paid").fetchone()
    return int(count)


LAST = {"cut off": 20, "shared": 19, "misfits": 18, "in batches": 36}
EVERY = [(way, number) for way, last in LAST.items() for number in range(1, last + 1)]
SOME = EVERY[5::9]


@pytest.mark.parametrize(("way", "number"), SOME)
async def test_killed_before_a_commit_the_next_start_goes_on_to_the_same_answers(
    way: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await survives(way, number, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize(("way", "number"), [case for case in EVERY if case not in SOME])
async def test_killed_before_any_other_commit(way: str, number: int, tmp_path: Path, make_job: MakeJob) -> None:
    await survives(way, number, tmp_path, make_job)


@pytest.mark.parametrize("way", WAYS)
async def test_the_last_commits_are_known(way: str, tmp_path: Path, make_job: MakeJob) -> None:
    """The kills above reach every commit: no start passes many more than they know of."""
    passed: Counter[str] = Counter()
    async with Simulator(WAYS[way][1]) as simulator:
        job = job_on(simulator, tmp_path, make_job, WAYS[way][0]())
        door.watch(lambda step: passed.update([step]))
        report = await one_start(job)
        door.watch(None)
        assert report.exit_code == 0
        assert_sound(job)
    assert passed["commit"] <= LAST[way] * 1.3
