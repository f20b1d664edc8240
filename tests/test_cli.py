"""The command line as its users meet it: what it prints, where, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from support import content, paid_for, prompt, read_rows, write_prompts

from batchrun.cli.main import batchrun, main
from batchrun.simulator import Fault, FaultKind, Settings, Simulator

MODEL = "openai/gpt-oss-20b"
SAMPLES = Path(__file__).parent.parent / "samples"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in the test's folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHER_API_KEY_FILE", "TOGETHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["batchrun", *words])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(SystemExit) as left:
            main()
        for number, handler in before.items():
            signal.signal(number, handler)  # a run leaves its process deaf to them, and this process lives on
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


def script(folder: Path, text: str = "") -> str:
    """A simulator that answers at once, with whatever faults."""
    path = folder / "script.toml"
    path.write_text(f"[server]\nlatency = 0.0\nrefusal_latency = 0.0\n{text}")
    return str(path)


def simulated(folder: Path) -> tuple[str, ...]:
    """A small job, in.jsonl to o.jsonl."""
    return (
        "run", "in.jsonl", "-m", MODEL, "--simulate", "--concurrency", "4", "--script", script(folder), "-o", "o.jsonl",
    )  # fmt: skip


def test_the_main_job_on_the_simulator_needs_no_key(cli: Cli, tmp_path: Path) -> None:
    run = ("run", str(SAMPLES / "prompts.jsonl"), "-m", MODEL, "--simulate", "-o", "answers.parquet",
           "--concurrency", "32", "--script", script(tmp_path))  # fmt: skip
    code, out, err = cli(*run)
    assert (code, out) == (0, "")
    plan, _, summary = err.partition("Done: ")
    assert plan.startswith(f"200 rows: 0 answered, 200 to send.\n\n{MODEL}: live, 200 rows. A batch costs the same")
    assert summary.startswith("200 of 200 rows answered, 0 rejected.")
    assert len(summary.strip().splitlines()) == 5
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.num_rows == 200
    assert set(table["state"].to_pylist()) == {"answered"}
    assert all(model.startswith("simulated/") for model in table["model"].to_pylist())
    before = (tmp_path / "answers.parquet").read_bytes()
    code, _, err = cli(*run)
    assert (code, (tmp_path / "answers.parquet").read_bytes()) == (0, before)
    assert "This start: 0 answers" in err


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("prompts.parquet", ("-m", MODEL), 200),
        ("batch.jsonl", (), 20),
        ("tickets.jsonl", ("-m", MODEL, "--template", str(SAMPLES / "template.j2")), None),
    ],
)
def test_every_sample_runs(cli: Cli, tmp_path: Path, name: str, words: tuple[str, ...], rows: int | None) -> None:
    run = ("run", str(SAMPLES / name), *words, "--simulate", "--concurrency", "32", "--script", script(tmp_path))
    code, _, err = cli(*run, "-o", "out.jsonl")
    assert code == 0, err
    seen = read_rows(tmp_path / "out.jsonl")
    assert rows is None or len(seen) == rows
    assert {row["state"] for row in seen} == {"answered"}


def test_the_awkward_sample_is_refused_and_then_skipped(cli: Cli, tmp_path: Path) -> None:
    run = ("run", str(SAMPLES / "awkward.jsonl"), "-m", MODEL, "--simulate", "--script", script(tmp_path))
    code, _, err = cli(*run)
    assert code == 2
    assert "awkward.jsonl:5: not valid JSON" in err
    assert "Nothing was sent." in err
    code, _, err = cli(*run, "--skip-bad-rows", "--concurrency", "8", "-o", "out.jsonl")
    assert code == 10
    code, out, _ = cli("errors")
    assert code == 0
    assert out.startswith("13 rows rejected (rows are numbered from 0).")
    code, _, _ = cli(*run, "--skip-bad-rows", "--concurrency", "8", "--max-rejected", "50%")
    assert code == 0


def test_out_of_credits_exits_3_and_a_top_up_goes_on(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(100))
    run = ("run", "in.jsonl", "-m", MODEL, "--simulate", "--concurrency", "4", "--max-tokens", "50",
           "--script", script(tmp_path), "-o", "out.jsonl")  # fmt: skip
    code, _, err = cli(*run, "--credits", "0.0003")
    assert code == 3
    last_two = err.strip().splitlines()[-2:]
    assert last_two[0].startswith("Parked (credits): Out of credits:")
    assert "answers kept" in last_two[0]
    assert last_two[1].startswith("Top up")
    assert "batchrun resume checkpoints/in-" in last_two[1]
    assert not (tmp_path / "out.jsonl").exists()
    code, _, err = cli("resume", "--credits", "5", "--script", script(tmp_path))
    assert code == 0, err
    assert len(read_rows(tmp_path / "out.jsonl")) == 100
    (ledger,) = (tmp_path / "checkpoints").glob("*.db.simulator")
    charged = [record["content"] for record in map(json.loads, ledger.read_text().splitlines()) if "content" in record]
    assert sorted(charged) == sorted(content(prompt(n)) for n in range(100))


def test_the_simulators_account_beside_a_checkpoint_among_the_inputs_is_no_input(cli: Cli, tmp_path: Path) -> None:
    fold = tmp_path / "fold"
    fold.mkdir()
    write_prompts(fold / "in.jsonl", range(5))
    run = ("run", "fold", "-m", MODEL, "--simulate", "--script", script(tmp_path), "--checkpoint", "fold/x.db")
    for _ in range(2):
        code, _, err = cli(*run)
        assert code == 0, err
        assert "5 of 5 rows answered" in err
    assert (fold / "x.db.simulator").is_file()


def test_an_account_under_its_earlier_name_is_found_once_and_renamed(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(5))
    run = (*simulated(tmp_path), "--checkpoint", "x.db")
    assert cli(*run)[0] == 0
    charges = (tmp_path / "x.db.simulator").read_bytes()
    for name in ("x.db.simulator", "x.db.simulator.files"):
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / name.replace(".simulator", ".simulator.jsonl"))
    assert cli(*run)[0] == 0
    assert (tmp_path / "x.db.simulator").read_bytes().startswith(charges)
    assert not list(tmp_path.glob("*.simulator.jsonl*"))


def test_planning_leaves_told_why_the_job_is_parked_also_when_the_plan_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(20))
    words = ("in.jsonl", "-m", MODEL, "--simulate", "--checkpoint", "x.db", "--max-tokens", "9")
    assert cli("plan", *words)[0] == 0
    assert "nothing has run yet" in cli("status", "x.db")[1]
    code, _, err = cli("run", *words, "--concurrency", "1", "--script", script(tmp_path), "--credits", "0.00002")
    assert code == 3, err
    before = cli("status", "x.db")[1]
    assert "parked (credits)" in before
    code, _, err = cli("plan", *words, "--system", "Otherwise.")
    assert code == 2, err
    assert cli("status", "x.db")[1] == before
    assert cli("plan", *words, "--system", "Otherwise.", "--new-requests")[0] == 0
    assert "parked (credits)" in cli("status", "x.db")[1]


@pytest.mark.parametrize("words", [("export", "x.db", "-o", "-"), ("status", "x.db"), ("errors", "x.db", "--json")])
def test_a_reader_that_leaves_early_is_exit_141_and_silent(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    write_prompts(tmp_path / "in.jsonl", range(3))
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("{broken\n")
    code, _, err = cli("plan", "in.jsonl", "-m", MODEL, "--simulate", "--skip-bad-rows", "--checkpoint", "x.db")
    assert code == 0, err
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "batchrun", *words], check=False, stdout=writing, stderr=subprocess.PIPE
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_status_export_and_errors_tell_how_a_parked_job_stands(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(30))
    faults = (
        '[[fault]]\nkind = "status"\nstatus = 400\ncontent = "number 3 "\n[[fault]]\nkind = "credits_end"\nafter = 20'
    )
    cli("run", "in.jsonl", "-m", MODEL, "--simulate", "--concurrency", "1", "--script", script(tmp_path, faults))
    code, out, _ = cli("status")
    assert code == 0
    assert "parked (credits)" in out
    assert "20 answered, 1 rejected, 9 left of 30" in out
    code, out, _ = cli("status", "--json")
    standing = json.loads(out)
    assert (standing["answered"], standing["rejected"], standing["pending"]) == (20, 1, 9)
    assert standing["rejections"] == {"bad_request": 1}
    code, out, _ = cli("export", "-o", "-")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == list(range(30))
    assert [row["state"] for row in rows].count("pending") == 9
    assert rows[3]["state"] == "rejected"
    code, out, _ = cli("errors", "--json")
    assert [json.loads(line)["row"] for line in out.splitlines()] == [3]
    code, _, err = cli("errors", "--retry")
    assert code == 0
    assert err.startswith("1 row pending again.")
    code, out, _ = cli("status")
    assert "20 answered, 0 rejected, 10 left of 30" in out


def test_progress_json_prints_one_object_a_line_and_the_report_last(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(20))
    code, out, _ = cli("run", "in.jsonl", "-m", MODEL, "--simulate", "--concurrency", "8", "--progress", "json",
                       "--script", script(tmp_path))  # fmt: skip
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert events[-1]["event"] == "report"
    assert events[-1]["answered"] == 20
    assert {event["event"] for event in events[:-1]} <= {"progress"}


def test_one_input_has_one_checkpoint_however_it_is_typed(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(5))
    (tmp_path / "by-link").symlink_to(tmp_path)
    for typed in ("in.jsonl", "./in.jsonl", str(tmp_path / "in.jsonl"), str(tmp_path / "by-link" / "in.jsonl")):
        code, _, _ = cli("run", typed, "-m", MODEL, "--simulate", "--concurrency", "4", "--script", script(tmp_path))
        assert code == 0
    assert len(list((tmp_path / "checkpoints").glob("*.db"))) == 1


def test_an_export_among_the_inputs_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_prompts(tmp_path / "in" / "a.jsonl", range(3))
    cli("run", "in", "-m", MODEL, "--simulate", "--concurrency", "4", "--script", script(tmp_path))
    code, _, err = cli("export", "-o", "in/answers.jsonl")
    assert code == 2
    assert "among the input files" in err


def test_preview_shows_the_exact_bodies_and_sends_nothing(cli: Cli, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(5))
    code, out, _ = cli("preview", "in.jsonl", "-m", MODEL, "--system", "Be brief.", "--param", "top_p=0.9", "-n", "2")
    bodies = [json.loads(line)["body"] for line in out.splitlines()]
    assert code == 0
    assert bodies[0] == {
        "messages": [{"content": "Be brief.", "role": "system"}, {"content": prompt(0), "role": "user"}],
        "model": MODEL,
        "top_p": 0.9,
    }
    assert len(bodies) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("run", "in.jsonl", "-m", MODEL, "--flag"), "No such option"),
    (("run", "in.jsonl", "-m", MODEL), "There is no API key"),
    (("run", "none.jsonl", "-m", MODEL, "--simulate"), "does not exist"),
    (("run", "in.jsonl", "in.jsonl", "-m", MODEL, "--simulate"), "need a checkpoint"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--route", "batch", "--endpoint", "completions"), "chat requests"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--concurrency", "0"), "--concurrency must be more than 0"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--max-rejected", "many"), "--max-rejected takes"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--param", "top_p"), "is not KEY=JSON"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--param", "stream=true"), "Streaming"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--price", "x"), "MODEL=INPUT/OUTPUT"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "-o", "out.csv"), "neither .jsonl nor .parquet"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "-o", "no/out.jsonl"), "does not exist"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--template", "no.j2"), "template no.j2 cannot be read"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--endpoint", "completions", "--system", "x"), "has no place"),
    (("run", "in.jsonl", "-m", MODEL, "--base-url", "http://example.com"), "Plain http"),
    (("run", "in.jsonl", "-m", MODEL, "--base-url", "ftp://example.com"), "not an http or https address"),
    (("run", "in.jsonl", "-m", MODEL, "--credits", "3"), "for the simulator"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--script", "none.toml"), "The simulator did not start"),
    (("run", "question.jsonl", "-m", MODEL, "--simulate"), "the columns are: id, question"),
    (("run", "in.jsonl", "--simulate"), "names no model"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--max-cost", "nan"), "--max-cost is not a number"),
    (("run", "in.jsonl", "-m", MODEL, "--simulate", "--overload-patience", "0"), "--overload-patience must be"),
    (("status",), "There is no checkpoint"),
    (("status", "none.db"), "There is no checkpoint"),
    (("resume",), "There is no checkpoint"),
    (("export",), "Missing option"),
    (("errors", "--fault", "bad_luck"), "There is no fault"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_mistake_gives_a_line_or_two_and_exit_2(cli: Cli, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    write_prompts(tmp_path / "in.jsonl", range(2))
    (tmp_path / "question.jsonl").write_text('{"id": 1, "question": "Why?"}\n')
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) <= 4


def test_a_full_disk_at_the_output_exits_11_and_keeps_the_answers(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path / "in.jsonl", range(5))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    run = simulated(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        code, _, err = cli(*run)
    assert code == 11
    assert "kept" in err
    assert not list(tmp_path.glob("*o.jsonl*"))
    code, _, err = cli(*run)
    assert code == 0
    assert "This start: 0 answers" in err
    assert "Paid twice: nothing." in err


def every_help() -> list[tuple[str, ...]]:
    return [("--help",), *((name, "--help") for name in batchrun.commands)]


@pytest.mark.parametrize("words", every_help(), ids=" ".join)
def test_help_fits_in_eighty_columns(cli: Cli, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(*words)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.partition("Commands:")[2]


async def test_fewer_open_files_lower_the_ceiling_and_refuse_a_concurrency_beyond_it(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(300))
    limited = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); runpy.run_module('batchrun')"
    )
    async with Simulator(Settings(latency=0.05)) as simulator:
        words = ("run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url)
        for more, code in ((("--concurrency", "200"), 2), (("--concurrency", "30"), 0)):
            ran = await asyncio.create_subprocess_exec(
                sys.executable, "-c", limited, *words, *more,
                cwd=tmp_path, env={**os.environ, "TOGETHER_API_KEY": "any"}, stderr=subprocess.PIPE,
            )  # fmt: skip
            _, said = await ran.communicate()
            assert ran.returncode == code, said
        assert simulator.account.peak_in_flight == 30


async def test_status_tells_a_living_run_from_a_killed_one(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(50))
    async with Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        running = await process(tmp_path, "run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url)
        await simulator.requested(1)
        out, _ = await (await process(tmp_path, "status")).communicate()
        assert f"(process {running.pid} on ".encode() in out
        running.kill()
        await running.communicate()
        out, _ = await (await process(tmp_path, "status", "--json")).communicate()
        assert json.loads(out)["state"] == "killed"


async def process(folder: Path, *words: str, key: str = "a-key-that-is-secret") -> asyncio.subprocess.Process:
    environment = {**os.environ, "TOGETHER_API_KEY": key}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batchrun", *words, cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_drains_and_a_second_start_is_refused_meanwhile(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    write_prompts(tmp_path / "in.jsonl", range(50))
    async with Simulator(Settings(latency=0.0)) as simulator:
        words = ("run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url, "--concurrency", "4", "-o", "out.jsonl")
        simulator.hold()
        first = await process(tmp_path, *words)
        await simulator.requested(4)
        second = await process(tmp_path, *words)
        _, said = await second.communicate()
        assert second.returncode == 8
        assert f"is being written by process {first.pid} on ".encode() in said
        first.send_signal(number)
        assert first.stderr is not None
        await first.stderr.readuntil(b"Once more ends at once.\n")
        simulator.release()
        _, said = await first.communicate()
        assert first.returncode == code
        assert b"4 of 50 answers kept, 46 left" in said
        third = await process(tmp_path, *words)
        await third.communicate()
        assert third.returncode == 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(50)}


async def test_a_run_whose_reader_is_gone_still_stops_when_told(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", range(50))
    async with Simulator(Settings(latency=0.0)) as simulator:
        simulator.hold()
        reading, writing = os.pipe()
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batchrun", "run", "in.jsonl", "-m", MODEL, "--base-url", simulator.url,
            "--concurrency", "4", "--progress", "json",
            cwd=tmp_path, env={**os.environ, "TOGETHER_API_KEY": "any"}, stdout=writing, stderr=writing,
        )  # fmt: skip
        os.close(writing)
        os.close(reading)
        await simulator.requested(4)
        running.terminate()
        simulator.release()
        assert await running.wait() == 143
        assert len(simulator.account.charges) == 4
        again = await process(tmp_path, "status", "--json")
        out, _ = await again.communicate()
        assert (json.loads(out)["answered"], json.loads(out)["state"]) == (4, "parked")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "2>&- --progress bar", ">&- --progress json"])
async def test_a_run_without_standard_streams_does_its_work(tmp_path: Path, closed: str) -> None:
    write_prompts(tmp_path / "in.jsonl", range(20))
    async with Simulator(Settings(latency=0.0)) as simulator:
        line = (
            f"{sys.executable} -m batchrun run in.jsonl -m {MODEL} --base-url {simulator.url} --concurrency 4 {closed}"
        )
        environment = {**os.environ, "TOGETHER_API_KEY": "any"}
        running = await asyncio.create_subprocess_shell(line, cwd=tmp_path, env=environment)
        assert await running.wait() == 0
        assert len(simulator.account.charges) == 20


async def test_neither_key_nor_prompt_is_in_any_file_or_line(tmp_path: Path) -> None:
    secret, key = "The launch code of the teapot is seven brown sparrows", "tgp_v1_0123456789abcdefghij"
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{secret} {n}"}) + "\n" for n in range(30)), encoding="utf-8"
    )
    echo = f'{{"error": {{"message": "Key {key} may not ask: {secret} 1", "type": "invalid_request_error"}}}}'
    faults = (Fault(FaultKind.STATUS, status=400, body=echo, content=f"{secret} 1"),)
    async with Simulator(Settings(latency=0.0, faults=faults)) as simulator:
        ran = await process(
            tmp_path,
            "run",
            "in.jsonl",
            "-m",
            MODEL,
            "--base-url",
            simulator.url,
            "--progress",
            "json",
            "--concurrency",
            "4",
            key=key,
        )
        out, said = await ran.communicate()
        assert ran.returncode == 10, said
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.db")
    listed = await process(tmp_path, "errors", str(checkpoint), key=key)
    table, _ = await listed.communicate()
    assert b"may not ask" in table
    for text in (out, said, table):
        assert key.encode() not in text
        assert secret[:16].encode() not in text
    for path in (tmp_path / "checkpoints").iterdir():
        assert key.encode() not in path.read_bytes(), path
        assert secret.encode() not in path.read_bytes(), path


def test_a_stored_job_holds_no_key_and_absolute_paths(cli: Cli, tmp_path: Path) -> None:
    from batchrun.store.view import View

    write_prompts(tmp_path / "in.jsonl", range(3))
    cli(*simulated(tmp_path))
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.db")
    with View(str(checkpoint)) as view:
        stored = view.job()
    assert stored is not None
    job: dict[str, Any] = msgspec.json.decode(stored[1])
    assert job["inputs"] == [str(tmp_path / "in.jsonl")]
    assert job["output"] == str(tmp_path / "o.jsonl")
    assert "key" not in {name for name in job if name != "key_env"}
