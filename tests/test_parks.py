"""Every park stops cleanly with everything kept, and the same job goes on."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MakeJob, content, paid_for, prompt, start, write_prompts

from batchrun import door
from batchrun.clock import RealClock
from batchrun.errors import StorageError, UsageError
from batchrun.job import Asking, Limits
from batchrun.lanes.quota import LocalQuota
from batchrun.output import cells
from batchrun.records import Endpoint, Outcome, ParkReason, Price, Request
from batchrun.rules import money
from batchrun.runner import Run
from batchrun.simulator import Fault, FaultKind, Settings, Simulator
from batchrun.store.view import View

MODEL = "openai/gpt-oss-20b"


class Hurried(RealClock):
    """A clock on which a minute passes in a tenth of a second: waits keep their order and their proportions."""

    SPEED = 600.0

    def monotonic(self) -> float:
        return super().monotonic() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.SPEED)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await super().wait(event, seconds / self.SPEED)


async def test_waiting_for_credits_probes_with_one_call_and_goes_on_after_the_top_up(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    async with Simulator(Settings(latency=0.002, faults=(Fault(FaultKind.CREDITS_END, after=60),))) as simulator:
        job = make_job(simulator.url, source, limits={"wait_for_credits": True, "concurrency": 8})
        running = asyncio.create_task(Run(job, "any-key", clock=Hurried()).go())
        await simulator.reached(answers=60)
        arrived = simulator.account.requests
        await simulator.requested(arrived + 8 + 3)
        assert simulator.account.after_first_402 <= 8 + 3
        simulator.top_up(5)
        report = await running
        assert (report.exit_code, report.answered, report.rejected) == (0, 200, 0)
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(200)}


async def test_a_402_with_retry_after_is_probed_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    passing = Fault(FaultKind.STATUS, status=402, retry_after=20, after=30, count=1)
    async with Simulator(Settings(latency=0.002, faults=(passing,))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 1})
        report = await Run(job, "any-key", clock=Hurried()).go()
        assert (report.exit_code, report.answered, report.rejected) == (0, 100, 0)
    lasting = Fault(FaultKind.STATUS, status=402, retry_after=20, after=30)
    async with Simulator(Settings(latency=0.002, faults=(lasting,))) as simulator:
        fresh = {"base_url": simulator.url, "checkpoint": str(tmp_path / "other.db")}
        report = await Run(msgspec.structs.replace(job, **fresh), "any-key", clock=Hurried()).go()
        assert (report.exit_code, report.parked, report.answered) == (3, ParkReason.CREDITS, 30)
        assert simulator.account.statuses[402] == 2


async def test_refusals_without_an_answer_park_after_patience(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.002, faults=(Fault(FaultKind.OVERLOAD, after=20),))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8, "overload_patience": 300.0})
        report = await Run(job, "any-key", clock=Hurried()).go()
        assert (report.exit_code, report.parked, report.rejected) == (5, ParkReason.OVERLOAD, 0)
        assert report.answered == len(simulator.account.charges) == 20
        simulator.play([])
        assert (await start(job)).answered == 100


async def test_an_overload_shorter_than_patience_is_waited_out(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    overload = Fault(FaultKind.OVERLOAD, after=20, count=40)
    async with Simulator(Settings(latency=0.002, faults=(overload,))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        report = await Run(job, "any-key", clock=Hurried()).go()
        assert (report.exit_code, report.answered) == (0, 100)


async def test_a_retry_after_longer_than_patience_parks_at_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    throttle = Fault(FaultKind.THROTTLE, retry_after=7200, after=20)
    async with Simulator(Settings(latency=0.002, faults=(throttle,))) as simulator:
        report = await start(make_job(simulator.url, source, limits={"concurrency": 4}))
        assert (report.exit_code, report.parked, report.rejected) == (5, ParkReason.OVERLOAD, 0)
        assert simulator.account.statuses[429] <= 4


async def test_a_row_that_fails_by_itself_is_given_up_while_others_are_answered(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    poison = Fault(FaultKind.STATUS, status=500, content=prompt(7))
    async with Simulator(Settings(latency=0.002, faults=(poison,))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        report = await Run(job, "any-key", clock=Hurried()).go()
        assert (report.exit_code, report.answered, report.rejections) == (10, 59, {"server": 1})
        assert simulator.account.statuses[500] == 5


async def test_the_first_interrupt_drains_and_keeps_and_the_second_ends_at_once(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        simulator.hold()
        run = Run(job, "any-key")
        running = asyncio.create_task(run.go())
        await simulator.requested(8)
        run.interrupt()
        simulator.release()
        report = await running
        assert (report.exit_code, report.answered, report.maybe_twice) == (130, 8, 0)
        assert len(simulator.account.charges) == 8

        simulator.hold()
        arrived = simulator.account.requests
        run = Run(job, "any-key")
        running = asyncio.create_task(run.go())
        await simulator.requested(arrived + 8)
        run.interrupt(143)
        run.interrupt(143)
        report = await running
        assert (report.exit_code, report.answered, report.maybe_twice) == (143, 8, 8)
        simulator.release()
        report = await start(job)
        assert (report.exit_code, report.answered) == (0, 100)
        assert sum(paid_for(simulator.account.charges).values()) - 100 <= report.maybe_twice == 8


async def test_a_full_disk_ends_the_run_with_everything_counted_kept(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(300))
    commits = 0

    def full_at_the_sixth(step: str) -> None:
        nonlocal commits
        commits += step == "commit"
        if step == "commit" and commits > 6:
            raise sqlite3.OperationalError("database or disk is full")

    async with Simulator(Settings(latency=0.005)) as simulator:
        job = make_job(simulator.url, source)
        door.watch(full_at_the_sixth)
        with pytest.raises(StorageError, match="disk is full") as caught:
            await start(job)
        assert caught.value.exit_code == 11
        door.watch(None)
        report = await start(job)
        assert (report.exit_code, report.answered) == (0, 300)
        assert sum(paid_for(simulator.account.charges).values()) - 300 <= report.maybe_twice <= 32


async def test_the_budget_parks_and_a_raised_one_goes_on(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    limit = money.nano(0.0005)
    async with Simulator(Settings(latency=0.002)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8, "max_cost_nano": limit})
        report = await start(job)
        assert (report.exit_code, report.parked, report.rejected) == (6, ParkReason.BUDGET, 0)
        assert 0 < report.spent_nano == simulator.account.spent <= limit
        again = await start(job)
        assert (again.exit_code, again.answered_now) == (6, 0)
        raised = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, max_cost_nano=money.nano(1)))
        report = await start(raised)
        assert (report.exit_code, report.answered) == (0, 200)


async def test_a_budget_needs_prices_and_an_upper_bound(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        limits = {"max_cost_nano": money.nano(1)}
        unknown = make_job(
            simulator.url, source, limits=limits, asking=Asking(model="who/knows", params={"max_tokens": 9})
        )
        with pytest.raises(UsageError, match="price of who/knows is not known"):
            await start(unknown)
        endless = make_job(
            simulator.url, source, limits=limits, asking=Asking(model="who/knows"), prices={"who/knows": Price(1, 1)}
        )
        with pytest.raises(UsageError, match="context length is not known"):
            await start(endless)
        assert not simulator.account.charges


class Crash(BaseException):
    """What a killed process would have been, inside a test."""


async def budget_story(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    """Some starts of one job under one budget, with faults and crashes; the bill never exceeds it."""
    dice = random.Random(seed)
    source = write_prompts(tmp_path / "in.jsonl", range(dice.randrange(20, 80)))
    kinds = [
        FaultKind.RESET_DURING, FaultKind.RESET_AFTER, FaultKind.CUT_BODY, FaultKind.BROKEN_JSON, FaultKind.NO_USAGE,
        FaultKind.NO_CHOICES, FaultKind.STATUS, FaultKind.THROTTLE,
    ]  # fmt: skip
    faults = tuple(Fault(dice.choice(kinds), probability=dice.uniform(0, 0.15)) for _ in range(dice.randrange(4)))
    settings = Settings(latency=0.001, sigma=1.0, seed=seed, faults=faults, cached_share=dice.choice([0.0, 0.5]))
    async with Simulator(settings) as simulator:
        limit = money.nano(dice.uniform(0.0001, 0.01))
        params = {"max_tokens": dice.choice([1, 20, 100, 400]), "n": dice.choice([1, 1, 3])}
        asking = Asking(model=dice.choice([MODEL, "deepseek-ai/DeepSeek-V4-Pro"]), params=params)
        limits = {"concurrency": dice.choice([1, 4, 32]), "max_cost_nano": limit}
        job = make_job(simulator.url, source, limits=limits, asking=asking)
        for _ in range(dice.randrange(1, 5)):
            door.watch(crash_at(dice.randrange(5, 150)) if dice.random() < 0.5 else None)
            try:
                report = await Run(job, "any-key", clock=Hurried()).go()
            except Crash:
                continue
            finally:
                door.watch(None)
            assert simulator.account.spent <= limit
            assert report.spent_nano <= simulator.account.spent <= report.spent_nano + report.maybe_twice_nano
        assert simulator.account.spent <= limit
        with View(job.checkpoint) as view:
            assert view.kept().replies <= simulator.account.answers


def crash_at(number: int) -> door.Watcher:
    left = number

    def watch(_step: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    return watch


@pytest.mark.parametrize("seed", range(20))
async def test_the_bill_never_exceeds_the_budget(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await budget_story(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20, 320))
async def test_the_bill_never_exceeds_the_budget_in_300_more_stories(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await budget_story(seed, tmp_path, make_job)


async def test_a_third_interrupt_takes_nothing_from_the_bound(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        simulator.hold()
        run = Run(job, "any-key")
        running = asyncio.create_task(run.go())
        await simulator.requested(8)
        run.interrupt()
        run.interrupt()
        await asyncio.sleep(0)
        run.interrupt()
        report = await running
        run.interrupt()
        assert (report.exit_code, report.maybe_twice) == (130, 8)
        with View(job.checkpoint) as view:
            assert view.hidden().calls == 8


async def test_an_interrupt_while_the_output_is_written_parks_and_costs_nothing(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        run = Run(job, "any-key")

        def interrupting(outcome: Outcome, **kind: bool) -> dict[str, Any]:
            run.interrupted = True
            return cells(outcome, **kind)

        with monkeypatch.context() as patched:
            patched.setattr("batchrun.output.cells", interrupting)
            report = await run.go()
        assert (report.exit_code, report.pending, report.maybe_twice, report.written) == (130, 0, 0, False)
        assert not (tmp_path / "out.jsonl").exists()
        report = await start(job)
        assert (report.exit_code, report.maybe_twice, report.written) == (0, 0, True)


async def test_interrupts_while_the_checkpoint_is_opened_end_in_good_order(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        run = Run(make_job(simulator.url, source), "any-key")
        running = asyncio.create_task(run.go())
        await asyncio.sleep(0)
        run.interrupt()
        run.interrupt()
        report = await running
        assert (report.exit_code, report.maybe_twice, simulator.account.requests) == (130, 0, 0)


async def test_interrupts_before_anything_is_sent_end_at_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    asked = asyncio.Event()

    async def never_answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    run = Run(make_job(f"http://127.0.0.1:{port}", source), "any-key")
    running = asyncio.create_task(run.go())
    await asked.wait()
    run.interrupt()
    run.interrupt()
    report = await running
    assert (report.exit_code, report.pending, report.maybe_twice) == (130, 10, 0)
    server.close()


async def test_an_interrupt_weighs_more_than_the_park_it_meets(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(Settings(latency=0.0, faults=(Fault(FaultKind.CREDITS_END, after=0),))) as simulator:
        run = Run(make_job(simulator.url, source, limits={"concurrency": 1}), "any-key")
        running = asyncio.create_task(run.go())
        await simulator.requested(1)
        run.interrupt()
        assert (await running).exit_code == 130


async def test_all_slots_fill_without_waiting_for_an_answer_once_any_row_was_answered(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 512})
        assert (await start(job)).answered == 10
        write_prompts(source, range(610))
        simulator.hold()
        running = asyncio.create_task(start(job))
        await simulator.requested(10 + 512)
        simulator.release()
        assert (await running).answered == 610


async def test_before_any_row_is_answered_only_forty_calls_find_out_whether_the_job_is_wrong(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(600))
    wrong = Fault(FaultKind.STATUS, status=400)
    async with Simulator(Settings(latency=0.0, faults=(wrong,))) as simulator:
        report = await start(make_job(simulator.url, source, limits={"concurrency": 512}))
        assert (report.exit_code, report.parked, report.pending) == (9, ParkReason.HOPELESS, 600)
        assert simulator.account.requests <= 2 * 40


async def test_sorted_rows_that_are_rejected_first_can_be_allowed(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(300))
    poison = Fault(FaultKind.STATUS, status=400, after=0, count=60)
    async with Simulator(Settings(latency=0.0, faults=(poison,))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 1})
        assert (await start(job)).parked is ParkReason.HOPELESS
        simulator.play([poison])
        allowing = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, max_rejected="25%"))
        report = await start(allowing)
        assert (report.exit_code, report.answered, report.rejected) == (0, 240, 60)


async def test_earlier_answers_without_a_price_count_against_a_budget(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(50))

    async def no_list(_client: object) -> None:
        return None

    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        with monkeypatch.context() as patched:
            patched.setattr("batchrun.api.client.Client.models", no_list)
            patched.setattr("batchrun.data.tariff", money.Tariff)
            report = await start(job)
            assert (report.unpriced, report.spent_nano) == (50, 0)
            write_prompts(source, range(60))
            limits = msgspec.structs.replace(job.limits, max_cost_nano=simulator.account.spent)
            with pytest.raises(UsageError, match="price"):
                await start(msgspec.structs.replace(job, limits=limits))
        report = await start(msgspec.structs.replace(job, limits=limits))
        assert (report.exit_code, report.parked, report.answered_now) == (6, ParkReason.BUDGET, 0)


async def test_the_mark_of_a_dear_model_is_not_lowered_by_a_cheap_one() -> None:
    committed: list[tuple[int, int]] = []
    first_is_slow = asyncio.Event()

    async def raise_marks(calls: int, nano: int) -> None:
        if not committed:
            committed.append((calls, nano))
            await first_is_slow.wait()
        else:
            committed.append((calls, nano))
            first_is_slow.set()

    def request(model: str) -> Request:
        return Request(0, b"d" * 16, Endpoint.CHAT, model, b"x" * 10, 10, 1)

    tariff = money.Tariff({"dear": Price(1000, 1000), "cheap": Price(1, 1)})
    quota = LocalQuota(
        Limits(concurrency=8), RealClock(), tariff, spent=0, raise_marks=raise_marks, note=lambda _kind, _text: None
    )
    await asyncio.gather(quota.lease(request("dear")), quota.lease(request("cheap")))
    assert max(nano for _, nano in committed) >= quota.reserved == 20_020
