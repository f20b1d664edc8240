"""Before a long run each model is asked for one token: what cannot be called is known for the price of that call."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import PATIENCE, Hurried, batching, diary, looking_into, one_start
from support import MODEL, MakeJob, read_rows, write_prompts

from batchrun.errors import UsageError
from batchrun.job import Asking, Job, Repairs, Timeouts
from batchrun.lanes import probing
from batchrun.records import Endpoint, ParkReason, Price, Route
from batchrun.rules.probing import PROBE_ROW, probe_request
from batchrun.runner import Run
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

UNKNOWN, DEDICATED = "nobody/knows-7b", "simulator/dedicated-only-70b"
SECOND, THIRD = "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B"
LONG = 200  # rows that make a run long, in these tests
PROBE = "Hi"


@pytest.fixture
def _long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.sending.LONG_RUN", LONG)


def probed(simulator: Simulator) -> int:
    """Probes that were paid: each is one token."""
    return sum(charge.completion_tokens == 1 for charge in simulator.account.charges)


def surplus(job: Job) -> list[tuple[str | None, int]]:
    """Paid replies that are no row's answer, by their mark."""
    with looking_into(job) as sql:
        unused = "select surplus, count(*) from paid where id not in (select answer from request where answer > 0)"
        return list(sql.execute(f"{unused} group by surplus"))


def in_books(job: Job) -> int:
    with looking_into(job) as sql:
        return int(sql.execute("select coalesce(sum(cost_nano), 0) from paid").fetchone()[0])


def asking(model: str | None = MODEL) -> Asking:
    return Asking(model=model, params={"max_tokens": 40})


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_probe_asks_for_one_token_and_is_no_rows(endpoint: Endpoint) -> None:
    request = probe_request(MODEL, endpoint)
    body = json.loads(request.body)
    assert (request.row, request.max_tokens, request.n, body["model"]) == (PROBE_ROW, 1, 1, MODEL)
    assert set(body) == {"model", "max_tokens", "messages" if endpoint is Endpoint.CHAT else "prompt"}


# --- what a long run costs when its model cannot be called -----------------------------------------------------------


async def wrong_model(rows: int, tmp_path: Path, make_job: MakeJob) -> float:
    """A long run with a model that cannot be called, without a fallback and with one; seconds it took."""
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"prompt": "Say {n}"}}\n' for n in range(rows))
    async with Simulator(Settings(latency=0.0)) as simulator:
        began = time.monotonic()
        for model, advice in ((UNKNOWN, "batchrun models"), (DEDICATED, "$2.40 an hour")):
            checkpoint = str(tmp_path / f"{len(model)}.db")
            job = make_job(simulator.url, source, asking=asking(model), checkpoint=checkpoint, route=Route.LIVE)
            report = await Run(job, "any-key").go()
            assert (report.exit_code, report.parked, report.pending) == (9, ParkReason.MODEL, rows)
            assert model in report.message
            assert advice in report.message
            assert simulator.account.requests_by_model == {model: 1}
            assert not simulator.account.charges
            simulator.account.requests_by_model.clear()
        run = Run(msgspec.structs.replace(job, repairs=Repairs(fallbacks=(SECOND,))), "any-key")
        running = asyncio.create_task(run.go())
        await simulator.reached(answers=100)
        run.interrupt()
        report = await running
        assert report.exit_code == 130
        asked = simulator.account.requests_by_model
        assert asked[DEDICATED] == 1
        assert asked[SECOND] == report.answered + 1 == len(simulator.account.charges)
        return time.monotonic() - began


async def test_a_long_run_with_an_unknown_model_costs_one_call(tmp_path: Path, make_job: MakeJob) -> None:
    await wrong_model(100_000, tmp_path, make_job)


@pytest.mark.soak
async def test_a_million_rows_with_an_unknown_model_cost_one_call(tmp_path: Path, make_job: MakeJob) -> None:
    await wrong_model(1_000_000, tmp_path, make_job)


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize("way", ["live", "batch", "auto"])
async def test_each_model_and_each_fallback_is_probed_once_and_booked_as_cut(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    fields: dict[str, Any] = {"live": {"route": Route.LIVE}, "batch": batching(), "auto": batching(Route.AUTO)}[way]
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(SECOND, UNKNOWN, SECOND, MODEL))
        job = make_job(simulator.url, source, asking=asking(), repairs=repairs, **fields)
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, LONG), report.message
        asked = simulator.account.requests_by_model
        assert (asked[SECOND], asked[UNKNOWN], probed(simulator)) == (1, 1, 2)
        assert asked[MODEL] == (LONG + 1 if way == "live" else 1)
        assert len(simulator.account.charges) == LONG + 2
        assert surplus(job) == [("cut", 2)]
        assert (report.twice, report.maybe_twice, report.replaced) == (0, 0, 0)
        assert report.spent_nano == in_books(job)
        assert way == "auto" or in_books(job) == simulator.account.spent
        assert report.answered_now == LONG
        requests = simulator.account.requests
        assert (await one_start(job)).exit_code == 0
        assert simulator.account.requests == requests


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize("way", ["live", "batch", "auto"])
async def test_a_probe_finds_out_before_any_row_is_sent(way: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    fields: dict[str, Any] = {"live": {"route": Route.LIVE}, "batch": batching(), "auto": batching(Route.AUTO)}[way]
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(DEDICATED, SECOND))
        job = make_job(simulator.url, source, asking=asking(UNKNOWN), repairs=repairs, **fields)
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, LONG), report.message
        asked = simulator.account.requests_by_model
        assert (asked[UNKNOWN], asked[DEDICATED]) == (1, 1)
        rows = read_rows(job.output or "")
        assert {(row["model"], row["repair"]) for row in rows} == {
            (f"simulated/{SECOND}", f"model {UNKNOWN} -> {SECOND}")
        }
        assert {row["lane"] for row in rows} == {"batch" if way == "batch" else "live"}
        assert f"{SECOND} stands in" in diary(job)


async def test_a_short_run_is_not_probed_and_a_resume_of_a_long_one_is_only_while_it_is_long(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probing.LONG_RUN == 10_000
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=asking())
        for long, probes in ((LONG + 1, 0), (LONG // 4, 1), (LONG // 4, 2), (LONG, 2)):
            monkeypatch.setattr("batchrun.sending.LONG_RUN", long)
            run = Run(job, "any-key")
            running = asyncio.create_task(run.go())
            await simulator.reached(answers=len(simulator.account.charges) + 20)
            run.interrupt()
            await running
            assert probed(simulator) == probes
        monkeypatch.setattr("batchrun.sending.LONG_RUN", 1)
        assert (await one_start(job)).exit_code == 0
        requests = simulator.account.requests
        assert (await one_start(job)).answered_now == 0
        assert simulator.account.requests == requests
        assert surplus(job) == [("cut", 3)]


# --- what may befall a probe -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize(
    ("status", "exit_code", "park"), [(402, 3, ParkReason.CREDITS), (401, 4, ParkReason.KEY)], ids=str
)
@pytest.mark.parametrize("fallbacks", [(), (SECOND, THIRD)])
async def test_an_account_or_a_key_that_is_refused_parks_after_one_call(
    fallbacks: tuple[str, ...], status: int, exit_code: int, park: ParkReason, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001, faults=(Fault(FaultKind.STATUS, status=status),))) as simulator:
        report = await one_start(make_job(simulator.url, source, repairs=Repairs(fallbacks=fallbacks)))
        assert (report.exit_code, report.parked, report.pending) == (exit_code, park, LONG)
        assert simulator.account.requests == 1


HARMLESS = {
    "throttled": Fault(FaultKind.THROTTLE, first=1, content=PROBE),
    "throttled for long": Fault(FaultKind.THROTTLE, first=1, content=PROBE, model=MODEL, retry_after=0.2),
    "overloaded": Fault(FaultKind.OVERLOAD, first=1),
    "internal error": Fault(FaultKind.STATUS, first=1),
    "a bad request": Fault(FaultKind.STATUS, status=400),
    "reset": Fault(FaultKind.RESET_BEFORE),
    "reset when it was paid": Fault(FaultKind.RESET_DURING),
    "cut": Fault(FaultKind.CUT_BODY),
    "garbled": Fault(FaultKind.BROKEN_JSON),
    "no choices": Fault(FaultKind.NO_CHOICES),
    "no usage": Fault(FaultKind.NO_USAGE),
    "null content": Fault(FaultKind.NULL_CONTENT),
    "hangs": Fault(FaultKind.HANG, charged=False),
}


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize("what", HARMLESS)
async def test_whatever_else_befalls_a_probe_the_run_goes_on(what: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    fault = dataclasses.replace(HARMLESS[what], count=1, content=None, first=None)
    async with Simulator(Settings(latency=0.001, faults=(fault,))) as simulator:
        timeouts = Timeouts(first_byte=0.3)
        job = make_job(simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=()), timeouts=timeouts)
        report = await one_start(job, Hurried())
        assert (report.exit_code, report.answered, report.rejected) == (0, LONG, 0), report.message
        assert report.twice == 0
        hidden = simulator.account.spent - in_books(job)
        assert 0 <= hidden <= report.maybe_twice_nano


@pytest.mark.usefixtures("_long")
async def test_a_probe_that_is_not_answered_holds_the_run_up_for_so_long_only(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.probing.LONGEST_PROBE", 0.05)
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001, faults=(Fault(FaultKind.HANG, count=2),))) as simulator:
        job = make_job(simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=(SECOND,)))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.maybe_twice) == (0, LONG, 2), report.message
        assert 0 < simulator.account.spent - report.spent_nano <= report.maybe_twice_nano


@pytest.mark.usefixtures("_long")
async def test_patience_with_a_stand_in_does_not_begin_at_its_probe(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    faults = (Fault(FaultKind.OVERLOAD, model=SECOND, count=2), Fault(FaultKind.OVERLOAD, model=MODEL, after=100))
    async with Simulator(Settings(latency=0.002, faults=faults)) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=(SECOND, THIRD)),
            limits={"concurrency": 1, "overload_patience": 120.0},
        )  # fmt: skip
        report = await one_start(job, Hurried())
        assert (report.exit_code, report.answered) == (0, LONG), report.message
        assert simulator.account.requests_by_model[THIRD] == 1


@pytest.mark.usefixtures("_long")
async def test_a_reasoning_model_that_says_nothing_can_be_called(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001, faults=(Fault(FaultKind.NULL_CONTENT),))) as simulator:
        job = make_job(simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=(SECOND,)))
        report = await one_start(job)
        assert (report.exit_code, report.answered, simulator.account.requests_by_model[SECOND]) == (0, LONG, 1)
        assert surplus(job) == [("cut", 2)]


@pytest.mark.usefixtures("_long")
async def test_a_budget_without_room_for_a_probe_does_without(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, limits={"max_cost_nano": 500}, repairs=Repairs(fallbacks=(SECOND,)))
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (6, ParkReason.BUDGET)
        assert (simulator.account.requests, simulator.account.spent) == (0, 0)
        assert "Row -1" not in report.message


@pytest.mark.usefixtures("_long")
async def test_a_fallback_too_dear_for_the_budget_is_not_probed_and_keeps_nothing_from_being_sent(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(
            simulator.url, source, asking=asking(), repairs=Repairs(fallbacks=(SECOND,)),
            limits={"max_cost_nano": 10**9}, prices={SECOND: Price(10**9, 10**9)},
        )  # fmt: skip
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, LONG), report.message
        assert simulator.account.requests_by_model[SECOND] == 0


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize("budget", [7_000, 20_000, 100_000, 1_000_000])
async def test_probes_count_against_the_budget(budget: int, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.001)) as simulator:
        repairs = Repairs(fallbacks=(SECOND, THIRD))
        job = make_job(simulator.url, source, limits={"max_cost_nano": budget}, repairs=repairs)
        report = await one_start(job)
        assert (report.exit_code, report.parked) == (6, ParkReason.BUDGET)
        assert 0 < report.spent_nano == simulator.account.spent <= budget


async def test_a_budget_wants_the_price_of_each_fallback_too(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, limits={"max_cost_nano": 10**9}, repairs=Repairs(fallbacks=(UNKNOWN,)))
        with pytest.raises(UsageError, match=f"price of {UNKNOWN} is not known"):
            await one_start(job)
        assert simulator.account.requests == 0


@pytest.mark.usefixtures("_long")
async def test_of_many_models_that_rows_name_the_largest_are_probed(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    names = [f"nobody/knows-{n}" for n in range(12)]
    with source.open("w") as file:
        for n in range(LONG):
            model = names[n % 24] if n % 24 < 12 else MODEL
            messages = [{"role": "user", "content": f"Say {n}"}]
            file.write(json.dumps({"custom_id": f"{n}", "body": {"model": model, "messages": messages}}) + "\n")
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), limits={"max_rejected": "60%"})
        report = await one_start(job)
        assert (report.exit_code, report.answered + report.rejected) == (0, LONG), report.message
        assert probed(simulator) == 1
        only_wrong = msgspec.structs.replace(job, checkpoint=str(tmp_path / "other.db"))
        wrong = [line for line in source.read_text().splitlines() if "nobody/knows" in line]
        source.write_text("\n".join([*wrong, *(line.replace("Say", "Tell") for line in wrong)]))
        simulator.account.requests_by_model.clear()
        report = await one_start(only_wrong)
        # Two of the twelve are not known to be missing before their rows go out.
        assert (report.exit_code, report.parked, report.answered) == (9, ParkReason.HOPELESS, 0)
        assert simulator.account.requests <= 1000


@pytest.mark.usefixtures("_long")
async def test_one_model_of_several_that_cannot_be_called_does_not_park_the_others(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        for n in range(LONG):
            body = {"model": MODEL if n % 5 < 2 else UNKNOWN, "messages": [{"role": "user", "content": f"Say {n}"}]}
            file.write(json.dumps({"custom_id": f"{n}", "body": body}) + "\n")
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), limits={"max_rejected": "60%"})
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.rejections) == (0, LONG * 2 // 5, {"model_missing": 120})


@pytest.mark.usefixtures("_long")
async def test_an_interrupt_while_a_probe_is_on_its_way_ends_in_good_order(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(LONG))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=asking())
        for twice in (False, True):
            simulator.hold()
            run = Run(job, "any-key")
            running = asyncio.create_task(run.go())
            await simulator.requested(simulator.account.requests + 1)
            run.interrupt()
            if twice:
                run.interrupt()
            else:
                simulator.release()
            async with asyncio.timeout(PATIENCE):
                report = await running
            assert (report.exit_code, report.pending) == (130, LONG)
            assert report.maybe_twice == int(twice)
        simulator.release()
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.twice) == (0, LONG, 0)
