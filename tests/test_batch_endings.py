"""However a batch ends, and whatever files it leaves: every row comes home once, and the ledger says so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import (
    batches_by_state,
    batching,
    diary,
    misses,
    one_start,
    rows_by_state,
    surplus_of,
)
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.job import Asking, Job
from batchrun.records import ParkReason, Route
from batchrun.reports import Report
from batchrun.simulator import BatchFault, BatchFaultKind, Files, Settings, Simulator, Status, batch_work
from batchrun.simulator.batch_lines import Failed

ROWS = 12
STATUSES = [Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED]

# The ends look alike to either route, but for a cancel nobody asked for.
ROUTES = [
    *((Route.BATCH, status) for status in STATUSES),
    (Route.AUTO, Status.COMPLETED),
    (Route.AUTO, Status.CANCELLED),
]

# What a job leaves: the end, and what happens on the way to it.
LEFT: dict[str, tuple[dict[str, Any], tuple[BatchFault, ...]]] = {
    "no files": ({"files": Files.NONE}, ()),
    "output only": ({"files": Files.OUTPUT, "share": 0.5}, ()),
    "error file only": ({"files": Files.ERROR}, ()),
    "both files": ({"files": Files.BOTH, "share": 1.0}, ()),
    "lines missing": ({"share": 1.0}, (BatchFault(BatchFaultKind.LOSE_LINES, share=0.3),)),
    "lines repeated": ({"share": 1.0}, (BatchFault(BatchFaultKind.REPEAT_LINES, share=1.0),)),
    "a garbage line": ({"share": 0.5}, (BatchFault(BatchFaultKind.GARBAGE_LINE),)),
}


def ending(status: Status, left: str, *, lasting: bool) -> tuple[BatchFault, ...]:
    """Jobs that end so: all of them, or the first."""
    said, on_the_way = LEFT[left]
    jobs = () if lasting else (1,)
    end = BatchFault(BatchFaultKind.OUTPUT_ONLY, jobs=jobs, status=status, **{"files": None, "failing": 0.0, **said})
    if said.get("files") in (Files.ERROR, Files.BOTH):
        end = BatchFault(BatchFaultKind.OUTPUT_ONLY, jobs=jobs, status=status, **said)
    return (end, *(BatchFault(fault.kind, jobs=jobs, share=fault.share) for fault in on_the_way))


def home(simulator: Simulator, job: Job, report: Report) -> list[dict[str, Any]]:
    """The output; every row is in it once, and what is answered was paid once."""
    assert report.output is not None
    rows = read_rows(report.output)
    assert [row["id"] for row in rows] == list(range(len(rows)))
    answered = [row["id"] for row in rows if row["state"] == "answered"]
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in answered}
    assert all(row["fault"] and row["fault_message"] for row in rows if row["state"] == "rejected")
    assert set(rows_by_state(job)) <= {2, 3}
    assert set(batches_by_state(job)) == {"collected"}
    assert surplus_of(job) == 0
    return rows


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize(("route", "status"), ROUTES)
async def test_one_job_that_ends_oddly_costs_nothing_twice_and_its_rows_go_again(
    route: Route, status: Status, left: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    faults = ending(status, left, lasting=False)
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.submitted) == (0, ROWS, 0), report.message
        rows = home(simulator, job, report)
        if status is Status.CANCELLED and len(simulator.account.charges) > simulator.account.batch_charges:
            # A cancel nobody asked for: one row goes live, to see whether there are credits.
            assert [row["lane"] for row in rows].count("live") == 1
        else:
            assert {row["lane"] for row in rows} == {"batch"}
        assert len(simulator.batches.jobs) <= 2


@pytest.mark.parametrize("left", ["no files", "error file only", "both files", "lines missing"])
@pytest.mark.parametrize(("route", "status"), ROUTES)
async def test_when_every_job_ends_oddly_a_row_goes_into_three_batches_and_then_live_or_is_given_up(
    route: Route, status: Status, left: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    faults = ending(status, left, lasting=True)
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        report = await one_start(job)
        assert report.answered + report.rejected == ROWS, report.message
        rows = home(simulator, job, report)
        # Three that were cancelled and asked about are nobody's fault; then three that count.
        assert len(simulator.batches.jobs) <= (6 if status is Status.CANCELLED else 3)
        given_up = [row for row in rows if row["state"] == "rejected"]
        if route is Route.AUTO:
            assert (report.exit_code, given_up) == (0, [])
        else:
            assert report.exit_code == (10 if given_up else 0)
        assert {row["fault"] for row in given_up} <= {"server"}
        if left in ("no files", "error file only"):
            live = {row["lane"] for row in rows if row["state"] == "answered"}
            assert live <= {"live"}


# --- what single lines say -------------------------------------------------------------------------------------------


def answering_otherwise(monkeypatch: pytest.MonkeyPatch, said: dict[str, Sequence[dict[str, Any] | None]]) -> None:
    """Let the server say something else of the lines with these words, one thing each time (None: the answer)."""
    left = {words: list(things) for words, things in said.items()}
    answer_line = batch_work.answer_line

    def otherwise(line: bytes, settings: Settings) -> Any:
        for words, things in left.items():
            if words.encode() in line and things:
                thing = things.pop(0)
                if thing is not None:
                    custom_id = batch_work.custom_id_of(line)
                    return Failed(custom_id, batch_work_encoded({"custom_id": custom_id, **thing}))
        return answer_line(line, settings)

    monkeypatch.setattr(batch_work, "answer_line", otherwise)


def batch_work_encoded(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "code": code}}


AGAIN = [
    error("Request timeout", "timeout"),
    error("The hamster has left the wheel", "hamster_gone"),
    error("The server is overloaded or not ready yet."),
    error("You have been rate limited. Your rate limit is 60 queries per minute", "credit_limit"),
    {"error": "something else"},
    {"error": None},
    {"response": {"status_code": 500, "body": {"error": {"message": "Internal Server Error", "type": None}}}},
    {"response": {"status_code": 200, "body": {"choices": []}}},
    {"response": {"status_code": 200, "body": {"error": {"message": "engine is overloaded"}}}},
    {},
]


@pytest.mark.parametrize("said", AGAIN, ids=range(len(AGAIN)))
async def test_a_line_that_failed_for_a_passing_or_unknown_reason_goes_again(
    said: dict[str, Any], tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    answering_otherwise(monkeypatch, {prompt(7): [said]})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        rows = home(simulator, job, report)
        assert [row["attempts"] for row in rows] == [2 if n == 7 else 1 for n in range(ROWS)]
        assert [job.lines for job in simulator.batches.jobs] == [ROWS, 1]


OVERFLOW = "This model's maximum context length is 9 tokens. However, your messages resulted in 12 tokens."

REFUSED = [
    (error("Input validation error", "invalid_request"), "bad_request"),
    ({"response": {"status_code": 400, "body": {"error": {"message": "Input validation error"}}}}, "bad_request"),
    ({"response": {"status_code": 422, "body": None}, "error": {"message": "temperature is too warm"}}, "bad_request"),
    (error("`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 80125 `inputs` tokens"), "too_long"),
]


@pytest.mark.parametrize(("said", "fault"), REFUSED, ids=range(len(REFUSED)))
async def test_a_line_that_is_refused_for_good_is_rejected_with_its_fault(
    said: dict[str, Any], fault: str, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    answering_otherwise(monkeypatch, {prompt(7): [said] * 9})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.rejections) == (10, ROWS - 1, {fault: 1})
        row = home(simulator, job, report)[7]
        assert (row["state"], row["fault"], row["answer"]) == ("rejected", fault, None)
        assert len(simulator.batches.jobs) == 1


async def test_a_refusal_never_shows_the_prompt_it_quotes(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    quoting = f"Cannot read {prompt(7)!r} at all"
    said = {"response": {"status_code": 400, "body": {"error": {"message": quoting}}}}
    answering_otherwise(monkeypatch, {prompt(7): [said]})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        row = home(simulator, job, report)[7]
        assert row["state"] == "rejected"
        told = row["fault_message"] + diary(job) + report.message
        assert "Cannot read" in told
        quoted = [prompt(7)[at : at + 16] for at in range(len(prompt(7)) - 15)]
        assert not [part for part in quoted if part in told]
        assert prompt(7).encode() not in Path(job.checkpoint).read_bytes()


async def test_without_the_request_file_a_refusal_keeps_its_fault_and_loses_its_message(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    said = {"response": {"status_code": 400, "body": {"error": {"message": f"Cannot read {prompt(7)}"}}}}
    answering_otherwise(monkeypatch, {prompt(7): [said], prompt(8): [error(OVERFLOW)]})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        simulator.hold_batches()
        report = await one_start(job, detach=True)
        assert (report.exit_code, report.parked, report.submitted) == (7, ParkReason.REMOTE, ROWS)
        for file in (tmp_path / "checkpoint.db.batches").iterdir():
            file.unlink()
        simulator.release_batches()
        report = await one_start(job)
        assert (report.exit_code, report.rejections) == (10, {"bad_request": 1, "too_long": 1})
        assert "not shown" in home(simulator, job, report)[7]["fault_message"]


async def test_a_model_that_the_job_names_and_that_is_gone_parks_with_every_row_pending(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(model="no/such-model"), **batching())
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.rejected, report.pending) == (9, ParkReason.MODEL, 0, ROWS)
        assert (report.submitted, misses(job)) == (0, 0)
        assert len(simulator.batches.jobs) == 1
        mended = msgspec.structs.replace(job, asking=Asking(model=MODEL))
        report = await one_start(mended)
        assert (report.exit_code, report.answered) == (0, ROWS)


async def test_a_model_that_a_row_names_and_that_is_gone_rejects_the_row(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    bodies = [{"model": MODEL, "messages": [{"role": "user", "content": prompt(n)}]} for n in range(ROWS)]
    bodies[3]["model"] = "no/such-model"
    lines = [{"custom_id": f"row-{n}", "id": n, "body": body} for n, body in enumerate(bodies)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.rejections) == (10, ROWS - 1, {"model_missing": 1})
        assert home(simulator, job, report)[3]["state"] == "rejected"


async def test_lines_that_are_all_refused_for_one_reason_park_as_hopeless_and_lose_nothing(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    wrong = Asking(model=MODEL, params={"max_tokens": 100, "temperature": "warm"})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=wrong, **batching(lines=45))
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (9, ParkReason.HOPELESS)
        assert (report.rejected, report.pending) == (0, 60)
        assert not (tmp_path / "out.jsonl").exists()


# --- jobs that do not end --------------------------------------------------------------------------------------------

STAYING = [
    BatchFault(BatchFaultKind.STUCK, status="VALIDATING"),
    BatchFault(BatchFaultKind.STUCK, status="IN_PROGRESS", progress=50.0),
    BatchFault(BatchFaultKind.UNKNOWN_STATUS),
]


@pytest.mark.parametrize("fault", STAYING, ids=["validating", "in progress", "unknown"])
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_a_job_that_takes_longer_than_patience_is_taken_back_and_what_it_finished_is_kept(
    route: Route, fault: BatchFault, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    fault = dataclasses.replace(fault, jobs=(1,))
    async with Simulator(Settings(latency=0.0, batch_faults=(fault,))) as simulator:
        job = make_job(simulator.url, source, **batching(route, patience=0.3, grace=5.0))
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        rows = home(simulator, job, report)
        finished = ROWS // 2 if fault.progress else 0
        lanes = [row["lane"] for row in rows]
        if route is Route.AUTO:
            assert (lanes.count("batch"), len(simulator.batches.jobs)) == (finished, 1)
        else:
            assert (lanes.count("batch"), len(simulator.batches.jobs)) == (ROWS, 2)
            assert simulator.batches.jobs[1].lines == ROWS - finished
        assert simulator.batches.jobs[0].status is Status.CANCELLED


async def test_a_status_nobody_knows_is_waited_out(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    fault = BatchFault(BatchFaultKind.UNKNOWN_STATUS, seconds=0.3)
    async with Simulator(Settings(latency=0.0, batch_faults=(fault,))) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, len(simulator.batches.jobs)) == (0, 1)
        home(simulator, job, report)


@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_rows_that_come_back_to_a_later_start_that_had_nothing_else_to_send_go_again(
    route: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    fault = BatchFault(BatchFaultKind.END_WITH_NOTHING, jobs=(1,))
    async with Simulator(Settings(latency=0.0, batch_faults=(fault,))) as simulator:
        job = make_job(simulator.url, source, **batching(route))
        simulator.hold_batches()
        report = await one_start(job, detach=True)
        assert (report.exit_code, report.pending, report.submitted) == (7, ROWS, ROWS)
        simulator.release_batches()
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        assert {row["lane"] for row in home(simulator, job, report)} == {"batch"}


async def test_the_last_row_of_a_second_model_does_not_slip_out_of_the_batches(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """Of many rows one is left; what each model has left is only an estimate."""
    source = tmp_path / "in.jsonl"

    def write(rows: int) -> None:
        bodies = [{"model": MODEL, "messages": [{"role": "user", "content": prompt(n)}]} for n in range(rows)]
        bodies += [
            {"model": "Qwen/Qwen3.5-9B", "messages": [{"role": "user", "content": prompt(n)}]} for n in range(rows, 41)
        ]
        lines = [{"custom_id": f"row-{n}", "id": n, "body": body} for n, body in enumerate(bodies)]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines[:41]))

    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), **batching())
        write(41)
        assert (await one_start(job)).exit_code == 0
        write(40)
        report = await one_start(job)
        assert (report.exit_code, report.answered_now) == (0, 1)
        assert {row["lane"] for row in read_rows(tmp_path / "out.jsonl")} == {"batch"}


async def test_what_is_said_of_a_whole_job_never_shows_a_prompt_and_a_quotation_decides_nothing(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = tmp_path / "in.jsonl"
    asked = "What does it mean when a server says: Credit limit exceeded?"
    source.write_text("".join(json.dumps({"id": n, "prompt": f"{prompt(n)} {asked}"}) + "\n" for n in range(ROWS)))
    quoting = BatchFault(BatchFaultKind.FAIL_VALIDATION, jobs=(1,), error=f"line 3 is odd: {prompt(2)} {asked}")
    async with Simulator(Settings(latency=0.0, batch_faults=(quoting,))) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS), report.message
        told = diary(job)
        assert "line 3 is odd" in told
        assert "Credit limit exceeded" not in told
        assert prompt(2)[:20] not in told
