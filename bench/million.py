"""How long `status` and `plan` take on a checkpoint with a million rows: the real commands, in processes of their own.

    python bench/million.py [--rows N] [--rounds N]

Each checkpoint is made by `plan` from an input of one row, and then filled by SQL.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

MODEL = "openai/gpt-oss-20b"
BODY = 60  # bytes of a reply, compressed

_PAID = """
insert into paid(digest, lane, model, finish, prompt_tokens, completion_tokens, cached_tokens, cost_nano, latency_ms,
                 attempts, kept_ms, checksum, unused)
select {digest}, lane.id, model.id, finish.id, 40, 200, 0, 42000, 900, 1, 1000000, 0, {unused}
from request, name as lane, name as model, name as finish
where lane.text = 'live' and model.text = 'simulated/m' and finish.text = 'stop'
"""
_SPENT = """
insert into spend select lane, model, count(*), 0, sum(prompt_tokens), sum(completion_tokens), sum(cost_nano)
from paid group by 1, 2
"""
# What becomes of the rows in each kind of checkpoint; every one of them has a digest of its own.
KINDS = {
    "pending": [],
    "answered": [
        _PAID.format(digest="digest", unused=0),
        "update request set state = 2, answer = row + 1",
        _SPENT,
    ],
    "answered, as many unused": [
        _PAID.format(digest="digest", unused=0),
        "update request set state = 2, answer = row + 1",
        _PAID.format(digest="randomblob(16)", unused=1),
        _SPENT,
    ],
    "rejected": [
        "insert into rejection select digest, 'too_long', 400, 'too long', 1, 1000000 from request",
        "update request set state = 3",
    ],
}


def made(folder: Path, kind: str, rows: int) -> Path:
    """An input of one row and its checkpoint, in which there are `rows` of this kind."""
    source, path = folder / "in.jsonl", folder / f"{kind}.db"
    source.write_text('{"prompt": "Hi"}\n')
    command(folder, "plan", path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("begin")
        sql.execute("delete from request")
        sql.execute(
            "insert into request(row, digest) with recursive n(i) as (select 0 union all select i + 1 from n "
            "where i + 1 < ?) select i, randomblob(16) from n",
            (rows,),
        )
        sql.executemany("insert or ignore into name(text) values (?)", [("live",), ("simulated/m",), ("stop",)])
        for step in KINDS[kind]:
            sql.execute(step)
        sql.execute("insert into body select id, null, randomblob(?) from paid", (BODY,))
        sql.execute("update tally set rows = (select count(*) from request where request.state = tally.state)")
        (columns,) = sql.execute("select columns from job").fetchone()
        seen = msgspec.json.decode(columns)
        seen["loads"][MODEL].update(rows=rows, bytes=200 * rows)
        sql.execute("update job set columns = ?", (msgspec.json.encode(seen).decode(),))
        sql.execute("commit")
    return path


def command(folder: Path, name: str, path: Path) -> float:
    """Seconds that a command takes, from the shell's prompt to the next."""
    words = {
        "plan": ["plan", "in.jsonl", "-m", MODEL, "--max-tokens", "200", "--simulate", "--checkpoint", path],
        "status": ["status", path],
        "status --json": ["status", "--json", path],
    }[name]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "batchrun", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print a table: seconds for each kind and command, the median and the slowest of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    said = parser.parse_args()
    os.environ.pop("TOGETHER_API_KEY", None)
    print(f"| {said.rows:,} rows | file | status | status --json | plan |\n|---|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = made(folder, kind, said.rows)
            cells = [f"{path.stat().st_size / 1e6:,.0f} MB"]
            for what in ("status", "status --json", "plan"):
                took = [command(folder, what, path) for _ in range(said.rounds)]
                cells.append(f"{statistics.median(took):.2f} s (at most {max(took):.2f})")
            print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
