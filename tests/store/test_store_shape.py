"""What `status` and `plan` ask of SQLite takes as long for a million rows as for one: no query walks through them."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from support import write_prompts

from batchrun.cli.main import main
from batchrun.store import view as view_module

MODEL = "openai/gpt-oss-20b"
# Everything else may grow with the rows. What is in brackets is a subquery, whose own steps are looked at too.
SMALL = {
    "batch",
    "batch_job",
    "event",
    "gauge",
    "job",
    "pulse",
    "run",
    "source",
    "spend",
    "tally",
    "lane",
    "model",
    "aside",
    "(subquery-1)",
}
# Small as a rule, and a few tenths of a second for a million: what is of no use, and what was rejected.
ALLOWED = ("USING COVERING INDEX paid_aside", "USING COVERING INDEX request_rejected")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["batchrun", *words])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit) as left:
        main()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job with answered, rejected, pending and unused rows; then what is asked of its checkpoint is written down."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    Path("script.toml").write_text(
        "[server]\nlatency = 0.0\nrefusal_latency = 0.0\n"
        '[[fault]]\nkind = "status"\nstatus = 400\ncontent = "number 3 to"\n'
    )
    write_prompts(Path("in.jsonl"), range(12))
    assert call(monkeypatch, "run", *words(), "--script", "script.toml", "--max-rejected", "50%") == 0
    write_prompts(Path("in.jsonl"), [*range(8), *range(50, 55)])
    assert call(monkeypatch, "plan", *words()) == 0
    asked: list[str] = []
    real = sqlite3.connect

    def connect(database: str, **options: Any) -> sqlite3.Connection:
        connection = real(database, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(view_module.sqlite3, "connect", connect)
    return asked


def words() -> tuple[str, ...]:
    return "in.jsonl", "-m", MODEL, "--max-tokens", "20", "--simulate", "--concurrency", "1", "--checkpoint", "c.db"


def walks(asked: list[str]) -> list[str]:
    """Steps of SQLite that walk through a table that is not small."""
    found = []
    with contextlib.closing(sqlite3.connect("file:c.db?mode=ro", uri=True)) as sql:
        for query in dict.fromkeys(asked):
            if query.lstrip().lower().startswith("select"):
                steps = [step for *_, step in sql.execute(f"explain query plan {query}")]
                found += [f"{step}: {query}" for step in steps if is_walk(step)]
    return found


def is_walk(step: str) -> bool:
    return step.startswith("SCAN ") and step.split()[1] not in SMALL and not step.endswith(ALLOWED)


@pytest.mark.parametrize("command", [("status", "c.db"), ("status", "--json", "--events", "50", "c.db"), ("plan",)])
def test_no_query_walks_through_rows_or_replies(
    command: tuple[str, ...], seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *command, *(words() if command == ("plan",) else ())) == 0
    asked = [query for query in seen if "from" in query.lower()]
    assert len(asked) >= (6 if command == ("plan",) else 9)
    assert walks(asked) == []


def test_a_walk_would_be_noticed(seen: list[str]) -> None:
    assert seen == []
    assert walks(["select count(*) from request where state = 2"])
    assert walks(["select sum(cost_nano) from paid"])
    assert not walks(["select answer from request where row = 3"])
