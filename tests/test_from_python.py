"""The public names, as a program that has never heard of the rooms uses them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from support import MODEL, write_prompts

from batchrun.simulator import Settings, Simulator

PROGRAM = f"""
import asyncio, logging, sys
import batchrun.cli.main  # whoever loaded a room before must not matter
from batchrun import BatchrunError, Job, Report, run
from batchrun.job import Asking

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(event)s")
url, source, checkpoint = sys.argv[1:]
asking = Asking(model={MODEL!r}, params={{"max_tokens": 50}})
report = run(Job(inputs=(source,), checkpoint=checkpoint, asking=asking, base_url=url), "any-key")
assert isinstance(report, Report) and callable(batchrun.run)
print(report.exit_code, report.answered)
try:
    run(Job(inputs=("nowhere.jsonl",), checkpoint=checkpoint, asking=asking, base_url=url), "any-key")
except BatchrunError as error:
    print(error.exit_code)
"""


async def test_a_job_is_done_from_python_and_told_by_ordinary_logging(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(7))
    async with Simulator(Settings(latency=0.001)) as simulator:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, simulator.url, str(source), str(tmp_path / "c.db"),
            stdout=subprocess.PIPE, cwd=tmp_path,
        )  # fmt: skip
        said, _ = await child.communicate()
    assert child.returncode == 0
    assert said.decode().split("\n") == ["batchrun opened", "batchrun plan", "batchrun finished", "0 7", "2", ""]


def test_the_public_names_are_what_they_say_in_whatever_order_they_are_asked_for() -> None:
    code = "import batchrun; {}; from batchrun import run; assert callable(run) and callable(batchrun.run)"
    for first in ("pass", "batchrun.run", "import batchrun.runner", "import batchrun.cli.run"):
        subprocess.run([sys.executable, "-c", code.format(first)], check=True)
