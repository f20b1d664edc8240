"""Somebody far away is told how a run goes: in order, once each, however often a delivery has to be tried."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from batch_jobs import batching, one_start
from support import MODEL, MakeJob, start, write_prompts

from batchrun import door
from batchrun.api.webhook import Webhook
from batchrun.cli.notify import notify_of
from batchrun.clock import RealClock
from batchrun.errors import BusyError, InputError, StorageError, UsageError
from batchrun.faces import notice as face
from batchrun.job import Job, Repairs
from batchrun.reports import Happening, Notice, Sums
from batchrun.runner import Options, Run
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

KEY = "tgp_v1_key-of-a-test-that-nobody-may-see"
KEYS = {
    "event", "id", "at", "checkpoint", "job", "reason", "exit_code", "message", "next", "rows", "spent_usd",
    "spent_this_start_usd", "possibly_paid_twice_usd", "left_usd", "text",
}  # fmt: skip


class Patient(RealClock):
    """A clock on which pauses take no time, and are written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def random(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Hurried(RealClock):
    """A clock on which a minute passes in a tenth of a second."""

    SPEED = 600.0

    def monotonic(self) -> float:
        return super().monotonic() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.SPEED)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await super().wait(event, seconds / self.SPEED)


class Hook:
    """A webhook that answers as it is told to, and remembers what came."""

    def __init__(self, answers: Sequence[int | Callable[[], Awaitable[Any]]] = ()) -> None:
        self.url = ""
        self.came: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self._answers = list(answers)
        self.heard = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw.append(body)
        self.came.append(json.loads(body))
        self.headers.append(dict(request.headers))
        self.heard.set()
        answer = self._answers.pop(0) if self._answers else 200
        if not isinstance(answer, int):
            await answer()
            answer = 200
        return web.Response(status=answer, headers={"Location": "/elsewhere", "Set-Cookie": "seen=1"})

    @property
    def told(self) -> list[tuple[str, str | None]]:
        return [(document["event"], document["reason"]) for document in self.came]


@contextlib.asynccontextmanager
async def hooked(*answers: int | Callable[[], Awaitable[Any]]) -> AsyncIterator[Hook]:
    hook = Hook(answers)
    app = web.Application()
    app.router.add_post("/T0PSECRET-path", hook.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/T0PSECRET-path?token=S3CRET-query"
    try:
        yield hook
    finally:
        await runner.cleanup()


def diary(job: Job) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(f"file:{job.checkpoint}?mode=ro", uri=True)) as sql:
        return sql.execute("select kind, detail from event order by id").fetchall()


def undelivered(job: Job) -> list[str]:
    return [detail for kind, detail in diary(job) if kind == "notify"]


# --- what is told, and when ------------------------------------------------------------------------------------------


async def test_credits_end_and_come_back_over_two_starts(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    faults = (Fault(FaultKind.CREDITS_END, after=20),)
    async with hooked() as hook, Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        job, notify = make_job(simulator.url, source), notify_of([hook.url])
        assert (await start(job, notify=notify)).exit_code == 3
        assert (await start(job, notify=notify)).exit_code == 3
        simulator.top_up(5)
        assert (await start(job, notify=notify)).exit_code == 0
        assert (await start(job, notify=notify)).exit_code == 0
    credits_end = ("parked", "credits")
    assert hook.told == [credits_end, credits_end, ("recovered", None), ("finished", None), ("finished", None)]
    assert len({document["id"] for document in hook.came}) == 5
    parked, _, recovered, finished, _ = hook.came
    assert all(document.keys() == KEYS for document in hook.came)
    assert parked["rows"] == {"total": 60, "answered": 20, "rejected": 0, "left": 40}
    assert parked["left_usd"]["low"] <= parked["left_usd"]["likely"] <= parked["left_usd"]["high"]
    assert (parked["exit_code"], parked["job"], parked["checkpoint"]) == (3, "checkpoint", job.checkpoint)
    assert parked["next"] == f"batchrun resume {job.checkpoint}"
    assert parked["text"].startswith("checkpoint parked (credits): Out of credits:")
    assert recovered["message"] == "Answers again; the run before was parked: credits."
    assert (recovered["exit_code"], recovered["next"], recovered["rows"]["total"]) == (None, None, 60)
    assert (finished["exit_code"], finished["next"], finished["left_usd"]) == (0, None, None)
    assert finished["rows"] == {"total": 60, "answered": 60, "rejected": 0, "left": 0}
    assert finished["spent_usd"] == pytest.approx(parked["spent_usd"] + finished["spent_this_start_usd"])
    assert [detail for kind, detail in diary(job) if kind == "recovered"] == [recovered["message"]]


async def test_credits_that_come_back_within_a_run_are_told_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(80))
    faults = (Fault(FaultKind.CREDITS_END, after=20),)
    async with hooked() as hook, Simulator(Settings(latency=0.002, faults=faults)) as simulator:
        job = make_job(simulator.url, source, limits={"wait_for_credits": True, "concurrency": 4})
        notify = notify_of([hook.url])
        going = asyncio.create_task(Run(job, KEY, clock=Hurried(), options=Options(notify=notify)).go())
        await simulator.reached(answers=20)
        await simulator.requested(simulator.account.requests + 6)
        simulator.top_up(5)
        assert (await going).exit_code == 0
    assert hook.told == [("recovered", None), ("finished", None)]
    assert hook.came[0]["message"] == "The account has credits again."


async def test_a_start_after_a_park_that_runs_out_again_tells_the_new_episode(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """Parked for credits; the next start waits for them: one recovery, of the wait."""
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    faults = (Fault(FaultKind.CREDITS_END, after=10),)
    async with hooked() as hook, Simulator(Settings(latency=0.002, faults=faults)) as simulator:
        notify = notify_of([hook.url])
        job = make_job(simulator.url, source, limits={"concurrency": 4})
        await start(job, notify=notify)
        patient = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, wait_for_credits=True))
        asked = simulator.account.requests
        going = asyncio.create_task(Run(patient, KEY, clock=Hurried(), options=Options(notify=notify)).go())
        await simulator.requested(asked + 5)
        simulator.top_up(5)
        assert (await going).exit_code == 0
    assert hook.told == [("parked", "credits"), ("recovered", None), ("finished", None)]
    assert hook.came[1]["message"] == "The account has credits again."


async def test_an_overloaded_model_that_answers_again_is_told(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.lanes.standins.LOOK_EVERY", 5.0)
    second = "Qwen/Qwen2.5-7B-Instruct-Turbo"
    source = write_prompts(tmp_path / "in.jsonl", range(600))
    down = Fault(FaultKind.OVERLOAD, after=40, model=MODEL)
    async with hooked() as hook, Simulator(Settings(latency=0.002, faults=(down,))) as simulator:
        job = make_job(
            simulator.url, source, limits={"overload_patience": 30.0, "concurrency": 16},
            repairs=Repairs(fallbacks=(second,)),
        )  # fmt: skip
        options = Options(notify=notify_of([hook.url]))
        going = asyncio.create_task(Run(job, KEY, clock=Hurried(), options=options).go())
        await simulator.reached(answers=150)
        simulator.play([])
        assert (await going).exit_code == 0
    assert hook.told == [("recovered", None), ("finished", None)]
    assert hook.came[0]["message"] == f"{MODEL} answers again and takes its rows back."


@pytest.mark.parametrize(
    ("state", "reason", "kept", "expected"),
    [
        ("parked", "credits", 5, "parked: credits"),
        ("parked", "key", 0, "parked: key"),
        ("parked", "overload", 0, "parked: overload"),
        ("parked", "model", 0, "parked: model"),
        ("crashed", None, 3, "killed"),
        ("open", None, 0, "killed"),
        ("parked", "interrupted", 0, None),
        ("parked", "budget", 4, None),
        ("parked", "remote", 0, None),
        ("finished", None, 0, None),
        ("failed", "no", 0, None),
    ],
)
async def test_the_first_answer_after_trouble_is_a_recovery(
    tmp_path: Path, make_job: MakeJob, state: str, reason: str | None, kept: int, expected: str | None
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        await start(job)
        with contextlib.closing(sqlite3.connect(job.checkpoint)) as sql:
            sql.execute("delete from run")
            sql.execute(
                "insert into run(opened_ms, closed_ms, state, reason, kept, token) values (1, ?, ?, ?, ?, ?)",
                (None if state == "open" else 2, state, reason, kept, bytes(16)),
            )
            # Between that start and the next one came a start that was interrupted before any answer.
            sql.execute(
                "insert into run(opened_ms, closed_ms, state, reason, token) values (3, 4, 'parked', 'interrupted', ?)",
                (bytes(16),),
            )
            sql.commit()
        write_prompts(tmp_path / "in.jsonl", range(6))
        await start(job)
        write_prompts(tmp_path / "in.jsonl", range(9))
        await start(job)
    told = [detail for kind, detail in diary(job) if kind == "recovered"]
    assert told == ([] if expected is None else [f"Answers again; the run before was {expected}."])


@pytest.mark.parametrize("killed", [False, True])
async def test_a_batch_from_before_shows_that_somebody_collects_it_but_nothing_of_credits(
    tmp_path: Path, make_job: MakeJob, killed: bool
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(1200))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=1200))
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).exit_code == 7
        with contextlib.closing(sqlite3.connect(job.checkpoint)) as sql:
            sql.execute("update run set state = ?, reason = 'credits'", ("crashed" if killed else "parked",))
            sql.commit()
        simulator.release_batches()
        assert (await one_start(job)).exit_code == 0
        told = [detail for kind, detail in diary(job) if kind == "recovered"]
        assert told == (["Answers again; the run before was killed."] if killed else [])


async def test_a_batch_that_is_sent_after_a_park_is_a_recovery_told_once(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=2000))
        await one_start(job)
        with contextlib.closing(sqlite3.connect(job.checkpoint)) as sql:
            sql.execute("update run set state = 'parked', reason = 'credits'")
            sql.commit()
        write_prompts(tmp_path / "in.jsonl", range(1500))  # more than one chunk of results
        assert (await one_start(job)).exit_code == 0
    assert [detail for kind, detail in diary(job) if kind == "recovered"] == [
        "Answers again; the run before was parked: credits."
    ]


async def test_an_input_that_is_missing_or_bad_is_told_as_failed(tmp_path: Path, make_job: MakeJob) -> None:
    async with hooked() as hook, Simulator(Settings(latency=0.0)) as simulator:
        job, notify = make_job(simulator.url, tmp_path / "in.jsonl"), notify_of([hook.url])
        with pytest.raises(InputError):
            await start(job, notify=notify)
        (tmp_path / "in.jsonl").write_text('{"prompt": 5, "secret": "T0PSECRET-row"}\n')
        with pytest.raises(InputError):
            await start(job, notify=notify)
    assert hook.told == [("failed", None), ("failed", None)]
    missing, bad = hook.came
    assert (missing["exit_code"], missing["rows"], missing["spent_usd"]) == (2, None, None)
    assert (bad["exit_code"], bad["rows"]["total"]) == (2, 0)
    assert bad["next"].startswith("Mend them")
    assert b"T0PSECRET-row" not in hook.raw[1]


async def test_a_disk_that_refuses_in_the_middle_is_told_as_failed(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    commits = 0

    def full(step: str) -> None:
        nonlocal commits
        commits += step == "commit"
        if step == "commit" and commits >= 8:
            raise sqlite3.OperationalError("database or disk is full")

    async with hooked() as hook, Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        door.watch(full)
        with pytest.raises(StorageError):
            await start(job, notify=notify_of([hook.url]))
        door.watch(None)
    assert hook.told == [("failed", None)]
    assert (hook.came[0]["exit_code"], hook.came[0]["rows"]["total"]) == (11, 40)
    assert "disk is full" in hook.came[0]["message"]


async def test_a_bug_is_told_by_its_kind_alone(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise KeyError("T0PSECRET-prompt")

    monkeypatch.setattr("batchrun.runner.wanted.settle", broken)
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    async with hooked() as hook:
        with pytest.raises(KeyError):
            await start(make_job("http://127.0.0.1:9", source), notify=notify_of([hook.url]))
    assert hook.told == [("failed", None)]
    assert hook.came[0]["message"] == "Internal error: KeyError."
    assert (hook.came[0]["exit_code"], b"T0PSECRET" in hook.raw[0]) == (1, False)


async def test_a_start_that_finds_another_run_tells_nothing(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(10))
    async with hooked() as hook, Simulator(Settings(latency=0.0)) as simulator:
        job, notify = make_job(simulator.url, source), notify_of([hook.url])
        simulator.hold()
        first = asyncio.create_task(start(job, notify=notify))
        await simulator.requested(1)
        with pytest.raises(BusyError):
            await start(job, notify=notify)
        assert hook.told == []
        simulator.release()
        await first
    assert hook.told == [("finished", None)]


async def test_the_end_is_told_while_the_lock_is_held_and_after_it_was_written(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    seen: list[Any] = []

    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)

        async def looking() -> None:
            with contextlib.closing(sqlite3.connect(f"file:{job.checkpoint}?mode=ro", uri=True)) as sql:
                seen.extend(sql.execute("select state from run").fetchall())
            with pytest.raises(BusyError):
                await start(job)
            seen.append("held")

        async with hooked(looking) as hook:
            await start(job, notify=notify_of([hook.url]))
    assert seen == [("finished",), "held"]


# --- errors before there is a run ------------------------------------------------------------------------------------


async def command(folder: Path, *words: str, code: str = "", **environment: str) -> asyncio.subprocess.Process:
    """The command line in a process of its own, without a key; `code` is run before it."""
    variables = {**os.environ, "TOGETHER_API_KEY": "", "BATCHRUN_LOG": "json", **environment}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{code}\nfrom batchrun.cli.main import main\nmain()", *words,
        cwd=folder, env=variables, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "checkpoint", "told"),
    [
        (("run", "in.jsonl", "-m", MODEL), "checkpoints/in-", "There is no API key"),
        (("run", "in.jsonl", "-m", MODEL, "--deadline", "soon"), "checkpoints/in-", "--deadline 'soon' is no time."),
        (("run", "in.jsonl", "-m", MODEL, "--template", "none.j2"), "checkpoints/in-", "The template none.j2"),
        (("run", "in.jsonl", "-m", MODEL, "--key-env", "NONE", "--checkpoint", "c.db"), "c.db", "--key-env takes"),
        (("run", "in.jsonl", "-m", MODEL, "--credits", "5"), "checkpoints/in-", "--credits and --script"),
        (("run", "none.jsonl", "-m", MODEL, "--base-url", "http://127.0.0.1:9"), "checkpoints/none-", "does not exist"),
        (("run", "in.jsonl", "b.jsonl", "-m", MODEL), None, "Several inputs need"),
        (("resume", "missing.db"), "missing.db", ""),
        (("resume", "in.jsonl"), "in.jsonl", "not a SQLite file"),
        (("resume",), None, "There is no checkpoint"),
    ],
)
async def test_an_error_before_there_is_a_run_is_said_and_told_once(
    tmp_path: Path, words: tuple[str, ...], checkpoint: str | None, told: str
) -> None:
    write_prompts(tmp_path / "in.jsonl", range(3))
    async with hooked() as hook:
        failing = await command(tmp_path, *words, "--notify", hook.url)
        _, said = await failing.communicate()
    (line,) = [json.loads(one) for one in said.splitlines()]
    assert hook.told == [("failed", None)]
    assert told in line["message"]
    assert (hook.came[0]["message"], hook.came[0]["next"]) == (line["message"], line["next"])
    assert (failing.returncode, hook.came[0]["exit_code"]) == (line["exit_code"],) * 2
    found = hook.came[0]["checkpoint"]
    assert found == "" if checkpoint is None else found.startswith(f"{tmp_path}/{checkpoint}")


async def test_a_bug_before_there_is_a_run_is_told_by_its_kind_alone(tmp_path: Path) -> None:
    broken = "import batchrun.cli.run as r\ndef no(*_): raise KeyError('T0PSECRET-prompt')\nr.new_job = no"
    async with hooked() as hook:
        failing = await command(tmp_path, "run", "in.jsonl", "-m", MODEL, "--notify", hook.url, code=broken)
        _, said = await failing.communicate()
    assert (failing.returncode, hook.told) == (1, [("failed", None)])
    assert hook.came[0]["message"] == "Internal error: KeyError."
    assert b"T0PSECRET" not in said + hook.raw[0]


async def test_what_a_job_file_took_from_the_environment_is_not_told(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(3))
    (tmp_path / "j.toml").write_text('input = "in.jsonl"\nmodel = "m"\ndeadline = "${WHEN}"\n')
    async with hooked() as hook:
        failing = await command(tmp_path, "run", "--job", "j.toml", "--notify", hook.url, WHEN="T0PSECRET-time")
        _, said = await failing.communicate()
    assert (failing.returncode, hook.told) == (2, [("failed", None)])
    assert hook.came[0]["checkpoint"] == str(tmp_path / "checkpoints" / "j.db")
    assert b"T0PSECRET-time" not in said + hook.raw[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_error_is_said_before_it_is_told_and_telling_may_be_cut_off(
    tmp_path: Path, number: signal.Signals
) -> None:
    never = asyncio.Event()
    async with hooked(*[never.wait] * 4) as hook:
        failing = await command(tmp_path, "run", "in.jsonl", "-m", MODEL, "--notify", hook.url)
        assert failing.stderr is not None
        line = json.loads(await failing.stderr.readline())
        await hook.heard.wait()
        failing.send_signal(number)
        _, more = await failing.communicate()
        assert (line["exit_code"], failing.returncode, more) == (2, 2, b"")
        assert len(hook.came) == 1
        never.set()


@pytest.mark.parametrize("log", ["text", "json"])
async def test_an_error_that_cannot_be_told_is_followed_by_why_where_people_read(tmp_path: Path, log: str) -> None:
    async with hooked(400) as hook:
        failing = await command(tmp_path, "run", "in.jsonl", "-m", MODEL, "--notify", hook.url, BATCHRUN_LOG=log)
        _, said = await failing.communicate()
    last = said.decode().splitlines()[-1]
    assert failing.returncode == 2
    if log == "json":
        assert json.loads(last)["exit_code"] == 2
    else:
        assert last == "The notice that the run failed could not be delivered: 127.0.0.1: It answered 400."


async def test_on_a_terminal_a_notice_that_was_not_delivered_is_one_line(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(5))
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "BATCHRUN_LOG"}
    async with hooked(400) as hook, Simulator(Settings(latency=0.0)) as simulator:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batchrun", "run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url,
            "--notify", hook.url, cwd=tmp_path, env={**environment, "TOGETHER_API_KEY": KEY}, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        said = await asyncio.to_thread(shown, ours)
        assert await running.wait() == 0
    told = [line.rpartition("\r")[2] for line in said.replace("\r\n", "\n").split("\n")]
    assert told.count("The notice that the run finished could not be delivered: 127.0.0.1: It answered 400.") == 1


def shown(terminal: int) -> str:
    """All that is written to it."""
    parts = []
    with contextlib.suppress(OSError):  # what a terminal says when nobody writes to it any more
        while part := os.read(terminal, 65_536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


# --- delivery --------------------------------------------------------------------------------------------------------


async def post(url: str, *, patience: float = 10.0) -> tuple[str | None, list[float]]:
    clock = Patient()
    return await Webhook(url, clock, patience=patience).post(b'{"event": "finished"}'), clock.slept


@pytest.mark.parametrize(
    ("answers", "why", "pauses"),
    [
        ((), None, []),
        ((204,), None, []),
        ((503,), None, [0.75]),
        ((500, 429, 408), None, [0.75, 1.5, 3.0]),
        ((503, 502, 500, 503), "127.0.0.1: It answered 503.", [0.75, 1.5, 3.0]),
        ((400,), "127.0.0.1: It answered 400.", []),
        ((404,), "127.0.0.1: It answered 404.", []),
        ((307,), "127.0.0.1: It answered 307.", []),
        ((503, 401), "127.0.0.1: It answered 401.", [0.75]),
    ],
)
async def test_what_may_pass_is_tried_again_and_what_is_final_is_not(
    answers: tuple[int, ...], why: str | None, pauses: list[float]
) -> None:
    async with hooked(*answers) as hook:
        assert await post(hook.url) == (why, pauses)
        assert len(hook.came) == len(pauses) + 1
        assert len(set(hook.raw)) == 1


async def test_one_that_hangs_or_is_not_there_is_given_up() -> None:
    never = asyncio.Event()
    async with hooked(*[never.wait] * 4) as hook:
        why, pauses = await post(hook.url, patience=0.05)
        assert (why, len(hook.came), len(pauses)) == ("127.0.0.1: The server did not answer in time.", 4, 3)
        never.set()
        url = hook.url
    why, pauses = await post(url)
    assert why is not None
    assert why.startswith("127.0.0.1: The server cannot be reached (")
    assert len(pauses) == 3


async def test_a_notice_that_is_tried_again_keeps_its_id(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with hooked(503, 500) as hook, Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        assert (await start(job, notify=notify_of([hook.url], Patient()))).exit_code == 0
    assert hook.told == [("finished", None)] * 3
    assert len({document["id"] for document in hook.came}) == 1
    assert undelivered(job) == []


async def test_one_that_cannot_be_delivered_changes_nothing_but_a_line_in_the_diary(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with hooked(400) as deaf, hooked() as other, Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        report = await start(job, notify=notify_of([deaf.url, other.url], Patient()))
        assert (report.exit_code, report.answered) == (0, 5)
        assert undelivered(job) == [
            "The notice that the run finished could not be delivered: 127.0.0.1: It answered 400."
        ]
        assert other.told == [("finished", None)]
        assert [kind for kind, _ in diary(job)][-2:] == ["finished", "notify"]
        assert (await start(job)).exit_code == 0  # the lock was let go


async def test_whatever_a_callable_raises_the_run_goes_on(tmp_path: Path, make_job: MakeJob) -> None:
    async def broken(_: Notice) -> str | None:
        raise ValueError("T0PSECRET")

    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        assert (await start(job, notify=broken)).exit_code == 0
    assert undelivered(job) == ["The notice that the run finished could not be delivered: ValueError."]


async def test_a_recovery_on_its_way_does_not_hold_up_the_run_and_comes_before_the_end(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(40))
    faults = (Fault(FaultKind.CREDITS_END, after=10),)
    told: list[str] = []
    async with Simulator(Settings(latency=0.0, faults=faults)) as simulator:

        async def slow(notice: Notice) -> str | None:
            if notice.event is Happening.RECOVERED:
                await simulator.reached(answers=40)
            told.append(notice.event.value)
            return None

        job = make_job(simulator.url, source)
        await start(job)
        simulator.top_up(5)
        assert (await start(job, notify=slow)).exit_code == 0
    assert told == ["recovered", "finished"]


async def test_a_second_interrupt_does_not_wait_for_delivery(tmp_path: Path, make_job: MakeJob) -> None:
    never = asyncio.Event()
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with hooked(never.wait) as hook, Simulator(Settings(latency=0.0)) as simulator:
        run = Run(make_job(simulator.url, source), KEY, options=Options(notify=notify_of([hook.url])))
        going = asyncio.create_task(run.go())
        await hook.heard.wait()
        run.interrupt()
        run.interrupt()
        assert (await going).exit_code == 0  # it had finished
        never.set()


async def test_a_run_that_is_cut_short_ends_without_telling(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with hooked() as hook, Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        run = Run(make_job(simulator.url, source), KEY, options=Options(notify=notify_of([hook.url])))
        going = asyncio.create_task(run.go())
        await simulator.requested(1)
        run.interrupt()
        run.interrupt()
        assert (await going).exit_code == 130
        assert hook.told == []


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "hook", "ftp://example.com/S3CRET", "http://example.com/S3CRET", "https://user:S3CRET@example.com/x",
        "https://S3CRET@example.com/x", "https:///S3CRET", "https://[S3CRET", "https://example.com:port/S3CRET",
        "https://example.com/S3CRET x",
    ],
)  # fmt: skip
def test_an_address_that_is_no_webhook_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        notify_of([url])
    assert "S3CRET" not in refused.value.message + refused.value.next_step


@pytest.mark.parametrize(
    "url", ["https://example.com/x", "http://127.0.0.1:8080/", "http://localhost/x", "http://[::1]/x"]
)
def test_https_and_this_machine_are_taken(url: str) -> None:
    assert notify_of([url]) is not None
    assert notify_of([]) is None


async def test_the_key_goes_nowhere_near_a_webhook_and_its_address_nowhere_else(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(30))
    faults = (Fault(FaultKind.CREDITS_END, after=10),)
    environment = {**os.environ, "TOGETHER_API_KEY": KEY}
    async with hooked(400) as hook, Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batchrun", "run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url,
            "--notify", hook.url, "--log", "json",
            cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, said = await done.communicate()
    assert done.returncode == 3
    assert hook.told == [("parked", "credits")]
    assert "Authorization" not in hook.headers[0]
    assert "Cookie" not in hook.headers[0]
    assert hook.headers[0]["Content-Type"] == "application/json"
    assert KEY not in str(hook.headers)
    assert KEY.encode() not in hook.raw[0]
    written = [path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    for text in (out, said, *written):
        assert b"T0PSECRET" not in text
        assert b"S3CRET" not in text
    assert b"could not be delivered: 127.0.0.1: It answered 400." in said


async def test_a_signal_is_told_and_the_exit_code_stays(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(30))
    environment = {**os.environ, "TOGETHER_API_KEY": KEY}
    async with hooked() as hook, Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batchrun", "run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url,
            "--notify", hook.url, "--concurrency", "4",
            cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await simulator.requested(4)
        running.send_signal(signal.SIGTERM)
        assert running.stderr is not None
        await running.stderr.readuntil(b"Once more ends at once.\n")
        simulator.release()
        await running.communicate()
    assert running.returncode == 143
    assert hook.told == [("parked", "interrupted")]
    assert hook.came[0]["exit_code"] == 143


# --- the document ----------------------------------------------------------------------------------------------------


def test_the_document_has_the_same_keys_whatever_it_tells() -> None:
    sums = Sums(200, 120, 3, 77, 1_500_000_000, 500_000_000, 2_000_000, (1_000, 20_000_000, 3_000_000_000))
    for event in Happening:
        for known in (None, sums):
            notice = Notice(event, "an-id", 1_000.25, "/data/nightly.db", "It is so.", sums=known)
            document = json.loads(face.payload(notice))
            assert document.keys() == KEYS
            assert (document["at"], document["job"]) == ("1970-01-01T00:16:40.250Z", "nightly")
            assert document["text"].startswith(f"nightly {event}: It is so.")
    assert document["spent_usd"] == 1.5
    assert document["possibly_paid_twice_usd"] == 0.002
    assert document["left_usd"] == {"low": 1e-6, "likely": 0.02, "high": 3.0}


def test_a_trial_says_that_it_is_simulated() -> None:
    for event in Happening:
        document = face.document(Notice(event, "an-id", 0.0, "/data/nightly.sim.db", "It is so."))
        assert document["job"] == "nightly.sim"
        assert document["text"].startswith(f"(simulated) nightly.sim {event}: It is so.")


def test_a_path_that_is_no_utf_8_still_makes_a_document() -> None:
    notice = Notice(Happening.FAILED, "an-id", 0.0, "/data/\udcff.db", "It is so.", exit_code=11)
    assert json.loads(face.payload(notice))["exit_code"] == 11
