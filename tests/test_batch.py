"""The batch lane end to end: rows go out in batches, and every one of them comes home once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import MakeJob, content, paid_for, prompt, read_rows, start, write_prompts

from batchrun.job import Batching
from batchrun.records import Route
from batchrun.simulator import Settings, Simulator


def batching(**fields: Any) -> dict[str, Any]:
    return {"route": Route.BATCH, "batching": Batching(**{"lines": 50, "poll": 0.02, "grace": 1.0, **fields})}


async def test_rows_go_out_in_batches_and_come_back_in_input_order(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(120))
    async with Simulator(Settings(batch_speed=None)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await start(job)
        assert report.exit_code == 0, report.message
        assert [job.lines for job in simulator.batches.jobs] == [50, 50, 20]
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(120)}
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(120))
    assert {row["lane"] for row in rows} == {"batch"}
