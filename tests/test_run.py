"""The main job end to end, over a real socket, with the simulator's ledger as the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun.job import Asking
from batchrun.records import ParkReason
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

FAST = Settings(latency=0.0, refusal_latency=0.0)


async def test_every_row_is_answered_once_in_input_order(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(300))
    async with Simulator(FAST) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered, report.pending) == (0, 300, 0)
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(300)}
        assert report.spent_nano == simulator.account.spent
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(300))
    assert all(row["state"] == "answered" and row["answer"] for row in rows)
    assert all(row["model"].startswith("simulated/") for row in rows)


async def test_a_second_run_sends_nothing_and_leaves_the_output_alone(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(50))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await start(job)
        before = (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.jsonl").stat()
        requests = simulator.account.requests
        report = await start(job)
        assert (report.exit_code, report.answered_now, report.written) == (0, 0, False)
        assert simulator.account.requests == requests
    assert (tmp_path / "out.jsonl").read_bytes() == before[0]
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before[1].st_mtime_ns


async def test_credits_end_mid_run_and_a_second_run_sends_only_the_rest(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(2000))
    credits_end = Fault(FaultKind.CREDITS_END, after=800)
    async with Simulator(Settings(latency=0.005, faults=(credits_end,))) as simulator:
        job = make_job(simulator.url, source)
        report = await start(job)
        assert (report.exit_code, report.parked, report.rejected) == (3, ParkReason.CREDITS, 0)
        assert report.answered == len(simulator.account.charges) >= 800
        assert simulator.account.after_first_402 <= 32
        assert not (tmp_path / "out.jsonl").exists()
        simulator.top_up(5)
        report = await start(job)
        assert (report.exit_code, report.answered) == (0, 2000)
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(2000)}
    assert len(read_rows(tmp_path / "out.jsonl")) == 2000


async def test_a_refused_key_parks_the_run_and_rejects_no_row(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.0, refused_keys=("any-key",))) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.parked, report.rejected, report.pending) == (4, ParkReason.KEY, 0, 100)
        assert simulator.account.requests <= 32 + 1


async def test_a_model_that_is_missing_parks_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(FAST) as simulator:
        report = await start(make_job(simulator.url, source, asking=Asking(model="no/such-model")))
        assert (report.exit_code, report.parked, report.rejected, report.pending) == (9, ParkReason.MODEL, 0, 100)


async def test_a_parameter_that_is_wrong_for_all_parks_as_hopeless(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(1000))
    async with Simulator(FAST) as simulator:
        asking = Asking(model="openai/gpt-oss-20b", params={"max_tokens": 100, "temperature": "warm"})
        report = await start(make_job(simulator.url, source, asking=asking))
        assert (report.exit_code, report.parked) == (9, ParkReason.HOPELESS)
        assert (report.rejected, report.pending) == (0, 1000)
        assert simulator.account.requests <= 40 + 32 + 1


async def test_a_429_is_tried_again_and_charged_to_nobody(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    throttle = Fault(FaultKind.THROTTLE, every=7)
    async with Simulator(Settings(latency=0.001, faults=(throttle,))) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered) == (0, 200)
        assert report.throttled == simulator.account.statuses[429] > 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(200)}


GARBLING = [
    FaultKind.RESET_BEFORE, FaultKind.RESET_DURING, FaultKind.RESET_AFTER, FaultKind.CUT_BODY, FaultKind.BROKEN_JSON,
    FaultKind.ERROR_OBJECT, FaultKind.NO_CHOICES, FaultKind.BAD_UTF8, FaultKind.BAD_GZIP,
    FaultKind.TWO_CONTENT_LENGTHS, FaultKind.STATUS, FaultKind.OVERLOAD,
]  # fmt: skip


@pytest.mark.parametrize("kind", GARBLING)
async def test_a_reply_that_breaks_is_asked_again_and_counted_as_maybe_paid(
    kind: FaultKind, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.0, faults=(Fault(kind, after=20, count=3),))) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered) == (0, 60)
        paid = paid_for(simulator.account.charges)
        assert set(paid) == {content(prompt(n)) for n in range(60)}
        assert sum(paid.values()) - 60 <= report.maybe_twice <= 3
        assert report.spent_nano <= simulator.account.spent <= report.spent_nano + report.maybe_twice_nano


GOOD = [FaultKind.WRONG_CONTENT_TYPE, FaultKind.TRICKLE, FaultKind.BIG_HEADER, FaultKind.NULL_CONTENT]


@pytest.mark.parametrize("kind", GOOD)
async def test_an_odd_reply_that_can_be_read_is_an_answer(kind: FaultKind, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    async with Simulator(Settings(latency=0.0, faults=(Fault(kind, after=10, count=3, pause=0.0),))) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered, report.maybe_twice) == (0, 40, 0)
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(40)}


async def test_a_redirect_is_not_followed_and_rejects_the_row(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    redirect = Fault(FaultKind.REDIRECT, content=prompt(7))
    async with Simulator(Settings(latency=0.0, faults=(redirect,))) as simulator:
        report = await start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered, report.rejected) == (10, 39, 1)
        assert report.rejections == {"bad_request": 1}
    row = read_rows(tmp_path / "out.jsonl")[7]
    assert (row["state"], row["fault"], row["answer"]) == ("rejected", "bad_request", None)
