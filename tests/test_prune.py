"""`batchrun prune` as its users meet it: it says what would go, asks, and whatever is of use is never touched."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, write_prompts

from batchrun.store.lock import Lock

MODEL = "openai/gpt-oss-20b"
ROWS, LEFT = 12, 5
GONE = ROWS - LEFT

RUN = (
    "run", "in.jsonl", "-m", MODEL, "--max-tokens", "20", "--simulate", "--concurrency", "4", "--script", "script.toml",
    "--checkpoint", "c.db", "-o", "out.jsonl",
)  # fmt: skip

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Cli) -> Cli:
    """Run the command line in the test's folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("script.toml").write_text("[server]\nlatency = 0.0\nrefusal_latency = 0.0\n")

    return command_line


def ran(cli: Cli, numbers: Any, *words: str) -> str:
    """A run over these prompts; what it said."""
    write_prompts(Path("in.jsonl"), numbers)
    code, _, err = cli(*RUN, *words)
    assert code == 0, err
    return err


def counted(sql: str) -> int:
    with contextlib.closing(sqlite3.connect("file:c.db?mode=ro", uri=True)) as connection:
        return int(connection.execute(sql).fetchone()[0])


def unused_bytes() -> int:
    return counted("select sum(length(reply)) from body where id not in (select answer from request)")


def bodies() -> int:
    return counted("select count(*) from body")


@pytest.fixture
def shortened(cli: Cli) -> Cli:
    """A checkpoint of twelve answers, of which the input wants five."""
    ran(cli, range(ROWS))
    said = ran(cli, range(LEFT))
    assert "Of that: $" in said
    assert "in the output, $" in said
    assert "for rows no longer asked for." in said
    return cli


def status(cli: Cli) -> dict[str, Any]:
    code, out, _ = cli("status", "--json", "c.db")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_it_says_what_would_go_and_needs_a_word_where_nobody_can_be_asked(shortened: Cli) -> None:
    before = Path("c.db").read_bytes()
    size = unused_bytes()
    told = f"{GONE} replies that no row wants any more: {size / 1000:.1f} kB, paid with $0.0000"
    code, out, err = shortened("prune", "c.db", "--dry-run")
    assert (code, out) == (0, "")
    assert err.startswith(told)
    assert err.endswith("Nothing was removed (--dry-run).\n")
    code, out, err = shortened("prune", "c.db")
    assert (code, out) == (2, "")
    assert err.startswith(told)
    assert err.splitlines()[-2:] == [
        "Error: Nothing was removed: there is no terminal to ask on.",
        "Say --yes, or --dry-run to only look.",
    ]
    assert Path("c.db").read_bytes() == before


def test_what_went_is_gone_and_what_it_cost_stays_for_ever(shortened: Cli) -> None:
    before, output = status(shortened), Path("out.jsonl").read_bytes()
    size = unused_bytes()
    code, out, err = shortened("prune", "c.db", "--yes", "--json")
    assert code == 0, err
    assert f"Removed {GONE} texts." in err
    told = json.loads(out)
    assert told["unused"] == {
        "replies": GONE, "unpriced": 0, "nano": before["models"][0]["unused_nano"], "size": size,
    }  # fmt: skip
    assert (told["removed"], bodies()) == (True, LEFT)
    after = status(shortened)
    for name in ("models", "spent_nano", "answered", "total", "state", "opened", "closed", "maybe_twice"):
        assert after[name] == before[name], name
    assert "pruned: the texts of 7 replies" in shortened("status", "c.db")[1]
    assert shortened("export", "c.db", "-o", "again.jsonl")[0] == 0
    assert Path("again.jsonl").read_bytes() == output
    code, out, err = shortened("prune", "c.db")
    assert (code, "nothing to remove" in err) == (0, True)
    said = ran(shortened, range(LEFT))
    assert "This start: 0 answers" in said
    assert Path("out.jsonl").read_bytes() == output


def test_a_row_that_comes_back_is_asked_again_and_counts_against_the_limit(shortened: Cli) -> None:
    assert shortened("prune", "c.db", "--yes")[0] == 0
    spent = status(shortened)["spent_nano"]
    write_prompts(Path("in.jsonl"), range(LEFT + 2))
    assert shortened(*RUN, "--max-cost", f"{spent / 1e9:.9f}")[0] == 6
    code, _, err = shortened("export", "c.db", "-o", "now.jsonl")
    assert (code, [row["state"] for row in read_rows("now.jsonl")[-2:]]) == (0, ["pending"] * 2), err
    code, _, err = shortened(*RUN, "--max-cost", "1")
    assert code == 0
    assert "This start: 2 answers" in err
    rows = read_rows("out.jsonl")
    assert len(rows) == LEFT + 2
    assert all(row["answer"] for row in rows)
    found = status(shortened)["models"][0]
    assert (found["replies"], found["useful"], found["unused"]) == (ROWS + 2, LEFT + 2, GONE)


def test_unused_ones_can_be_kept_for_rows_that_come_back(shortened: Cli) -> None:
    code, _, err = shortened("prune", "c.db", "--keep-unused", "--yes")
    assert (code, bodies()) == (0, ROWS)
    assert err == "No wasted reply that could go has its text still: there is nothing to remove.\n"
    assert "This start: 0 answers" in ran(shortened, range(ROWS))


def test_while_a_run_writes_it_only_looks(shortened: Cli) -> None:
    lock = Lock("c.db")
    lock.take()
    try:
        assert shortened("prune", "c.db", "--dry-run")[0] == 0
        assert shortened("prune", "c.db")[0] == 8  # before anybody is asked
        code, _, err = shortened("prune", "c.db", "--yes")
        assert code == 8
        assert "is being written by process" in err
    finally:
        lock.release()
    assert bodies() == ROWS


def test_an_empty_place_and_a_checkpoint_without_a_job_are_told(cli: Cli) -> None:
    assert cli("prune")[0] == 2
    assert cli("prune", "none.db")[0] == 2


KILLED_AT = """
import os, signal, sys
from batchrun import door
here = sys.argv.pop(1)
def watch(step):
    if step == here:
        os.kill(os.getpid(), signal.SIGKILL)
door.watch(watch)
from batchrun.cli.main import main
main()
"""


@pytest.mark.parametrize(("step", "left"), [("commit", ROWS), ("vacuum", LEFT)])
def test_killed_in_the_middle_all_or_nothing_is_done_and_it_can_be_said_again(
    shortened: Cli, step: str, left: int
) -> None:
    words = [sys.executable, "-c", KILLED_AT, step, "prune", "c.db", "--yes"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert bodies() == left
    assert shortened("export", "c.db", "-o", "now.jsonl")[0] == 0
    assert Path("now.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    code, _, err = shortened("prune", "c.db", "--yes")
    assert (code, bodies()) == (0, LEFT), err
    assert status(shortened)["maybe_twice"] == 0


@pytest.mark.parametrize(("answer", "left"), [("y\n", LEFT), ("n\n", ROWS), ("\n", ROWS)])
def test_on_a_terminal_it_asks(shortened: Cli, answer: str, left: int) -> None:
    ours, theirs = pty.openpty()
    try:
        words = [sys.executable, "-m", "batchrun", "prune", "c.db"]
        process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        assert b"7 replies that no row wants any more" in said
        assert b"asked and paid again" in said
        assert bodies() == ROWS
        os.write(ours, answer.encode())
        assert process.wait(60) == 0
    finally:
        os.close(theirs)
        os.close(ours)
    assert bodies() == left
    assert shortened("status", "c.db")[0] == 0
