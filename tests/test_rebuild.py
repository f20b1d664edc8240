"""The input changes, the answers stay: only what is new or edited is sent, and a changed job asks first."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from support import MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun.errors import GuardError, InputError, UsageError
from batchrun.job import Asking, Job
from batchrun.simulator import Settings, Simulator
from batchrun.store.view import View

FAST = Settings(latency=0.0)
ROWS = 500


async def answered(job: Job) -> None:
    report = await start(job)
    assert report.exit_code == 0


async def sent_for(simulator: Simulator, job: Job, numbers: Iterable[int]) -> list[str]:
    """Write these prompts, run, check the output against them, and return what was paid for."""
    numbers = list(numbers)
    before = len(simulator.account.charges)
    write_prompts(Path(job.inputs[0]), numbers)
    report = await start(job)
    assert (report.exit_code, report.answered) == (0, len(numbers))
    assert job.output is not None
    rows = read_rows(job.output)
    assert [row["id"] for row in rows] == numbers
    assert all(row["state"] == "answered" for row in rows)
    return [charge.content for charge in simulator.account.charges[before:]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "in.jsonl", range(ROWS))


async def test_appended_rows_are_the_only_ones_sent(source: Path, make_job: MakeJob) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        sent = await sent_for(simulator, job, range(ROWS + 20))
        assert sorted(sent) == sorted(content(prompt(n)) for n in range(ROWS, ROWS + 20))


async def test_reordered_rows_send_nothing_and_keep_their_answers(source: Path, make_job: MakeJob) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        assert job.output is not None
        before = {row["id"]: row["answer"] for row in read_rows(job.output)}
        numbers = list(range(ROWS))
        random.Random(1).shuffle(numbers)
        assert await sent_for(simulator, job, numbers) == []
        assert {row["id"]: row["answer"] for row in read_rows(job.output)} == before


async def test_an_edited_column_that_is_only_carried_along_reaches_the_output(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": f"A{n}", "prompt": prompt(n)}) + "\n" for n in range(20)))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        source.write_text(source.read_text().replace('"A', '"B'))
        report = await start(job)
        assert (report.answered_now, report.written) == (0, True)
        assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == [f"B{n}" for n in range(20)]


async def test_one_edited_row_is_sent_and_its_old_answer_waits_for_its_return(source: Path, make_job: MakeJob) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        edited = [*range(250), 9999, *range(251, ROWS)]
        assert await sent_for(simulator, job, edited) == [content(prompt(9999))]
        assert await sent_for(simulator, job, range(ROWS)) == []


async def test_a_shorter_input_drops_rows_and_a_longer_one_takes_their_answers_again(
    source: Path, make_job: MakeJob
) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        assert await sent_for(simulator, job, range(10)) == []
        assert await sent_for(simulator, job, range(ROWS)) == []


async def test_identical_rows_are_each_paid_and_share_when_told_to(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", [1, 2, 1, 1, 2, 3])
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        assert sorted(paid_for(simulator.account.charges).values()) == [1, 2, 3]
        shared = msgspec.structs.replace(job, checkpoint=str(tmp_path / "shared.db"), dedupe=True)
        before = len(simulator.account.charges)
        report = await start(shared)
        assert (report.exit_code, report.answered) == (0, 6)
        assert len(simulator.account.charges) - before == 3
        rows = read_rows(tmp_path / "out.jsonl")
        assert rows[0]["answer"] == rows[2]["answer"] == rows[3]["answer"] != rows[1]["answer"]
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(report.spent_nano / 1e9)
        appended = write_prompts(tmp_path / "in.jsonl", [1, 2, 1, 1, 2, 3, 3, 1])
        assert appended == source
        assert (await start(shared)).answered == 8
        assert len(simulator.account.charges) - before == 3


async def test_another_model_stops_with_the_rows_and_their_cost_until_told_otherwise(
    source: Path, make_job: MakeJob
) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        await answered(job)
        other = msgspec.structs.replace(job, asking=msgspec.structs.replace(job.asking, model="openai/gpt-oss-120b"))
        spent = f"${simulator.account.spent / 1e9:.4f}"
        with pytest.raises(GuardError, match=rf"The model has changed: 500 kept answers \(\{spent}\)"):
            await start(other)
        assert len(simulator.account.charges) == ROWS
        assert (await start(job)).answered_now == 0
        report = await start(other, new_requests=True)
        assert (report.exit_code, report.answered_now) == (0, ROWS)
        assert len(simulator.account.charges) == 2 * ROWS
        assert (await start(job, new_requests=True)).answered_now == 0


async def test_a_changed_job_that_wastes_nothing_needs_no_word(source: Path, make_job: MakeJob) -> None:
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, asking=Asking(model="no/such-model"))
        assert (await start(job)).exit_code == 9
        mended = msgspec.structs.replace(job, asking=Asking(model="openai/gpt-oss-20b"))
        assert (await start(mended)).exit_code == 0


async def test_bad_rows_stop_everything_before_anything_is_sent(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": prompt(n)}) for n in range(30)]
    lines[3], lines[20] = '{"prompt": ', '{"question": "why?"}'
    source.write_text("\n".join(lines))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        with pytest.raises(InputError) as caught:
            await start(job)
        assert [problem.split(":")[1] for problem in caught.value.problems] == ["4", "21"]
        assert simulator.account.requests == 0
        skipping = msgspec.structs.replace(job, skip_bad_rows=True)
        report = await start(skipping)
        assert (report.exit_code, report.answered, report.rejected) == (10, 28, 2)
        rows = read_rows(tmp_path / "out.jsonl")
        assert [n for n, row in enumerate(rows) if row["state"] == "rejected"] == [3, 20]
        assert {row["fault"] for row in rows if row["state"] == "rejected"} == {"bad_row"}
        with pytest.raises(InputError):
            await start(job)
        lines[3], lines[20] = json.dumps({"prompt": prompt(3)}), json.dumps({"prompt": prompt(20)})
        source.write_text("\n".join(lines))
        report = await start(job)
        assert (report.exit_code, report.answered_now, report.rejected) == (0, 2, 0)


async def test_only_the_first_twenty_bad_rows_are_shown(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("[]\n1\n" * 2500)
    with pytest.raises(InputError, match="5000 of 5000 rows") as caught:
        await start(make_job("http://127.0.0.1:9", source))
    assert len(caught.value.problems) == 20
    source.write_text("[]\n" * 5000)
    with pytest.raises(InputError, match="5000 of 5000 rows") as caught:
        await start(make_job("http://127.0.0.1:9", source))
    assert len(caught.value.problems) == 1


async def test_an_output_among_the_inputs_is_refused(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    for inputs, output in [((str(source),), str(source)), ((str(tmp_path),), str(tmp_path / "out.jsonl"))]:
        job = msgspec.structs.replace(make_job("http://127.0.0.1:9", source), inputs=inputs, output=output)
        with pytest.raises(UsageError, match="among the input"):
            await start(job)
    assert len(read_rows(source)) == 3


async def test_an_input_edited_while_it_runs_is_noticed_and_the_answers_stay(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(20_000))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        running = asyncio.create_task(start(job))
        await simulator.reached(answers=50)
        write_prompts(source, range(50_000, 70_000))
        with pytest.raises(InputError, match="has changed since it was read"):
            await running
        paid = paid_for(simulator.account.charges)
        assert 0 < len(paid) < 20_000
        probe = content("Hi")  # so many rows are worth one
        assert set(paid) - {probe} <= {content(prompt(n)) for n in range(20_000)}
        with View(job.checkpoint) as view:
            assert view.kept().answered == len(paid) - (probe in paid)
