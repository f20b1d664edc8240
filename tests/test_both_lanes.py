"""One suite over both lanes: the same prompts come to the same outcomes and the same output."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_jobs import assert_sound, batching, one_start
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.errors import UsageError
from batchrun.job import Asking, Job
from batchrun.records import Endpoint, Route
from batchrun.reports import Report
from batchrun.rules import pack
from batchrun.simulator import Settings, Simulator

ROWS = 30
LANES = [Route.LIVE, Route.BATCH]

# What may differ between the lanes. Without a discount, not even the cost does.
BY_LANE = ("lane", "latency_ms", "attempts")

Write = Callable[[Path], Path]


def in_lane(lane: Route) -> dict[str, Any]:
    return batching(lines=13) if lane is Route.BATCH else {"route": lane}


async def outcome(
    lane: Route, source: Path, tmp_path: Path, make_job: MakeJob, *, output: str = "out.jsonl", **fields: Any
) -> tuple[Report, list[dict[str, Any]], Simulator]:
    """One start in that lane, with a checkpoint of its own: how it ended, and its output without what may differ."""
    async with Simulator(Settings(latency=0.0)) as simulator:
        here = {"checkpoint": str(tmp_path / f"{lane}.db"), "output": str(tmp_path / f"{lane}-{output}")}
        job = make_job(simulator.url, source, **{**here, **in_lane(lane), **fields})
        report = await one_start(job)
        assert report.output is not None, report.message
        return report, [plain(row) for row in output_rows(report.output)], simulator


def output_rows(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return read_rows(path)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    said = json.loads(row["response_json"]) if row.get("response_json") else None
    if said is not None:
        said = {name: value for name, value in said.items() if name not in ("id", "created")}
    return {**{name: value for name, value in row.items() if name not in BY_LANE}, "response_json": said}


async def same_outcome(source: Path, tmp_path: Path, make_job: MakeJob, **fields: Any) -> list[dict[str, Any]]:
    """Both lanes over the same input; the rows that came out of either."""
    live, live_rows, asked_live = await outcome(Route.LIVE, source, tmp_path, make_job, **fields)
    batch, batch_rows, asked_batch = await outcome(Route.BATCH, source, tmp_path, make_job, **fields)
    assert batch_rows == live_rows
    for name in ("exit_code", "answered", "rejected", "pending", "rejections", "spent_nano", "prompt_tokens"):
        assert getattr(batch, name) == getattr(live, name), name
    assert paid_for(asked_batch.account.charges) == paid_for(asked_live.account.charges)
    assert asked_batch.account.batch_charges == len(asked_batch.account.charges)
    assert asked_live.account.batch_charges == 0
    return live_rows


def write_parquet(path: Path) -> Path:
    columns = {
        "id": list(range(ROWS)),
        "prompt": [prompt(n) for n in range(ROWS)],
        "weight": [n / 4 for n in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


def write_jsonl(path: Path) -> Path:
    return write_prompts(path, range(ROWS))


def write_bodies(path: Path, model: Callable[[int], str]) -> Path:
    """Rows that are ready batch lines, each with a model of its own."""
    with path.open("w") as file:
        for n in range(ROWS):
            body = {"model": model(n), "messages": [{"role": "user", "content": prompt(n)}]}
            file.write(json.dumps({"custom_id": f"row-{n}", "id": n, "body": body}) + "\n")
    return path


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize(("name", "write"), [("in.jsonl", write_jsonl), ("in.parquet", write_parquet)])
async def test_both_lanes_write_the_same_output(
    name: str, write: Write, output: str, tmp_path: Path, make_job: MakeJob
) -> None:
    rows = await same_outcome(write(tmp_path / name), tmp_path, make_job, output=output)
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert {row["state"] for row in rows} == {"answered"}


async def test_bad_rows_that_are_skipped_stand_rejected_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": n, "prompt": prompt(n)}) for n in range(ROWS)]
    lines[4], lines[17] = '{"prompt": ', '{"question": "why?"}'
    source.write_text("\n".join(lines))
    rows = await same_outcome(source, tmp_path, make_job, skip_bad_rows=True)
    assert [n for n, row in enumerate(rows) if row["state"] == "rejected"] == [4, 17]


async def test_identical_rows_share_one_answer_in_both_when_told_to(tmp_path: Path, make_job: MakeJob) -> None:
    numbers = [n % 7 for n in range(ROWS)]
    source = write_prompts(tmp_path / "in.jsonl", numbers)
    rows = await same_outcome(source, tmp_path, make_job, dedupe=True)
    assert len({row["answer"] for row in rows}) == 7
    assert sum(row["cost_usd"] > 0 for row in rows) == 7


async def test_identical_rows_are_each_paid_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", [n % 7 for n in range(ROWS)])
    rows = await same_outcome(source, tmp_path, make_job)
    assert len(rows) == ROWS


async def test_several_choices_count_as_the_first_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    asking = Asking(model=MODEL, params={"max_tokens": 50, "n": 3})
    rows = await same_outcome(write_jsonl(tmp_path / "in.jsonl"), tmp_path, make_job, asking=asking)
    assert all(len(row["response_json"]["choices"]) == 3 for row in rows)
    assert all(row["answer"] == row["response_json"]["choices"][0]["message"]["content"] for row in rows)


async def test_an_answer_cut_short_is_marked_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    asking = Asking(model=MODEL, params={"max_tokens": 2})
    rows = await same_outcome(write_jsonl(tmp_path / "in.jsonl"), tmp_path, make_job, asking=asking)
    assert {(row["finish_reason"], row["fault"]) for row in rows} == {("length", "cut_short")}


async def test_a_template_and_a_system_message_ask_the_same_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_parquet(tmp_path / "in.parquet")
    asking = Asking(
        model=MODEL,
        template="Weigh {{ weight }}: {{ prompt }}",
        system="Answer like a grocer.",
        params={"max_tokens": 60},
    )
    rows = await same_outcome(source, tmp_path, make_job, asking=asking)
    assert {row["state"] for row in rows} == {"answered"}


async def test_rows_with_their_own_model_and_messages_ask_the_same_in_both(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    models = [MODEL, "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B"]
    write_bodies(source, lambda n: models[n % 3])
    rows = await same_outcome(source, tmp_path, make_job, asking=Asking(params={"max_tokens": 60}))
    assert {row["model"] for row in rows} == {f"simulated/{model}" for model in models}


async def test_a_prompt_too_long_for_the_model_is_rejected_alike(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    texts = [prompt(n) for n in range(ROWS)]
    texts[9] = "long " * 2000
    source.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(texts)))
    asking = Asking(model="simulator/tiny-512", params={"max_tokens": 60})
    rows = await same_outcome(source, tmp_path, make_job, asking=asking)
    assert [row["fault"] for row in rows if row["state"] == "rejected"] == ["too_long"]


@pytest.mark.parametrize("lane", LANES)
async def test_a_model_that_one_row_names_wrongly_rejects_that_row_in_both(
    lane: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = tmp_path / "in.jsonl"
    write_bodies(source, lambda n: "no/such-model" if n == 5 else MODEL)
    report, rows, _ = await outcome(lane, source, tmp_path, make_job)
    assert (report.exit_code, report.rejections) == (10, {"model_missing": 1})
    assert [row["id"] for row in rows if row["fault"] == "model_missing"] == [5]


@pytest.mark.parametrize("lane", LANES)
async def test_a_second_start_sends_nothing_and_leaves_the_output_alone(
    lane: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl")
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **in_lane(lane))
        assert (await one_start(job)).exit_code == 0
        before = (tmp_path / "out.jsonl").stat().st_mtime_ns, len(simulator.account.charges)
        report = await one_start(job)
        assert (report.exit_code, report.answered_now, report.written) == (0, 0, False)
        assert ((tmp_path / "out.jsonl").stat().st_mtime_ns, len(simulator.account.charges)) == before


@pytest.mark.parametrize(("first", "then"), [LANES, LANES[::-1]])
async def test_what_one_lane_has_answered_the_other_does_not_ask_again(
    first: Route, then: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl")
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **in_lane(first))
        assert (await one_start(job)).exit_code == 0
        write_prompts(source, range(ROWS + 10))
        report = await one_start(msgspec.structs.replace(job, **in_lane(then)))
        assert (report.exit_code, report.answered_now) == (0, 10)
        lanes = [row["lane"] for row in read_rows(tmp_path / "out.jsonl")]
        assert lanes == [first] * ROWS + [then] * 10
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS + 10)}


async def test_completions_go_live_or_nowhere(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_jsonl(tmp_path / "in.jsonl")
    asking = Asking(model="simulator/storyteller-base", endpoint=Endpoint.COMPLETIONS, params={"max_tokens": 20})
    async with Simulator(Settings(latency=0.0)) as simulator:
        with pytest.raises(UsageError, match="The Batch API takes chat requests only") as caught:
            make_job(simulator.url, source, asking=asking, **batching())
        assert caught.value.exit_code == 2
        for route in (Route.AUTO, Route.LIVE):
            report = await one_start(make_job(simulator.url, source, asking=asking, **{**batching(), "route": route}))
            assert (report.exit_code, report.answered) == (0, ROWS)
        assert {row["lane"] for row in read_rows(tmp_path / "out.jsonl")} == {"live"}
        assert len(simulator.account.charges) == ROWS


def with_long_rows(path: Path, long: Sequence[int], size: int) -> Path:
    with path.open("w") as file:
        for n in range(ROWS):
            file.write(json.dumps({"id": n, "prompt": prompt(n) + "x" * (size if n in long else 0)}) + "\n")
    return path


async def test_a_row_too_long_for_a_batch_goes_live_whatever_the_route(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LARGEST_LINE", 700)
    source = with_long_rows(tmp_path / "in.jsonl", [3, 20], 600)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=13))
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS)
        rows = read_rows(tmp_path / "out.jsonl")
        assert [row["id"] for row in rows if row["lane"] == "live"] == [3, 20]
        assert sum(job.lines for job in simulator.batches.jobs) == ROWS - 2
        assert len(simulator.account.charges) == ROWS


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_row_of_ten_megabytes_goes_live_and_the_others_by_batch(tmp_path: Path, make_job: MakeJob) -> None:
    source = with_long_rows(tmp_path / "in.jsonl", [3], 10_000_000)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=13))
        report = await one_start(job)
        # No model has a context of that length; a batch would have said that the line cannot be read.
        assert (report.exit_code, report.answered, report.rejected) == (10, ROWS - 1, 1)
        assert (simulator.account.requests, simulator.account.batch_charges) == (1, ROWS - 1)


async def test_only_rows_too_long_for_a_batch_make_no_batch(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LARGEST_LINE", 100)
    source = write_jsonl(tmp_path / "in.jsonl")
    async with Simulator(Settings(latency=0.0)) as simulator:
        job: Job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered, simulator.batches.jobs) == (0, ROWS, [])
        assert_sound(job)
