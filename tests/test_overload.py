"""A model that does not answer for a while: another takes its rows, and it takes them back when it answers again."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import PATIENCE, Hurried, assert_sound, batching, diary, one_start
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.clock import RealClock
from batchrun.job import Asking, Job, Limits, Repairs
from batchrun.lanes.quota import LocalQuota
from batchrun.lanes.standins import StandIns
from batchrun.records import Endpoint, ParkReason, Price, Request, Route, TooLong, Trouble
from batchrun.records import Fault as Seen
from batchrun.reports import Report
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Hint
from batchrun.rules.standins import Pick
from batchrun.runner import Options, Run
from batchrun.simulator import Fault, FaultKind, Settings, Simulator, batch_work
from batchrun.simulator.batch_lines import Answered, Failed

SECOND, THIRD = "openai/gpt-oss-120b", "Qwen/Qwen3.5-9B"
DEDICATED, UNKNOWN = "simulator/dedicated-only-70b", "nobody/knows-7b"
LIMITS = {"concurrency": 8, "overload_patience": 120.0}
OVERLOADED = Trouble(Seen.OVERLOADED, 503, "Busy.")
STANDS_IN = (SECOND, f"model {MODEL} -> {SECOND}")


class Started:
    """One start on a hurried clock; afterwards nothing may be in flight or set aside."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.run = Run(job, "any-key", Hurried(), Options())

    async def ends(self) -> Report:
        try:
            async with asyncio.timeout(PATIENCE):
                report = await self.run.go()
        finally:
            assert_sound(self.job)
        quota = self.run._quota
        assert quota is None or (quota.in_flight, quota.reserved) == (0, 0)
        return report


async def ends(job: Job) -> Report:
    return await Started(job).ends()


def told(row: dict[str, Any]) -> tuple[str, str | None]:
    return row["model"].removeprefix("simulated/"), row["repair"]


def finished(simulator: Simulator, job: Job, report: Report, rows: int) -> list[dict[str, Any]]:
    """Every row answered, in order, and paid once."""
    assert (report.exit_code, report.answered, report.maybe_twice) == (0, rows, 0), report.message
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(rows)}
    found = read_rows(job.output or "")
    assert [row["id"] for row in found] == list(range(rows))
    return found


def models(simulator: Simulator) -> list[str]:
    """The models that were paid, in the order of the payments."""
    return [charge.model for charge in simulator.account.charges]


DOWN = {
    "overloaded": {"kind": FaultKind.OVERLOAD},
    "overloaded under 500": {
        "kind": FaultKind.STATUS,
        "status": 500,
        "body": '{"error": {"message": "The engine is currently overloaded"}}',
    },
    "internal error": {"kind": FaultKind.STATUS, "status": 500},
    "bad gateway": {"kind": FaultKind.STATUS, "status": 502, "body": "<html>Bad gateway</html>"},
    "throttled": {"kind": FaultKind.THROTTLE},
    "throttled with Retry-After": {"kind": FaultKind.THROTTLE, "retry_after": 30},
    "broken connections": {"kind": FaultKind.RESET_BEFORE},
    "garbled": {"kind": FaultKind.STATUS, "status": 200, "body": "{}"},
}


def down(how: str, **when: Any) -> Fault:
    return Fault(**{"model": MODEL, **DOWN[how], **when})


@pytest.mark.parametrize("how", DOWN)
async def test_when_it_does_not_answer_from_the_start_the_next_one_takes_all(
    how: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.001, faults=(down(how),))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND, THIRD)))
        report = await ends(job)
        assert (report.exit_code, report.answered, report.rejected) == (0, 60, 0), report.message
        assert {told(row) for row in read_rows(job.output or "")} == {STANDS_IN}
        assert set(models(simulator)) == {SECOND}
        assert len(simulator.account.charges) == 60
        assert f"{MODEL} does not answer" in diary(job)
        assert f"{SECOND} stands in" in diary(job)


async def test_when_it_answers_again_it_takes_its_rows_back(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 5.0)
    source = write_prompts(tmp_path / "in.jsonl", range(600))
    async with Simulator(Settings(latency=0.002, faults=(down("overloaded", after=40),))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        running = asyncio.create_task(ends(job))
        await simulator.reached(answers=150)
        simulator.play([])
        rows = finished(simulator, job, await running, 600)
        paid = models(simulator)
        began = paid.index(SECOND)
        back = paid.index(MODEL, began)
        assert set(paid[:began]) == {MODEL}
        assert paid[-20:] == [MODEL] * 20
        assert back >= 150
        answered = Counter(told(row) for row in rows)
        assert answered == {(MODEL, None): paid.count(MODEL), STANDS_IN: paid.count(SECOND)}
        said = diary(job)
        assert said.count("does not answer") == said.count("answers again and takes its rows back") == 1


async def test_it_may_go_and_come_back_more_than_once(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 5.0)
    source = write_prompts(tmp_path / "in.jsonl", range(1200))
    async with Simulator(Settings(latency=0.002)) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        running = asyncio.create_task(ends(job))
        for turn in range(2):
            await simulator.reached(answers=100 + 500 * turn)
            simulator.play([down("overloaded")])
            await simulator.reached(answers=300 + 500 * turn)
            simulator.play([])
        finished(simulator, job, await running, 1200)
        assert diary(job).count("answers again") == 2


@pytest.mark.parametrize("fallbacks", [(), (UNKNOWN,), (DEDICATED, UNKNOWN)])
async def test_without_another_one_that_can_be_called_the_run_parks_after_patience(
    fallbacks: tuple[str, ...], tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.001, faults=(down("overloaded", after=20),))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=fallbacks))
        report = await ends(job)
        assert (report.exit_code, report.parked, report.rejected) == (5, ParkReason.OVERLOAD, 0), report.message
        simulator.play([])
        finished(simulator, job, await ends(job), 60)


@pytest.mark.parametrize("how", ["overloaded", "internal error", "throttled", "throttled with Retry-After"])
async def test_when_all_are_down_the_run_parks_and_goes_on_later(how: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    everything = Fault(**{**DOWN[how], "after": 10})
    async with Simulator(Settings(latency=0.001, faults=(everything,))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND, THIRD)))
        report = await ends(job)
        assert (report.exit_code, report.parked, report.rejected) == (5, ParkReason.OVERLOAD, 0), report.message
        asked = simulator.account.requests_by_model
        assert asked[SECOND]
        assert asked[THIRD]
        simulator.play([])
        finished(simulator, job, await ends(job), 60)


async def test_a_model_whose_stand_ins_turn_out_to_be_missing_is_asked_until_patience_is_over(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(30))
    async with Simulator(Settings(latency=0.001, faults=(down("overloaded", after=5),))) as simulator:
        limits = {**LIMITS, "concurrency": 1}  # so that every call is a look
        job = make_job(simulator.url, source, limits=limits, repairs=Repairs(fallbacks=(DEDICATED, UNKNOWN)))
        report = await ends(job)
        assert (report.exit_code, report.parked, report.answered) == (5, ParkReason.OVERLOAD, 5)


async def test_a_wait_longer_than_patience_sends_the_rows_elsewhere_at_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    storm = Fault(FaultKind.THROTTLE, model=MODEL, retry_after=7200, after=20)
    async with Simulator(Settings(latency=0.001, faults=(storm,))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        rows = finished(simulator, job, await ends(job), 200)
        assert {told(row) for row in rows} == {(MODEL, None), STANDS_IN}
        assert simulator.account.statuses[429] <= 8


async def test_when_both_ask_for_a_wait_longer_than_patience_the_run_parks(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    storm = Fault(FaultKind.THROTTLE, retry_after=7200, after=20)
    async with Simulator(Settings(latency=0.001, faults=(storm,))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        report = await ends(job)
        assert (report.exit_code, report.parked) == (5, ParkReason.OVERLOAD)
        assert simulator.account.statuses[429] <= 2 * 8


async def test_a_look_that_hangs_holds_up_its_own_row_only(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 5.0)
    source = write_prompts(tmp_path / "in.jsonl", range(300))
    async with Simulator(Settings(latency=0.002, faults=(down("overloaded"),))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        started = Started(job)
        running = asyncio.create_task(started.run.go())
        await simulator.reached(answers=50)
        simulator.play([Fault(FaultKind.HANG, model=MODEL, charged=False)])
        async with asyncio.timeout(PATIENCE):
            await simulator.reached(answers=299)
        assert simulator.account.in_flight == 1
        started.run.interrupt()
        started.run.interrupt()
        assert (await running).pending == 1
        simulator.play([])
        report = await ends(job)
        assert (report.exit_code, report.answered) == (0, 300)
        assert 1 <= report.maybe_twice <= 8
        assert set(paid_for(simulator.account.charges)) == {content(prompt(n)) for n in range(300)}


@pytest.mark.parametrize(
    "says",
    [{"status": 400}, {"status": 422, "body": '{"detail": "no"}'}, {"status": 402, "retry_after": 1}],
    ids=str,
)
async def test_a_look_that_tells_nothing_is_not_the_last_one(
    says: dict[str, Any], tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 5.0)
    source = write_prompts(tmp_path / "in.jsonl", range(600))
    async with Simulator(Settings(latency=0.002, faults=(down("overloaded"),))) as simulator:
        limits = {**LIMITS, "wait_for_credits": True}
        job = make_job(simulator.url, source, limits=limits, repairs=Repairs(fallbacks=(SECOND,)))
        running = asyncio.create_task(ends(job))
        await simulator.reached(answers=50)
        simulator.play([Fault(FaultKind.STATUS, model=MODEL, count=1, **says)])
        report = await running
        assert report.answered + report.rejected == 600
        assert report.rejected == (0 if says["status"] == 402 else 1)
        assert models(simulator)[-1] == MODEL


def write_bodies(path: Path, model: Callable[[int], str], rows: int) -> Path:
    """Rows that name their own models."""
    with path.open("w") as file:
        for n in range(rows):
            body = {"model": model(n), "messages": [{"role": "user", "content": prompt(n)}], "max_tokens": 40}
            file.write(json.dumps({"custom_id": f"row-{n}", "id": n, "body": body}) + "\n")
    return path


async def test_of_several_models_only_the_one_that_is_down_is_stood_in_for(tmp_path: Path, make_job: MakeJob) -> None:
    names = [MODEL, SECOND, THIRD]
    source = write_bodies(tmp_path / "in.jsonl", lambda n: names[n % 3], 90)
    async with Simulator(Settings(latency=0.001, faults=(down("overloaded"),))) as simulator:
        job = make_job(
            simulator.url, source, asking=Asking(), limits=LIMITS, repairs=Repairs(fallbacks=(UNKNOWN, SECOND))
        )
        rows = finished(simulator, job, await ends(job), 90)
        for n, row in enumerate(rows):
            assert told(row) == (STANDS_IN if n % 3 == 0 else (names[n % 3], None))


# --- patience by itself, on a clock that is set by hand --------------------------------------------------------------


class ByHand(RealClock):
    """A clock that stands still until it is set."""

    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


class Patience:
    """A quota with a patience of 120 seconds, told of outcomes one by one."""

    def __init__(self, *fallbacks: str) -> None:
        self.clock = ByHand()
        self.notes: list[str] = []
        self.standins = StandIns(fallbacks, self.clock, lambda _kind, said: self.notes.append(said))
        self.quota = LocalQuota(
            Limits(concurrency=100, overload_patience=120.0), self.clock, Tariff(), spent=0,
            raise_marks=self._raised, note=lambda _kind, _said: None, standins=self.standins,
        )  # fmt: skip

    async def _raised(self, _calls: int, _nano: int) -> None:
        """Nothing is written down here."""

    async def refused(self, at: float, model: str, trouble: Trouble = OVERLOADED, *, look: bool = False) -> None:
        """A call for the model comes back with this, so many seconds after the beginning."""
        lease = await self.quota.lease(Request(0, b"d" * 16, Endpoint.CHAT, model, b"{}", 1, 1))
        assert lease is not None
        if look:
            assert self.standins.pick("a") == Pick(model, look=True)
            self.standins.looking(model)
        self.clock.seconds = 1000.0 + at
        self.quota.report(lease, trouble, Hint())
        self.quota.settle(lease, 0)

    @property
    def takes(self) -> str | None:
        """The model that takes rows asking for `a`; None when the run is parked."""
        found = self.standins.pick("a", looks=False)
        return None if self.quota.parked is not None or found is None else found.model


async def test_looks_that_fail_do_not_park_a_run_whose_stand_in_takes_its_time() -> None:
    patience = Patience("b")
    await patience.refused(0, "a")
    await patience.refused(120, "a")
    assert patience.takes == "b"
    for at in (180, 240, 300, 360, 420):
        patience.clock.seconds = 1000.0 + at
        await patience.refused(at, "a", look=True)
    assert patience.takes == "b"


async def test_when_the_stand_in_turns_out_to_be_missing_looks_that_fail_park_the_run() -> None:
    patience = Patience("b")
    await patience.refused(0, "a")
    await patience.refused(120, "a")
    assert patience.standins.missing("b", "a", "No such model.")
    assert patience.takes == "a"
    for at in (180, 240, 300):
        patience.clock.seconds = 1000.0 + at
        await patience.refused(at, "a", look=True)
    assert patience.takes is None


async def test_a_late_refusal_of_the_one_that_rests_takes_nothing_from_the_patience_with_the_next() -> None:
    patience = Patience("b", "c")
    await patience.refused(0, "a")
    await patience.refused(120, "a")
    await patience.refused(121, "a")  # it was on its way when `a` went to rest
    await patience.refused(140, "b")
    await patience.refused(241, "a")  # so long without an answer, but `b` has had less
    assert patience.takes == "b"
    await patience.refused(260, "b")
    assert patience.takes == "c"
    await patience.refused(270, "c")
    await patience.refused(390, "c")
    assert patience.takes is None


async def test_a_model_rests_for_as_long_as_it_asks_for() -> None:
    patience = Patience("b")
    await patience.refused(0, "a", Trouble(Seen.OVERLOADED, 503, "Busy.", 400.0))
    assert patience.quota.rest("a", "a", Trouble(Seen.OVERLOADED, 503, "Busy.", 400.0))
    patience.clock.seconds = 1000.0 + 399
    assert patience.standins.pick("a") == Pick("b")
    patience.clock.seconds = 1000.0 + 400
    assert patience.standins.pick("a") == Pick("a", look=True)


async def test_a_model_that_is_missing_does_not_come_back_from_a_late_refusal() -> None:
    patience = Patience("b")
    assert patience.standins.missing("a", "a", "No such model.")
    assert patience.quota.rest("a", "a", Trouble(Seen.OVERLOADED, 503, "Busy.", 4000.0))
    patience.clock.seconds += 10_000
    assert patience.standins.pick("a") == Pick("b")
    assert patience.notes == ["a cannot be called (No such model.); b stands in."]


# --- rows that do not fit, and the larger model that takes them ------------------------------------------------------


def write_long(path: Path, rows: int) -> Path:
    """Every third row needs about 700 tokens."""
    with path.open("w") as file:
        for n in range(rows):
            file.write(json.dumps({"id": n, "prompt": prompt(n) + (" more" * 560 if n % 3 == 0 else "")}) + "\n")
    return path


def larger(simulator: Simulator, source: Path, make_job: MakeJob, *fallbacks: str, **fields: Any) -> Job:
    asking = Asking(model="simulator/tiny-512", params={"max_tokens": 40})
    repairs = Repairs(fallbacks=fallbacks, too_long=TooLong.FALLBACK)
    return make_job(simulator.url, source, asking=asking, limits=LIMITS, repairs=repairs, **fields)


async def test_rows_that_only_a_model_that_is_down_can_take_do_not_keep_the_run_from_ending(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_long(tmp_path / "in.jsonl", 60)
    fault = Fault(FaultKind.OVERLOAD, model="simulator/middle-4k")
    async with Simulator(Settings(latency=0.001, faults=(fault,))) as simulator:
        job = larger(simulator, source, make_job, "simulator/middle-4k", "simulator/tiny-512", "LiquidAI/LFM2-24B-A2B")
        no_larger = msgspec.structs.replace(
            job, repairs=Repairs(fallbacks=("simulator/middle-4k", "simulator/small-1k"), too_long=TooLong.FALLBACK)
        )
        report = await ends(no_larger)
        assert (report.exit_code, report.parked, report.answered) == (5, ParkReason.OVERLOAD, 40), report.message
        report = await ends(job)
        assert (report.exit_code, report.answered) == (0, 60), report.message
        large = {told(row)[0] for row in read_rows(job.output or "")[::3]}
        assert large == {"LiquidAI/LFM2-24B-A2B"}


@pytest.mark.parametrize("way", ["live", "batch", "auto"])
async def test_rows_that_do_not_fit_pass_over_a_larger_model_that_cannot_be_called(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_long(tmp_path / "in.jsonl", 60)
    async with Simulator(Settings(latency=0.001)) as simulator:
        route = {
            "live": {"route": Route.LIVE},
            "batch": batching(),
            "auto": {
                **batching(Route.AUTO),
                "discounts": {"simulator/tiny-512": 0.5},
                "prices": {"simulator/tiny-512": Price(100_000_000, 100_000_000)},
            },
        }[way]
        job = larger(simulator, source, make_job, DEDICATED, "simulator/middle-4k", **route)
        report = await ends(job)
        assert (report.exit_code, report.answered) == (0, 60), (report.message, report.rejections)
        rows = read_rows(job.output or "")
        long = {told(row) for row in rows[::3]}
        assert long == {("simulator/middle-4k", "model simulator/tiny-512 -> simulator/middle-4k")}


@pytest.mark.parametrize("way", ["live", "batch"])
async def test_rows_that_fit_no_model_that_can_be_called_are_rejected_as_too_long(
    way: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_long(tmp_path / "in.jsonl", 60)
    async with Simulator(Settings(latency=0.001)) as simulator:
        route = {"live": {"route": Route.LIVE}, "batch": batching()}[way]
        job = larger(simulator, source, make_job, DEDICATED, **route)
        report = await ends(job)
        assert (report.exit_code, report.answered, report.rejections) == (10, 40, {"too_long": 20}), report.message


# --- batches ---------------------------------------------------------------------------------------------------------


def overloading_lines(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Let every line of a batch for this model come back with the words of an overloaded server."""
    answer_line = batch_work.answer_line

    def otherwise(line: bytes, settings: Settings) -> Answered | Failed:
        if model.encode() not in line:
            return answer_line(line, settings)
        custom_id = batch_work.custom_id_of(line)
        error = {"message": "The server is overloaded or not ready yet.", "code": "service_unavailable"}
        return Failed(custom_id, msgspec.json.encode({"custom_id": custom_id, "error": error}) + b"\n")

    monkeypatch.setattr(batch_work, "answer_line", otherwise)


async def test_lines_of_an_overloaded_model_go_live_and_then_to_the_next_one(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    overloading_lines(monkeypatch, MODEL)
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(Settings(latency=0.001, faults=(down("overloaded"),))) as simulator:
        job = make_job(
            simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)), **batching(Route.AUTO)
        )
        rows = finished(simulator, job, await ends(job), 60)
        assert {(row["lane"], *told(row)) for row in rows} == {("live", *STANDS_IN)}
        assert len(simulator.batches.jobs) == 2 * 3


async def test_lines_of_an_overloaded_model_are_given_up_after_three_batches_where_nothing_may_go_live(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    overloading_lines(monkeypatch, MODEL)
    source = write_bodies(tmp_path / "in.jsonl", lambda n: MODEL if n % 10 == 3 else THIRD, 60)
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, asking=Asking(), repairs=Repairs(fallbacks=(SECOND,)), **batching())
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.rejections) == (10, 54, {"server": 6}), report.message


# --- whatever else may happen meanwhile ------------------------------------------------------------------------------


async def test_interrupted_while_another_one_stands_in_it_goes_on_at_the_next_start(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    async with Simulator(Settings(latency=0.002, faults=(down("overloaded"),))) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        started = Started(job)
        running = asyncio.create_task(started.ends())
        await simulator.reached(answers=50)
        started.run.interrupt()
        report = await running
        assert (report.exit_code, report.parked) == (130, ParkReason.INTERRUPTED)
        finished(simulator, job, await ends(job), 200)


async def test_credits_that_end_while_another_one_stands_in_park_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    faults = (down("overloaded"), Fault(FaultKind.CREDITS_END, model=SECOND, after=50))
    async with Simulator(Settings(latency=0.002, faults=faults)) as simulator:
        job = make_job(simulator.url, source, limits=LIMITS, repairs=Repairs(fallbacks=(SECOND,)))
        report = await ends(job)
        assert (report.exit_code, report.parked) == (3, ParkReason.CREDITS)
        assert 50 <= report.answered <= 50 + 8
        simulator.top_up(1)
        finished(simulator, job, await ends(job), 200)


async def test_a_budget_holds_whoever_stands_in(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    async with Simulator(Settings(latency=0.002, faults=(down("overloaded"),))) as simulator:
        limits = {**LIMITS, "max_cost_nano": 2_000_000}
        job = make_job(simulator.url, source, limits=limits, repairs=Repairs(fallbacks=(SECOND,)))
        report = await ends(job)
        assert (report.exit_code, report.parked) == (6, ParkReason.BUDGET)
        assert 0 < simulator.account.spent == report.spent_nano <= 2_000_000


# --- at random -------------------------------------------------------------------------------------------------------

CODES = {0, 3, 5, 9, 10}


def random_fault(dice: random.Random, model: str) -> Fault | None:
    """What befalls one model."""
    window = {"start": dice.uniform(0, 0.1), "seconds": dice.uniform(0.02, 0.3)}
    kinds: list[Callable[[], Fault | None]] = [
        lambda: None,
        lambda: Fault(FaultKind.UNKNOWN_MODEL, model=model),
        lambda: Fault(FaultKind.UNKNOWN_MODEL, model=model, after=dice.randrange(60)),
        lambda: Fault(FaultKind.OVERLOAD, model=model, **window),
        lambda: Fault(FaultKind.OVERLOAD, model=model, after=dice.randrange(60), count=dice.randrange(200)),
        lambda: Fault(FaultKind.OVERLOAD, model=model),
        lambda: Fault(FaultKind.STATUS, status=500, model=model, probability=dice.uniform(0.1, 0.9)),
        lambda: Fault(FaultKind.THROTTLE, model=model, probability=dice.uniform(0.1, 0.9)),
        lambda: Fault(FaultKind.THROTTLE, model=model, retry_after=dice.choice([1, 100, 7200]), **window),
        lambda: Fault(FaultKind.BROKEN_JSON, model=model, probability=dice.uniform(0.05, 0.5)),
        lambda: Fault(FaultKind.RESET_DURING, model=model, probability=dice.uniform(0.05, 0.5)),
        lambda: Fault(FaultKind.RESET_BEFORE, model=model, **window),
        lambda: Fault(FaultKind.ANSWERED_BY, model=model, served_by=THIRD, probability=0.3),
    ]
    return dice.choice(kinds)()


async def story(seed: int, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fallbacks, faults for each model, some starts; whatever happens, it ends, and each row is paid once."""
    dice = random.Random(seed)
    rows = dice.randrange(20, 120)
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", dice.choice([5.0, 60.0, 600.0]))
    names = [MODEL, SECOND, THIRD]
    source = tmp_path / "in.jsonl"
    if own := dice.random() < 0.3:
        write_bodies(source, lambda n: [*names, UNKNOWN][n % dice.choice([3, 4])], rows)
    else:
        write_prompts(source, range(rows))
    first = dice.choice([MODEL, MODEL, UNKNOWN])
    fallbacks = tuple(dice.sample([SECOND, THIRD, UNKNOWN, DEDICATED], 2))
    faults = tuple(fault for model in names if (fault := random_fault(dice, model)) is not None)
    route = dice.choice([Route.LIVE, Route.AUTO, Route.BATCH])
    fields: dict[str, Any] = (
        {"route": Route.LIVE} if route is Route.LIVE else batching(route, lines=dice.choice([7, 50]))
    )
    if dice.random() < 0.3:
        overloading_lines(monkeypatch, dice.choice(names))
    limits = {"concurrency": dice.choice([1, 4, 32]), "overload_patience": dice.choice([30.0, 300.0])}
    settings = Settings(latency=0.001, sigma=1.0, seed=seed, faults=faults)
    async with Simulator(settings) as simulator:
        job = make_job(
            simulator.url, source, limits=limits, repairs=Repairs(fallbacks=fallbacks),
            asking=Asking(model=None if own else first, params={"max_tokens": 40}), **fields,
        )  # fmt: skip
        report = await ends(job)
        assert report.exit_code in CODES, report.message
        holds(simulator, job, report)
        simulator.play([])
        monkeypatch.undo()
        way = Route.LIVE if route is Route.LIVE else Route.AUTO  # rows that three batches lost may go nowhere else
        report = await ends(msgspec.structs.replace(job, repairs=Repairs(fallbacks=(SECOND,)), route=way))
        assert report.exit_code in {0, 10}, report.message
        found = holds(simulator, job, report)
        assert [row["id"] for row in read_rows(job.output or "")] == list(range(rows))
        assert found == report.answered


def holds(simulator: Simulator, job: Job, report: Report) -> int:
    """No row is paid twice but for what the report says may be; how many were answered."""
    paid = paid_for(simulator.account.charges)
    assert sum(paid.values()) - len(paid) <= report.maybe_twice + report.twice
    assert report.answered <= len(paid)  # what batches have answered may not be collected yet
    assert report.twice == 0
    assert report.spent_nano <= simulator.account.spent or job.prices or job.discounts
    return report.answered


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_befalls_the_models_every_row_is_paid_once(
    seed: int, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    await story(seed, tmp_path, make_job, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 630))
async def test_whatever_befalls_the_models_in_600_more_stories(
    seed: int, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    await story(seed, tmp_path, make_job, monkeypatch)
