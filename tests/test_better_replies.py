"""Answers that were cut off or do not fit the schema are asked for again, and the better reply is kept."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import assert_sound, batching, looking_into, one_start, rows_by_state
from msgspec.structs import replace
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun import output
from batchrun.errors import UsageError
from batchrun.faces import closing, errors, plan, status
from batchrun.files.source import discover
from batchrun.job import Asking, Job, Limits, Repairs
from batchrun.records import ParkReason, Route, TooLong
from batchrun.reports import Report
from batchrun.rules.repair import MARGIN
from batchrun.rules.route import Plan
from batchrun.runner import Run
from batchrun.simulator import Charge, Fault, FaultKind, Settings, Simulator
from batchrun.store.store import FOR_GOOD
from batchrun.store.view import View

ROWS = 12
FEW = 6  # tokens; the simulator's shortest answers have more
CUT = "cut_short"
QUICK = Settings(latency=0.0)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

NO_CREDITS = Fault(FaultKind.STATUS, status=402)


def again(length: int = 0, invalid: int = 0) -> Repairs:
    return Repairs(length_retries=length, invalid_retries=invalid)


def asking(tokens: int | None = FEW, schema: Mapping[str, Any] | None = None, **params: Any) -> Asking:
    limit = {} if tokens is None else {"max_tokens": tokens}
    return Asking(model=MODEL, params={**limit, **params}, schema=schema)


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The output as `export` would write it just now."""
    with View(job.checkpoint) as view:
        return [cells for _, cells in output.join(view, discover(job.inputs), shared=job.dedupe)]


def paid(job: Job) -> list[dict[str, Any]]:
    names = "id, digest, fault, retries, surplus, coalesce(cost_nano, 0), completion_tokens, repair"
    with looking_into(job) as sql:
        return [
            dict(zip(("id", "digest", "fault", "retries", "surplus", "cost", "tokens", "repair"), row, strict=True))
            for row in sql.execute(f"select {names} from paid order by id")
        ]


def surplus(job: Job) -> Counter[str]:
    return Counter(reply["surplus"] for reply in paid(job) if reply["surplus"] is not None)


def assert_paid(job: Job, charges: Iterable[Charge], report: Report) -> None:
    """Nothing broke: what was charged is what is kept, to the nano-dollar, as answers and as surplus."""
    assert sum(charge.nano for charge in charges) == sum(reply["cost"] for reply in paid(job)) == report.spent_nano
    assert len(list(charges)) == len(paid(job))
    assert (report.maybe_twice, report.twice) == (0, 0)
    assert_sound(job)


# --- cut off ---------------------------------------------------------------------------------------------------------


async def test_a_cut_answer_is_kept_with_its_mark_when_nothing_is_said(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0)
        assert {(row["state"], row["fault"], row["finish_reason"]) for row in read_rows(job.output or "")} == {
            ("answered", CUT, "length")
        }
        assert_paid(job, simulator.account.charges, report)


@pytest.mark.parametrize(("retries", "limits"), [(1, [24]), (3, [24, 96, 384])])
async def test_a_cut_answer_is_asked_again_with_four_times_the_tokens(
    retries: int, limits: list[int], tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(40))
        job = make_job(simulator.url, source, asking=asking(), repairs=again(retries))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.answered_now, report.again) == (0, 40, 40, 0)
        rows = read_rows(job.output or "")
        asked = Counter()
        for row in rows:
            times = row["attempts"] - 1
            asked[times] += 1
            assert row["repair"] == f"max_tokens {FEW} -> {limits[times - 1]}"
            good = row["finish_reason"] == "stop"
            assert row["fault"] == (None if good else CUT)
            assert good or times == retries, "it was given up too early"
            assert row["completion_tokens"] <= limits[times - 1]
        assert set(asked) == set(range(1, retries + 1)) if retries == 1 else set(asked) >= {1, 2}
        assert surplus(job) == {"cut": sum(times * n for times, n in asked.items())}
        assert_paid(job, simulator.account.charges, report)
        before, requests = Path(job.output or "").read_bytes(), simulator.account.requests
        last = await one_start(job)
        assert (last.exit_code, last.written, simulator.account.requests) == (0, False, requests)
        assert Path(job.output or "").read_bytes() == before


async def test_what_was_cut_at_the_end_of_the_context_is_kept_as_it_is(tmp_path: Path, make_job: MakeJob) -> None:
    model = "simulator/tiny-512"
    long = "word " * 380  # about 479 tokens: 33 are left for an answer
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": n, "prompt": f"{n} {long}"}) + "\n" for n in range(30)))
    async with Simulator(QUICK) as simulator:
        asked = Asking(model=model, params={"max_tokens": FEW})
        job = make_job(simulator.url, source, asking=asked, repairs=again(5))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.rejected) == (0, 30, 0)
        kept = [row for row in read_rows(job.output or "") if row["fault"] == CUT]
        assert kept
        for row in kept:
            assert row["prompt_tokens"] + row["completion_tokens"] == 512 - MARGIN
        requests = simulator.account.requests
        last = await one_start(job)
        assert (last.exit_code, last.again, simulator.account.requests) == (0, 0, requests)
        assert_paid(job, simulator.account.charges, last)


async def test_of_several_choices_the_context_cut_one_and_later_starts_do_not_ask_again(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """The tokens of all choices together do not tell that one of them met the limit: that is written down."""
    long = "word " * 380
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": n, "prompt": f"{n} {long}"}) + "\n" for n in range(30)))
    async with Simulator(QUICK) as simulator:
        asked = Asking(model="simulator/tiny-512", params={"max_tokens": 20, "n": 3})
        job = make_job(simulator.url, source, asking=asked, repairs=again(5))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, 30, 0)
        assert {reply["retries"] for reply in paid(job) if reply["fault"] == CUT and not reply["surplus"]} == {FOR_GOOD}
        requests, before = simulator.account.requests, Path(job.output or "").read_bytes()
        last = await one_start(job)
        assert (last.exit_code, last.written, simulator.account.requests) == (0, False, requests)
        assert Path(job.output or "").read_bytes() == before
        assert_paid(job, simulator.account.charges, last)


async def test_without_max_tokens_an_answer_is_cut_by_the_context_alone_and_kept(
    tmp_path: Path, make_job: MakeJob
) -> None:
    model = "simulator/tiny-512"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": n, "prompt": f"{n} " + "word " * 385}) + "\n" for n in range(30)))
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, source, asking=Asking(model=model), repairs=again(2))
        report = await one_start(job)
        marks = Counter(row["fault"] for row in read_rows(job.output or ""))
        assert marks[CUT] > 0
        assert (report.exit_code, simulator.account.requests_by_model[model]) == (0, 30)
        assert not surplus(job)
        requests = simulator.account.requests
        last = await one_start(job)
        assert (last.exit_code, last.again, simulator.account.requests) == (0, 0, requests)


REFUSALS = [
    Fault(FaultKind.TOO_LONG, after=ROWS, context=20),
    Fault(FaultKind.TOO_LONG, after=ROWS, status=422),
    Fault(FaultKind.STATUS, after=ROWS, status=400),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda fault: f"{fault.kind.value}-{fault.status}")
async def test_a_row_whose_second_request_is_refused_keeps_its_first_answer(
    refusal: Fault, tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(replace_faults(refusal)) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = make_job(simulator.url, source, asking=asking())
        await one_start(job)
        report = await one_start(replace(job, repairs=again(2)))
        assert (report.exit_code, report.answered, report.rejected, report.again) == (0, ROWS, 0, 0)
        assert {row["fault"] for row in read_rows(job.output or "")} == {CUT}
        assert_paid(job, simulator.account.charges, report)
        requests = simulator.account.requests
        last = await one_start(replace(job, repairs=again(2)))
        assert (last.exit_code, simulator.account.requests) == (0, requests)


def replace_faults(*faults: Fault) -> Settings:
    return Settings(latency=0.0, faults=faults)


# --- between the first reply and the second --------------------------------------------------------------------------


async def parked(job: Job, report: Report, reason: ParkReason, code: int) -> None:
    assert (report.parked, report.exit_code) == (reason, code), report.message
    assert report.again + report.pending > 0
    assert_sound(job)
    assert {row["state"] for row in rows_of(job)} <= {"answered", "pending"}


async def finished(job: Job, simulator: Simulator, rows: int = ROWS) -> Report:
    """The next start goes on with what was wanted, and the one after it does nothing."""
    report = await one_start(job)
    assert (report.exit_code, report.answered, report.again, report.parked) == (0, rows, 0, None), report.message
    assert job.output is not None
    assert {row["state"] for row in read_rows(job.output)} == {"answered"}
    requests, before = simulator.account.requests, Path(job.output).read_bytes()
    last = await one_start(job)
    assert (last.exit_code, simulator.account.requests) == (0, requests)
    assert Path(job.output).read_bytes() == before
    return report


async def test_credits_that_end_before_the_better_reply_park_and_the_next_start_goes_on(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        await one_start(job)
        simulator.play([NO_CREDITS])
        job = replace(job, repairs=again(2))
        before = rows_of(job)
        report = await one_start(job)
        await parked(job, report, ParkReason.CREDITS, 3)
        assert (report.answered, report.again, report.pending) == (ROWS, ROWS, 0)
        assert rows_of(job) == before
        simulator.play([])
        report = await finished(job, simulator)
        assert sum(charge.nano for charge in simulator.account.charges) == report.spent_nano
        assert not {row["finish_reason"] for row in rows_of(job)} - {"stop", "length"}


async def test_a_budget_that_does_not_cover_the_better_reply_parks_with_what_there_is(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        first = await one_start(job)
        job = replace(job, repairs=again(2), limits=Limits(concurrency=32, max_cost_nano=first.spent_nano + 10))
        report = await one_start(job)
        await parked(job, report, ParkReason.BUDGET, 6)
        assert (report.again, report.spent_nano) == (ROWS, first.spent_nano)
        await finished(replace(job, limits=Limits(concurrency=32)), simulator)


async def test_an_interrupt_between_the_two_replies_keeps_the_first(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(Settings(latency=0.02)) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(40))
        job = make_job(simulator.url, source, asking=asking(), repairs=again(3), limits={"concurrency": 8})
        run = Run(job, "any-key")
        going = asyncio.create_task(run.go())
        await simulator.reached(answers=50)
        run.interrupt()
        report = await going
        await parked(job, report, ParkReason.INTERRUPTED, 130)
        assert report.again > 0
        await finished(job, simulator, 40)
        assert set(paid_for(simulator.account.charges).values()) <= {1, 2, 3, 4}
        assert len(simulator.account.charges) == len(paid(job))


async def test_an_overload_before_the_better_reply_parks(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        await one_start(job)
        simulator.play([Fault(FaultKind.STATUS, status=503)])
        job = replace(job, repairs=again(1), limits=Limits(concurrency=32, overload_patience=0.3))
        report = await one_start(job)
        await parked(job, report, ParkReason.OVERLOAD, 5)
        simulator.play([])
        await finished(job, simulator)


async def test_a_deadline_that_has_passed_leaves_the_answers_as_they_are(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        await one_start(job)
        job = replace(job, repairs=again(1), limits=Limits(concurrency=32, deadline=1.0))
        report = await one_start(job)
        await parked(job, report, ParkReason.DEADLINE, 6)
        assert report.again == ROWS
        await finished(replace(job, limits=Limits(concurrency=32)), simulator)


async def test_who_wants_no_better_answers_any_more_is_done(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        first = await one_start(job)
        simulator.play([NO_CREDITS])
        assert (await one_start(replace(job, repairs=again(1)))).exit_code == 3
        report = await one_start(job)
        assert (report.exit_code, report.again, report.spent_nano) == (0, 0, first.spent_nano)


async def test_over_a_finished_job_only_marked_rows_are_asked_again(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(40)), asking=asking(30))
        first = await one_start(job)
        rows = read_rows(job.output or "")
        cut = {row["id"] for row in rows if row["fault"] == CUT}
        assert 0 < len(cut) < 40
        report = await one_start(replace(job, repairs=again(5)))
        assert (report.exit_code, report.written, report.answered_now) == (0, True, 0)
        now = read_rows(job.output or "")
        assert [row for row in now if row["id"] not in cut] == [row for row in rows if row["id"] not in cut]
        assert {row["fault"] for row in now} == {None}
        paid_more = paid_for(simulator.account.charges) - Counter(content(prompt(n)) for n in range(40))
        assert set(paid_more) == {content(prompt(n)) for n in cut}
        assert report.spent_now_nano == report.spent_nano - first.spent_nano
        assert_paid(job, simulator.account.charges, report)


# --- answers against a schema ----------------------------------------------------------------------------------------

BAD = [FaultKind.NOT_JSON, FaultKind.MISFIT]


def schemed(simulator: Simulator, source: Path, make_job: MakeJob, repairs: Repairs, **params: Any) -> Job:
    return make_job(simulator.url, source, asking=asking(400, SCHEMA, **params), repairs=repairs)


@pytest.mark.parametrize("kind", BAD)
async def test_an_answer_that_does_not_fit_is_marked_and_not_parsed(
    kind: FaultKind, tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(replace_faults(Fault(kind, every=3))) as simulator:
        job = schemed(simulator, write_prompts(tmp_path / "in.jsonl", range(ROWS)), make_job, again())
        report = await one_start(job)
        rows = read_rows(job.output or "")
        assert (report.exit_code, report.again) == (0, 0)
        assert Counter(row["fault"] for row in rows) == {None: ROWS - ROWS // 3, "invalid_output": ROWS // 3}
        for row in rows:
            assert (row["parsed"] is None) == (row["fault"] is not None)
            assert row["parsed"] is None or json.loads(row["parsed"]).keys() == {"name", "age"}
        assert_paid(job, simulator.account.charges, report)


async def test_a_fenced_answer_fits_and_is_not_asked_again(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(replace_faults(Fault(FaultKind.FENCED))) as simulator:
        job = schemed(simulator, write_prompts(tmp_path / "in.jsonl", range(ROWS)), make_job, again(invalid=2))
        assert (await one_start(job)).exit_code == 0
        rows = read_rows(job.output or "")
        assert {row["fault"] for row in rows} == {None}
        assert all(json.loads(row["parsed"]) and row["answer"].startswith("```json") for row in rows)
        assert len(simulator.account.charges) == ROWS


@pytest.mark.parametrize("kind", BAD)
async def test_a_retry_that_fits_takes_the_place_of_what_did_not(
    kind: FaultKind, tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(replace_faults(Fault(kind, first=1))) as simulator:
        job = schemed(simulator, write_prompts(tmp_path / "in.jsonl", range(ROWS)), make_job, again(invalid=1))
        report = await one_start(job)
        rows = read_rows(job.output or "")
        assert {(row["fault"], row["repair"], row["attempts"]) for row in rows} == {(None, None, 2)}
        assert all(row["parsed"] is not None for row in rows)
        assert surplus(job) == {"invalid": ROWS}
        assert set(paid_for(simulator.account.charges).values()) == {2}
        assert_paid(job, simulator.account.charges, report)


async def test_answers_that_never_fit_are_marked_paid_and_come_to_an_end(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(replace_faults(Fault(FaultKind.NOT_JSON))) as simulator:
        job = schemed(simulator, write_prompts(tmp_path / "in.jsonl", range(ROWS)), make_job, again(invalid=2))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0)
        assert {row["fault"] for row in read_rows(job.output or "")} == {"invalid_output"}
        assert set(paid_for(simulator.account.charges).values()) == {3}
        assert surplus(job) == {"invalid": 2 * ROWS}
        assert_paid(job, simulator.account.charges, report)
        await finished(job, simulator)
        assert len(simulator.account.charges) == 3 * ROWS


async def test_a_fixed_seed_moves_on_with_each_retry_also_in_a_later_start(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(replace_faults(Fault(FaultKind.MISFIT))) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = schemed(simulator, source, make_job, again(invalid=1), seed=7)
        await one_start(job)
        assert {row["repair"] for row in read_rows(job.output or "")} == {"seed 8"}
        await one_start(replace(job, repairs=again(invalid=3)))
        assert {row["repair"] for row in read_rows(job.output or "")} == {"seed 10"}
        told = Counter(reply["repair"] for reply in paid(job))
        assert told == {None: ROWS, "seed 8": ROWS, "seed 9": ROWS, "seed 10": ROWS}
        assert len({charge.body for charge in simulator.account.charges}) == 4 * ROWS, "the same was asked twice"


async def test_what_was_cut_and_then_did_not_fit_keeps_its_longer_limit_in_a_later_start(
    tmp_path: Path, make_job: MakeJob
) -> None:
    faults = (Fault(FaultKind.MISFIT, first=2),)
    async with Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = make_job(simulator.url, source, asking=asking(2, SCHEMA), repairs=again(length=2))
        report = await one_start(job)
        marks = Counter(row["fault"] for row in read_rows(job.output or ""))
        assert marks == {"invalid_output": ROWS}
        report = await one_start(replace(job, repairs=again(length=2, invalid=4)))
        rows = read_rows(job.output or "")
        assert {row["fault"] for row in rows} == {None}
        assert_paid(job, simulator.account.charges, report)


def test_a_retry_for_what_does_not_fit_needs_a_schema(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(1))
    with pytest.raises(UsageError, match="schema") as caught:
        make_job("http://127.0.0.1:1", source, repairs=again(invalid=1))
    assert "--schema" in caught.value.next_step


# --- identical rows --------------------------------------------------------------------------------------------------


async def test_identical_rows_that_share_an_answer_share_the_better_one_and_pay_once(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", [n % 4 for n in range(ROWS)])
        job = make_job(simulator.url, source, asking=asking(), dedupe=True)
        assert (await one_start(job)).exit_code == 0
        report = await one_start(replace(job, repairs=again(1)))
        assert (report.exit_code, report.again) == (0, 0)
        assert set(paid_for(simulator.account.charges).values()) == {2}
        assert {row["repair"] for row in read_rows(job.output or "")} == {f"max_tokens {FEW} -> {4 * FEW}"}
        assert surplus(job) == {"cut": 4}
        assert_paid(job, simulator.account.charges, report)


async def test_identical_rows_that_each_ask_have_each_a_better_answer(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", [n % 4 for n in range(ROWS)])
        job = make_job(simulator.url, source, asking=asking(), repairs=again(1))
        report = await one_start(job)
        assert set(paid_for(simulator.account.charges).values()) == {6}
        assert surplus(job) == {"cut": ROWS}
        assert_paid(job, simulator.account.charges, report)


WORDS_ON_SHARING = {"no more": (True, False), "from now on": (False, True)}


@pytest.mark.parametrize("words", WORDS_ON_SHARING)
async def test_identical_rows_may_share_in_one_start_and_not_in_the_next(
    words: str, tmp_path: Path, make_job: MakeJob
) -> None:
    first, then = WORDS_ON_SHARING[words]
    async with Simulator(QUICK) as simulator:
        numbers = [n % 4 for n in range(ROWS)]
        source = write_prompts(tmp_path / "in.jsonl", numbers)
        job = make_job(simulator.url, source, asking=asking(), dedupe=first, limits={"max_rejected": "100%"})
        assert (await one_start(job)).exit_code == 0
        simulator.play([Fault(FaultKind.STATUS, status=400, every=3)])
        job = replace(job, repairs=again(1), dedupe=then)
        report = await Run(job, "any-key").go()
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0)
        with looking_into(job) as sql:
            held = {number for (number,) in sql.execute("select answer from request")}
        assert held == {reply["id"] for reply in paid(job) if reply["surplus"] is None}
        simulator.play([])
        requests = simulator.account.requests
        write_prompts(source, numbers[::-1])
        job = replace(job, dedupe=True, repairs=again())
        report = await one_start(job)
        assert (report.exit_code, simulator.account.requests) == (0, requests), "what is paid for serves rows that move"


# --- batches, then live calls ----------------------------------------------------------------------------------------


def in_batches(simulator: Simulator, source: Path, make_job: MakeJob, **fields: Any) -> Job:
    return make_job(simulator.url, source, **{**batching(Route.AUTO), "asking": asking(), **fields})


def lanes(simulator: Simulator) -> tuple[int, int]:
    """Replies paid in batches, and live."""
    account = simulator.account
    return account.batch_charges, len(account.charges) - account.batch_charges


def discounted(job: Job) -> dict[str, tuple[int, int]]:
    with looking_into(job) as sql:
        sums = "select lane.text, count(*), sum(cost_nano) from paid join name as lane on lane.id = lane group by 1"
        return {lane: (replies, cost) for lane, replies, cost in sql.execute(sums)}


async def test_cut_answers_of_a_batch_are_asked_again_live(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = in_batches(simulator, source, make_job, repairs=again(1))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0), report.message
        assert lanes(simulator) == (ROWS, ROWS)
        assert {row["lane"] for row in read_rows(job.output or "")} == {"live"}
        assert {row["repair"] for row in read_rows(job.output or "")} == {f"max_tokens {FEW} -> {4 * FEW}"}
        assert surplus(job) == {"cut": ROWS}
        await finished(job, simulator)


async def test_cut_answers_of_a_batch_that_was_collected_earlier_are_asked_again_live(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        job = in_batches(simulator, write_prompts(tmp_path / "in.jsonl", range(ROWS)), make_job)
        assert (await one_start(job)).exit_code == 0
        assert lanes(simulator) == (ROWS, 0)
        await finished(replace(job, repairs=again(1)), simulator)
        assert lanes(simulator) == (ROWS, ROWS)
        assert rows_by_state(job) == {2: ROWS}


async def test_a_start_that_detaches_asks_for_better_answers_when_it_collects(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = in_batches(simulator, source, make_job, repairs=again(1))
        simulator.hold_batches()
        report = await one_start(job, detach=True)
        assert (report.exit_code, report.submitted, lanes(simulator)[1]) == (7, ROWS, 0)
        simulator.release_batches()
        await simulator.batches_ended(1)
        report = await one_start(job, detach=True)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0), report.message
        assert lanes(simulator) == (ROWS, ROWS)


async def test_answers_of_a_batch_that_do_not_fit_are_asked_again_live(tmp_path: Path, make_job: MakeJob) -> None:
    faults = replace_faults(Fault(FaultKind.NOT_JSON, every=3, first=1))
    async with Simulator(faults) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = in_batches(simulator, source, make_job, asking=asking(400, SCHEMA), repairs=again(invalid=1))
        report = await one_start(job)
        rows = read_rows(job.output or "")
        assert (report.exit_code, {row["fault"] for row in rows}) == (0, {None})
        assert all(row["parsed"] for row in rows)
        assert Counter(row["lane"] for row in rows) == {"batch": ROWS - ROWS // 3, "live": ROWS // 3}
        assert surplus(job) == {"invalid": ROWS // 3}
        assert lanes(simulator) == (ROWS, ROWS // 3)


async def test_after_the_deadline_a_batch_is_collected_and_nothing_is_asked_again(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
        job = in_batches(simulator, source, make_job, repairs=again(1))
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).exit_code == 7
        simulator.release_batches()
        await simulator.batches_ended(1)
        report = await one_start(replace(job, limits=Limits(concurrency=32, deadline=1.0)))
        assert (report.exit_code, report.answered, report.again) == (6, ROWS, ROWS), report.message
        assert lanes(simulator) == (ROWS, 0)
        await finished(job, simulator)
        assert lanes(simulator) == (ROWS, ROWS)


async def test_twins_in_a_batch_are_bettered_once(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        source = write_prompts(tmp_path / "in.jsonl", [n % 4 for n in range(ROWS)])
        job = in_batches(simulator, source, make_job, dedupe=True, repairs=again(1))
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, ROWS, 0)
        assert lanes(simulator) == (4, 4)
        assert {row["lane"] for row in read_rows(job.output or "")} == {"live"}


@pytest.mark.parametrize("said", [again(length=1), again(invalid=1)])
def test_a_job_that_goes_out_in_batches_alone_takes_no_retry(said: Repairs, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(1))
    with pytest.raises(UsageError, match="--route batch rules out"):
        make_job("http://127.0.0.1:1", source, route=Route.BATCH, asking=asking(9, SCHEMA), repairs=said)


# --- seeded stories --------------------------------------------------------------------------------------------------

STORY = Settings(
    latency=0.0,
    faults=(
        Fault(FaultKind.NOT_JSON, probability=0.25),
        Fault(FaultKind.MISFIT, probability=0.2),
    ),
)


class Story:
    """One job through starts that go wrong, edits of its input and changes of mind."""

    def __init__(self, seed: int, folder: Path, simulator: Simulator, make_job: MakeJob) -> None:
        self.dice = random.Random(seed)
        self.source = folder / "in.jsonl"
        self.numbers = [self.dice.randrange(8) for _ in range(self.dice.randrange(6, 16))]
        write_prompts(self.source, self.numbers)
        self.simulator = simulator
        self.broke = False
        route = self.dice.choice([Route.LIVE, Route.LIVE, Route.AUTO])
        schema = self.dice.choice([SCHEMA, None])
        fields = batching(route, lines=5) if route is Route.AUTO else {"route": route}
        fields |= {"asking": asking(self.dice.choice([5, 12, 40]), schema), "dedupe": self.dice.random() < 0.4}
        self.job = make_job(simulator.url, self.source, limits={"concurrency": 4}, **fields)

    def repairs(self) -> Repairs:
        has_schema = self.job.asking.schema is not None
        return again(self.dice.choice([0, 1, 3]), self.dice.choice([0, 1, 2]) if has_schema else 0)

    def edit(self) -> None:
        """Append, take away, reorder, reword; a row's number changes, its prompt may come back."""
        numbers = self.numbers
        match self.dice.randrange(4):
            case 0:
                numbers += [self.dice.randrange(10) for _ in range(3)]
            case 1 if len(numbers) > 4:
                del numbers[self.dice.randrange(len(numbers))]
            case 2:
                self.dice.shuffle(numbers)
            case _:
                numbers[self.dice.randrange(len(numbers))] = self.dice.randrange(12)
        write_prompts(self.source, numbers)

    async def start(self, *, last: bool = False) -> Report | None:
        """One start; some are cut off in the middle, as a killed process is."""
        self.job = replace(self.job, repairs=again(1, 0) if last else self.repairs())
        ending = "done" if last else self.dice.choice(["done", "done", "credits", "killed"])
        account = self.simulator.account
        if ending == "credits":
            more = [Fault(FaultKind.STATUS, status=402, after=self.dice.randrange(20))]
            self.simulator.play([*more, *STORY.faults])
        else:
            self.simulator.play(STORY.faults)
        if ending != "killed":
            return await one_start(self.job)
        self.broke = True
        going = asyncio.create_task(Run(self.job, "any-key").go())
        reached = asyncio.create_task(self.simulator.reached(answers=len(account.charges) + self.dice.randrange(1, 12)))
        await asyncio.wait({going, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        going.cancel()  # nothing is written down any more, and the run stays open in the checkpoint
        await asyncio.gather(going, reached, return_exceptions=True)
        return None

    def check(self, report: Report | None) -> None:
        """What holds at any moment."""
        assert_sound(self.job)
        rows = rows_of(self.job)
        assert len(rows) == len(self.numbers)
        assert {row["state"] for row in rows} <= {"answered", "pending"}
        replies = paid(self.job)
        charges = self.simulator.account.charges
        lost = len(charges) - len(replies)
        assert lost >= 0
        if report is not None:
            assert lost <= report.maybe_twice
            assert self.broke or lost == 0
            if self.job.route is Route.LIVE and not self.broke:
                assert sum(charge.nano for charge in charges) == report.spent_nano
            assert sum(row["state"] == "answered" for row in rows) == report.answered
            assert report.exit_code in {0, 3}, report.message
        for reply in replies:
            assert reply["surplus"] is None or reply["surplus"] == "twice" or reply["fault"] is not None


def assert_best(job: Job) -> None:
    """Every answer is as good as any reply to that question which is not in use, unless that was cut or did not fit."""
    marks = {None: 0, "invalid_output": 1, "cut_short": 1, "filtered": 2}
    with looking_into(job) as sql:
        answers: dict[bytes, list[str | None]] = {}
        found = sql.execute("select request.digest, fault from request join paid on paid.id = answer")
        for digest, fault in found:
            answers.setdefault(digest, []).append(fault)
    replies: dict[bytes, list[str | None]] = {}
    for reply in paid(job):
        replies.setdefault(reply["digest"], []).append(reply["fault"])
    for digest, faults in answers.items():
        best = sorted(marks[fault] for fault in replies[digest])
        if job.dedupe:
            assert marks[faults[0]] == best[0]
            assert len(set(faults)) == 1
        else:
            assert sorted(marks[fault] for fault in faults) == best[: len(faults)]


async def a_story(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(replace_faults(*STORY.faults)) as simulator:
        story = Story(seed, tmp_path, simulator, make_job)
        for _ in range(story.dice.randrange(3, 7)):
            report = await story.start()
            story.check(report)
            if story.dice.random() < 0.5:
                story.edit()
        report = await story.start(last=True)
        story.check(report)
        assert report is not None
        assert (report.exit_code, report.again, report.answered) == (0, 0, len(story.numbers)), report.message
        assert_best(story.job)
        requests = simulator.account.requests
        assert (await one_start(story.job)).exit_code == 0
        assert simulator.account.requests == requests


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_goes_wrong_each_row_ends_with_the_best_of_its_replies(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await a_story(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6, 60))
async def test_whatever_else_goes_wrong_each_row_ends_with_the_best_of_its_replies(
    seed: int, tmp_path: Path, make_job: MakeJob
) -> None:
    await a_story(seed, tmp_path, make_job)


# --- what people are told --------------------------------------------------------------------------------------------


async def test_while_better_answers_are_wanted_every_face_says_so(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        await one_start(job)
        simulator.play([NO_CREDITS])
        plans: list[Plan] = []
        report = await one_start(replace(job, repairs=again(1)), announce=plans.append)
        (said,) = plans
        assert (
            plan.text(said)
            == f"{ROWS} rows: {ROWS} answered ({ROWS} to be asked for a better answer, less than $0.01)."
        )
        last, _ = closing.summary(report).splitlines()[-2:]
        assert f"0 left, {ROWS} to be asked for a better answer, less than $0.01 more." in last
        with View(job.checkpoint) as view:
            seen = status.standing(view, job.checkpoint, 0.0, 0)
        assert f"Of the answered, {ROWS} to be asked for a better answer." in status.text(seen)
        simulator.play([])
        report = await one_start(replace(job, repairs=again(1)))
        assert f"Not good enough: {ROWS} replies, $0.0000" in closing.summary(report)
        assert (report.replaced, report.again) == (ROWS, 0)
        assert report.replaced_nano == sum(reply["cost"] for reply in paid(job) if reply["surplus"] == "cut")


def advice(job: Job) -> tuple[int, list[str]]:
    """How many answers are marked as cut off, and the commands that are named for them."""
    with View(job.checkpoint) as view:
        (mark,) = errors.table([], view.marked_answers(), "c.db", None)["marked"]  # type: ignore[attr-defined]
    return mark["answers"], list(mark["commands"])


async def test_the_named_command_asks_once_more_than_was_asked(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(40)), asking=asking(2))
        await one_start(job)
        assert advice(job) == (40, ["batchrun resume c.db --on-length retry"])
        await one_start(replace(job, repairs=again(1)))
        marked, commands = advice(job)
        assert commands == ["batchrun resume c.db --on-length retry:2"]
        await one_start(replace(job, repairs=again(2)))
        assert advice(job)[0] < marked


async def test_no_command_is_named_where_nothing_better_can_be_had(tmp_path: Path, make_job: MakeJob) -> None:
    async with Simulator(QUICK) as simulator:
        job = make_job(simulator.url, write_prompts(tmp_path / "in.jsonl", range(ROWS)), asking=asking())
        await one_start(job)
        simulator.play([Fault(FaultKind.STATUS, status=400)])
        await one_start(replace(job, repairs=again(1)))
        assert advice(job) == (ROWS, [])


@pytest.mark.parametrize("how", [TooLong.FALLBACK, TooLong.TRUNCATE])
async def test_what_was_repaired_and_then_cut_off_is_asked_again_as_it_was_repaired(
    how: TooLong, tmp_path: Path, make_job: MakeJob
) -> None:
    small, large = "simulator/small-1k", "simulator/middle-4k"
    source = tmp_path / "in.jsonl"
    words = " word" * (850 if how is TooLong.FALLBACK else 1000)
    source.write_text("".join(json.dumps({"id": n, "prompt": f"{prompt(n)}{words}"}) + "\n" for n in range(6)))
    async with Simulator(QUICK) as simulator:
        repairs = Repairs(fallbacks=(large,), too_long=how, length_retries=2)
        asked = Asking(model=small, params={"max_tokens": 5})
        job = make_job(simulator.url, source, asking=asked, repairs=repairs)
        report = await one_start(job)
        assert (report.exit_code, report.answered, report.again) == (0, 6, 0)
        for row in read_rows(job.output or ""):
            assert "max_tokens 5 -> " in row["repair"]
            assert (large in row["repair"]) is (how is TooLong.FALLBACK)
            assert row["attempts"] > 1
            assert row["completion_tokens"] > 5
        assert_paid(job, simulator.account.charges, report)
