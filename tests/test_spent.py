"""Money as it is shown: of how much use it was, and never nothing where it is not known."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support import MakeJob, start, write_prompts

from batchrun.faces import closing, progress, status
from batchrun.faces.words import dollars
from batchrun.reports import Progress, Report, Stage
from batchrun.rules.money import Tariff
from batchrun.runner import Run
from batchrun.simulator import Settings, Simulator
from batchrun.store.view import View

FAST = Settings(latency=0.0)


def money(report: Report) -> list[str]:
    lines = closing.summary(report).splitlines()
    return [line for line in lines if line.startswith(("Spent", "Of that"))]


def shown(checkpoint: str) -> list[str]:
    with View(checkpoint) as view:
        told = status.text(status.standing(view, checkpoint, 0.0, 0)).splitlines()
    return told[next(place for place, line in enumerate(told) if line.startswith("Spent")) :]


async def no_list(_client: object) -> None:
    return None


async def test_answers_of_unknown_price_cost_unknown_and_not_nothing(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(4))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        with monkeypatch.context() as patched:
            patched.setattr("batchrun.api.client.Client.models", no_list)
            patched.setattr("batchrun.data.tariff", Tariff)
            run = Run(job, "any-key")
            report = await run.go()
        assert (report.unpriced, report.spent_nano) == (4, 0)
        assert money(report)[0].startswith("Spent: unknown (4 answers of unknown price); ")
        assert run.progress().unpriced == 4
        assert shown(job.checkpoint)[0] == "Spent: unknown (4 answers of unknown price)"
        assert shown(job.checkpoint)[1].endswith(" out, unknown (4 answers of unknown price)")
        write_prompts(source, range(2, 6))
        run = Run(job, "any-key")
        report = await run.go()
        known = dollars(report.spent_nano)
        assert (report.unpriced, run.progress().unpriced, report.answered_now) == (4, 4, 2)
        assert money(report)[0].startswith(f"Spent: {known} and 4 answers of unknown price in all, {known} this start;")
        assert shown(job.checkpoint)[2] == (
            f"    useful 4: {known} and 2 answers of unknown price; unused 2: unknown (2 answers of unknown price)"
        )


def test_the_bar_says_unknown_too() -> None:
    seen = Progress(Stage.SENDING, 0, 9, 2, 0, 1, 4, 1.0, 9.0, 0, 0, None, "", 0.0, unpriced=2)
    assert "1 in flight, unknown (2 answers of unknown price), 0 429s" in progress.line(seen)
    some = msgspec.structs.replace(seen, spent_nano=1_200_000_000)
    assert "1 in flight, $1.2000 and 2 answers of unknown price, 0 429s" in progress.line(some)


async def test_what_is_of_no_use_is_told_only_when_there_is_any(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(FAST) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(8))
        job = make_job(simulator.url, source)
        first = await start(job)
        assert len(money(first)) == 1
        assert len(shown(job.checkpoint)) == 2
        write_prompts(source, range(3))
        report = await start(job)
        assert (report.useful_nano + report.unused_nano, report.wasted_nano) == (first.spent_nano, 0)
        _, told = money(report)
        assert told.startswith("Of that: $")
        assert told.endswith(" for rows no longer asked for.")
        assert "wasted" not in told
        assert shown(job.checkpoint)[2].startswith("    useful 3: $")
        assert "; unused 5: $" in shown(job.checkpoint)[2]


async def test_what_may_be_paid_twice_is_told_as_the_bound_it_is(tmp_path: Path, make_job: MakeJob) -> None:
    from batchrun.clock import RealClock
    from batchrun.store.store import Store

    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(2)))
        await start(job)
        store = await Store.open(job.checkpoint, RealClock(), provider=job.provider)
        await store.raise_marks(3, 5_000_000)
        await store.release()  # as a crash would
        await start(job)
        assert shown(job.checkpoint)[-1] == "Possibly paid twice: at most 3 calls, $0.005000 (crashes, broken replies)"
