"""What comes first, and who takes which row, when things change in the middle: nothing is paid or changed twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import PATIENCE, Hurried, batching, diary, one_start
from msgspec.structs import replace
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Asking, Job, Limits, Repairs, TooLong
from batchrun.records import Lane, ParkReason, Price, Route
from batchrun.rules.route import Plan
from batchrun.runner import Run
from batchrun.simulator import BatchFault, BatchFaultKind, Fault, FaultKind, Settings, Simulator

UNKNOWN = "nobody/knows-7b"
SECOND, THIRD = "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B"
SMALL, BIG = "simulator/small-1k", "simulator/middle-4k"
FEW = 5  # tokens; the simulator's shortest answers have more
QUICK = Settings(latency=0.001)
DEAR = Price(100_000_000, 100_000_000)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def asking(model: str | None = MODEL, tokens: int = FEW, **fields: Any) -> Asking:
    return Asking(model=model, params={"max_tokens": tokens}, **fields)


def write_long(path: Path, rows: int, is_long: Callable[[int], bool], words: int) -> Path:
    """Prompts of which some are so many words longer."""
    with path.open("w") as file:
        for n in range(rows):
            file.write(json.dumps({"id": n, "prompt": prompt(n) + " word" * words * is_long(n)}) + "\n")
    return path


def write_named(path: Path, rows: int, model: Callable[[int], str]) -> Path:
    """Rows that name their own models."""
    with path.open("w") as file:
        for n in range(rows):
            body = {"model": model(n), "messages": [{"role": "user", "content": prompt(n)}], "max_tokens": 40}
            file.write(json.dumps({"custom_id": f"row-{n}", "id": n, "body": body}) + "\n")
    return path


def once(rows: int) -> dict[str, int]:
    return {content(prompt(n)): 1 for n in range(rows)}


def models(job: Job) -> Counter[str]:
    return Counter(row["model"].removeprefix("simulated/") for row in read_rows(job.output or ""))


# --- a model that goes missing while rows are on their way -----------------------------------------------------------


async def test_a_model_of_batches_that_goes_missing_in_the_middle_of_a_live_pass_has_each_row_paid_once(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.waiting.READ_AHEAD", 4)
    rows = 160
    source = write_named(tmp_path / "in.jsonl", rows, lambda n: MODEL if n % 2 else THIRD)
    refused = BatchFault(BatchFaultKind.REFUSE_CREATE, error=f"Unable to access model {MODEL}.", times=1)
    async with Simulator(Settings(latency=0.001, batch_faults=(refused,))) as simulator:
        job = make_job(
            simulator.url, source, asking=Asking(), repairs=Repairs(fallbacks=(SECOND,)),
            limits={"concurrency": 4}, **batching(Route.AUTO, lines=20, at_once=2),
        )  # fmt: skip
        gone = asyncio.Event()
        plans: list[Plan] = []

        def announced(plan: Plan) -> None:
            plans.append(plan)
            if len(plans) > 1:
                gone.set()

        simulator.hold()
        going = asyncio.create_task(one_start(job, announce=announced))
        async with asyncio.timeout(PATIENCE):
            await gone.wait()
        simulator.release()
        report = await going
        assert (report.exit_code, report.answered, report.twice) == (0, rows, 0), report.message
        assert paid_for(simulator.account.charges) == once(rows)
        assert models(job)[THIRD] == rows // 2
        assert [row["id"] for row in read_rows(job.output or "")] == list(range(rows))


async def test_a_live_model_that_goes_missing_in_the_middle_of_its_pass_has_each_row_paid_once_though_its_stand_in_has_batches(  # noqa: E501
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.waiting.READ_AHEAD", 16)
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 0.0)
    rows = 160
    source = write_named(tmp_path / "in.jsonl", rows, lambda n: SECOND if n % 2 else THIRD)
    gone = Fault(FaultKind.UNKNOWN_MODEL, model=THIRD, after=20)
    async with Simulator(Settings(latency=0.005, faults=(gone,))) as simulator:
        job = make_job(
            simulator.url, source, asking=Asking(), repairs=Repairs(fallbacks=(SECOND,)), limits={"concurrency": 4},
            **{**batching(Route.AUTO, lines=20, at_once=50), "discounts": {SECOND: 0.5}, "prices": {SECOND: DEAR}},
        )  # fmt: skip
        simulator.hold_batches()
        going = asyncio.create_task(one_start(job))
        async with asyncio.timeout(PATIENCE):
            await simulator.reached(answers=40)  # well after it went missing
        simulator.release_batches()
        report = await going
        assert (report.exit_code, report.answered, report.twice) == (0, rows, 0), report.message
        assert paid_for(simulator.account.charges) == once(rows)
        assert "cannot be called" in diary(job)
        assert [row["id"] for row in read_rows(job.output or "")] == list(range(rows))


@pytest.mark.parametrize("lane", [Lane.BATCH, Lane.LIVE])
async def test_when_a_model_turns_out_missing_the_plan_for_its_stand_in_is_made_and_announced(
    lane: Lane, tmp_path: Path, make_job: MakeJob
) -> None:
    rows = 60
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    discounts = {UNKNOWN: 0.5, SECOND: 0.5 if lane is Lane.BATCH else 1.0}
    async with Simulator(QUICK) as simulator:
        fields = {**batching(Route.AUTO), "discounts": discounts, "prices": {UNKNOWN: DEAR, SECOND: DEAR}}
        job = make_job(simulator.url, source, asking=asking(UNKNOWN), repairs=Repairs(fallbacks=(SECOND,)), **fields)
        plans: list[Plan] = []
        report = await one_start(job, announce=plans.append)
        assert (report.exit_code, report.answered) == (0, rows), report.message
        said = [[(part.situation.model, part.choice.lane) for part in plan.models] for plan in plans]
        assert said == [[(UNKNOWN, Lane.BATCH)], [(SECOND, lane)]]
        assert [part.situation.load.rows for part in plans[-1].models] == [rows]
        assert {row["lane"] for row in read_rows(job.output or "")} == {lane.value}
        assert paid_for(simulator.account.charges) == once(rows)


@pytest.mark.parametrize(("times", "own"), [(1, 40), (2, 25)])
async def test_a_model_that_has_answered_is_gone_at_the_second_word_not_at_the_first(
    times: int, own: int, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 0.0)
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    stray = Fault(FaultKind.UNKNOWN_MODEL, model=MODEL, after=25, count=times)
    async with Simulator(Settings(latency=0.001, faults=(stray,))) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=(SECOND,)), limits={"concurrency": 1}
        )
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, 40), report.message
        assert models(job) == Counter({MODEL: own, SECOND: 40 - own})
        assert simulator.account.requests_by_model[MODEL] == own + times
        assert ("answers again and takes its rows back" in diary(job)) == (times == 1)
        assert ("cannot be called" in diary(job)) == (times == 2)


# --- who waits for whom ----------------------------------------------------------------------------------------------


async def test_rows_for_a_throttled_larger_model_do_not_hold_up_the_others(tmp_path: Path, make_job: MakeJob) -> None:
    rows, pinned = 100, 10
    source = write_long(tmp_path / "in.jsonl", rows, lambda n: n % 10 == 5, 850)
    wait = Fault(FaultKind.THROTTLE, model=BIG, retry_after=600)
    async with Simulator(Settings(latency=0.001, refusal_latency=0.001, faults=(wait,))) as simulator:
        repairs = Repairs(fallbacks=(BIG,), too_long=TooLong.FALLBACK)
        job = make_job(
            simulator.url, source, asking=asking(SMALL, 30), repairs=repairs, limits={"concurrency": 8},
        )  # fmt: skip
        run = Run(job, "any-key")
        going = asyncio.create_task(run.go())
        async with asyncio.timeout(PATIENCE):
            await simulator.reached(answers=rows - pinned)
        run.interrupt()
        report = await going
        assert (report.exit_code, report.answered, report.pending) == (130, rows - pinned, pinned)
        assert 0 < simulator.account.requests_by_model[BIG] <= pinned
        simulator.play([])
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.twice) == (0, rows, 0), report.message
        assert models(job) == Counter({SMALL: rows - pinned, BIG: pinned})


async def test_a_row_that_is_held_aside_is_raised_once(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.live._ASIDE", 0.01)
    rows = 6
    source = write_long(tmp_path / "in.jsonl", rows, lambda _n: True, 850)
    wait = Fault(FaultKind.THROTTLE, model=BIG, after=rows, count=1, retry_after=0.6)
    async with Simulator(Settings(latency=0.001, refusal_latency=0.001, faults=(wait,))) as simulator:
        repairs = Repairs(fallbacks=(BIG,), too_long=TooLong.FALLBACK, length_retries=1)
        # What a batch refused goes live by a plan of its own, and so does the better reply.
        fields = {**batching(Route.AUTO), "discounts": {SMALL: 0.5}, "prices": {SMALL: DEAR, BIG: DEAR}}
        job = make_job(
            simulator.url, source, asking=asking(SMALL), repairs=repairs, limits={"concurrency": 2}, **fields
        )
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, rows, 0), report.message
        told = {row["repair"] for row in read_rows(job.output or "")}
        assert told == {f"model {SMALL} -> {BIG}; max_tokens {FEW} -> {FEW * 4}"}
        assert simulator.account.requests_by_model[BIG] == 2 * rows + 1


# --- better replies --------------------------------------------------------------------------------------------------


async def test_better_replies_are_asked_for_after_all_first_answers(tmp_path: Path, make_job: MakeJob) -> None:
    rows, budget = 40, 260_000  # about 200,000 for the first answers
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    async with Simulator(QUICK) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(), repairs=Repairs(length_retries=1), prices={MODEL: Price(1, 1000)},
            limits={"max_cost_nano": budget, "concurrency": 4},
        )  # fmt: skip
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.written) == (6, ParkReason.BUDGET, True)
        assert (report.answered, report.pending) == (rows, 0)
        assert 0 < report.again < rows
        assert report.spent_nano <= budget
        assert paid_for(simulator.account.charges[:rows]) == once(rows)
        assert {row["state"] for row in read_rows(job.output or "")} == {"answered"}
        report = await one_start(replace(job, limits=Limits(max_cost_nano=100 * budget, concurrency=4)))
        assert (report.exit_code, report.answered, report.again, report.replaced) == (0, rows, 0, rows)
        assert set(paid_for(simulator.account.charges).values()) == {2}
        assert {row["repair"] for row in read_rows(job.output or "")} == {f"max_tokens {FEW} -> {FEW * 4}"}


async def test_a_whole_answer_is_not_replaced_by_one_to_a_cut_prompt(tmp_path: Path, make_job: MakeJob) -> None:
    rows = 8
    source = write_long(tmp_path / "in.jsonl", rows, lambda _n: True, 900)
    # The prompts have some 1,150 tokens: with a limit of 20 they are said not to fit, and are cut if that is allowed.
    full = Fault(FaultKind.TOO_LONG, after=rows, context=930)
    async with Simulator(Settings(latency=0.001, refusal_latency=0.001, faults=(full,))) as simulator:
        repairs = Repairs(too_long=TooLong.TRUNCATE, length_retries=1)
        job = make_job(simulator.url, source, asking=asking(), repairs=repairs)
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again, report.replaced) == (0, rows, 0, 0), report.message
        found = {(row["finish_reason"], row["repair"]) for row in read_rows(job.output or "")}
        assert found == {("length", None)}
        assert (simulator.account.requests, len(simulator.account.charges)) == (2 * rows, rows)


@pytest.mark.parametrize(("status", "asked_again"), [(500, 1), (400, 0)])
async def test_a_better_reply_that_failed_in_passing_is_asked_for_at_a_later_start_and_one_refused_for_good_is_not(
    status: int, asked_again: int, tmp_path: Path, make_job: MakeJob
) -> None:
    rows = 12
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, source, asking=asking())
        await one_start(job)
        simulator.play([Fault(FaultKind.STATUS, status=status, content=prompt(3))])
        job = replace(job, repairs=Repairs(length_retries=1))
        report = await one_start(job, Hurried())
        assert (report.exit_code, report.answered, report.replaced, report.again) == (0, rows, rows - 1, 0)
        simulator.play([])
        for more in (asked_again, 0):
            before = simulator.account.requests
            report = await one_start(job)
            assert (report.exit_code, report.answered, report.again) == (0, rows, 0), report.message
            assert simulator.account.requests - before == more
        assert report.replaced == rows - 1 + asked_again


# --- what is sent beside the rows ------------------------------------------------------------------------------------


async def test_no_probe_is_sent_when_the_deadline_has_passed(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.sending.LONG_RUN", 10)
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(QUICK) as simulator:
        repairs = Repairs(fallbacks=(SECOND,))
        job = make_job(simulator.url, source, asking=asking(), repairs=repairs, limits={"deadline": 1.0})
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.pending) == (6, ParkReason.DEADLINE, 20)
        assert (simulator.account.requests, report.spent_nano) == (0, 0)
        report = await one_start(replace(job, limits=Limits(concurrency=8)))
        assert (report.exit_code, report.answered) == (0, 20)
        assert simulator.account.requests == 20 + 2, "a long run with time to go is probed"


@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_the_row_sent_live_after_a_batch_was_cancelled_unasked_is_held_against_the_schema(
    route: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    rows = 20
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    cancelled = BatchFault(BatchFaultKind.CANCELLED_BY_SERVER, times=1)
    faults = (Fault(FaultKind.MISFIT),)
    async with Simulator(Settings(latency=0.001, faults=faults, batch_faults=(cancelled,))) as simulator:
        job = make_job(simulator.url, source, asking=asking(tokens=400, schema=SCHEMA), **batching(route))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.twice) == (0, rows, 0), report.message
        found = Counter((row["lane"], row["fault"], row["parsed"]) for row in read_rows(job.output or ""))
        assert found == {("batch", "invalid_output", None): rows - 1, ("live", "invalid_output", None): 1}
