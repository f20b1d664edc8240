"""A week of nights from a job file, as a timer would start them: credits end twice, a night of overload, a kill -9, and
a start on top of another one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from support import MODEL, content, paid_for, prompt, read_rows, write_prompts

from batchrun.simulator import Fault, FaultKind, Settings, Simulator

JOB = f"""
input = "prompts"
model = "{MODEL}"
output = "answers.jsonl"
base-url = "${{SERVER}}"
key-env = "NIGHT_KEY"
max-tokens = 60
max-cost = 1.0
concurrency = 6
overload-patience = 0.5
notify = "${{HOOK}}"
"""
FRESH = 25  # rows that a day brings
LONGEST = 120.0  # seconds until something has gone wrong


class Week:
    """The job's folder, the server, whoever is notified, and how every start ended."""

    def __init__(self, folder: Path, simulator: Simulator, hook: str, notices: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.simulator = simulator
        self.notices = notices
        self.codes: list[int] = []
        self.rows: list[int] = []
        self._environment = {
            **os.environ,
            "SERVER": simulator.url,
            "HOOK": hook,
            "NIGHT_KEY": "any-key",
            "BATCHRUN_LOG": "json",
        }
        self._environment.pop("TOGETHER_API_KEY", None)
        (folder / "prompts").mkdir()
        (folder / "nightly.toml").write_text(JOB)

    def day(self, name: str) -> None:
        """A file of new prompts."""
        fresh = range(len(self.rows), len(self.rows) + FRESH)
        write_prompts(self.folder / "prompts" / f"{name}.jsonl", fresh)
        self.rows += fresh

    async def begun(self) -> asyncio.subprocess.Process:
        """A start, as a timer would make it: from anywhere, without a terminal."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batchrun", "run", "--job", str(self.folder / "nightly.toml"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd="/", env=self._environment,
        )  # fmt: skip

    async def ended(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        """Its last line on standard error; every one of them is JSON, and there is nothing else."""
        out, said = await process.communicate()
        assert out == b""
        lines = [json.loads(line) for line in said.decode().splitlines()]
        self.codes.append(process.returncode if process.returncode is not None else -1)
        return lines[-1] if lines else {}

    async def night(self) -> dict[str, Any]:
        """A start from beginning to end."""
        return await self.ended(await self.begun())

    def credits_end(self, after: int) -> None:
        """The account is empty after so many more answers."""
        self.simulator.play([Fault(FaultKind.CREDITS_END, after=after)])


def told(notice: dict[str, Any]) -> str:
    """A notice in a few words."""
    if notice["event"] == "recovered":
        return f"recovered: {notice['message'].removeprefix('Answers again; ')}"
    return f"parked: {notice['reason']}" if notice["event"] == "parked" else str(notice["event"])


@asynccontextmanager
async def a_week(folder: Path) -> AsyncIterator[Week]:
    notices: list[dict[str, Any]] = []

    async def hear(request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers
        notices.append(await request.json())
        return web.Response()

    listener = web.Application()
    listener.router.add_post("/hook", hear)
    runner = web.AppRunner(listener)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with Simulator(Settings(latency=0.002)) as simulator:
            yield Week(folder, simulator, f"http://127.0.0.1:{port}/hook", notices)
    finally:
        await runner.cleanup()


async def test_a_week_of_nights_answers_every_row_once_and_says_what_happened(tmp_path: Path) -> None:
    async with asyncio.timeout(LONGEST), a_week(tmp_path) as week:
        simulator = week.simulator

        week.day("2026-11-16")
        await week.night()

        week.day("2026-11-17")  # credits end; in the morning somebody tops up
        week.credits_end(after=10)
        parked = await week.night()
        assert parked["report"]["left_nano"] is not None
        simulator.play([])
        await week.night()

        week.day("2026-11-18")  # nothing but 503 all night
        simulator.play([Fault(FaultKind.OVERLOAD)])
        await week.night()
        simulator.play([])

        week.day("2026-11-19")  # the night after does the work of two
        await week.night()

        week.day("2026-11-20")
        paid = len(simulator.account.charges)
        killed = await week.begun()
        await simulator.reached(paid + 8)
        killed.send_signal(signal.SIGKILL)
        await week.ended(killed)

        simulator.hold()  # an hour later, and somebody starts it by hand as well
        arrived = simulator.account.requests
        again = await week.begun()
        await simulator.requested(arrived + 1)
        overlapping = await week.night()
        assert "is being written by process" in overlapping["message"]
        simulator.release()
        after_the_kill = await week.ended(again)

        week.day("2026-11-16b")  # late prompts, between those of days before
        week.credits_end(after=5)
        await week.night()
        simulator.top_up(1)
        await week.night()

        last = await week.night()  # nothing new

        assert week.codes == [0, 3, 0, 5, 0, -signal.SIGKILL, 8, 0, 3, 0, 0]
        assert [told(notice) for notice in week.notices] == [
            "finished",
            "parked: credits",
            "recovered: the run before was parked: credits.",
            "finished",
            "parked: overload",
            "recovered: the run before was parked: overload.",
            "finished",
            "recovered: the run before was killed.",
            "finished",
            "parked: credits",
            "recovered: the run before was parked: credits.",
            "finished",
            "finished",
        ]
        assert len({notice["id"] for notice in week.notices}) == len(week.notices)

        charges, report = simulator.account.charges, last["report"]
        times = paid_for(charges)
        assert times.keys() == {content(prompt(n)) for n in week.rows}
        twice = sum(times.values()) - len(times)
        assert twice <= after_the_kill["report"]["maybe_twice"] == report["maybe_twice"] <= 8
        spent = sum(charge.nano for charge in charges)
        assert report["spent_nano"] <= spent <= report["spent_nano"] + report["maybe_twice_nano"]
        assert (report["answered_now"], report["spent_now_nano"]) == (0, 0)

        rows = read_rows(tmp_path / "answers.jsonl")
        names = sorted(path.name for path in (tmp_path / "prompts").iterdir())
        asked = [row["id"] for name in names for row in read_rows(tmp_path / "prompts" / name)]
        assert [row["id"] for row in rows] == asked
        assert {row["state"] for row in rows} == {"answered"}
        assert sum(round(row["cost_usd"] * 1e9) for row in rows) <= report["spent_nano"]
        assert [path.name for path in (tmp_path / "checkpoints").glob("*.db")] == ["nightly.db"]
