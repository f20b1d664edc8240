"""Input that grows from night to night: only what is new is paid, whatever sorts where, goes away or comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from batch_jobs import batching, one_start
from support import MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Job
from batchrun.reports import Report
from batchrun.simulator import Settings, Simulator
from batchrun.store.view import View

FAST = Settings(latency=0.0)
A_NIGHT = 6

EACH_WAY = pytest.mark.parametrize("dedupe", [False, True], ids=["each asked", "identical share"])


class Nights:
    """One job over many nights, with the provider's ledger as the judge of what was paid."""

    def __init__(self, simulator: Simulator, job: Job) -> None:
        self.simulator = simulator
        self.job = job

    async def night(self, numbers: Sequence[int], *, new: Sequence[int]) -> Report:
        """A start over an input that now holds these prompts; just the new ones are paid for."""
        before = len(self.simulator.account.charges)
        report = await one_start(self.job)
        assert (report.exit_code, report.answered) == (0, len(numbers)), report.message
        assert self.job.output is not None
        rows = read_rows(self.job.output)
        assert [row["id"] for row in rows] == list(numbers)
        assert all(row["state"] == "answered" and row["answer"] for row in rows)
        assert paid_for(self.simulator.account.charges[before:]) == Counter(content(prompt(n)) for n in new)
        assert report.spent_nano == self.simulator.account.spent
        assert report.spent_now_nano == sum(charge.nano for charge in self.simulator.account.charges[before:])
        assert report.useful_nano + report.wasted_nano + report.unused_nano == report.spent_nano
        return report

    def unused(self) -> int:
        with View(self.job.checkpoint) as view:
            return sum(entry.unused for entry in view.ledger())


def of_day(day: int) -> list[int]:
    return list(range(100 * day, 100 * day + A_NIGHT))


def write_day(folder: Path, day: int) -> None:
    write_prompts(folder / f"2026-11-{day:02}.jsonl", of_day(day))


def in_folder(days: Sequence[int]) -> list[int]:
    return [number for day in sorted(days) for number in of_day(day)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "days"
    made.mkdir()
    return made


@EACH_WAY
@pytest.mark.parametrize("lane", ["live", "batch"])
async def test_a_file_that_grows_nightly_is_paid_row_by_row(
    dedupe: bool,
    lane: str,
    tmp_path: Path,
    make_job: MakeJob,
) -> None:
    source = tmp_path / "in.jsonl"
    async with Simulator(FAST) as simulator:
        how = batching(lines=4) if lane == "batch" else {}
        nights = Nights(simulator, make_job(simulator.url, source, dedupe=dedupe, **how))
        numbers: list[int] = []
        for day in range(1, 6):
            # Tonight's rows, one of them a question of last night: asked anew, unless identical rows share an answer.
            tonight = [*of_day(day), *numbers[-A_NIGHT:][:1]]
            numbers += tonight
            write_prompts(source, numbers)
            report = await nights.night(numbers, new=tonight[:A_NIGHT] if dedupe else tonight)
            assert (report.unused_nano, report.wasted_nano) == (0, 0)
        before = len(simulator.account.charges)
        report = await nights.night(numbers, new=[])
        assert (report.answered_now, report.written, len(simulator.account.charges)) == (0, False, before)


@EACH_WAY
async def test_a_new_file_that_sorts_in_the_middle_moves_rows_and_pays_for_its_own_only(
    dedupe: bool,
    folder: Path,
    make_job: MakeJob,
) -> None:
    async with Simulator(FAST) as simulator:
        nights = Nights(simulator, make_job(simulator.url, folder, dedupe=dedupe))
        there: list[int] = []
        for day in (3, 7, 5, 1, 4, 9):
            write_day(folder, day)
            there.append(day)
            await nights.night(in_folder(there), new=of_day(day))
        assert nights.unused() == 0


@EACH_WAY
async def test_an_old_file_that_goes_away_leaves_unused_answers_that_serve_again_when_it_is_back(
    dedupe: bool,
    folder: Path,
    make_job: MakeJob,
) -> None:
    async with Simulator(FAST) as simulator:
        nights = Nights(simulator, make_job(simulator.url, folder, dedupe=dedupe))
        for day in (1, 2, 3):
            write_day(folder, day)
        first = await nights.night(in_folder((1, 2, 3)), new=in_folder((1, 2, 3)))
        assert first.unused_nano == 0
        (folder / "2026-11-01.jsonl").unlink()
        write_day(folder, 4)
        report = await nights.night(in_folder((2, 3, 4)), new=of_day(4))
        assert nights.unused() == A_NIGHT
        assert 0 < report.unused_nano < first.spent_nano
        write_day(folder, 1)
        report = await nights.night(in_folder((1, 2, 3, 4)), new=[])
        assert (nights.unused(), report.unused_nano) == (0, 0)


async def test_the_same_rows_in_two_daily_files_are_paid_as_often_as_they_stand_there_or_once(
    folder: Path, make_job: MakeJob
) -> None:
    async with Simulator(FAST) as simulator:
        nights = Nights(simulator, make_job(simulator.url, folder))
        write_day(folder, 1)
        await nights.night(of_day(1), new=of_day(1))
        write_prompts(folder / "2026-11-02.jsonl", of_day(1))
        twice = [*of_day(1), *of_day(1)]
        await nights.night(twice, new=of_day(1))
        (folder / "2026-11-01.jsonl").unlink()
        await nights.night(of_day(1), new=[])
        assert nights.unused() == A_NIGHT
        nights.job = msgspec.structs.replace(nights.job, dedupe=True)
        write_prompts(folder / "2026-11-03.jsonl", [*of_day(1), *of_day(1)])
        await nights.night([*of_day(1), *twice], new=[])
        assert nights.unused() == 0


async def test_an_archive_that_is_pruned_pays_again_only_for_what_comes_back(folder: Path, make_job: MakeJob) -> None:
    from batchrun.clock import RealClock
    from batchrun.store import ledger
    from batchrun.store.store import Store

    async with Simulator(FAST) as simulator:
        nights = Nights(simulator, make_job(simulator.url, folder))
        for day in (1, 2, 3):
            write_day(folder, day)
        await nights.night(in_folder((1, 2, 3)), new=in_folder((1, 2, 3)))
        for day in (1, 2):
            (folder / f"2026-11-0{day}.jsonl").unlink()
        await nights.night(of_day(3), new=[])
        with View(nights.job.checkpoint) as view:
            found = view.prunable(keep_unused=False)
        assert (found.unused.replies, found.unused.nano) == (2 * A_NIGHT, simulator.account.spent - nights_cost(nights))
        store = await Store.open(nights.job.checkpoint, RealClock(), provider=nights.job.provider)
        await ledger.prune(store, found, keep_unused=False)
        await store.release()
        write_day(folder, 2)
        await nights.night(in_folder((2, 3)), new=of_day(2))
        assert nights.unused() == 2 * A_NIGHT


def nights_cost(nights: Nights) -> int:
    """What the answers in the output cost."""
    assert nights.job.output is not None
    return round(sum(row["cost_usd"] for row in read_rows(nights.job.output)) * 1e9)
