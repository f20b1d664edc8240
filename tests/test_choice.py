"""The choice between batches and live calls, as a run makes it, and what a deadline does to it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun.cli.words import deadline
from batchrun.errors import UsageError
from batchrun.job import Asking, Batching, Job
from batchrun.records import Lane, ParkReason, Price, Route
from batchrun.rules.route import Plan
from batchrun.simulator import Settings, Simulator

# So dear that waiting for half the price is worth it.
DEAR = {MODEL: Price(1_000_000, 1_000_000)}
QUICK = Batching(lines=50, poll=0.02, grace=1.0)


def cheaper_in_batches(**fields: Any) -> dict[str, Any]:
    return {"prices": DEAR, "discounts": {MODEL: 0.5}, "batching": QUICK, **fields}


async def planned(job: Job) -> tuple[int, list[Plan]]:
    plans: list[Plan] = []
    report = await start(job, announce=plans.append)
    return report.exit_code, plans


def lanes(path: Path) -> list[str]:
    return [row["lane"] for row in read_rows(path)]


async def test_auto_takes_batches_where_they_are_cheaper_and_says_so(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.0, batch_discounts={MODEL: 0.5})) as simulator:
        code, plans = await planned(make_job(simulator.url, source, **cheaper_in_batches()))
        assert code == 0
        assert [part.choice.lane for part in plans[0].models] == [Lane.BATCH]
        assert "50%" in plans[0].models[0].choice.reasons[0]
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(60)}
    assert set(lanes(tmp_path / "out.jsonl")) == {"batch"}


async def test_auto_goes_live_where_a_batch_costs_the_same(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        code, plans = await planned(make_job(simulator.url, source, prices=DEAR))
        assert code == 0
        assert plans[0].models[0].choice.lane is Lane.LIVE
        assert simulator.batches.jobs == []


async def test_the_discount_is_in_what_an_answer_cost(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0, batch_discounts={MODEL: 0.5})) as simulator:
        job = make_job(simulator.url, source, route=Route.BATCH, discounts={MODEL: 0.5}, batching=QUICK)
        report = await start(job)
        assert report.exit_code == 0
        assert report.spent_nano == simulator.account.spent


async def test_models_of_one_input_go_their_own_ways(tmp_path: Path, make_job: MakeJob) -> None:
    other = "Qwen/Qwen2.5-7B-Instruct-Turbo"
    source = tmp_path / "in.jsonl"
    rows = [{"body": {"model": (MODEL, other)[n % 2], "messages": [{"role": "user", "content": prompt(n)}],
                      "max_tokens": 50}, "custom_id": str(n)} for n in range(40)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), **cheaper_in_batches())
        assert (await start(job)).exit_code == 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(40)}
    assert lanes(tmp_path / "out.jsonl") == ["batch", "live"] * 20


async def test_observed_usage_makes_the_next_estimate_a_measured_one(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        assert (await start(job)).exit_code == 0
        write_prompts(tmp_path / "in.jsonl", range(80))
        _, plans = await planned(job)
        estimate = plans[0].models[0].situation.estimate
        later = simulator.account.charges[40:]
    assert estimate.basis.value == "observed"
    assert estimate.prompt.low <= sum(charge.prompt_tokens for charge in later) <= estimate.prompt.high


# --- the deadline ----------------------------------------------------------------------------------------------------


async def test_at_the_deadline_a_live_run_stops_with_all_it_has(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(50))
    async with Simulator(Settings(latency=0.0, max_in_flight=4)) as simulator:
        simulator.hold()
        job = make_job(simulator.url, source, limits={"concurrency": 2, "deadline": time.time() + 0.3})
        run = start(job)
        report = await released_after_park(run, simulator)
        assert (report.exit_code, report.parked) == (6, ParkReason.DEADLINE)
        assert report.answered == simulator.account.answers
        again = await start(make_job(simulator.url, source))
        assert again.exit_code == 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(50)}


async def released_after_park(run: Any, simulator: Simulator) -> Any:
    """Let calls that are in flight go on once two of them are there and the deadline has struck."""
    import asyncio

    task = asyncio.ensure_future(run)
    await simulator.requested(2)
    await asyncio.wait({task}, timeout=0.6)
    simulator.release()
    return await task


async def test_batches_that_are_late_move_to_live_and_what_they_finished_is_kept(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.0, batch_speed=5.0)) as simulator:
        job = make_job(simulator.url, source, route=Route.BATCH, batching=QUICK)
        assert (await start(job, detach=True)).exit_code == 7
        # Live calls need six seconds for sixty rows at the assumed rate: it turns at once.
        fields = cheaper_in_batches(limits={"deadline": time.time() + 8.0, "concurrency": 16})
        report = await start(make_job(simulator.url, source, **fields))
        assert report.exit_code == 0, report.message
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(60)}
        assert {batch.status for batch in simulator.batches.jobs} <= {"CANCELLED", "COMPLETED"}
    assert "live" in lanes(tmp_path / "out.jsonl")


async def test_route_batch_leaves_late_batches_running_and_exits_6(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold_batches()
        fields: dict[str, Any] = {"route": Route.BATCH, "batching": QUICK}
        report = await start(make_job(simulator.url, source, limits={"deadline": time.time() + 0.5}, **fields))
        assert (report.exit_code, report.submitted) == (6, 20)
        simulator.release_batches()
        await simulator.batches_ended(1)
        past = await start(make_job(simulator.url, source, limits={"deadline": time.time() - 60}, **fields))
        assert past.exit_code == 0
        assert len(simulator.batches.jobs) == 1
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(20)}


async def test_a_deadline_in_the_past_collects_what_is_ready_and_sends_nothing(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields: dict[str, Any] = {"route": Route.BATCH, "batching": QUICK}
        simulator.hold_batches()
        assert (await start(make_job(simulator.url, source, **fields), detach=True)).exit_code == 7
        simulator.release_batches()
        await simulator.batches_ended(1)
        write_prompts(source, range(30))
        late = make_job(simulator.url, source, limits={"deadline": time.time() - 60})
        report = await start(late)
        assert (report.exit_code, report.parked) == (6, ParkReason.DEADLINE)
        assert (report.answered, report.pending) == (20, 10)
        assert simulator.account.answers == 20


NOW = datetime(2026, 11, 22, 20, 0, tzinfo=UTC).astimezone()


@pytest.mark.parametrize(
    ("word", "after"),
    [
        ("8h", timedelta(hours=8)),
        ("90m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        (NOW.strftime("%H:%M"), timedelta(days=1)),
        ((NOW + timedelta(hours=1)).strftime("%H:%M"), timedelta(hours=1)),
        ((NOW - timedelta(hours=1)).strftime("%H:%M"), timedelta(hours=23)),
        ((NOW + timedelta(days=3)).strftime("%Y-%m-%d %H:%M"), timedelta(days=3)),
        ((NOW - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M"), timedelta(days=-3)),
    ],
)
def test_a_deadline_is_the_next_such_time_of_this_place_or_counts_from_now(word: str, after: timedelta) -> None:
    seen = deadline(word, NOW)
    assert seen is not None
    assert datetime.fromtimestamp(seen, UTC) == (NOW + after).astimezone(UTC)


def test_none_takes_a_deadline_away() -> None:
    assert deadline("none", NOW) is None


@pytest.mark.parametrize("word", ["", "soon", "25:00", "h", "8x", "nanh", "2026-13-01", "1e400d", "-8h", "0m"])
def test_what_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        deadline(word, NOW)
