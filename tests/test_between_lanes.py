"""Where rows change lanes: none is sent by both, none is forgotten between them, and no start ends before its time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support import MODEL, MakeJob, content, paid_for, start, write_prompts

from batchrun.job import Asking, Batching
from batchrun.records import ParkReason, Price, Route
from batchrun.simulator import BatchFault, BatchFaultKind, Call, Settings, Simulator

OTHER = "google/gemma-4-31B-it"
QUICK = Batching(lines=20, poll=0.02, grace=1.0)


def mixed(path: Path, rows: Iterable[int], padding: int = 0) -> list[str]:
    """Rows that ask the two models in turn; returns what each asks."""
    texts = [f"question {n} " + "x" * padding for n in rows]
    lines = [
        {"custom_id": str(n), "body": {"model": (MODEL, OTHER)[n % 2], "max_tokens": 20,
                                       "messages": [{"role": "user", "content": text}]}}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return texts


def dear_in_batches(model: str, **fields: Any) -> dict[str, Any]:
    """This model in batches, the other one live."""
    price = Price(10_000_000, 10_000_000)
    return {"asking": Asking(), "prices": {model: price}, "discounts": {model: 0.5}, "batching": QUICK, **fields}


async def test_rows_freed_in_the_middle_of_a_live_pass_are_not_sent_by_both_lanes(
    tmp_path: Path, make_job: MakeJob
) -> None:
    # Long rows, so that the live pass stands in the middle of a page when the last batch is refused.
    texts = mixed(tmp_path / "in.jsonl", range(240), padding=200_000)
    refused = BatchFault(BatchFaultKind.REFUSE_CREATE, jobs=(6,))
    async with Simulator(Settings(latency=0.05, batch_faults=(refused,))) as simulator:
        job = make_job(simulator.url, tmp_path / "in.jsonl", **dear_in_batches(OTHER, limits={"concurrency": 4}))
        simulator.hold()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(start(job))
            await simulator.batched(5)
            simulator.release()
        assert running.result().exit_code == 0
        assert paid_for(simulator.account.charges) == {content(text): 1 for text in texts}
        assert {charge.path for charge in simulator.account.charges} == {"/v1/batches", "/v1/chat/completions"}


async def test_rows_that_come_back_from_a_batch_of_a_model_that_is_live_now_go_live(
    tmp_path: Path, make_job: MakeJob
) -> None:
    texts = mixed(tmp_path / "in.jsonl", range(80))
    lost = BatchFault(BatchFaultKind.LOSE_LINES, share=0.3)
    async with Simulator(Settings(latency=0.0, batch_faults=(lost,))) as simulator:
        simulator.hold_batches()
        job = make_job(simulator.url, tmp_path / "in.jsonl", asking=Asking(), route=Route.BATCH, batching=QUICK)
        assert (await start(job, detach=True)).exit_code == 7
        simulator.release_batches()
        simulator.play_batches([])
        mixed(tmp_path / "in.jsonl", range(120))
        again = make_job(simulator.url, tmp_path / "in.jsonl", **dear_in_batches(OTHER))
        assert (await start(again)).exit_code == 0
        texts = [f"question {n} " for n in range(120)]
        assert paid_for(simulator.account.charges) == {content(text): 1 for text in texts}


async def test_a_start_that_leaves_its_batches_sends_all_its_live_rows_first(tmp_path: Path, make_job: MakeJob) -> None:
    mixed(tmp_path / "in.jsonl", range(80))
    async with Simulator(Settings(latency=0.02)) as simulator:
        simulator.hold_batches()
        job = make_job(simulator.url, tmp_path / "in.jsonl", **dear_in_batches(OTHER, limits={"concurrency": 2}))
        report = await start(job, detach=True)
        assert (report.exit_code, report.parked) == (7, ParkReason.REMOTE)
        assert (report.answered, report.submitted) == (40, 40)


async def test_a_list_that_is_refused_once_is_asked_again(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    refused = BatchFault(BatchFaultKind.CALL_ERROR, call=Call.BATCH_LIST, http=404, times=1)
    async with Simulator(Settings(latency=0.0, batch_faults=(refused,))) as simulator:
        report = await start(make_job(simulator.url, source, route=Route.BATCH, batching=QUICK))
        assert report.exit_code == 0
        assert len(simulator.batches.jobs) == 1


async def test_a_list_that_is_always_refused_parks_when_patience_is_over(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    refused = BatchFault(BatchFaultKind.CALL_ERROR, call=Call.BATCH_LIST, http=404)
    async with Simulator(Settings(latency=0.0, batch_faults=(refused,))) as simulator:
        limits = {"overload_patience": 0.5}
        report = await start(make_job(simulator.url, source, route=Route.BATCH, batching=QUICK, limits=limits))
        assert (report.exit_code, report.submitted) == (5, 20)
        simulator.play_batches([])
        assert (await start(make_job(simulator.url, source, route=Route.BATCH, batching=QUICK))).exit_code == 0
        assert len(simulator.batches.jobs) == 1


async def test_a_budget_is_not_spent_to_its_last_cent_in_ever_smaller_batches(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(400))
    async with Simulator(Settings(latency=0.0)) as simulator:
        limits = {"max_cost_nano": 1_500_000}
        batching = Batching(lines=1000, poll=0.02, grace=1.0)
        report = await start(make_job(simulator.url, source, route=Route.BATCH, batching=batching, limits=limits))
        assert (report.exit_code, report.parked) == (6, ParkReason.BUDGET)
        assert 0 < simulator.account.spent <= 1_500_000
        lines = [job.lines for job in simulator.batches.jobs]
        assert min(lines) * 10 >= lines[0]
        assert len(lines) > 1
