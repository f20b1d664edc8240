"""Rows that do not fit the model's context, over both lanes: refused or repaired as the user says, and paid once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import assert_sound, batching, looking_into, one_start
from click.testing import CliRunner
from support import MakeJob, prompt, read_rows

from batchrun import door
from batchrun.cli.main import batchrun
from batchrun.job import Asking, Job, Repairs
from batchrun.records import Cut, Price, Route, TooLong
from batchrun.reports import Report
from batchrun.simulator import ContextWords, Fault, FaultKind, Settings, Simulator

TINY, SMALL, MIDDLE = "simulator/tiny-512", "simulator/small-1k", "simulator/middle-4k"
ROWS = 20
LONG = range(2, ROWS, 5)  # the rows that do not fit
LONG_TEXT = "".join(f"word{n:04d} " for n in range(300))  # 2,700 characters, 675 tokens of 512
FULL_TEXT = "".join(f"word{n:04d} " for n in range(100))  # 225 tokens: it fits, but not with 400 more for the answer
LANES = ["live", "batch", "auto"]
ADAPT = {
    "reject": Repairs(),
    "truncate": Repairs(too_long=TooLong.TRUNCATE),
    "truncate:head": Repairs(too_long=TooLong.TRUNCATE, cut=Cut.HEAD),
    "truncate:tail": Repairs(too_long=TooLong.TRUNCATE, cut=Cut.TAIL),
    "shrink-output": Repairs(too_long=TooLong.SHRINK),
    "fallback": Repairs(too_long=TooLong.FALLBACK, fallbacks=(SMALL, MIDDLE)),
}
WORDS = [
    (ContextWords.TOGETHER, 400),
    (ContextWords.TOGETHER, 422),
    (ContextWords.TOGETHER_DOCUMENTED, 403),
    (ContextWords.OPENAI, 400),
    (ContextWords.VLLM, 400),
    (ContextWords.BARE, 413),
]
DEAR = Price(100_000_000, 100_000_000)


def in_lane(lane: str, lines: int = 8) -> dict[str, Any]:
    """A job that goes live, by batch, or by batch first with what is refused there going live."""
    if lane == "live":
        return {"route": Route.LIVE}
    if lane == "batch":
        return batching(lines=lines)
    models = (TINY, SMALL, MIDDLE)
    cheap = {"discounts": dict.fromkeys(models, 0.5), "prices": dict.fromkeys(models, DEAR)}
    return {**batching(Route.AUTO, lines=lines), **cheap}


def write(path: Path, long: str, rows: Iterable[int] = LONG, count: int = ROWS) -> Path:
    said = set(rows)
    texts = [f"{prompt(n)} {long if n in said else ''}" for n in range(count)]
    path.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(texts)))
    return path


def asking(policy: str) -> Asking:
    return Asking(model=TINY, params={"max_tokens": 400 if policy == "shrink-output" else 60})


def sent_in(row: dict[str, Any]) -> str:
    return str(row["repair"])


def home(job: Job, report: Report, simulator: Simulator) -> list[dict[str, Any]]:
    """The output: every row once and in order, the answered ones paid once, the others not at all."""
    assert report.written
    assert_sound(job)
    rows = read_rows(job.output or "")
    assert [row["id"] for row in rows] == list(range(ROWS))
    answered = [row for row in rows if row["state"] == "answered"]
    assert len(simulator.account.charges) == len(answered) == report.answered
    assert report.answered + report.rejected == ROWS
    short = [row for row in rows if row["id"] not in LONG]
    assert {(row["state"], row["repair"], row["attempts"]) for row in short} == {("answered", None, 1)}
    assert {row["model"] for row in short} == {f"simulated/{TINY}"}
    return [rows[n] for n in LONG]


# Where a text is cut does not depend on the sentence.
CASES = [(policy, *said) for policy in ADAPT for said in WORDS[: 1 if ":" in policy else None]]


@pytest.mark.parametrize(("policy", "words", "status"), CASES, ids=["-".join(map(str, case)) for case in CASES])
@pytest.mark.parametrize("lane", LANES)
async def test_a_row_that_does_not_fit_is_repaired_as_the_user_says(
    lane: str, policy: str, words: ContextWords, status: int, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", FULL_TEXT if policy == "shrink-output" else LONG_TEXT)
    settings = Settings(latency=0.0, context_words=words, context_status=status)
    async with Simulator(settings) as simulator:
        job = make_job(simulator.url, source, asking=asking(policy), repairs=ADAPT[policy], **in_lane(lane))
        report = await one_start(job)
        long = home(job, report, simulator)
    if policy == "reject":
        assert (report.exit_code, report.rejections) == (10, {"too_long": len(LONG)})
        assert {(row["fault"], row["attempts"], row["repair"]) for row in long} == {("too_long", 1, None)}
        return
    assert (report.exit_code, report.rejected) == (0, 0), report.rejections
    assert {row["state"] for row in long} == {"answered"}
    lanes = {"live": {"live"}, "batch": {"batch"}, "auto": {"live"}}
    assert {row["lane"] for row in long} == lanes[lane]
    told = {sent_in(row) for row in long}
    assert {row["attempts"] for row in long} <= {2, 3}
    if words in (ContextWords.TOGETHER, ContextWords.OPENAI):
        assert {row["attempts"] for row in long} == {2}, "the server's own figures are enough"
    if policy == "fallback":
        assert told <= {f"model {TINY} -> {SMALL}", f"model {TINY} -> {MIDDLE}"}
        assert {row["model"] for row in long} <= {f"simulated/{SMALL}", f"simulated/{MIDDLE}"}
    elif policy == "shrink-output":
        assert all(one.startswith("max_tokens 400 -> ") for one in told)
    else:
        where = policy.partition(":")[2] or "middle"
        assert all(one.startswith(f"{where} of message 1 cut, ") for one in told)


@pytest.mark.parametrize("lane", LANES)
async def test_a_row_for_which_there_is_no_larger_context_is_rejected_in_the_servers_words(
    lane: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    repairs = Repairs(too_long=TooLong.FALLBACK, fallbacks=(TINY,))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=asking("fallback"), repairs=repairs, **in_lane(lane))
        report = await one_start(job)
        long = home(job, report, simulator)
    assert (report.exit_code, report.rejections) == (10, {"too_long": len(LONG)})
    assert {(row["attempts"], row["fault"]) for row in long} == {(1, "too_long")}
    assert all("must be <= 512" in row["fault_message"] for row in long)


@pytest.mark.parametrize("lane", LANES)
async def test_a_row_that_never_fits_is_given_up_after_two_repairs(
    lane: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    never = Fault(FaultKind.TOO_LONG, content="word0000")
    async with Simulator(Settings(latency=0.0, faults=(never,))) as simulator:
        job = make_job(simulator.url, source, asking=asking("truncate"), repairs=ADAPT["truncate"], **in_lane(lane))
        report = await one_start(job)
        long = home(job, report, simulator)
    assert (report.exit_code, report.rejections) == (10, {"too_long": len(LONG)})
    assert {row["attempts"] for row in long} == {3}


@pytest.mark.parametrize("lane", LANES)
async def test_what_is_sent_is_charged_and_no_more_of_the_prompt(lane: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane(lane), "repairs": ADAPT["truncate:tail"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        long = home(job, await one_start(job), simulator)
        tokens = [charge.prompt_tokens for charge in simulator.account.charges]
    assert max(tokens) <= 512 - 60
    assert min(row["prompt_tokens"] for row in long) > 400
    for row in long:
        keep = int(sent_in(row).split(" cut, ")[1].split(" of ")[0])
        assert len(row["prompt"]) > keep, "the output shows the row as it stands in the input"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_prompt_too_long_to_search_for_quotations_is_cut_all_the_same(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT * 1700, rows=[2], count=3)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=asking("truncate"), repairs=ADAPT["truncate"])
        report = await one_start(job)
        rows = read_rows(job.output or "")
        assert (report.exit_code, len(simulator.account.charges)) == (0, 3)
    assert len(rows[2]["prompt"]) > 4_000_000
    assert rows[2]["repair"].startswith("middle of message 1 cut, ")
    assert rows[2]["prompt_tokens"] > 400


@pytest.mark.parametrize("lane", LANES)
async def test_rejected_rows_are_repaired_after_errors_retry_and_a_better_word(
    lane: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=asking("truncate"), **in_lane(lane))
        assert (await one_start(job)).rejected == len(LONG)
        better = msgspec.structs.replace(job, repairs=ADAPT["truncate"])
        assert (await one_start(better)).rejected == len(LONG), "what was rejected stays so until it is put back"
        done = await asyncio.to_thread(CliRunner().invoke, batchrun, ["errors", job.checkpoint, "--retry", "too_long"])
        assert done.exit_code == 0, done.output
        report = await one_start(better)
        long = home(better, report, simulator)
    assert (report.exit_code, report.answered) == (0, ROWS)
    assert {row["attempts"] for row in long} == {2}


# --- stopped in the middle of a repair -------------------------------------------------------------------------------


class Crash(BaseException):
    """What a killed process would have been, inside a test."""


def crashing(number: int, only: str | None = None) -> None:
    """End the process, so to speak, before the n-th step of all, or of those of this name."""
    left = number

    def watch(step: str) -> None:
        nonlocal left
        left -= only is None or step == only
        if left == 0:
            raise Crash

    door.watch(watch)


async def crashed(job: Job) -> bool:
    """Whether the start ended in a crash."""
    try:
        await one_start(job)
    except Crash:
        return True
    finally:
        door.watch(None)
    return False


def plans(job: Job) -> int:
    with looking_into(job) as sql:
        return int(sql.execute("select count(*) from repair").fetchone()[0])


async def refused_and_killed(simulator: Simulator, job: Job) -> None:
    """The batch came home with refused lines, and the process ended before any of them was sent again."""
    crashing(1, only="call")
    assert await crashed(job)
    assert plans(job) == len(LONG)
    assert len(simulator.account.charges) == ROWS - len(LONG)


async def test_after_a_kill_the_stored_plan_is_sent_and_not_what_was_refused(tmp_path: Path, make_job: MakeJob) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane("auto", lines=100), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        await refused_and_killed(simulator, job)
        report = await one_start(job)
        long = home(job, report, simulator)
        assert simulator.account.statuses == {200: len(LONG)}, "nothing was refused once more"
    assert {(row["state"], row["attempts"]) for row in long} == {("answered", 2)}


@pytest.mark.parametrize("policy", ["reject", "fallback", "truncate:tail"])
async def test_after_a_kill_and_another_word_the_plan_is_forgotten(
    policy: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane("auto", lines=100), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        await refused_and_killed(simulator, job)
        other = msgspec.structs.replace(job, repairs=ADAPT[policy])
        report = await one_start(other)
        long = home(other, report, simulator)
    if policy == "reject":
        assert (report.exit_code, report.rejections) == (10, {"too_long": len(LONG)})
    elif policy == "fallback":
        assert {sent_in(row) for row in long} == {f"model {TINY} -> {SMALL}"}
    else:
        assert all(sent_in(row).startswith("tail of message 1 cut, ") for row in long)


async def test_another_word_while_a_repaired_batch_runs_leaves_the_column_true(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane("batch", lines=100), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        crashing(2, only="create answered")
        assert await crashed(job)
        assert [made.lines for made in simulator.batches.jobs] == [ROWS, len(LONG)], "they are at the provider, cut"
        other = msgspec.structs.replace(job, repairs=ADAPT["fallback"])
        report = await one_start(other)
        long = home(other, report, simulator)
    assert all(sent_in(row).startswith("middle of message 1 cut, ") for row in long)


async def test_a_word_that_is_taken_back_holds_for_rows_that_come_back_from_a_repaired_batch(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane("batch", lines=100), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        crashing(2, only="create")
        assert await crashed(job)
        assert [made.lines for made in simulator.batches.jobs] == [ROWS], "the cut ones wait for a job"
        other = msgspec.structs.replace(job, repairs=ADAPT["reject"], route=Route.LIVE)
        report = await one_start(other)
        long = home(other, report, simulator)
    assert (report.exit_code, report.rejections) == (10, {"too_long": len(LONG)})
    assert {(row["state"], row["repair"]) for row in long} == {("rejected", None)}
    assert plans(job) == 0


@pytest.mark.parametrize("lines", [1, 4])
async def test_of_identical_rows_each_tells_what_was_sent_for_it(lines: int, tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": n, "prompt": FULL_TEXT}) + "\n" for n in range(4)))
    refused = Fault(FaultKind.TOO_LONG, content=FULL_TEXT.strip(), count=2, context=180)
    async with Simulator(Settings(latency=0.0, faults=(refused,))) as simulator:
        fields = {**in_lane("batch", lines=lines), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        report = await one_start(job)
        rows = read_rows(job.output or "")
        assert (report.exit_code, len(simulator.account.charges)) == (0, 4), report.message
        whole = max(charge.prompt_tokens for charge in simulator.account.charges)
    found = sorted((row["attempts"], row["prompt_tokens"] == whole, row["repair"] is None) for row in rows)
    assert found == [(1, True, True)] * 2 + [(2, False, False)] * 2


async def test_what_was_planned_is_forgotten_once_it_is_answered(tmp_path: Path, make_job: MakeJob) -> None:
    source = write(tmp_path / "in.jsonl", LONG_TEXT)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane("auto", lines=100), "repairs": ADAPT["truncate"]}
        job = make_job(simulator.url, source, asking=asking("truncate"), **fields)
        home(job, await one_start(job), simulator)
        assert plans(job) == len(LONG)
        assert (await one_start(job)).exit_code == 0
    assert plans(job) == 0


async def killed_story(lane: str, number: int, tmp_path: Path, make_job: MakeJob) -> bool:
    """Killed before the n-th step and run again; whether there was such a step.

    A batch's answers are read again; of live calls only the one in flight can be paid twice.
    """
    source = write(tmp_path / "in.jsonl", LONG_TEXT, rows=[1, 4], count=6)
    async with Simulator(Settings(latency=0.0)) as simulator:
        fields = {**in_lane(lane, lines=100), "repairs": ADAPT["truncate"], "limits": {"concurrency": 1}}
        here = {"checkpoint": str(tmp_path / f"{number}.db"), "output": str(tmp_path / f"{number}.jsonl")}
        job = make_job(simulator.url, source, asking=asking("truncate"), **{**fields, **here})
        crashing(number)
        killed = await crashed(job)
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, 6), (number, report.message)
        rows = read_rows(job.output or "")
        assert [row["id"] for row in rows] == list(range(6))
        assert [n for n in range(6) if rows[n]["repair"]] == [1, 4]
        twice = len(simulator.account.charges) - 6
        assert 0 <= twice <= (0 if lane == "batch" else min(1, report.maybe_twice)), number
    return killed


# What a killed process had open is closed by the system; inside a test, Python says that nobody closed it.
LEFT_OPEN = "ignore::pytest.PytestUnraisableExceptionWarning"


@pytest.mark.filterwarnings(LEFT_OPEN)
@pytest.mark.parametrize("number", range(4, 40, 5))
@pytest.mark.parametrize("lane", ["batch", "auto"])
async def test_killed_before_a_step_and_run_again_every_row_is_paid_once(
    lane: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await killed_story(lane, number, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.filterwarnings(LEFT_OPEN)
@pytest.mark.parametrize("lane", ["batch", "auto"])
async def test_killed_before_any_step_and_run_again_every_row_is_paid_once(
    lane: str, tmp_path: Path, make_job: MakeJob
) -> None:
    number = 1
    while await killed_story(lane, number, tmp_path, make_job):
        number += 1
    assert number > 15
