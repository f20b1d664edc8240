"""A model that cannot be called: the next one of the user's list takes its rows, in every lane, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import assert_sound, batching, diary, one_start
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.api import wire
from batchrun.faces.closing import summary
from batchrun.job import Asking, Job, Repairs
from batchrun.records import Completion, ParkReason, Price, Reply, Route
from batchrun.reports import Report
from batchrun.simulator import BatchFault, BatchFaultKind, Fault, FaultKind, Settings, Simulator
from batchrun.simulator.batch_faults import Call

UNKNOWN = "nobody/knows-7b"  # 404
DEDICATED = "simulator/dedicated-only-70b"  # 400
SECOND, THIRD = "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B"
ROWS = 60
DEAR = Price(100_000_000, 100_000_000)

# Calls that may find out at once that a model cannot be called: so many go out before a first answer.
FUTILE = 40

WAYS = ["live", "batch", "auto"]


def by(way: str, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """The fields of a job that goes that way; under auto a discount lets rows of the model go out in batches."""
    if way == "live":
        return {"route": Route.LIVE}
    if way == "batch":
        return batching(**fields)
    return {**batching(Route.AUTO, **fields), "discounts": {model: 0.5}, "prices": {model: DEAR}}


def asking(model: str | None = None) -> Asking:
    return Asking(model=model, params={"max_tokens": 40})


def told(row: dict[str, Any]) -> tuple[str, str | None]:
    return row["model"].removeprefix("simulated/"), row["repair"]


def finished(simulator: Simulator, job: Job, report: Report, rows: int = ROWS) -> list[dict[str, Any]]:
    """Every row answered, in order, and paid once."""
    assert (report.exit_code, report.answered, report.maybe_twice) == (0, rows, 0), report.message
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(rows)}
    assert report.spent_nano == simulator.account.spent or job.discounts
    found = read_rows(job.output or "")
    assert [row["id"] for row in found] == list(range(rows))
    return found


@pytest.mark.parametrize("model", [UNKNOWN, DEDICATED])
@pytest.mark.parametrize("way", WAYS)
async def test_the_next_model_answers_every_row(way: str, model: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(SECOND, THIRD))
        job = make_job(simulator.url, source, asking=asking(model), repairs=repairs, **by(way, model))
        rows = finished(simulator, job, await one_start(job))
        assert {told(row) for row in rows} == {(SECOND, f"model {model} -> {SECOND}")}
        assert {row["lane"] for row in rows} == {"batch" if way == "batch" else "live"}
        asked = simulator.account.requests_by_model
        assert asked[model] <= (FUTILE if way == "live" else 0)
        assert asked[THIRD] == 0
        assert f"{SECOND} stands in" in diary(job)
        requests = simulator.account.requests, len(simulator.batches.jobs)
        assert (await one_start(job)).answered_now == 0
        assert (simulator.account.requests, len(simulator.batches.jobs)) == requests


@pytest.mark.parametrize("way", WAYS)
async def test_a_fallback_that_is_missing_itself_is_passed_over(way: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(DEDICATED, UNKNOWN, THIRD))
        job = make_job(simulator.url, source, asking=asking("no/one"), repairs=repairs, **by(way, "no/one"))
        rows = finished(simulator, job, await one_start(job))
        assert {told(row) for row in rows} == {(THIRD, f"model no/one -> {THIRD}")}
        asked = simulator.account.requests_by_model
        assert all(asked[model] <= FUTILE for model in ("no/one", DEDICATED, UNKNOWN))


@pytest.mark.parametrize("way", WAYS)
async def test_when_no_fallback_can_be_called_either_the_run_parks_with_advice(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=("openai/gpt-oss-120", UNKNOWN))
        wrong = "openai/gpt-os-20b"
        job = make_job(simulator.url, source, asking=asking(wrong), repairs=repairs, **by(way, wrong))
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.pending) == (9, ParkReason.MODEL, ROWS)
        assert f"Did you mean {MODEL}" in report.message
        assert not simulator.account.charges
        assert simulator.account.requests <= 3 * FUTILE
        mended = msgspec.structs.replace(job, repairs=Repairs(fallbacks=(SECOND,)))
        rows = finished(simulator, job, await one_start(mended))
        assert {told(row) for row in rows} == {(SECOND, f"model {wrong} -> {SECOND}")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("openai/gpt-os-20b", f"Did you mean {MODEL}"),
        (DEDICATED, "It runs on a dedicated endpoint only: start one ($2.40 an hour)"),
    ],
)
async def test_without_a_fallback_the_run_parks_with_advice(
    model: str, advice: str, way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=asking(model), **by(way, model))
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.pending) == (9, ParkReason.MODEL, ROWS)
        assert model in report.message
        assert advice in report.message
        assert not simulator.account.charges


@pytest.mark.parametrize("way", WAYS)
async def test_a_missing_fallback_does_no_harm_while_the_first_model_works(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, repairs=Repairs(fallbacks=(UNKNOWN,)), **by(way))
        rows = finished(simulator, job, await one_start(job))
        assert {told(row) for row in rows} == {(MODEL, None)}
        assert simulator.account.requests_by_model[UNKNOWN] == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fallbacks", [(UNKNOWN, SECOND), (SECOND, SECOND, UNKNOWN), (UNKNOWN, UNKNOWN, SECOND)])
async def test_a_list_that_names_the_model_itself_or_one_twice_is_the_list_without(
    fallbacks: tuple[str, ...], way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(UNKNOWN), repairs=Repairs(fallbacks=fallbacks), **by(way, UNKNOWN)
        )
        rows = finished(simulator, job, await one_start(job))
        assert {told(row) for row in rows} == {(SECOND, f"model {UNKNOWN} -> {SECOND}")}


def write_bodies(path: Path, model: Callable[[int], str], rows: int = ROWS) -> Path:
    """Rows that name their own models."""
    with path.open("w") as file:
        for n in range(rows):
            body = {"model": model(n), "messages": [{"role": "user", "content": prompt(n)}], "max_tokens": 40}
            file.write(json.dumps({"custom_id": f"row-{n}", "id": n, "body": body}) + "\n")
    return path


@pytest.mark.parametrize("way", WAYS)
async def test_rows_that_name_their_own_models_each_get_the_one_that_can_be_called(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    models = [MODEL, UNKNOWN, THIRD, DEDICATED, SECOND]
    source = write_bodies(tmp_path / "in.jsonl", lambda n: models[n % 5])
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(UNKNOWN, SECOND, MODEL))
        job = make_job(simulator.url, source, asking=asking(), repairs=repairs, **by(way, UNKNOWN))
        rows = finished(simulator, job, await one_start(job))
        gets = {MODEL: MODEL, THIRD: THIRD, SECOND: SECOND, UNKNOWN: SECOND, DEDICATED: SECOND}
        for n, row in enumerate(rows):
            named = models[n % 5]
            assert told(row) == (gets[named], None if gets[named] == named else f"model {named} -> {gets[named]}")


@pytest.mark.parametrize("way", WAYS)
async def test_rows_of_a_model_that_none_can_stand_in_for_are_rejected_and_the_others_answered(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_bodies(tmp_path / "in.jsonl", lambda n: UNKNOWN if n % 10 == 5 else MODEL)
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(DEDICATED,))
        report = await one_start(make_job(simulator.url, source, asking=asking(), repairs=repairs, **by(way)))
        assert (report.exit_code, report.answered, report.rejections) == (10, ROWS - 6, {"model_missing": 6})


# --- a batch that the provider turns away ----------------------------------------------------------------------------

SENTENCE = f"Unable to access model {MODEL}. Please visit https://api.together.ai/models"
TURNED_AWAY = {
    "the file is refused": (
        BatchFault(BatchFaultKind.CALL_ERROR, call=Call.UPLOAD_INIT, http=404, times=1),
        BatchFault(BatchFaultKind.CALL_ERROR, call=Call.UPLOAD, http=404, times=1),
    ),
    "the create is refused": (BatchFault(BatchFaultKind.REFUSE_CREATE, error=SENTENCE, times=1),),
    "the job fails": (BatchFault(BatchFaultKind.FAIL_VALIDATION, error=SENTENCE, model=MODEL),),
    "the job fails halfway": (BatchFault(BatchFaultKind.FAIL_HALFWAY, error=SENTENCE, model=MODEL),),
}


@pytest.mark.parametrize("how", TURNED_AWAY)
@pytest.mark.parametrize("way", ["batch", "auto"])
async def test_a_batch_turned_away_for_its_model_sends_its_rows_to_the_next_one(
    way: str, how: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001, batch_faults=TURNED_AWAY[how])) as simulator:
        repairs = Repairs(fallbacks=(SECOND,))
        job = make_job(simulator.url, source, asking=asking(MODEL), repairs=repairs, **by(way, lines=100))
        rows = finished(simulator, job, await one_start(job))
        answered = [told(row) for row in rows]
        own = ROWS // 2 if how == "the job fails halfway" else 0
        assert answered.count((MODEL, None)) == own
        assert answered.count((SECOND, f"model {MODEL} -> {SECOND}")) == ROWS - own
        assert simulator.account.requests_by_model[MODEL] == 0
        assert len(simulator.batches.jobs) <= 2


@pytest.mark.parametrize("how", TURNED_AWAY)
async def test_a_batch_turned_away_for_its_model_parks_with_advice_when_none_stands_in(
    how: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001, batch_faults=TURNED_AWAY[how])) as simulator:
        job = make_job(simulator.url, source, asking=asking(MODEL), **by("batch", lines=100))
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (9, ParkReason.MODEL), report.message
        assert "listed with a price" in report.message
        simulator.play_batches([])
        finished(simulator, job, await one_start(job))


@pytest.mark.parametrize("how", TURNED_AWAY)
async def test_under_auto_live_calls_find_out_what_a_batch_turned_away_for_its_model_means(
    how: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001, batch_faults=TURNED_AWAY[how])) as simulator:
        job = make_job(simulator.url, source, asking=asking(MODEL), **by("auto", lines=100))
        report = await one_start(job)
        if how in ("the file is refused", "the create is refused"):
            finished(simulator, job, report)
        else:
            assert (report.exit_code, report.parked) == (9, ParkReason.MODEL), report.message
        assert_sound(job)


# --- a budget, an interrupt, a kill, and a second start --------------------------------------------------------------

CHILD = Path(__file__).parent / "child.py"


async def launch(job: Job, folder: Path, *words: str) -> asyncio.subprocess.Process:
    stored = folder / "job.json"
    stored.write_bytes(msgspec.json.encode(job))
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(stored), *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def child_ends(job: Job, folder: Path) -> dict[str, Any]:
    process = await launch(job, folder)
    out, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    report: dict[str, Any] = msgspec.json.decode(out)
    return report


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6))])
async def test_killed_while_another_one_stands_in_the_next_start_finishes(
    seed: int, way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    dice = random.Random(f"{way} {seed}")
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.005, batch_speed=400)) as simulator:
        repairs = Repairs(fallbacks=(DEDICATED, SECOND))
        fields = by(way, UNKNOWN, lines=20) if way != "live" else by(way)
        job = make_job(
            simulator.url, source, asking=asking(UNKNOWN), repairs=repairs, limits={"concurrency": 8}, **fields
        )
        process = await launch(job, tmp_path)
        await simulator.reached(answers=dice.randrange(1, ROWS - 15))
        process.kill()
        await process.communicate()
        report = await child_ends(job, tmp_path)
        assert (report["answered"], report["pending"]) == (ROWS, 0)
        paid = paid_for(simulator.account.charges)
        assert set(paid) == {content(prompt(n)) for n in range(ROWS)}
        assert sum(paid.values()) - ROWS <= report["maybe_twice"] + report["twice"]
        rows = read_rows(job.output or "")
        assert {told(row) for row in rows} == {(SECOND, f"model {UNKNOWN} -> {SECOND}")}
        requests = simulator.account.requests
        assert (await child_ends(job, tmp_path))["answered_now"] == 0
        assert simulator.account.requests == requests
        assert_sound(job)


STEPS = [("commit", 9), ("remove", 1)]
MORE_STEPS = [*(("commit", n) for n in range(3, 30) if n != 9), ("call", 5), ("call", 30), ("remove", 2), ("remove", 3)]


@pytest.mark.parametrize("way", ["batch", "auto"])
@pytest.mark.parametrize(
    ("step", "number"), [*STEPS, *(pytest.param(*step, marks=pytest.mark.soak) for step in MORE_STEPS)], ids=str
)
async def test_killed_before_a_durable_step_of_a_batch_that_fails_for_its_model(
    way: str, step: str, number: int, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(SECOND,))
        fields = by(way, UNKNOWN, lines=20, grace=0.5)
        job = make_job(simulator.url, source, asking=asking(UNKNOWN), repairs=repairs, **fields)
        process = await launch(job, tmp_path, step, str(number))
        _, said = await process.communicate()
        assert process.returncode in (-9, 0), said.decode()
        report = await child_ends(job, tmp_path)
        assert (report["answered"], report["pending"]) == (ROWS, 0)
        paid = paid_for(simulator.account.charges)
        assert sum(paid.values()) - ROWS <= report["maybe_twice"] + report["twice"]
        assert {told(row) for row in read_rows(job.output or "")} == {(SECOND, f"model {UNKNOWN} -> {SECOND}")}
        assert_sound(job)


@pytest.mark.parametrize("way", ["live", "batch"])
async def test_a_resume_without_fallbacks_parks_and_keeps_what_the_fallback_answered(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(SECOND,))
        job = make_job(simulator.url, source, asking=asking(UNKNOWN), repairs=repairs, **by(way))
        finished(simulator, job, await one_start(job))
        write_prompts(source, range(ROWS + 10))
        without = msgspec.structs.replace(job, repairs=Repairs())
        report = await one_start(without)
        assert (report.exit_code, report.parked, report.answered, report.pending) == (9, ParkReason.MODEL, ROWS, 10)
        rows = finished(simulator, job, await one_start(job), ROWS + 10)
        assert {told(row)[0] for row in rows} == {SECOND}


async def test_a_model_that_vanishes_in_the_middle_leaves_its_answers(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    gone = Fault(FaultKind.UNKNOWN_MODEL, model=MODEL, after=25)
    async with Simulator(Settings(latency=0.001, faults=(gone,))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 4}, repairs=Repairs(fallbacks=(SECOND,)))
        rows = finished(simulator, job, await one_start(job))
        assert [told(row)[0] for row in rows].count(MODEL) == 25
        assert simulator.account.requests_by_model[MODEL] <= 25 + 4


async def test_credits_that_end_at_the_fallback_park_and_a_top_up_goes_on(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    ends = Fault(FaultKind.CREDITS_END, after=20)
    async with Simulator(Settings(latency=0.001, faults=(ends,))) as simulator:
        job = make_job(simulator.url, source, asking=asking(UNKNOWN), repairs=Repairs(fallbacks=(SECOND,)))
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (3, ParkReason.CREDITS)
        simulator.top_up(1)
        finished(simulator, job, await one_start(job))


async def test_the_budget_is_that_of_the_model_that_answers(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(DEDICATED), repairs=Repairs(fallbacks=(SECOND,)),
            limits={"max_cost_nano": 500_000}, prices={DEDICATED: Price(1, 1)},
        )  # fmt: skip
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (6, ParkReason.BUDGET)
        assert 0 < report.spent_nano == simulator.account.spent <= 500_000


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_replies_of_another_model_are_counted_and_told_once(way: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    redirect = Fault(FaultKind.ANSWERED_BY, served_by=THIRD, count=12)
    async with Simulator(Settings(latency=0.001, faults=(redirect,))) as simulator:
        job = make_job(simulator.url, source, **by(way))
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS), report.message
        assert [(seen.asked, seen.answered, seen.replies) for seen in report.redirects] == [
            (MODEL, f"simulated/{THIRD}", 12)
        ]
        said = f"Answered by another model: 12 replies asked of {MODEL} came from simulated/{THIRD}."
        assert summary(report).count(said) == 1
        rows = read_rows(job.output or "")
        assert Counter(told(row) for row in rows) == {(THIRD, None): 12, (MODEL, None): ROWS - 12}
        assert not (await one_start(job)).redirects


async def test_a_fallback_that_answers_under_its_own_name_is_no_redirect_and_one_that_does_not_is(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.001)) as simulator:
        fields: dict[str, Any] = {"asking": asking(UNKNOWN), "repairs": Repairs(fallbacks=(SECOND,))}
        assert not (await one_start(make_job(simulator.url, source, **fields))).redirects
        simulator.play([Fault(FaultKind.ANSWERED_BY, served_by=THIRD)])
        other = make_job(simulator.url, source, **fields, checkpoint=str(tmp_path / "other.db"))
        (seen,) = (await one_start(other)).redirects
        assert (seen.asked, seen.answered, seen.replies) == (SECOND, f"simulated/{THIRD}", ROWS)


async def test_a_date_or_a_missing_organisation_is_no_redirect(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    read = wire.read

    def renamed(reply: Reply, now: float) -> Any:
        seen = read(reply, now)
        names = ["gpt-oss-20b", "openai/gpt-oss-20b-2025-08-05", "OpenAI/gpt-oss-20b", ""]
        return msgspec.structs.replace(seen, model=names[len(reply.body) % 4]) if isinstance(seen, Completion) else seen

    monkeypatch.setattr(wire, "read", renamed)
    async with Simulator(Settings(latency=0.001)) as simulator:
        report = await one_start(make_job(simulator.url, source))
        assert (report.exit_code, report.answered, report.redirects) == (0, ROWS, ())
