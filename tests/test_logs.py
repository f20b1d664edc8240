"""The diary is the log: for Python as records of `logging`, on the command line as lines for people or programs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import logging
import os
import pty
import signal
import sqlite3
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import MODEL, MakeJob, read_rows, start, write_prompts

import batchrun
from batchrun import diary, door
from batchrun.cli import logs
from batchrun.clock import RealClock
from batchrun.errors import StorageError
from batchrun.simulator import Fault, FaultKind, Settings, Simulator
from batchrun.store.store import Hidden, Store
from batchrun.store.view import View

KEY = "tgp_v1_key-of-a-test-that-nobody-may-see"
SECRET = "The launch code of the teapot is seven brown sparrows"


# --- records ---------------------------------------------------------------------------------------------------------


class Hearing(logging.Handler):
    """Keeps what the logger of batchrun says."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(record.event, record.getMessage()) for record in self.records]  # type: ignore[attr-defined]


@contextlib.contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("batchrun")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.fixture
def heard() -> Iterator[Hearing]:
    hearing = Hearing()
    with listening(hearing):
        yield hearing


def diary_of(path: str | Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as sql:
        return sql.execute("select kind, detail from event order by id").fetchall()


async def test_every_line_of_the_diary_is_a_record_in_the_same_order(
    tmp_path: Path, make_job: MakeJob, heard: Hearing
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(60))
    faults = (Fault(FaultKind.CREDITS_END, after=20), Fault(FaultKind.THROTTLE, after=5, count=2))
    async with Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        job = make_job(simulator.url, source)
        assert (await start(job)).exit_code == 3
        simulator.top_up(5)
        assert (await start(job)).exit_code == 0
    assert heard.lines == diary_of(job.checkpoint)
    kinds = [kind for kind, _ in heard.lines]
    assert kinds.count("opened") == kinds.count("plan") == 2
    assert {"throttled", "parked", "why", "recovered", "written", "finished"} <= set(kinds)
    with View(job.checkpoint) as view:
        assert [record.at_ms / 1000 for record in heard.records] == [event.at for event in view.events(100)]  # type: ignore[attr-defined]
    assert {record.checkpoint for record in heard.records} == {job.checkpoint}  # type: ignore[attr-defined]


async def test_the_plan_is_told_a_line_a_model_and_the_output_with_its_place(
    tmp_path: Path, make_job: MakeJob, heard: Hearing
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(5))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source)
        await start(job)
    told = dict(heard.lines)
    assert told["plan"].startswith(f"{MODEL}: live, 5 rows, about $")
    assert told["written"] == f"5 rows, {Path(job.output or '').stat().st_size} bytes: {job.output}"


async def test_a_line_is_told_after_the_commit_that_holds_it(tmp_path: Path) -> None:
    path = str(tmp_path / "c.db")
    seen: list[bool] = []

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.event, record.getMessage()) in diary_of(path))  # type: ignore[attr-defined]

    store = await Store.open(path, RealClock(), provider="simulated")
    with listening(Looking()):
        await store.note("opened", "1 rows to send")
        async with store.transaction() as sql:
            await sql.note(1, "batch", "batch 1: created")
            assert seen == [True]
        await store.note_apart("notify", "nobody listens")
    assert seen == [True, True, True]
    await store.close("finished", None, doubt=Hidden(0, 0))


async def test_what_was_rolled_back_is_never_told(tmp_path: Path, heard: Hearing) -> None:
    store = await Store.open(str(tmp_path / "c.db"), RealClock(), provider="simulated")

    def full(step: str) -> None:
        if step == "commit":
            raise sqlite3.OperationalError("database or disk is full")

    door.watch(full)
    with pytest.raises(StorageError):
        await store.note("opened", "never")
    door.watch(None)
    await store.note("opened", "2 rows to send")
    await store.close("finished", None, doubt=Hidden(0, 0))
    assert heard.lines == [("opened", "2 rows to send")] == diary_of(store.path)


async def test_a_handler_that_fails_does_not_stop_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(record.getMessage())

    source = write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0)) as simulator:
        with listening(Failing()):
            report = await start(make_job(simulator.url, source))
    assert (report.exit_code, report.answered) == (0, 20)


def test_kinds_are_a_closed_list_with_a_level_each() -> None:
    root = Path(batchrun.__file__).parent
    said = set()
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "faces"):  # a face writes no diary
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr not in {"note", "_note", "note_apart"}:
                    continue
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                said |= {words[0]} if words else set()
    assert said <= set(diary.Kind)
    assert set(diary.LEVELS) == set(diary.Kind)
    grave = {kind for kind, level in diary.LEVELS.items() if level == logging.WARNING}
    assert grave == {"parked", "loss", "credits", "fallback", "notify"}


def test_without_configuration_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    diary.tell(0, "loss", "all of it", "c.db")
    assert capfd.readouterr() == ("", "")


def test_a_percent_sign_in_a_message_is_a_percent_sign(heard: Hearing) -> None:
    diary.tell(0, "why", "100 % of %s and %d", "c.db")
    assert heard.lines == [("why", "100 % of %s and %d")]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_text_line_stays_one_line_whatever_the_server_said() -> None:
    record = logging.LogRecord("batchrun", logging.INFO, "", 0, "one\ntwo\r\n three", None, None)
    record.event, record.at_ms = "why", 0
    assert logs.text_line(record).endswith(" why: one two three")


def test_a_json_line_is_ascii_and_one_line() -> None:
    record = logging.LogRecord("batchrun", logging.WARNING, "", 0, 'ü\n"\udc80', None, None)
    record.event, record.at_ms, record.checkpoint = "loss", 1_500, "/tmp/ä.db"
    line = logs.json_line(record)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "at": "1970-01-01T00:00:01.500Z", "level": "warning", "event": "loss", "message": 'ü\n"\udc80',
        "checkpoint": "/tmp/ä.db",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["run", "--log", "text"], {}, "text"),
        (["run", "--log=none"], {"BATCHRUN_LOG": "json"}, "none"),
        (["resume", "x.db"], {"BATCHRUN_LOG": "text"}, "text"),
        (["run", "--log"], {}, "json"),
        (["run", "--log", "odd"], {}, "json"),
        (["status"], {"BATCHRUN_LOG": "json"}, "none"),
        ([], {"BATCHRUN_LOG": "json"}, "none"),
    ],
)
def test_the_log_of_a_bare_command_line(
    words: list[str], environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert logs.log_typed(words, environment) == expected


def test_a_notice_that_was_not_delivered_is_shown_also_without_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    voice = logs.Voice(logs.Log.NONE)
    for bar in (False, True):
        with voice.listening(bar=bar):
            diary.tell(0, "opened", "1 rows to send", "c.db")
            diary.tell(0, "notify", "Nobody\nlistens.", "c.db")
            diary.tell(0, "loss", "all of it", "c.db")
    assert capfd.readouterr() == ("", "Nobody listens.\n" * 2)


def test_what_is_no_diary_line_says_how_grave_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    voice = logs.Voice(logs.Log.JSON)
    voice.say("metrics", "Metrics: here")
    voice.say("metrics", "a.prom cannot be written", logging.WARNING)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning"]


# --- the command line ------------------------------------------------------------------------------------------------


async def process(folder: Path, *words: str, log: str | None = None, **streams: Any) -> asyncio.subprocess.Process:
    """The command line without BATCHRUN_LOG, unless a test says one."""
    environment = {name: value for name, value in os.environ.items() if name != "BATCHRUN_LOG"}
    environment |= {"TOGETHER_API_KEY": KEY} | ({} if log is None else {"BATCHRUN_LOG": log})
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, "stdin": asyncio.subprocess.DEVNULL}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batchrun", *words, cwd=folder, env=environment, **{**pipes, **streams}
    )


async def ran(folder: Path, *words: str, log: str | None = None) -> tuple[int, str]:
    """Its exit code and standard error; standard output stays empty."""
    done = await process(folder, *words, log=log)
    out, said = await done.communicate()
    assert out == b""
    assert done.returncode is not None
    return done.returncode, said.decode()


def events(said: str) -> list[dict[str, Any]]:
    """Every line is JSON of the one form; the last one is the end."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines()]
    for line in lines:
        assert {"at", "level", "event", "message"} <= line.keys()
    assert ["exit_code" in line for line in lines] == [False] * (len(lines) - 1) + [True]
    assert "next" in lines[-1]
    return lines


def running(simulator: Simulator) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url, "--concurrency", "4", "-o", "out.jsonl")


async def test_without_a_terminal_standard_error_is_json_from_the_first_line_to_the_last(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(40))
    async with Simulator(Settings(latency=0.0, faults=(Fault(FaultKind.CREDITS_END, after=10),))) as simulator:
        code, said = await ran(tmp_path, *running(simulator))
        parked = events(said)
        assert (code, parked[-1]["event"], parked[-1]["level"]) == (3, "parked", "warning")
        assert parked[-1]["next"].startswith(f"batchrun resume {tmp_path}/checkpoints/in-")
        assert parked[-1]["report"]["answered"] == 10
        assert parked[-1]["exit_code"] == 3
        assert [line["event"] for line in parked] == ["opened", "plan", "parked"]
        simulator.top_up(5)
        code, said = await ran(tmp_path, *running(simulator))
        finished = events(said)
        assert [line["event"] for line in finished] == ["opened", "plan", "recovered", "written", "finished"]
        assert (code, finished[-1]["exit_code"], finished[-1]["next"]) == (0, 0, None)
        assert finished[-1]["message"] == "40 of 40 rows answered, 0 rejected."


async def test_rejected_rows_name_the_command_that_shows_them(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0, faults=(Fault(FaultKind.STATUS, status=400, count=1),))) as simulator:
        code, said = await ran(tmp_path, *running(simulator), "--log", "json")
    end = events(said)[-1]
    assert (code, end["event"], end["exit_code"]) == (10, "finished", 10)
    assert end["next"].startswith(f"batchrun errors {tmp_path}/checkpoints/in-")


async def test_an_interrupted_run_ends_in_json_as_well(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(40))
    async with Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        running_one = await process(tmp_path, *running(simulator))
        await simulator.requested(4)
        running_one.send_signal(signal.SIGINT)
        assert running_one.stderr is not None
        before = await running_one.stderr.readuntil(b'"stopping"')
        simulator.release()
        _, after = await running_one.communicate()
    lines = events((before + after).decode())
    assert [line["event"] for line in lines] == ["opened", "plan", "stopping", "interrupted"]
    assert (running_one.returncode, lines[-1]["exit_code"]) == (130, 130)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
@pytest.mark.parametrize("log", ["json", "text"])
async def test_a_signal_before_there_is_a_run_has_a_last_line_as_well(
    tmp_path: Path, log: str, number: signal.Signals, code: int
) -> None:
    template = tmp_path / "template.j2"
    os.mkfifo(template)
    early = await process(tmp_path, "run", "in.jsonl", "-m", MODEL, "--template", str(template), log=log)
    feeding = await asyncio.to_thread(os.open, template, os.O_WRONLY)  # when the command has begun to read it
    early.send_signal(number)
    _, said = await early.communicate()
    os.close(feeding)
    assert early.returncode == code
    if log == "text":
        assert said == b"\n"
        return
    (line,) = events(said.decode())
    assert (line["event"], line["level"], line["exit_code"]) == ("interrupted", "warning", code)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run", "in.jsonl", "--no-such-option"), 2, "No such option"),
        (("run", "in.jsonl", "-m", MODEL, "--rpm", "x"), 2, "Invalid value"),
        (("run",), 2, "Missing argument"),
        (("run", "in.jsonl", "-m", MODEL, "--notify", "ftp://x"), 2, "--notify takes"),
        (("run", "missing.jsonl", "-m", MODEL, "--simulate"), 2, "does not exist"),
        (("run", "bad.jsonl", "-m", MODEL, "--simulate"), 2, "cannot be sent"),
        (("resume", "missing.db"), 2, ""),
        (("run", "in.jsonl", "-m", MODEL, "--simulate", "--checkpoint", "bad.jsonl"), 11, "not a SQLite file"),
    ],
)
async def test_errors_are_json_too(tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    write_prompts(tmp_path / "in.jsonl", range(3))
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\nnonsense\n' * 300)
    found, said = await ran(tmp_path, *words)
    (line,) = events(said)
    assert (found, line["exit_code"], line["event"], line["level"]) == (code, code, "failed", "error")
    assert told in line["message"]
    if words[1:2] == ("bad.jsonl",):
        assert line["problems"]


async def test_a_bug_is_json_too(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(3))
    broken = "import batchrun.runner as r, runpy\ndef no(*_a, **_k): raise KeyError('a prompt')\nr.Run.go = no\n"
    environment = {name: value for name, value in os.environ.items() if name != "BATCHRUN_LOG"}
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", broken + "runpy.run_module('batchrun')", "run", "in.jsonl", "-m", MODEL, "--simulate",
        cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await done.communicate()
    (line,) = events(said.decode())
    assert (done.returncode, line["event"], line["exit_code"]) == (1, "failed", 1)
    assert line["message"].startswith("Internal error: KeyError at ")
    assert b"a prompt" not in said


async def test_another_run_that_holds_the_checkpoint_is_told_in_json(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        first = await process(tmp_path, *running(simulator))
        await simulator.requested(1)
        code, said = await ran(tmp_path, *running(simulator))
        assert (code, events(said)[-1]["exit_code"]) == (8, 8)
        simulator.release()
        await first.communicate()


async def test_text_lines_stand_beside_plan_and_summary(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        code, said = await ran(tmp_path, *running(simulator), log="text")
        _, quiet = await ran(tmp_path, *running(simulator), log="none")
    assert code == 0
    lines = said.splitlines()
    assert [line[20:].split(":")[0] for line in lines if line[:2] == "20"] == ["opened", "plan", "written", "finished"]
    assert "10 rows: 0 answered, 10 to send." in lines
    assert "Done: 10 of 10 rows answered, 0 rejected." in lines
    assert quiet.startswith("Done: 10 of 10 rows answered")


@pytest.mark.parametrize(("words", "lines"), [((), 0), (("--log", "text"), 4)])
async def test_on_a_terminal_there_is_a_bar_and_no_json(tmp_path: Path, words: tuple[str, ...], lines: int) -> None:
    write_prompts(tmp_path / "in.jsonl", range(10))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    async with Simulator(Settings(latency=0.0)) as simulator:
        run = await process(tmp_path, *running(simulator), *words, stderr=theirs)
        os.close(theirs)
        said = await asyncio.to_thread(_read_all, ours)
        assert await run.wait() == 0
    assert "Done: 10 of 10 rows answered" in said
    assert '"event"' not in said
    assert "reading the input" in said
    told = [line.rpartition("\r")[2] for line in said.replace("\r\n", "\n").split("\n")]
    assert sum(line[:2] == "20" and ": " in line for line in told) == lines


def _read_all(number: int) -> str:
    parts = []
    with contextlib.suppress(OSError):  # what a terminal says when nobody writes to it any more
        while part := os.read(number, 65_536):
            parts.append(part)
    os.close(number)
    return b"".join(parts).decode()


@pytest.mark.parametrize("log", ["json", "text"])
@pytest.mark.parametrize("place", ["closed", "/dev/full", "gone"])
async def test_nobody_who_takes_the_lines_is_no_reason_to_stop(tmp_path: Path, place: str, log: str) -> None:
    if place == "/dev/full" and not Path(place).exists():
        pytest.skip("there is no /dev/full here")
    write_prompts(tmp_path / "in.jsonl", range(20))
    ends = {"closed": "2>&-", "/dev/full": "2>/dev/full", "gone": "2> >(exec true)"}
    async with Simulator(Settings(latency=0.0)) as simulator:
        line = f"{sys.executable} -m batchrun {' '.join(running(simulator))} {ends[place]}"
        environment = {**os.environ, "TOGETHER_API_KEY": KEY, "BATCHRUN_LOG": log}
        done = await asyncio.create_subprocess_exec("bash", "-c", line, cwd=tmp_path, env=environment)
        assert await done.wait() == 0
    assert len(read_rows(tmp_path / "out.jsonl")) == 20


@pytest.mark.parametrize("log", ["json", "text", "none"])
async def test_whoever_stops_reading_does_not_stop_the_run(tmp_path: Path, log: str) -> None:
    write_prompts(tmp_path / "in.jsonl", range(20))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    async with Simulator(Settings(latency=0.0)) as simulator:
        run = await process(tmp_path, *running(simulator), stderr=writing, log=log)
        os.close(writing)
        await simulator.reached(answers=20)
        said = await asyncio.to_thread(_read_all, reading)  # only the last words wait for a reader
        assert await run.wait() == 0
    last = said.lstrip("x")
    assert [line["event"] for line in events(last)][-1:] == ["finished"] if log == "json" else "Done: 20 of 20" in last


async def test_what_libraries_log_does_not_come_between_the_lines() -> None:
    code = """
import logging
from batchrun import diary
from batchrun.cli import logs
with logs.Voice(logs.Log.JSON).listening():
    logging.getLogger("asyncio").error("a body")
    logging.getLogger("aiohttp.client").warning("a body")
    diary.tell(0, "opened", "1 rows to send", "c.db")
diary.tell(0, "opened", "said to nobody", "c.db")
"""
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, said = await done.communicate()
    assert [json.loads(line)["message"] for line in said.splitlines()] == ["1 rows to send"]


async def test_a_bar_that_was_asked_for_has_no_place_among_json_lines(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(10))
    async with Simulator(Settings(latency=0.0)) as simulator:
        code, said = await ran(tmp_path, *running(simulator), "--progress", "bar", log="json")
    assert (code, events(said)[-1]["event"]) == (0, "finished")


@pytest.mark.parametrize("log", ["json", "text"])
async def test_neither_prompt_nor_answer_nor_key_is_in_any_line(tmp_path: Path, log: str) -> None:
    prompts = [f"{SECRET} {number}" for number in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    echo = json.dumps({"error": {"message": f"Key {KEY} may not ask: {prompts[1]}", "type": "invalid_request_error"}})
    no_credits = json.dumps({"error": {"message": f"No credit for {SECRET} of {KEY}", "type": "credit_limit"}})
    faults = (
        Fault(FaultKind.STATUS, status=400, body=echo, content=prompts[1]),
        Fault(FaultKind.THROTTLE, after=4, count=3),
        Fault(FaultKind.BROKEN_JSON, after=6, count=2),
        Fault(FaultKind.STATUS, status=402, body=no_credits, after=25, count=1),
    )
    notify = "http://127.0.0.1:9/T0PSECRET-path?token=S3CRET-query"
    said = ""
    async with Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        words, codes = (*running(simulator), "--log", log), []

        async def another(*more: str) -> None:
            nonlocal said
            code, lines = await ran(tmp_path, *words, *more)
            codes.append(code)
            said += lines

        await another("--notify", notify)
        await another()
        everybody = json.dumps({"error": {"message": f"Not {SECRET}, {KEY}", "type": "invalid_request_error"}})
        simulator.play([Fault(FaultKind.STATUS, status=400, body=everybody)])
        await another("--checkpoint", "hopeless.db")
        simulator.play([Fault(FaultKind.OVERLOAD, body=everybody)])
        await another("--checkpoint", "busy.db", "--overload-patience", "1")
    assert codes == [3, 10, 9, 5]
    answers = [row["answer"] for row in read_rows(tmp_path / "out.jsonl") if row["answer"]]
    assert len(answers) == 60 - 11  # 1 and 10 to 19 are refused
    for text in (KEY, SECRET[:16], "T0PSECRET", "S3CRET", *answers):
        assert text not in said
    assert "could not be delivered: 127.0.0.1: " in said
