"""What Prometheus is told: over HTTP and in a file, right to the last nano-dollar, always whole, never in the way."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import MODEL, MakeJob, start, write_prompts

from batchrun.errors import BatchrunError, BusyError, UsageError
from batchrun.faces import figures, metrics
from batchrun.faces.status import Standing, standing
from batchrun.job import Asking, Batching, Job
from batchrun.records import Fault as OurFault
from batchrun.records import ParkReason, Route
from batchrun.reports import Entry, Progress, Report, Stage
from batchrun.runner import Run
from batchrun.simulator import Fault, FaultKind, Settings, Simulator
from batchrun.store.store import Hidden
from batchrun.store.view import View

CHILD = Path(__file__).parent / "child.py"
FAST = Settings(latency=0.0, refusal_latency=0.0)
IDLE = Progress(Stage.READING, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, None, "", 0.0)

# A run with a metrics file, in a process of its own that can be killed.
WATCHED_CHILD = """
import asyncio, sys
from pathlib import Path
import msgspec
from batchrun.faces import metrics
from batchrun.job import Job
from batchrun.runner import Run

async def main():
    metrics._LOOK_EVERY = metrics._WRITE_EVERY = 0.005
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    run = Run(job, "any-key")
    async with metrics.serving(job, run.progress, port=None, path=sys.argv[2], note=print):
        await run.go()

asyncio.run(main())
"""

Figures = dict[tuple[str, ...], float]


def parsed(text: str) -> Figures:
    """Values by name and labels, each label as `name=value`; every sample once, every metric with its HELP."""
    assert text.endswith("\n")
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "checkpoint"))
            assert key not in found, key
            found[key] = sample.value
    assert all(f"# HELP {family.name} " in text for family in figures.FAMILIES)
    return found


def read(path: Path) -> Figures:
    return parsed(path.read_text())


class Watched:
    """A start with its metrics: what was noted, the port, and a way to wait until the run has been asked again."""

    def __init__(self, job: Job, path: Path | None = None, port: int | None = None) -> None:
        self.job, self.path, self.port = job, path, port
        self.notes: list[str] = []
        self.levels: list[int] = []
        self.run = Run(job, "any-key")
        self.asked, self.noted = asyncio.Event(), asyncio.Event()

    def poll(self) -> Progress:
        self.asked.set()
        return self.run.progress()

    def note(self, kind: str, detail: str, level: int) -> None:
        assert kind == "metrics"
        self.notes.append(detail)
        self.levels.append(level)
        self.noted.set()

    @property
    def address(self) -> str:
        """Of the endpoint, as it was noted."""
        return self.notes[0].removeprefix("Metrics: ")

    async def go(self, beside: Callable[[Watched], Any] | None = None) -> Report:
        path = None if self.path is None else str(self.path)
        async with metrics.serving(self.job, self.poll, port=self.port, path=path, note=self.note) as ended:
            async with asyncio.TaskGroup() as group:
                if beside is not None:
                    group.create_task(beside(self))
                report = await self.run.go()
            ended(report.exit_code)
            return report

    async def scraped(self) -> Figures:
        """What the endpoint says once the run has been asked twice more: the second one began after this call."""
        for _ in range(2):
            self.asked.clear()
            await self.asked.wait()
        return parsed(await asyncio.to_thread(fetched, self.address))


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = reply.read().decode()
    return text


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_LOOK_EVERY", 0.001)
    monkeypatch.setattr(metrics, "_WRITE_EVERY", 0.001)


def figure(seen: Figures, name: str) -> float:
    """The sum over all labels."""
    return sum(value for key, value in seen.items() if key[0] == f"batchrun_{name}")


def agrees(seen: Figures, job: Job) -> Standing:
    """The figures are those of `status`."""
    with View(job.checkpoint) as view:
        told = standing(view, job.checkpoint, time.time(), 0)
    rows = {key[1]: value for key, value in seen.items() if key[0] == "batchrun_rows"}
    assert rows == {
        "state=pending": told.pending - told.submitted,
        "state=submitted": told.submitted,
        "state=answered": told.answered - told.again,
        "state=again": told.again,
        "state=rejected": told.rejected,
    }
    assert figure(seen, "spend_dollars_total") == pytest.approx(told.spent_nano / 1e9, abs=1e-12)
    assert figure(seen, "spend_by_use_dollars") == pytest.approx(told.spent_nano / 1e9, abs=1e-12)
    assert figure(seen, "replies_total") == figure(seen, "replies_by_use") == sum(e.replies for e in told.models)
    assert figure(seen, "tokens_total") == sum(e.prompt_tokens + e.completion_tokens for e in told.models)
    assert figure(seen, "possibly_paid_twice_calls") == told.maybe_twice
    assert figure(seen, "possibly_paid_twice_dollars") == pytest.approx(told.maybe_twice_nano / 1e9)
    assert figure(seen, "last_run_start_timestamp_seconds") == told.opened
    return told


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def test_a_scrape_of_a_running_job_shows_it_as_it_is(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8, "max_cost_nano": 5_000_000_000})

        async def beside(watched: Watched) -> None:
            await simulator.reached(20)
            simulator.hold()
            arrived = simulator.account.requests
            await simulator.requested(max(arrived, 20) + 1)
            seen = await watched.scraped()
            assert seen[("batchrun_running",)] == seen[("batchrun_checkpoint_readable",)] == 1
            assert 1 <= seen[("batchrun_calls_in_flight",)] <= seen[("batchrun_calls_limit",)] <= 8
            assert seen[("batchrun_max_cost_dollars",)] == 5
            assert sum(value for key, value in seen.items() if key[0] == "batchrun_rows") == 60
            assert seen[("batchrun_last_run_state", "state=running")] == 1
            assert ("batchrun_last_run_exit_code",) not in seen
            assert ("batchrun_last_success_timestamp_seconds",) not in seen
            simulator.release()

        watched = Watched(job, tmp_path / "a.prom", port=0)
        report = await watched.go(beside)
        assert report.exit_code == 0, report.message
        seen = read(tmp_path / "a.prom")
        told = agrees(seen, job)
        assert told.spent_nano == simulator.account.spent == round(figure(seen, "spend_dollars_total") * 1e9)
        assert seen[("batchrun_requests_total",)] == simulator.account.requests == 60
        assert seen[("batchrun_running",)] == seen[("batchrun_calls_in_flight",)] == 0
        assert seen[("batchrun_last_run_exit_code",)] == 0
        assert seen[("batchrun_last_run_state", "state=finished")] == 1
        assert seen[("batchrun_last_success_timestamp_seconds",)] == told.closed
        assert told.opened is not None
        assert told.opened <= seen[("batchrun_last_answer_timestamp_seconds",)] <= (told.closed or 0)
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(fetched, watched.address)
    assert not [t for t in threading.enumerate() if "serve_forever" in t.name]


async def test_faults_are_counted_by_kind_and_absent_kinds_read_zero(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    faults = (
        Fault(FaultKind.STATUS, status=500, every=5, first=1),
        Fault(FaultKind.THROTTLE, every=7, first=1, retry_after=0.01),
    )
    async with Simulator(Settings(latency=0.0, refusal_latency=0.0, faults=faults)) as simulator:
        job = make_job(simulator.url, source)
        report = await Watched(job, tmp_path / "a.prom").go()
        assert report.exit_code == 0
        seen = read(tmp_path / "a.prom")
        by_kind = {key[1]: value for key, value in seen.items() if key[0] == "batchrun_faults_total"}
        assert by_kind["fault=server"] == simulator.account.statuses[500] > 0
        assert by_kind["fault=throttled"] == seen[("batchrun_throttled_total",)] == simulator.account.statuses[429] > 0
        assert {kind for kind, times in by_kind.items() if times == 0} == {
            f"fault={fault}" for fault in set(figures.NO_ANSWER) - {OurFault.SERVER, OurFault.THROTTLED}
        }
        assert seen[("batchrun_requests_total",)] == simulator.account.requests == 40 + sum(by_kind.values())


async def test_both_lanes_are_told_apart_and_batches_are_counted(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    async with Simulator(Settings(batch_speed=None)) as simulator:
        simulator.hold_batches()
        batching = Batching(lines=25, poll=0.02, grace=1.0)
        job = make_job(simulator.url, source, route=Route.BATCH, batching=batching)

        async def beside(watched: Watched) -> None:
            await simulator.batched(2)
            seen: Figures = {}
            while seen.get(("batchrun_batches_at_provider",)) != 2:
                seen = await watched.scraped()
            assert seen[("batchrun_rows", "state=submitted")] == figure(seen, "rows") == 40
            simulator.release_batches()

        assert (await Watched(job, tmp_path / "a.prom", port=0).go(beside)).exit_code == 0
        seen = read(tmp_path / "a.prom")
        agrees(seen, job)
        assert seen[("batchrun_batches_at_provider",)] == 0
        assert seen[("batchrun_requests_total",)] == 40
        assert seen[("batchrun_replies_total", "lane=batch", f"model=simulated/{MODEL}")] == 40
        assert figure(seen, "spend_dollars_total") == pytest.approx(simulator.account.spent / 1e9, abs=1e-12)


async def test_before_there_is_a_checkpoint_rows_and_money_are_missing_and_not_zero(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job("http://127.0.0.1:1", tmp_path / "none.jsonl")
    notes: list[str] = []
    async with metrics.serving(
        job, lambda: IDLE, port=0, path=None, note=lambda _kind, said, _level: notes.append(said)
    ):
        seen = parsed(await asyncio.to_thread(fetched, notes[0].removeprefix("Metrics: ")))
        only = parsed_some(
            await asyncio.to_thread(fetched, notes[0].removeprefix("Metrics: ") + "?name[]=batchrun_requests_total")
        )
    assert seen[("batchrun_checkpoint_readable",)] == 0
    assert not {key for key in seen if key[0] in ("batchrun_rows", "batchrun_spend_dollars_total")}
    assert seen[("batchrun_requests_total",)] == 0
    assert only == {"batchrun_requests_total"}


def parsed_some(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_scrapes_at_once_and_half_ones_do_no_harm(
    tmp_path: Path, make_job: MakeJob, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(100))
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)

        async def beside(watched: Watched) -> None:
            address = ("127.0.0.1", int(watched.address.split(":")[2].split("/")[0]))
            for said in (b"", b"GET /metr", b"GET /metrics HTTP/1.0\r\n\r\n"):
                caller = socket.create_connection(address)
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # hang up with a reset
                caller.sendall(said)
                caller.close()
            every = [asyncio.to_thread(fetched, watched.address) for _ in range(16)]
            for text in await asyncio.gather(*every):
                parsed(text)

        assert (await Watched(job, port=0).go(beside)).exit_code == 0
    assert capfd.readouterr().err == ""


# --- the port --------------------------------------------------------------------------------------------------------


async def test_a_taken_port_stops_a_start_before_anything_is_sent(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(FAST) as simulator:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=f"Port {port} of 127.0.0.1 is taken") as refused:
                await Watched(make_job(simulator.url, source), tmp_path / "a.prom", port=port).go()
        assert (refused.value.exit_code, simulator.account.requests) == (2, 0)
    assert not (tmp_path / "a.prom").exists()
    assert not (tmp_path / "checkpoint.db").exists()


async def test_a_start_that_overlaps_with_another_is_told_so_and_leaves_its_file_alone(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(FAST) as simulator:
        simulator.hold()
        job = make_job(simulator.url, source)
        (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
        other = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), str(tmp_path / "job.json"),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await simulator.requested(1)
        file = tmp_path / "a.prom"
        file.write_text("what the other run wrote\n")
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BusyError) as with_port:
            await Watched(job, port=taken.getsockname()[1]).go()
        with pytest.raises(BusyError) as without:
            await Watched(job, file).go()
        assert with_port.value.message == without.value.message
        assert with_port.value.exit_code == 8
        assert file.read_text() == "what the other run wrote\n"
        simulator.release()
        assert await other.wait() == 0


# --- the file --------------------------------------------------------------------------------------------------------


async def test_every_read_of_the_file_finds_it_whole_and_readable_for_all(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(400))
    file, done = tmp_path / "a.prom", threading.Event()
    versions: set[str] = set()

    def reading() -> None:
        while not done.is_set():
            if file.exists():
                text = file.read_text()
                parsed(text)
                versions.add(text)
                assert stat.S_IMODE(file.stat().st_mode) == 0o644

    umask = os.umask(0o077)
    try:
        async with Simulator(Settings(latency=0.002)) as simulator, asyncio.TaskGroup() as group:
            readers = [group.create_task(asyncio.to_thread(reading)) for _ in range(2)]
            try:
                assert (await Watched(make_job(simulator.url, source), file).go()).exit_code == 0
            finally:
                done.set()
            await asyncio.gather(*readers)
    finally:
        os.umask(umask)
    assert len(versions) > 3
    assert read(file)[("batchrun_running",)] == 0
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["a.prom"]


async def test_the_last_look_is_at_the_end_however_short_the_run_was(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_LOOK_EVERY", 1000)
    monkeypatch.setattr(metrics, "_WRITE_EVERY", 1000)
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(FAST) as simulator:
        assert (await Watched(make_job(simulator.url, source), tmp_path / "a.prom").go()).exit_code == 0
    seen = read(tmp_path / "a.prom")
    assert seen[("batchrun_requests_total",)] == seen[("batchrun_rows", "state=answered")] == 5


async def test_a_full_disk_is_said_once_and_leaves_the_file_as_it_was(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.prom"
    file.write_text("of last night\n")

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = write_prompts(tmp_path / "in.jsonl", range(30))
    disk = SimpleNamespace(getpid=os.getpid, fchmod=os.fchmod, fsync=full, strerror=os.strerror)
    monkeypatch.setattr(metrics, "os", disk)
    async with Simulator(Settings(latency=0.002)) as simulator:
        watched = Watched(make_job(simulator.url, source), file)
        assert (await watched.go()).exit_code == 0
    assert watched.notes == [f"{file} cannot be written: No space left on device. The run goes on."]
    assert file.read_text() == "of last night\n"
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["a.prom"]


async def test_a_folder_that_vanishes_is_said_once_and_one_that_comes_back_is_used(
    tmp_path: Path, make_job: MakeJob
) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    source = write_prompts(tmp_path / "in.jsonl", range(30))
    async with Simulator(FAST) as simulator:

        async def beside(watched: Watched) -> None:
            await simulator.reached(5)
            simulator.hold()
            folder.rename(tmp_path / "taken away")  # at once, while it may just be written to
            await watched.noted.wait()
            folder.mkdir()
            simulator.release()

        watched = Watched(make_job(simulator.url, source), folder / "a.prom")
        assert (await watched.go(beside)).exit_code == 0
    assert watched.notes == [f"{folder / 'a.prom'} cannot be written: No such file or directory. The run goes on."]
    assert read(folder / "a.prom")[("batchrun_rows", "state=answered")] == 30


async def test_a_folder_that_was_never_there_stops_no_night(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    async with Simulator(FAST) as simulator:
        watched = Watched(make_job(simulator.url, source), tmp_path / "none" / "a.prom")
        assert (await watched.go()).exit_code == 0
    assert len(watched.notes) == 1


async def test_a_file_that_cannot_be_written_is_a_warning_and_the_address_is_none(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job("http://127.0.0.1:1", tmp_path / "none.jsonl")
    watched = Watched(job, tmp_path / "none" / "a.prom", port=0)
    path = str(watched.path)
    async with metrics.serving(job, lambda: IDLE, port=0, path=path, note=watched.note):
        await watched.noted.wait()
    assert [said.partition(":")[0] for said in watched.notes] == ["Metrics", f"{path} cannot be written"]
    assert watched.levels == [logging.INFO, logging.WARNING]


async def test_notes_that_fail_stop_no_run(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))

    def note(_kind: str, _detail: str, _level: int) -> None:
        raise OSError(errno.EPIPE, "the terminal is gone")

    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        run = Run(job, "any-key")
        path = str(tmp_path / "none" / "a.prom")
        async with metrics.serving(job, run.progress, port=0, path=path, note=note):
            assert (await run.go()).exit_code == 0


async def test_the_file_of_a_killed_run_stays_whole_and_the_next_start_counts_what_it_may_hide(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(200))
    file = tmp_path / "a.prom"
    async with Simulator(Settings(latency=0.01)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WATCHED_CHILD, str(tmp_path / "job.json"), str(file),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await simulator.reached(60)
        child.kill()
        await child.wait()
        killed = read(file)
        assert killed[("batchrun_running",)] == 1
        assert killed[("batchrun_possibly_paid_twice_calls",)] == 0
        stale = tmp_path / f".{file.name}.1.tmp"
        stale.write_text("half a fi")
        os.utime(stale, (1, 1))
        report = await Watched(job, file).go()
        assert report.exit_code == 0
        seen = read(file)
        agrees(seen, job)
        assert 1 <= seen[("batchrun_possibly_paid_twice_calls",)] == report.maybe_twice <= 8
        assert seen[("batchrun_requests_total",)] < 200 - 40  # of this start alone
        assert figure(seen, "replies_total") == 200
        bill, spend = simulator.account.spent / 1e9, figure(seen, "spend_dollars_total")
        assert spend <= bill <= spend + figure(seen, "possibly_paid_twice_dollars") + 1e-12
        assert not stale.exists()


# --- how it ended ----------------------------------------------------------------------------------------------------


async def test_a_park_says_its_reason_and_code_and_the_last_success_stays(tmp_path: Path, make_job: MakeJob) -> None:
    source, file = write_prompts(tmp_path / "in.jsonl", range(20)), tmp_path / "a.prom"
    async with Simulator(FAST) as simulator:
        job = make_job(simulator.url, source)
        assert (await Watched(job, file).go()).exit_code == 0
        success = read(file)[("batchrun_last_success_timestamp_seconds",)]
        write_prompts(tmp_path / "in.jsonl", range(40))
        simulator.play([Fault(FaultKind.CREDITS_END, after=0)])
        report = await Watched(job, file).go()
        assert (report.exit_code, report.parked) == (3, ParkReason.CREDITS)
    seen = read(file)
    agrees(seen, job)
    assert seen[("batchrun_last_run_exit_code",)] == 3
    assert seen[("batchrun_last_run_state", "state=parked")] == 1
    assert figure(seen, "last_run_state") == figure(seen, "last_run_parked") == 1
    assert seen[("batchrun_last_run_parked", "reason=credits")] == 1
    # The diary tells it, to the moment the line was written rather than the run closed.
    assert seen[("batchrun_last_success_timestamp_seconds",)] == pytest.approx(success, abs=5)
    assert seen[("batchrun_last_run_start_timestamp_seconds",)] > success - 5


async def test_what_stops_a_start_is_in_the_file_with_its_exit_code(tmp_path: Path, make_job: MakeJob) -> None:
    source, file = write_prompts(tmp_path / "in.jsonl", range(3)), tmp_path / "a.prom"
    async with Simulator(FAST) as simulator:
        await start(make_job(simulator.url, source))
        asking = Asking(model=MODEL, params={"max_tokens": 77})
        with pytest.raises(BatchrunError) as guard:
            await Watched(make_job(simulator.url, source, asking=asking), file).go()
    seen = read(file)
    assert seen[("batchrun_last_run_exit_code",)] == guard.value.exit_code == 2
    assert seen[("batchrun_last_run_state", "state=failed")] == 1
    assert seen[("batchrun_running",)] == 0


async def test_a_bug_in_what_it_shows_stops_no_run(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(figures, "of_start", broken)
    async with Simulator(FAST) as simulator:
        assert (await Watched(make_job(simulator.url, source), tmp_path / "a.prom").go()).exit_code == 0


# --- words -----------------------------------------------------------------------------------------------------------


async def test_no_prompt_answer_key_or_sentence_of_the_server_gets_into_it(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f'{{"id": {n}, "prompt": "PROMPTMARK {n}"}}\n' for n in range(10)))
    body = '{"error": {"message": "SERVERMARK says no", "type": "TYPEMARK", "code": "CODEMARK"}}'
    faults = (Fault(FaultKind.STATUS, status=400, body=body, content="3"),)
    async with Simulator(Settings(latency=0.0, refusal_latency=0.0, faults=faults)) as simulator:
        job = make_job(simulator.url, source)
        run = Run(job, "KEYMARK")
        texts: list[str] = []

        def note(_kind: str, said: str, _level: int) -> None:
            texts.append(said)

        file = tmp_path / "a.prom"
        async with metrics.serving(job, run.progress, port=0, path=str(file), note=note) as ended:
            ended((await run.go()).exit_code)
            texts.append(await asyncio.to_thread(fetched, texts[0].removeprefix("Metrics: ")))
    texts.append(file.read_text())
    assert figure(parsed(texts[-1]), "faults_total") >= 1
    for text in texts:
        assert "MARK" not in text
        assert "About" not in text


async def test_a_model_named_by_a_sentence_is_no_label(tmp_path: Path, make_job: MakeJob) -> None:
    del tmp_path, make_job
    odd = [Entry("live", name, 1, 0, 2, 3, 5, 1, 5, 0, 0, 0, 0) for name in ("you said: hello", "a" * 121, "", 'x"y\n')]
    fine = Entry("live", "org/Model-3.1:free@8bit", 1, 0, 2, 3, 5, 1, 5, 0, 0, 0, 0)
    found = {s.labels: s.value for s in figures._of_money([*odd, fine]) if s.name == "batchrun_replies_total"}
    assert found == {("live", "other"): 4, ("live", "org/Model-3.1:free@8bit"): 1}


def test_an_unknown_price_is_missing_and_never_zero() -> None:
    unknown = Entry("live", "m", 3, 3, 2, 3, 0, 2, 0, 1, 0, 0, 0, wasted_unpriced=1)
    found = {(s.name, s.labels) for s in figures._of_money([unknown])}
    assert ("batchrun_spend_dollars_total", ("live", "m")) not in found
    assert ("batchrun_spend_by_use_dollars", ("live", "m", "useful")) not in found
    assert ("batchrun_spend_by_use_dollars", ("live", "m", "wasted")) not in found
    assert ("batchrun_spend_by_use_dollars", ("live", "m", "unused")) in found  # none: that is a known nothing
    assert figures.Sample("batchrun_unpriced_replies_total", 3, ("live", "m")) in figures._of_money([unknown])
    assert [s.name for s in figures._of_doubts(Hidden(2, 0))] == ["batchrun_possibly_paid_twice_calls"]
    assert [s.value for s in figures._of_doubts(Hidden(0, 0))] == [0, 0]


def test_names_follow_the_rules_of_prometheus() -> None:
    names = [family.name for family in figures.FAMILIES]
    assert len(set(names)) == len(names)
    bare = [name.removesuffix("_total") for name in names]
    assert len(set(bare)) == len(bare)  # as OpenMetrics names families
    for family in figures.FAMILIES:
        assert family.name.startswith("batchrun_")
        assert family.name.isascii()
        assert family.name == family.name.lower()
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert family.told.endswith(".")
        assert not {"job", "instance", "le", "quantile", "checkpoint"} & set(family.labels)
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_created", "_info"))
        assert not any(word in family.name for word in ("_ms", "_nano", "_usd", "_minutes"))
        assert "timestamp" not in family.name or family.name.endswith("_timestamp_seconds")


def test_every_fault_of_the_closed_list_is_a_label_or_a_mark() -> None:
    marks = {OurFault.BAD_ROW, OurFault.CUT_SHORT, OurFault.FILTERED, OurFault.INVALID_OUTPUT}
    assert set(figures.NO_ANSWER) | marks == set(OurFault)
    assert not set(figures.NO_ANSWER) & marks


# --- without it ------------------------------------------------------------------------------------------------------


async def test_without_the_extra_a_start_says_what_to_install(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    job = make_job("http://127.0.0.1:1", tmp_path / "in.jsonl")
    with pytest.raises(UsageError, match=r"pip install 'batchrun\[metrics\]'"):
        await Watched(job, port=0).go()


async def test_a_file_that_node_exporter_would_not_read_is_refused(tmp_path: Path, make_job: MakeJob) -> None:
    with pytest.raises(UsageError, match=r"must end in \.prom"):
        await Watched(make_job("http://127.0.0.1:1", tmp_path / "in.jsonl"), tmp_path / "metrics.txt").go()


async def test_nobody_who_asks_for_no_metrics_pays_for_them() -> None:
    code = (
        "import asyncio, sys, batchrun.faces.metrics as m\n"
        "async def go():\n"
        "    async with m.serving(None, None, port=None, path=None, note=print) as ended: ended(0)\n"
        "asyncio.run(go()); print('prometheus_client' in sys.modules)"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
