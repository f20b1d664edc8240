"""Budgets leave room for progress: whatever fits is sent, every further start goes on, and the advice given is true.

Prices are such that a discount is worth a wait, and every start here has an end of its own: nothing is timed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MODEL, MakeJob, prompt, read_rows, start, write_prompts

from batchrun import choice, terms
from batchrun.cli.question import Question
from batchrun.faces import closing
from batchrun.job import Asking, Batching, Job, Repairs, checked
from batchrun.records import Lane, ParkReason, Price, Route
from batchrun.reports import Report
from batchrun.rules.route import Plan
from batchrun.simulator import Settings, Simulator
from batchrun.store.view import View

OTHER = "openai/gpt-oss-120b"
DEAR = Price(50_000, 200_000)  # nano-dollars a token
HALF = {MODEL: 0.5, OTHER: 0.5}
ROW = 27_000_000  # nano-dollars that a row of `prompt` with 100 tokens can cost at this price, about
SHORT = Asking(model=MODEL, params={"max_tokens": 100})
PATIENCE = 30.0  # seconds after which a start is taken to hang


def row(number: int, max_tokens: int = 100, model: str = MODEL) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt(number)}], "max_tokens": max_tokens}
    return {"custom_id": f"row-{number}", "id": number, "body": body}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def dear_job(simulator: Simulator, source: Path, make_job: MakeJob, limit: int | None = None, **fields: Any) -> Job:
    """A job at a high price, half of it in batches, under a limit of nano-dollars."""
    settings: dict[str, Any] = {
        "prices": {MODEL: DEAR, OTHER: DEAR},
        "discounts": HALF,
        "batching": Batching(poll=0.02),
    }
    settings |= {"asking": Asking(), **fields}
    settings.setdefault("limits", {"max_cost_nano": limit})
    return make_job(simulator.url, source, **settings)


def limited(job: Job, **limits: Any) -> Job:
    return checked(msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, **limits)))


async def one_start(job: Job, **options: Any) -> Report:
    async with asyncio.timeout(PATIENCE):
        return await start(job, **options)


async def nights(simulator: Simulator, job: Job, most: int) -> list[Report]:
    """The same command with --detach, night after night, until it ends; by day the provider does all it has."""
    reports: list[Report] = []
    while len(reports) < most and (not reports or reports[-1].exit_code in {6, 7}):
        simulator.hold_batches()
        reports.append(await one_start(job, detach=True))
        simulator.release_batches()
        await simulator.batches_ended(len(simulator.batches.jobs))
    return reports


def told(reports: Sequence[Report]) -> str:
    return "\n".join(f"{each.exit_code} {each.answered} of {each.total}: {each.message}" for each in reports)


def assert_nothing_is_held(job: Job) -> None:
    """Every batch is over, and what was set aside for it is free."""
    with View(job.checkpoint) as view:
        assert view.reserved_by_batches() == 0
        assert not view.batches(), "a batch is not over"


# --- a start that leaves its batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_cost_nano": 25 * ROW}, {"max_cost_run_nano": 25 * ROW}], ids=["all", "run"])
@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_a_limit_that_holds_a_part_of_the_rows_sends_that_part_each_night(
    limits: dict[str, int], route: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.001, batch_discounts=HALF)) as simulator:
        job = dear_job(simulator, source, make_job, asking=SHORT, route=route, limits=limits)
        reports = await nights(simulator, job, 12)
    first, last = reports[0], reports[-1]
    assert (first.exit_code, first.parked, first.submitted > 0) == (7, ParkReason.REMOTE, True), told(reports)
    assert [each.exit_code for each in reports] == [7] * (len(reports) - 1) + [0], told(reports)
    assert last.answered == 60
    assert last.spent_nano <= limits.get("max_cost_nano", last.spent_nano)
    assert route is Route.AUTO or {found["lane"] for found in read_rows(job.output or "")} == {"batch"}
    assert_nothing_is_held(job)


@pytest.mark.parametrize("route", [Route.BATCH, Route.AUTO])
async def test_a_batch_that_has_ended_is_collected_though_more_rows_came_than_the_limit_holds(
    route: Route, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(24))
    async with Simulator(Settings(latency=0.001, batch_discounts={})) as simulator:
        job = dear_job(simulator, source, make_job, 25 * ROW, asking=SHORT, route=Route.BATCH, discounts={})
        (first,) = await nights(simulator, job, 1)
        assert (first.exit_code, first.submitted) == (7, 24), first.message
        write_prompts(source, range(40))
        reports = await nights(simulator, msgspec.structs.replace(job, route=route), 8)
    assert reports[0].answered >= 24, told(reports)
    assert (reports[-1].exit_code, reports[-1].answered) == (0, 40), told(reports)
    assert_nothing_is_held(job)


async def test_a_start_that_can_submit_nothing_says_so(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = dear_job(simulator, source, make_job, ROW // 2, asking=SHORT, route=Route.BATCH)
        reports = await nights(simulator, job, 2)
        assert [each.exit_code for each in reports] == [6, 6]
        assert not simulator.batches.jobs
    assert "The next row could cost $" in reports[0].message


# --- a start that waits for its batches ------------------------------------------------------------------------------


async def test_two_models_in_batches_share_a_limit_that_holds_forty_percent_to_the_end(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """The small batch ends first, and what it frees is little beside the first."""
    source = write_rows(tmp_path / "in.jsonl", (row(n, model=MODEL if n % 8 else OTHER) for n in range(1000, 1200)))
    async with Simulator(Settings(latency=0.001, batch_speed=400.0, batch_discounts=HALF)) as simulator:
        job = dear_job(simulator, source, make_job, 80 * ROW)
        report = await one_start(job)
    assert (report.exit_code, report.answered) == (0, 200), report.message
    assert report.spent_nano + report.maybe_twice_nano <= 80 * ROW
    assert_nothing_is_held(job)


async def test_a_tail_of_long_rows_that_is_little_money_is_done_in_the_same_start(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_rows(tmp_path / "in.jsonl", (row(n, 50 if n < 300 else 2000) for n in range(360)))
    limit = 12_000_000_000
    async with Simulator(Settings(latency=0.001, batch_discounts=HALF)) as simulator:
        report = await one_start(dear_job(simulator, source, make_job, limit))
    assert (report.exit_code, report.answered) == (0, 360), report.message
    assert report.spent_nano < limit / 3


# --- better answers --------------------------------------------------------------------------------------------------


async def _cut_short(url: str, source: Path, make_job: MakeJob) -> Job:
    """A job all of whose rows hold answers that were cut off, which it now wants longer."""
    short = Asking(model=MODEL, params={"max_tokens": 8})
    job = make_job(url, source, asking=short, prices={MODEL: Price(5_000_000, 20_000_000)})
    assert (await one_start(job)).exit_code == 0
    return msgspec.structs.replace(job, repairs=Repairs(length_retries=3))


async def test_a_plan_says_what_better_answers_may_cost_and_the_user_is_asked(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    asked: list[Plan] = []

    async def no(plan: Plan) -> bool:
        asked.append(plan)
        return False

    async with Simulator(Settings(latency=0.001)) as simulator:
        job = await _cut_short(simulator.url, source, make_job)
        calls = simulator.account.requests
        report = await one_start(job, confirm=no)
        assert (report.parked, simulator.account.requests) == (ParkReason.INTERRUPTED, calls)
        (plan,) = asked
        assert plan.again == 40
        assert plan.cost is not None
        assert plan.cost.high > 0
        assert plan.may_cost
        cost = (await one_start(job)).spent_now_nano
        assert cost > 0
        assert plan.cost.high > cost / 3


@pytest.fixture
def _says_no(monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    ours, theirs = os.pipe()
    os.write(theirs, b"n\n")
    with open(ours) as heard, open(theirs, "w"):
        monkeypatch.setattr("sys.stdin", heard)
        yield


@pytest.mark.usefixtures("_says_no")
async def test_a_question_is_asked_of_better_answers_alone(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    said: list[str] = []
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = await _cut_short(simulator.url, source, make_job)
        report = await one_start(job, confirm=Question(1_000_000_000, said.append).agreed)
    assert report.parked is ParkReason.INTERRUPTED
    assert "Go on?" in said[0]
    assert "40 to be asked for a better answer" in said[0].replace("\n", " ")


async def test_a_park_of_better_answers_names_a_limit_that_gets_some(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    limit = 40 * 8 * 200_000 + 40 * 170 * 50_000
    async with Simulator(Settings(latency=0.001)) as simulator:
        few = Asking(model=MODEL, params={"max_tokens": 8})
        job = dear_job(simulator, source, make_job, limit, asking=few, discounts={}, repairs=Repairs(length_retries=3))
        report = await one_start(job)
        assert (report.exit_code, report.parked, report.pending) == (6, ParkReason.BUDGET, 0)
        assert report.again > 0
        assert advice(report)["max_cost_nano"] > limit
        after = await one_start(limited(job, **advice(report)))
    assert after.asked_again > 0, after.message


# --- what a park advises ---------------------------------------------------------------------------------------------


_NAMED = re.compile(r" --(max-cost|max-cost-run) (\d+\.\d+)")


def advice(report: Report) -> dict[str, int]:
    """The limits that the last line names, in nano-dollars, as a user would type them."""
    last = closing.summary(report).splitlines()[-1]
    return {f"{name.replace('-', '_')}_nano": round(float(usd) * 1e9) for name, usd in _NAMED.findall(last)}


async def _advised(job: Job) -> tuple[Report, Report]:
    """A start that parks at a limit, and the one that follows its advice."""
    first = await one_start(job)
    assert (first.exit_code, first.parked) == (6, ParkReason.BUDGET), first.message
    assert advice(first), closing.summary(first)
    return first, await one_start(limited(job, **advice(first)))


async def test_a_limit_named_after_live_calls_does_by_whatever_lane_the_next_start_takes(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_rows(tmp_path / "in.jsonl", (row(n) for n in range(1600)))
    async with Simulator(Settings(latency=0.0005, batch_discounts=HALF)) as simulator:
        first, second = await _advised(dear_job(simulator, source, make_job, 320 * ROW))
    assert (second.exit_code, second.answered) == (0, 1600), f"{first.message}\n{second.message}"


async def test_a_limit_named_does_for_one_row_that_is_dearer_than_all_others(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*(row(n) for n in range(200)), row(999, 90_000)])
    async with Simulator(Settings(latency=0.0005)) as simulator:
        first, second = await _advised(dear_job(simulator, source, make_job, 500_000_000, discounts={}))
    assert (second.exit_code, second.answered) == (0, 201), f"{first.message}\n{second.message}"


async def test_a_limit_named_is_not_far_above_what_the_rest_costs(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_rows(tmp_path / "in.jsonl", (row(n, 4000) for n in range(1000)))
    async with Simulator(Settings(latency=0.0005, batch_discounts=HALF)) as simulator:
        first, second = await _advised(dear_job(simulator, source, make_job, 8_000_000_000))
    assert first.left_nano is not None
    assert advice(first)["max_cost_nano"] <= 1.5 * (first.spent_nano + first.left_nano[2])
    assert (second.exit_code, second.answered) == (0, 1000), f"{first.message}\n{second.message}"


async def test_the_limit_of_a_start_is_named_when_a_row_is_dearer_than_it(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_rows(tmp_path / "in.jsonl", [row(999, 90_000), *(row(n) for n in range(60))])
    async with Simulator(Settings(latency=0.001)) as simulator:
        limits = {"max_cost_run_nano": 5_000_000_000}
        first, second = await _advised(dear_job(simulator, source, make_job, discounts={}, limits=limits))
    assert advice(first).keys() == {"max_cost_run_nano"}
    assert advice(first)["max_cost_run_nano"] >= 90_000 * DEAR.output
    assert (second.exit_code, second.answered) == (0, 61), second.message


async def test_only_the_limit_that_stopped_a_start_is_to_be_raised(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    limits = {"max_cost_nano": 600_000_000, "max_cost_run_nano": 300_000_000}
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = dear_job(simulator, source, make_job, asking=SHORT, discounts={}, limits=limits)
        first = await one_start(job)
        assert first.exit_code == 6
        assert "of --max-cost-run $" in first.message
        assert "max_cost_nano" not in advice(first), closing.summary(first)
        reports = [first]
        while reports[-1].exit_code and "of --max-cost $" not in reports[-1].message and len(reports) < 30:
            reports.append(await one_start(job))
        assert "of --max-cost $" in reports[-1].message, told(reports)
        assert advice(reports[-1])["max_cost_nano"] > limits["max_cost_nano"]


# --- what a plan knows -----------------------------------------------------------------------------------------------


async def test_a_start_and_a_plan_know_the_same_budget_while_batches_hold_money(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(1000, 1100))
    plans: list[Plan] = []

    async def no(plan: Plan) -> bool:
        plans.append(plan)
        return False

    async with Simulator(Settings(latency=0.001, batch_discounts=HALF)) as simulator:
        job = dear_job(simulator, source, make_job, 105 * ROW, asking=SHORT)
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).submitted == 100
        write_prompts(source, range(1000, 1200))
        await one_start(job, confirm=no)
        with View(job.checkpoint) as view:
            known = choice.known_of(view)
            plans.append(choice.plan(job, known, terms.tariff([], job, known.loads), time.time()))
        await one_start(job, announce=plans.append, detach=True)
    asked, shown, done = ([(part.situation.budget_left, part.choice.lane) for part in plan.models] for plan in plans)
    assert asked == shown == done


async def test_models_share_one_budget_in_rounds_of_batches(tmp_path: Path, make_job: MakeJob) -> None:
    models = ["acme/a", "acme/b", "acme/c", "acme/d", "acme/e"]
    source = write_rows(tmp_path / "in.jsonl", (row(n, model=models[n % 5]) for n in range(1000, 1500)))
    limit = 45 * ROW
    plans: list[Plan] = []

    async def no(plan: Plan) -> bool:
        plans.append(plan)
        return False

    async with Simulator(Settings(latency=0.001)) as simulator:
        prices, discounts = dict.fromkeys(models, DEAR), dict.fromkeys(models, 0.5)
        job = dear_job(simulator, source, make_job, limit, prices=prices, discounts=discounts)
        await one_start(job, confirm=no)
    budgets = [part.situation.budget_left for part in plans[0].models]
    assert sum(budget or 0 for budget in budgets) <= limit + 5
    assert {part.choice.lane for part in plans[0].models} == {Lane.LIVE}


_ROUNDS = re.compile(r"about (\d+) rounds of batches")


async def test_about_as_many_rounds_of_batches_are_made_as_the_plan_says(tmp_path: Path, make_job: MakeJob) -> None:
    models = [MODEL, OTHER]
    source = write_rows(tmp_path / "in.jsonl", (row(n, model=models[n % 2]) for n in range(1000, 1200)))
    plans: list[Plan] = []
    async with Simulator(Settings(latency=0.001, batch_discounts=HALF)) as simulator:
        report = await one_start(dear_job(simulator, source, make_job, 110 * ROW), announce=plans.append)
        made = Counter(batch.model_id for batch in simulator.batches.jobs)
    assert (report.exit_code, report.answered) == (0, 200), report.message
    for part in plans[0].models:
        said = _ROUNDS.search(part.choice.reasons[-1])
        assert part.choice.lane is Lane.LIVE or made[part.situation.model] <= 2 * int(said[1] if said else 1) + 1


async def test_taking_batches_back_is_planned_and_asked_about(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(50))
    asked: list[Plan] = []
    async with Simulator(Settings(latency=0.001)) as simulator:

        async def confirm(plan: Plan) -> bool:
            asked.append(plan)
            simulator.release_batches()
            return len(asked) > 1

        job = dear_job(simulator, source, make_job, asking=SHORT, route=Route.BATCH)
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).submitted == 50
        live = msgspec.structs.replace(job, route=Route.LIVE)
        assert (await one_start(live, confirm=confirm)).parked is ParkReason.INTERRUPTED
        (plan,) = asked
        assert plan.left == 50
        assert plan.cost is not None
        assert plan.cost.likely > 0
        report = await one_start(live, confirm=confirm)
    assert (report.exit_code, report.answered) == (0, 50)
