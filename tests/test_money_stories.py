"""Whatever befalls a job, the bill never exceeds what the user allowed, and is what the checkpoint says it is.

Every story is made from its seed: rows, prices, limits, lanes, faults, edits, crashes, some starts, and then the end.
The long ones: `pytest -m soak tests/test_money_stories.py`; one: `pytest -m '' tests/test_money_stories.py -k '[17]'`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from money_progress import goes_on
from money_world import DEARER, DISCOUNTED, PLAIN, SMALL, Ending, Row, World, write_rows
from support import MakeJob

from batchrun.clock import RealClock
from batchrun.files.lines import RequestFile
from batchrun.job import Asking, Batching, Job, Limits, Repairs, Timeouts
from batchrun.lanes.collecting import Collector
from batchrun.lanes.quota import LocalQuota
from batchrun.records import Doubt, Price, Route, TooLong
from batchrun.rules.money import Tariff
from batchrun.rules.remote import BatchState, RemoteBatch
from batchrun.simulator import BatchFault, BatchFaultKind, CreditsEnd, Fault, FaultKind, Settings, Simulator
from batchrun.simulator.batch_faults import Call

# A crash leaves a request file open that was being packed; what a killed process held, the system takes back.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

AMPLE = 10**13  # nano-dollars
GRACE = 200.0  # seconds of the job's clock, 0.1 by the simulator's
LATE = 0.2
CODES = {0, 3, 5, 6, 7, 9, 10, 130}
K, B = FaultKind, BatchFaultKind

PAID_AND_BROKEN = [K.RESET_DURING, K.RESET_AFTER, K.CUT_BODY, K.BROKEN_JSON, K.NO_CHOICES, K.BAD_UTF8]
REFUSED = [K.OVERLOAD, K.THROTTLE, K.ERROR_OBJECT, K.RESET_BEFORE]


# --- what befalls it -------------------------------------------------------------------------------------------------


def live_fault(dice: random.Random) -> Fault:
    """What befalls a call, or a line of a batch."""
    often = dice.uniform(0.01, 0.25)
    kinds: list[Callable[[], Fault]] = [
        lambda: Fault(dice.choice(PAID_AND_BROKEN), probability=often),
        lambda: Fault(K.NO_USAGE, probability=often),
        lambda: Fault(dice.choice(REFUSED), probability=often),
        lambda: Fault(K.STATUS, status=dice.choice([500, 503, 429]), probability=often),
        lambda: Fault(K.HANG, probability=often, count=dice.randrange(1, 3)),
        lambda: Fault(K.TOO_LONG, first=1, probability=often),
        lambda: Fault(K.ANSWERED_BY, served_by=DEARER, probability=often),
        lambda: Fault(K.OVERLOAD, model=PLAIN, after=dice.randrange(30), count=dice.randrange(100)),
        lambda: Fault(K.CREDITS_END, after=dice.randrange(60)),
    ]
    return dice.choice(kinds)()


def batch_fault(dice: random.Random, *, late: bool) -> BatchFault:
    """What befalls a batch, or a call about one.

    Where the list shows jobs later than the grace time (`late`), one that the provider begins anew cannot be followed.
    """
    some: dict[str, Any] = {"times": dice.randrange(1, 4)}
    kinds: list[Callable[[], BatchFault]] = [
        lambda: BatchFault(B.CREATE_TIMEOUT, http=dice.choice([None, 500, 504]), **some),
        lambda: BatchFault(B.CREATE_TIMEOUT, **some),
        lambda: BatchFault(B.CREATE_ERROR, http=dice.choice([500, 502]), **some),
        lambda: BatchFault(B.DUPLICATE, **some),
        lambda: BatchFault(B.VANISH, share=dice.choice([0.0, 0.5]), **some),
        lambda: BatchFault(dice.choice([B.EXPIRE, B.FAIL_HALFWAY, B.CANCELLED_BY_SERVER]), share=dice.random(), **some),
        lambda: BatchFault(dice.choice([B.END_WITH_NOTHING, B.OUTPUT_ONLY, B.ERROR_ONLY, B.BOTH]), **some),
        lambda: BatchFault(dice.choice([B.LOSE_LINES, B.REPEAT_LINES, B.GARBAGE_LINE]), share=0.4, **some),
        lambda: BatchFault(B.STUCK, progress=dice.choice([0.0, 50.0]), seconds=dice.choice([0.1, None]), **some),
        lambda: BatchFault(dice.choice([B.DOWNLOAD_CUT, B.BROKEN_PUT, B.LOST_UPLOAD_REPLY]), **some),
        lambda: BatchFault(B.FILE_MISSING, **some),
        lambda: BatchFault(B.CALL_ERROR, call=dice.choice(list(Call)), http=dice.choice([429, 500, 503]), **some),
    ]
    if not late:
        kinds.append(lambda: BatchFault(B.RESTARTED, status=dice.choice([None, "GONE", "EXPIRED"]), **some))
    return dice.choice(kinds)()


def ending(dice: random.Random, *, kills: bool) -> Ending | None:
    """How a start is ended before its time, if it is."""
    if kills and dice.random() < 0.5:
        return Ending("kill", dice.randrange(3, 60))
    how = dice.choice(["", "", "", "crash", "crash", "interrupt", "interrupt at once", "full disk"])
    number = dice.randrange(3, dice.choice([30, 100, 300]))
    return Ending(how, number, "commit" if how == "full disk" else "*") if how else None


def settings(dice: random.Random, seed: int) -> Settings:
    return Settings(
        latency=0.001, sigma=1.0, refusal_latency=0.0, seed=seed, batch_speed=dice.choice([None, 300.0]),
        batch_cancel_seconds=0.02, batch_list_lag=dice.choice([0.0, 0.0, 0.02, LATE]),
        batch_out_of_credits=dice.choice(list(CreditsEnd)),
    )  # fmt: skip


# --- what is asked ---------------------------------------------------------------------------------------------------


class Deal:
    """The terms of one story: what rows look like, by which ways they go, what is done for them."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.tight = dice.random() < 0.6  # what a row costs comes close to what it could cost
        self.models = dice.choice([[PLAIN], [PLAIN, DISCOUNTED], [DISCOUNTED], [PLAIN, SMALL], [SMALL]])
        self.max_tokens = dice.choice([[20], [1, 40], [20, 60], [20, 20, 20, None], [None]])
        self.choices = dice.choice([[1], [4], [1, 8]])
        if self.tight:
            self.models, self.max_tokens, self.choices = dice.choice([[PLAIN], [PLAIN, SMALL]]), [20], [8]
        self.routes = dice.choice([[Route.LIVE], [Route.BATCH], [Route.AUTO], [Route.LIVE, Route.BATCH], list(Route)])
        self.lines = dice.choice([3, 10, 50])
        self.dedupe = dice.random() < 0.2
        self.repairs = Repairs(
            fallbacks=dice.choice([(), (), (DEARER,), (DEARER, DISCOUNTED)]),
            too_long=dice.choice([TooLong.REJECT, TooLong.TRUNCATE, TooLong.SHRINK]),
            length_retries=dice.choice([0, 0, 1, 2]),
        )
        self.concurrency = dice.choice([1, 4, 32])
        self.rows = [self.row() for _ in range(dice.choice([5, 12, 40, 40, 120]))]

    def row(self) -> Row:
        """A row of this story; now and then one that asks what another asks."""
        dice = self.dice
        number = dice.randrange(10**6) if dice.random() < 0.9 else dice.randrange(5)
        model = dice.choice(self.models)
        words = 560 if model == SMALL and dice.random() < 0.3 else dice.choice([0, 0, 30])
        return Row(number, model, dice.choice(self.max_tokens), dice.choice(self.choices), words)

    def bounds(self, row: Row) -> tuple[int, int]:
        """What a row costs, and what it could cost at most, about."""
        into, out = {PLAIN: (50, 200), DISCOUNTED: (1040, 1040), SMALL: (20, 20)}[row.model]
        cost = 40 * into + min(60, row.max_tokens or 60) * row.n * out
        context = 512 if row.model == SMALL else 131_072
        return cost, len(row.line()) * into + (row.max_tokens or context) * row.n * out

    def sensible(self) -> int:
        """A limit that leaves something to decide: a part of what the job costs, or of what it could cost at most."""
        cost, most = (sum(column) for column in zip(*map(self.bounds, self.rows), strict=True))
        share = self.dice.choice([0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 4.0])
        return max(1, round(share * (cost if self.tight else self.dice.choice([cost, most, most]))))

    def job(self, url: str, source: Path, make_job: MakeJob, route: Route, **limits: int | None) -> Job:
        repairs = msgspec.structs.replace(self.repairs, length_retries=0) if route is Route.BATCH else self.repairs
        return make_job(
            url, source, asking=Asking(), route=route, dedupe=self.dedupe, repairs=repairs,
            limits={"concurrency": self.concurrency, "overload_patience": 600.0, **limits},
            batching=Batching(lines=self.lines, poll=20.0, grace=GRACE, patience=2000.0),
            timeouts=Timeouts(connect=5.0, first_byte=0.5, idle=0.5, total=0.5),
        )  # fmt: skip


# --- reduced ---------------------------------------------------------------------------------------------------------


def asking(numbers: range, max_tokens: int = 20) -> list[Row]:
    """Rows whose cost comes close to the most they can cost: eight answers, each cut off at its end."""
    return [Row(number, PLAIN, max_tokens, 8) for number in numbers]


def bound(rows: list[Row]) -> int:
    """What they reserve, about: a byte is a token."""
    return sum(len(row.line()) * 50 + (row.max_tokens or 0) * row.n * 200 for row in rows)


def batched(simulator: Simulator, source: Path, make_job: MakeJob, lines: int = 50, **limits: int) -> Job:
    return make_job(
        simulator.url, source, asking=Asking(), route=Route.BATCH, limits={"concurrency": 8, **limits},
        batching=Batching(lines=lines, poll=20.0, grace=GRACE, patience=2000.0),
    )  # fmt: skip


async def test_a_create_that_goes_out_again_needs_money_for_both_jobs(tmp_path: Path, make_job: MakeJob) -> None:
    rows = asking(range(10))
    lost = BatchFault(B.CREATE_TIMEOUT, times=1)
    async with Simulator(Settings(latency=0.0, batch_list_lag=LATE, batch_faults=(lost,))) as simulator:
        world = World(simulator, tmp_path)
        job = batched(simulator, write_rows(tmp_path / "in.jsonl", rows), make_job, max_cost_nano=bound(rows))
        report = await world.start(job)
        assert report is not None
        assert report.exit_code == 6, report.message
        ample = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, max_cost_nano=AMPLE))
        report = await world.start(ample)
        assert report is not None
        assert (report.exit_code, report.answered) == (0, 10), report.message


async def test_a_create_that_a_later_start_sends_again_is_that_start_s_own(tmp_path: Path, make_job: MakeJob) -> None:
    rows = asking(range(10))
    lost = BatchFault(B.CREATE_TIMEOUT, times=1)
    async with Simulator(Settings(latency=0.0, batch_list_lag=LATE, batch_faults=(lost,))) as simulator:
        world = World(simulator, tmp_path)
        share = bound(rows)
        job = batched(simulator, write_rows(tmp_path / "in.jsonl", rows), make_job, max_cost_run_nano=share)
        await world.start(job, Ending("crash", 1, "create answered"))
        await asyncio.sleep(0.11)
        rows += asking(range(10, 20))
        write_rows(tmp_path / "in.jsonl", rows)
        await world.start(job)
        assert simulator.account.spent <= 2 * share


class _Lines:
    """Of a batch, what its collector asks the checkpoint: the lines that have no outcome."""

    sql = property(lambda self: self)

    async def all(self, _name: str, **_which: int) -> list[tuple[int]]:
        return [(0,), (5,)]


async def test_the_doubt_of_lines_that_are_left_covers_the_dearest_of_them(tmp_path: Path) -> None:
    rows = [Row(number, PLAIN, 100 if number in {0, 5} else 1, 8) for number in range(12)]
    bodies = [json.dumps(json.loads(row.line())["body"]).encode() for row in rows]
    bounds = [len(body) * 50 + (row.max_tokens or 0) * row.n * 200 for body, row in zip(bodies, rows, strict=True)]
    file = RequestFile.create(str(tmp_path), "lines.jsonl")
    for number, body in enumerate(bodies):
        file.add(f"line-{number}", body)
    file.close()
    batch = RemoteBatch(
        1, BatchState.RUNNING, PLAIN, "lines.jsonl", "nonce", 12, 2, 1, b"", sum(bounds), 0.0, None, None, 1, None, ()
    )
    collector: Any = Collector.__new__(Collector)
    collector._store, collector._folder = _Lines(), tmp_path
    collector._quota = LocalQuota(
        Limits(), RealClock(), Tariff({PLAIN: Price(50, 200)}), spent=0, raise_marks=AsyncMock(), note=print
    )
    assert await collector.doubt(batch) == Doubt(bounds[0] + bounds[5], 2)
    (tmp_path / "lines.jsonl").unlink()
    assert await collector.doubt(batch) == Doubt(sum(bounds), 2)


async def test_a_second_job_whose_answers_cannot_be_had_may_have_been_paid(tmp_path: Path, make_job: MakeJob) -> None:
    faults = (BatchFault(B.DUPLICATE, times=1), BatchFault(B.FILE_MISSING, jobs=(2,)))
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        world = World(simulator, tmp_path)
        job = batched(simulator, write_rows(tmp_path / "in.jsonl", asking(range(10))), make_job)
        report = await world.start(job)
        assert report is not None
        assert simulator.account.spent <= report.spent_nano + report.maybe_twice_nano


async def test_a_call_that_looks_whether_credits_are_over_does_not_wait_for_the_money_of_rows_being_packed(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """The first batch is cancelled; its money lets one dear row be packed, and leaves none for the call."""
    rows = [*asking(range(6)), Row(6, PLAIN, 20, 40), *asking(range(7, 12))]
    faults = (BatchFault(B.CANCELLED_BY_SERVER, jobs=(1,), share=0.5),)
    async with Simulator(Settings(latency=0.0, batch_faults=faults)) as simulator:
        world = World(simulator, tmp_path)
        job = batched(simulator, write_rows(tmp_path / "in.jsonl", rows), make_job, max_cost_nano=270_000)
        report = await world.start(job)
        assert report is not None
        assert (report.exit_code, simulator.account.requests) == (6, 1), report.message


async def test_replies_that_gave_way_to_better_ones_count_for_every_later_start(
    tmp_path: Path, make_job: MakeJob
) -> None:
    rows = asking(range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        world = World(simulator, tmp_path)
        job = make_job(
            simulator.url, write_rows(tmp_path / "in.jsonl", rows), asking=Asking(), repairs=Repairs(length_retries=1),
            limits={"concurrency": 1, "max_cost_nano": 500_000},
        )  # fmt: skip
        first, second = await world.start(job), await world.start(job)
        assert first is not None
        assert (first.exit_code, first.answered, first.replaced) == (6, 10, 1), first.message
        assert second is not None
        assert (second.exit_code, second.asked_again) == (6, 0)


def edited(rows: Sequence[Row], dice: random.Random, fresh: Callable[[], Row]) -> list[Row]:
    """The same rows reordered, shortened, appended to, duplicated, or edited."""
    found = [*rows]
    match dice.randrange(5):
        case 0:
            dice.shuffle(found)
        case 1:
            found = found[: max(1, len(found) * 2 // 3)]
        case 2:
            found += [fresh() for _ in range(dice.randrange(1, 15))]
        case 3:
            found += found[: dice.randrange(1, 6)]
        case _:
            found[dice.randrange(len(found))] = fresh()
    return found


# --- the stories -----------------------------------------------------------------------------------------------------


async def story(seed: int, folder: Path, make_job: MakeJob, *, kills: bool = False, nights: bool = False) -> None:
    """Some starts, whatever happens, under a limit that is raised now and then, or each under one of its own (nights).

    Then the same command without faults, for as long as it goes on, and the end of the job.
    """
    dice = random.Random(seed)
    deal = Deal(dice)
    limits: dict[str, int | None] = {"max_cost_nano": deal.sensible()}
    if nights:
        share = limits["max_cost_nano"] or 0
        limits = {"max_cost_run_nano": share, "max_cost_nano": dice.choice([None, round(share * dice.uniform(1, 4))])}
    async with Simulator(settings(dice, seed)) as simulator:
        world = World(simulator, folder)
        for _ in range(dice.randrange(2, 7)):
            source = write_rows(folder / "in.jsonl", deal.rows)
            befall(simulator, dice)
            job = deal.job(simulator.url, source, make_job, dice.choice(deal.routes), **limits)
            report = await world.start(job, ending(dice, kills=kills), detach=dice.random() < 0.4)
            assert report is None or report.exit_code in CODES, report.message
            if dice.random() < 0.4 and not nights:
                limits["max_cost_nano"] = round((limits["max_cost_nano"] or 0) * dice.uniform(1, 2))
            if dice.random() < 0.4:
                deal.rows = edited(deal.rows, dice, deal.row)
        befall(simulator)
        await goes_on(world, job, detach=dice.random() < 0.5)
        await to_the_end(world, deal, make_job, **dict.fromkeys(limits, AMPLE))


async def to_the_end(world: World, deal: Deal, make_job: MakeJob, **limits: int) -> None:
    """Nothing goes wrong any more, and there is money enough: every row is settled, and a last start sends nothing."""
    source = write_rows(world.folder / "in.jsonl", deal.rows)
    job = deal.job(world.simulator.url, source, make_job, deal.dice.choice([deal.routes[0], Route.AUTO]), **limits)
    for _ in range(20):
        report = await world.start(job)
        assert report is not None
        if report.exit_code in {0, 10}:
            break
    world.settled(job, deal.rows)
    await world.sends_nothing(job)


def befall(simulator: Simulator, dice: random.Random | None = None) -> None:
    """What goes wrong from now on; nothing without dice."""
    late = simulator.settings.batch_list_lag == LATE
    simulator.play([live_fault(dice) for _ in range(dice.randrange(3))] if dice else [])
    simulator.play_batches([batch_fault(dice, late=late) for _ in range(dice.randrange(4))] if dice else [])
    if dice is None:
        simulator.top_up(1000)


@pytest.fixture(autouse=True)
def _worth_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discount decides for these few rows as it does for many."""
    monkeypatch.setattr("batchrun.rules.route.WORTH_WAITING", 1000)
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 60.0)


@pytest.mark.parametrize("seed", range(8))
async def test_the_bill_is_never_more_than_allowed_and_is_what_the_checkpoint_says(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await story(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8, 308))
async def test_the_bill_is_never_more_than_allowed_in_300_more_stories(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await story(seed, tmp_path, make_job, kills=seed % 10 == 0)


@pytest.mark.parametrize("seed", range(4))
async def test_no_start_costs_more_than_it_may_commit(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await story(seed, tmp_path, make_job, nights=True)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 154))
async def test_no_start_costs_more_than_it_may_commit_in_150_more_stories(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await story(seed, tmp_path, make_job, nights=True)
