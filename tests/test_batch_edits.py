"""The input changes while a batch runs: answers find their rows or wait for them, and nothing is paid twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from batch_jobs import batching, looking_into, one_start, rows_by_state, surplus_of
from support import MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.errors import GuardError
from batchrun.job import Asking, Job
from batchrun.records import Route
from batchrun.simulator import BatchFault, BatchFaultKind, Settings, Simulator

FAST = Settings(latency=0.0)
ROWS = 20


async def submitted(simulator: Simulator, job: Job) -> None:
    """Everything is at the provider, and stays there until it is released."""
    simulator.hold_batches()
    report = await one_start(job, detach=True)
    assert report.exit_code == 7, report.message


async def finished(simulator: Simulator, job: Job, numbers: Sequence[int]) -> None:
    """The batches go on, and a start finishes these rows."""
    simulator.release_batches()
    report = await one_start(job)
    assert (report.exit_code, report.answered) == (0, len(numbers)), report.message
    assert job.output is not None
    rows = read_rows(job.output)
    assert [row["id"] for row in rows] == list(numbers)
    assert all(row["state"] == "answered" for row in rows)
    assert rows_by_state(job) == {2: len(numbers)}


def paid(simulator: Simulator) -> Counter[str]:
    return paid_for(simulator.account.charges)


def asked(numbers: Sequence[int]) -> Counter[str]:
    return Counter(content(prompt(n)) for n in numbers)


EDITS: dict[str, list[int]] = {
    "reordered": list(reversed(range(ROWS))),
    "shortened": list(range(8)),
    "shortened from the front": list(range(12, ROWS)),
    "appended": list(range(ROWS + 7)),
    "duplicated": [*range(ROWS), *range(ROWS)],
    "edited": [100 + n if n % 3 == 0 else n for n in range(ROWS)],
    "replaced": list(range(100, 100 + ROWS)),
    "shifted": [500, *range(ROWS)],
}


@pytest.mark.parametrize(("edit", "lines"), [(edit, 7 if n % 2 else 50) for n, edit in enumerate(EDITS)])
async def test_an_edit_while_batches_run_pays_only_for_what_is_new(
    edit: str, lines: int, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    numbers = EDITS[edit]
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching(lines=lines))
        await submitted(simulator, job)
        write_prompts(source, numbers)
        await finished(simulator, job, numbers)
        assert paid(simulator) == asked(range(ROWS)) | asked(numbers)


@pytest.mark.parametrize("edit", EDITS)
async def test_rows_put_back_take_the_answers_that_came_meanwhile(edit: str, tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    numbers = EDITS[edit]
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching(lines=7))
        await submitted(simulator, job)
        write_prompts(source, numbers)
        await finished(simulator, job, numbers)
        unwanted = asked(range(ROWS)) - asked(numbers)
        assert surplus_of(job) == unwanted.total()
        before = simulator.account.answers
        write_prompts(source, range(ROWS))
        await finished(simulator, job, range(ROWS))
        assert simulator.account.answers == before


async def test_rows_taken_out_and_put_back_while_the_batch_runs_wait_for_it_again(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching(lines=7))
        await submitted(simulator, job)
        write_prompts(source, range(5))
        assert (await one_start(job, detach=True)).exit_code == 7
        assert rows_by_state(job) == {1: 5}
        write_prompts(source, range(ROWS))
        assert (await one_start(job, detach=True)).exit_code == 7
        assert rows_by_state(job) == {1: ROWS}
        await finished(simulator, job, range(ROWS))
        assert paid(simulator) == asked(range(ROWS))


async def test_identical_rows_in_one_batch_in_several_and_live_take_as_many_answers(
    tmp_path: Path, make_job: MakeJob
) -> None:
    numbers = [1, 2, 1, 1, 3, 2, 1, 4, 1]
    source = write_prompts(tmp_path / "in.jsonl", numbers)
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching(lines=2))
        await submitted(simulator, job)
        more = [*numbers, 1, 2, 9]
        write_prompts(source, more)
        assert (await one_start(job, detach=True)).exit_code == 7
        live = msgspec.structs.replace(job, route=Route.AUTO)
        most = [1, *more, 1, 9]
        write_prompts(source, most)
        await finished(simulator, live, most)
        assert paid(simulator) == asked(most)
        rows = read_rows(tmp_path / "out.jsonl")
        assert Counter(row["lane"] for row in rows) == {"batch": len(more), "live": 3}


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_row_that_another_batch_still_works_on_is_not_sent_again_when_one_fails(
    failing: int, tmp_path: Path, make_job: MakeJob
) -> None:
    """Two batches ask the same; one row of the two is taken out; one batch brings nothing, the other is slow."""
    source = write_prompts(tmp_path / "in.jsonl", [1, 1])
    nothing = BatchFault(BatchFaultKind.END_WITH_NOTHING, jobs=(failing,))
    slow = BatchFault(BatchFaultKind.STUCK, jobs=(3 - failing,), seconds=0.5)
    async with Simulator(Settings(latency=0.0, batch_faults=(nothing, slow))) as simulator:
        job = make_job(simulator.url, source, **batching(lines=1))
        await submitted(simulator, job)
        write_prompts(source, [1])
        await finished(simulator, job, [1])
        assert paid(simulator) == asked([1])


async def test_another_model_names_kept_answers_and_running_rows_until_told_otherwise(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching())
        await finished(simulator, job, range(ROWS))
        write_prompts(source, range(ROWS + 6))
        await submitted(simulator, job)
        other = msgspec.structs.replace(job, asking=Asking(model="openai/gpt-oss-120b", params={"max_tokens": 100}))
        with pytest.raises(GuardError, match=r"20 kept answers \(.*\) and 6 rows in running batches") as caught:
            await one_start(other)
        assert caught.value.exit_code == 2
        assert len(simulator.batches.jobs) == 2
        assert rows_by_state(job) == {1: 6, 2: ROWS}
        simulator.release_batches()
        report = await one_start(other, new_requests=True)
        assert (report.exit_code, report.answered) == (0, ROWS + 6)
        assert set(paid(simulator).values()) == {2}
        # What came for the first model is kept, and serves when that is asked for again.
        answers = simulator.account.answers
        report = await one_start(job, new_requests=True)
        assert (report.exit_code, report.answered) == (0, ROWS + 6)
        assert simulator.account.answers == answers


async def test_an_edit_between_two_starts_that_only_waits_asks_nothing_anew(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching())
        await submitted(simulator, job)
        other = msgspec.structs.replace(job, asking=Asking(model="openai/gpt-oss-120b", params={"max_tokens": 100}))
        with pytest.raises(GuardError, match="20 rows in running batches"):
            await one_start(other)
        await finished(simulator, job, range(ROWS))
        assert paid(simulator) == asked(range(ROWS))


async def test_answers_of_rows_nobody_wants_are_written_down_with_what_they_cost(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, **batching())
        await submitted(simulator, job)
        write_prompts(source, [99])
        await finished(simulator, job, [99])
        with looking_into(job) as sql:
            (kept,) = sql.execute("select count(*) from paid").fetchone()
            (spent,) = sql.execute("select sum(cost_nano) from paid").fetchone()
        assert (kept, spent) == (ROWS + 1, simulator.account.spent)


# --- any order of things ---------------------------------------------------------------------------------------------


async def story(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    """Edits, detached starts, faults; then to the end. What is paid is what was ever asked for at one time."""
    dice = random.Random(seed)
    kinds = [BatchFaultKind.LOSE_LINES, BatchFaultKind.EXPIRE, BatchFaultKind.REPEAT_LINES, BatchFaultKind.GARBAGE_LINE]
    faults = [BatchFault(dice.choice(kinds), jobs=(dice.randrange(1, 6),)) for _ in range(dice.randrange(3))]
    twins = BatchFault(BatchFaultKind.DUPLICATE, jobs=(dice.randrange(1, 4),))
    repeats = dice.random() < 0.2
    settings = Settings(latency=0.0, seed=seed, batch_faults=(*faults, *((twins,) if repeats else ())))
    source = tmp_path / "in.jsonl"
    numbers = [dice.randrange(6, 20) if dice.random() < 0.3 else n for n in range(dice.randrange(4, 14))]
    async with Simulator(settings) as simulator:
        fields = batching(lines=dice.choice([2, 5, 50]))
        job = make_job(simulator.url, write_prompts(source, numbers), **fields)
        wanted = asked(numbers)
        for _ in range(dice.randrange(1, 4)):
            if dice.random() < 0.7:
                simulator.hold_batches()
            else:
                simulator.release_batches()
            await one_start(job, detach=True)
            numbers = edited(numbers, dice)
            write_prompts(source, numbers)
            wanted |= asked(numbers)
        await finished(simulator, job, numbers)
        if not repeats:
            assert paid(simulator) <= wanted
        with looking_into(job) as sql:
            assert sql.execute("select count(*) from paid").fetchone()[0] == simulator.account.answers


def edited(numbers: Sequence[int], dice: random.Random) -> list[int]:
    """The same rows reordered, shortened, appended to, duplicated, edited, or not at all."""
    rows = list(numbers)
    match dice.randrange(6):
        case 0:
            dice.shuffle(rows)
        case 1:
            rows = rows[: max(1, len(rows) // 2)]
        case 2:
            rows += [dice.randrange(40) for _ in range(3)]
        case 3:
            rows += rows[:3]
        case 4:
            rows[dice.randrange(len(rows))] = dice.randrange(40)
    return rows


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_edits_and_starts_pays_once(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await story(seed, tmp_path, make_job)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20, 220))
async def test_200_more_orders_of_edits_and_starts_pay_once(seed: int, tmp_path: Path, make_job: MakeJob) -> None:
    await story(seed, tmp_path, make_job)
