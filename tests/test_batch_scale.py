"""Batches at the size the provider allows: three of them and every row once, memory flat, a store of a million rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MODEL, content, prompt, read_rows, write_prompts
from test_scale import url  # noqa: F401 - a fixture

from batchrun.clock import RealClock
from batchrun.records import Completion, Endpoint, RemoteJob, Request, State, Usage
from batchrun.rules.remote import BatchState, RemoteBatch
from batchrun.simulator import Charge
from batchrun.store import batches
from batchrun.store.batches import Draft, Line
from batchrun.store.ingest import Ingest
from batchrun.store.results import Result, Results
from batchrun.store.store import Hidden, Store
from batchrun.store.till import Till

FEW, MANY = 12_000, 120_000
LINES = 50_000

# What a larger job may take more, once, however large it is: the lines of a full batch, held while they are written
# down, and the chunk of results before the one being read. What may not be held is 80 MB of answers and more.
BOUNDED_MB = 30

# --- whole runs ------------------------------------------------------------------------------------------------------

# A small request that the simulator answers with some 22,000 bytes.
_LONG = {"type": "array", "minItems": 100, "items": {"const": "A long answer tells the same again and again. " * 5}}
LONG_ANSWERS = json.dumps({"type": "json_schema", "json_schema": {"name": "long", "schema": _LONG}})


# Between the tests and what is measured, for the kernel counts the memory of whoever starts a process as the process's
# own, and a ledger that was read here makes this one large.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_mb(folder: Path, server: str, rows: int, *words: str) -> float:
    """Peak memory of a whole run in batches, from the kernel's own count of the finished process."""
    source = write_prompts(folder / f"{rows}.jsonl", range(rows))
    command = [
        sys.executable, "-c", _MEASURE,
        sys.executable, "-m", "batchrun", "run", str(source), "-m", MODEL, "--base-url", server, "--route", "batch",
        "--batch-lines", str(LINES), "--batch-poll", "0.2", "--checkpoint", str(folder / f"{rows}.db"),
        "-o", str(folder / f"out{rows}.jsonl"), *words,
    ]  # fmt: skip
    environment = {**os.environ, "TOGETHER_API_KEY": "any"}
    measured = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return int(measured.stdout) / (1024 if sys.platform != "darwin" else 1024 * 1024)


def seen(server: str, what: str) -> bytes:
    """What the simulator knows of itself."""
    with urllib.request.urlopen(f"{server}/_simulator/{what}") as reply:
        told: bytes = reply.read()
    return told


def jobs(server: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(seen(server, "batches"))["jobs"]
    return found


def result_mb(server: str) -> list[float]:
    """The sizes of the result files, in the order they were made."""
    files = json.loads(seen(server, "batches"))["files"]
    return [file["bytes"] / 1_000_000 for file in files if file["purpose"] == "batch-generated"]


def charged(server: str, numbers: set[str]) -> Counter[str]:
    """How often each prompt was charged in these jobs."""
    ledger = msgspec.json.Decoder(Charge).decode_lines(seen(server, "ledger"))
    return Counter(charge.content for charge in ledger if charge.batch in numbers)


@pytest.mark.soak
def test_120_000_rows_come_home_once_from_three_batches_in_the_memory_of_12_000(tmp_path: Path, url: str) -> None:  # noqa: F811
    few = peak_mb(tmp_path, url, FEW, "--max-tokens", "60")
    before = len(jobs(url))
    many = peak_mb(tmp_path, url, MANY, "--max-tokens", "60")
    print(f"{few:.0f} MB with {FEW:,} rows in {before} batch, {many:.0f} MB with {MANY:,}")

    mine = jobs(url)[before:]
    assert [job["lines"] for job in mine] == [50_000, 50_000, 20_000]
    assert charged(url, {job["id"] for job in mine}) == {content(prompt(n)): 1 for n in range(MANY)}
    rows = read_rows(tmp_path / f"out{MANY}.jsonl")
    assert [row["id"] for row in rows] == list(range(MANY))
    assert {(row["lane"], row["answer"] != "") for row in rows} == {("batch", True)}
    assert many <= few + BOUNDED_MB


@pytest.mark.soak
def test_a_result_file_of_90_mb_is_collected_in_the_memory_of_one_of_9_mb(tmp_path: Path, url: str) -> None:  # noqa: F811
    words = ("--max-tokens", "20000", "--param", f"response_format={LONG_ANSWERS}")
    small, large = (peak_mb(tmp_path, url, rows, *words) for rows in (390, 3_900))
    sizes = result_mb(url)
    print(f"{small:.0f} MB for a result file of {sizes[0]:.0f} MB, {large:.0f} MB for one of {sizes[1]:.0f} MB")
    assert len(sizes) == 2
    assert sizes[0] >= 9
    assert sizes[1] >= 90
    assert large <= small + BOUNDED_MB


# --- the store -------------------------------------------------------------------------------------------------------

MILLION = 1_000_000


def asked(row: int, kinds: int) -> Request:
    """A row that asks for one of so many things."""
    return Request(row, (row % kinds).to_bytes(16), Endpoint.CHAT, "m", b"{}", 100, 1)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"  {what}: {time.perf_counter() - began:.2f} s")


async def want(store: Store, rows: Iterator[Request]) -> None:
    """Let these rows be the input, numbered as they come."""
    ingest, chunk = Ingest(store), []
    await ingest.begin()
    for number, row in enumerate(rows):
        chunk.append(msgspec.structs.replace(row, row=number))
        if len(chunk) == 2000:
            await ingest.add(chunk)
            chunk = []
    await ingest.add(chunk)
    with timed("replacing what is wanted"):
        async with store.transaction() as sql:
            await ingest.replace(sql)
    await ingest.end()


async def running(store: Store, name: str, rows: range, kinds: int) -> RemoteBatch:
    """A batch of these rows whose job has ended."""
    lines = [Line(row, asked(row, kinds).digest, 100) for row in rows]
    with timed(f"planning {len(lines):,} lines"):
        batch = await batches.plan(store, Draft("m", f"{name}.jsonl", name, 100, bytes(32), 500, lines))
    batch = await batches.uploaded(store, await batches.uploading(store, batch), f"file-{name}")
    batch = await batches.creating(store, batch, None)
    return await batches.told(store, batch, [RemoteJob(f"job-{name}", f"file-{name}", "COMPLETED")])


async def answers(lines: range) -> AsyncIterator[Sequence[Result]]:
    for first in range(lines.start, lines.stop, 500):
        said = Completion(b'{"text": "yes"}', "m", "stop", Usage(10, 20), None)
        yield [Result(line, said) for line in range(first, min(first + 500, lines.stop))]


async def take(store: Store, batch: RemoteBatch, lines: range) -> RemoteBatch:
    results = Results(store, await Till.on(store), batch, batch.jobs[0].id, lambda _usage: 70)
    with timed(f"taking {len(lines):,} answers"):
        return await results.take(answers(lines), lambda: None)


async def over(store: Store, batch: RemoteBatch) -> None:
    with timed(f"giving {batch.left:,} lines back"):
        await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="over")


async def rows_by_state(store: Store) -> dict[int, int]:
    return {state: rows for state, rows in await store.sql.all("tally") if rows}


@pytest.mark.soak
@pytest.mark.parametrize("kinds", [MILLION, 1000, 1], ids=["all_different", "each_a_thousand_times", "all_the_same"])
async def test_every_line_of_a_full_batch_among_a_million_rows_is_settled(tmp_path: Path, kinds: int) -> None:
    store = await Store.open(str(tmp_path / "checkpoint.db"), RealClock(), provider="simulated")
    await want(store, (asked(row, kinds) for row in range(MILLION)))
    first = await running(store, "one", range(LINES), kinds)
    await over(store, await take(store, first, range(LINES)))
    assert await rows_by_state(store) == {State.PENDING: MILLION - LINES, State.ANSWERED: LINES}

    second = await running(store, "two", range(LINES, 2 * LINES), kinds)
    third = await running(store, "three", range(2 * LINES, 3 * LINES), kinds)
    second = await take(store, second, range(LINES // 5))
    await over(store, second)
    kept = LINES + LINES // 5
    waiting = {State.SUBMITTED: LINES, State.ANSWERED: kept}
    assert await rows_by_state(store) == {State.PENDING: MILLION - LINES - kept, **waiting}

    # One row goes from the middle, so that all the others after it move; what it asks for was never answered.
    await want(store, (asked(row, kinds) for row in range(MILLION) if row != MILLION // 2))
    assert await rows_by_state(store) == {State.PENDING: MILLION - LINES - kept - 1, **waiting}

    await over(store, await take(store, third, range(0)))
    assert await rows_by_state(store) == {State.PENDING: MILLION - kept - 1, State.ANSWERED: kept}
    await store.close("finished", None, doubt=Hidden(0, 0))
