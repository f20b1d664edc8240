"""Budgets of the checkpoint and of one start: kept in both lanes, and what a park says about them is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun.errors import UsageError
from batchrun.faces import closing
from batchrun.faces import plan as plan_face
from batchrun.job import Asking, Batching, Job, Limits, checked
from batchrun.lanes.purse import Purse
from batchrun.records import ParkReason, Price, Route
from batchrun.rules import money
from batchrun.rules.route import Plan
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

PRICE = {MODEL: Price(50, 200)}
BOUND = 100 * 200  # nano-dollars of an answer of 100 tokens at the most; the prompt comes on top


def limited(job: Job, **limits: Any) -> Job:
    return checked(msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, **limits)))


def billed(simulator: Simulator) -> int:
    return sum(charge.nano for charge in simulator.account.charges)


# --- one start --------------------------------------------------------------------------------------------------------


async def test_a_start_commits_no_more_than_its_own_limit_and_the_next_one_goes_on(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    limit = 5 * BOUND
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, prices=PRICE, limits={"max_cost_run_nano": limit, "concurrency": 4})
        codes, before = [], 0
        for _ in range(60):
            report = await start(job)
            assert billed(simulator) - before <= limit
            assert report.spent_now_nano == billed(simulator) - before
            codes, before = [*codes, report.exit_code], billed(simulator)
            if not report.exit_code:
                break
            assert report.parked is ParkReason.BUDGET
            assert "of --max-cost-run $" in report.message
            assert closing.summary(report).splitlines()[-1].startswith("Each start may spend as much again: ")
        assert len(codes) > 3
        assert codes == [6] * (len(codes) - 1) + [0]
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(60)}


async def test_what_batches_of_an_earlier_start_cost_is_not_this_starts(tmp_path: Path, make_job: MakeJob) -> None:
    """The start that made them set the money aside, and the limit of the next is whole when it collects them."""
    source = write_prompts(tmp_path / "in.jsonl", range(30))
    batching = Batching(poll=0.02)
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, prices=PRICE, route=Route.BATCH, batching=batching)
        simulator.hold_batches()
        report = await start(job, detach=True)
        assert report.exit_code == 7
        simulator.release_batches()
        write_prompts(source, range(40))
        mixed = limited(msgspec.structs.replace(job, route=Route.AUTO), max_cost_run_nano=8 * BOUND)
        report = await start(mixed)
        assert (report.exit_code, report.answered) == (0, 40)
        rows = read_rows(job.output or "")
        assert [row["lane"] for row in rows] == ["batch"] * 30 + ["live"] * 10
        assert billed(simulator) > 8 * BOUND  # more than this start's limit: the batch's part is the first one's


async def test_a_batch_holds_as_much_as_the_limit_of_a_start_allows(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    limit = 15 * 2 * BOUND
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(
            simulator.url, source, prices=PRICE, route=Route.BATCH, batching=Batching(poll=0.02),
            limits={"max_cost_run_nano": limit},
        )  # fmt: skip
        before = 0
        for _ in range(40):
            report = await start(job)
            assert billed(simulator) - before <= limit
            before = billed(simulator)
            if not report.exit_code:
                break
        assert (report.exit_code, report.answered) == (0, 40)
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(40)}


async def test_a_budget_for_a_part_at_a_time_is_spent_in_rounds_of_batches_at_half_the_price(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    dear = {MODEL: Price(50_000, 200_000)}  # a saving that is worth a wait
    async with Simulator(Settings(latency=0.001, batch_discounts={MODEL: 0.5})) as simulator:
        job = make_job(simulator.url, source, prices=dear, discounts={MODEL: 0.5}, batching=Batching(poll=0.02))
        plans: list[Plan] = []
        report = await start(limited(job, max_cost_nano=1_100_000_000), announce=plans.append)
        assert (report.exit_code, report.answered) == (0, 60)
        assert report.spent_nano <= 1_100_000_000
        (part,) = plans[0].models
        assert part.situation.most_nano is not None
        assert part.situation.most_nano > 1_100_000_000
        assert "rounds of batches, one after the other" in part.choice.reasons[-1]
        assert {row["lane"] for row in read_rows(job.output or "")} == {"batch"}
        assert len(simulator.account.charges) == 60


async def test_a_limit_for_a_start_needs_prices_too(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(model="acme/unheard-of"), limits={"max_cost_run_nano": 1})
        with pytest.raises(UsageError, match="price of acme/unheard-of is not known"):
            await start(job)


# --- what a park says -------------------------------------------------------------------------------------------------


async def test_the_limit_that_a_park_names_does_for_the_rest_and_costs_about_what_it_says(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    dear = {MODEL: Price(50_000, 200_000)}
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, prices=dear, limits={"max_cost_nano": 40_000 * BOUND})
        parked = await start(job)
        assert (parked.exit_code, parked.parked) == (6, ParkReason.BUDGET)
        last, next_step = closing.summary(parked).splitlines()[-2:]
        assert re.search(r" left, about \$\d\.\d\d more \(\$\d\.\d\d to \$\d\.\d\d\)\.$", last)
        named = re.fullmatch(
            r"Raise the limit \(in the job file, if it stands there\): batchrun resume .* --max-cost (\d+\.\d\d)",
            next_step,
        )
        assert named is not None
        report = await start(limited(job, max_cost_nano=round(float(named[1]) * 1e9)))
        assert (report.exit_code, report.answered, report.left_nano) == (0, 200, None)
        assert parked.left_nano is not None
        low, _, high = parked.left_nano
        assert low * 0.8 <= report.spent_nano - parked.spent_nano <= high * 1.2


async def test_a_park_of_an_unknown_price_names_no_cost(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.data.tariff", money.Tariff)
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    out = Fault(FaultKind.CREDITS_END, after=10)
    async with Simulator(Settings(latency=0.001, models_status=500, faults=(out,))) as simulator:
        report = await start(make_job(simulator.url, source, limits={"concurrency": 4}))
    assert report.parked is not None
    assert report.left_nano is None
    assert "more (" not in closing.summary(report)


# --- what a plan says -------------------------------------------------------------------------------------------------


async def _announced(job: Job) -> Plan:
    plans: list[Plan] = []
    await start(job, announce=plans.append)
    return plans[0]


async def test_rows_without_max_tokens_are_told_what_they_set_aside_and_what_would_do(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(30))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, prices=PRICE, asking=Asking(model=MODEL))
        plan = await _announced(job)
        (note,) = plan.notes
        assert f"Rows for {MODEL} name no max_tokens" in note
        assert "131,072 tokens out, $0.0262, until its reply" in note
        assert note.endswith("--max-tokens 4096 would set aside $0.0008.")
        assert "--max-tokens 4096" in plan_face.text(plan).replace("\n  ", " ")
        write_prompts(source, range(31))
        (note,) = (await _announced(job)).notes
        assert "--max-tokens" not in note  # it would make other requests of those that are answered


async def test_rows_with_max_tokens_are_told_nothing(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(30))
    async with Simulator(Settings(latency=0.001)) as simulator:
        assert (await _announced(make_job(simulator.url, source, prices=PRICE))).notes == ()


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_nothing_is_sent_when_the_user_does_not_agree(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10_100))  # long enough for probes
    asked: list[Plan] = []

    async def no(plan: Plan) -> bool:
        asked.append(plan)
        return False

    async with Simulator(Settings(latency=0.001)) as simulator:
        report = await start(make_job(simulator.url, source, prices=PRICE), confirm=no)
        assert (report.exit_code, report.parked, report.pending) == (130, ParkReason.INTERRUPTED, 10_100)
        assert simulator.account.requests == 0
        assert [plan.left for plan in asked] == [10_100]


async def test_the_user_is_asked_about_what_is_left(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(50))
    asked: list[int] = []

    async def yes(plan: Plan) -> bool:
        asked.append(plan.left)
        return True

    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, prices=PRICE)
        await start(job, confirm=yes)
        write_prompts(source, range(70))
        assert (await start(job, confirm=yes)).answered == 70
    assert asked == [50, 20]


# --- the purse --------------------------------------------------------------------------------------------------------


def test_a_purse_keeps_both_limits() -> None:
    purse = Purse(1_000, spent=600, held={}, leaving=False, run_limit=300)
    assert purse.fits(300)
    assert not purse.fits(301)
    purse.reserve(300)
    assert not purse.fits(1)
    assert purse.may_come_back
    purse.settle(300, 250)
    assert purse.fits(50)
    assert not purse.fits(51)
    assert purse.is_used_up(51)
    assert "of --max-cost-run $3e-07 is left" in purse.lack(51).told("call")
    purse = Purse(1_000, spent=900, held={}, leaving=False, run_limit=300)
    assert not purse.fits(101)
    assert "of --max-cost $1e-06 is left" in purse.lack(101).told("call")


def test_money_that_an_earlier_start_set_aside_is_no_part_of_this_starts_limit() -> None:
    purse = Purse(None, spent=0, held={1: 500}, leaving=False, run_limit=100)
    assert purse.fits(100)
    purse.spend(400, batch=1)
    assert purse.fits(100)
    purse.unhold(500, batch=1)
    assert purse.fits(100)  # 100 nano-dollars less were spent than set aside, which is no gift to this start
    assert not purse.fits(101)
    assert not purse.may_come_back


def test_money_of_earlier_batches_does_not_come_back_to_the_limit_of_a_start() -> None:
    purse = Purse(None, spent=0, held={1: 500}, leaving=False, run_limit=100)
    assert purse.is_used_up(101)  # no reason to wait for a batch that frees nothing
    assert Purse(550, spent=0, held={1: 500}, leaving=False).may_come_back


@pytest.mark.parametrize("limits", [Limits(max_cost_run_nano=0), Limits(max_cost_run_nano=-1)])
def test_a_limit_for_a_start_is_more_than_nothing(limits: Limits, tmp_path: Path, make_job: MakeJob) -> None:
    with pytest.raises(UsageError, match="--max-cost-run must be more than 0"):
        checked(msgspec.structs.replace(make_job("http://127.0.0.1:1", tmp_path / "x"), limits=limits))


def test_a_plan_as_json_carries_its_notes() -> None:
    plan = Plan((), 5, 5, notes=("One.", "Two."))
    assert json.loads(json.dumps(plan_face.as_json(plan)))["notes"] == ["One.", "Two."]
