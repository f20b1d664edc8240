"""Short ways to make a checkpoint, to keep outcomes in it, and to look at it as a stranger would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from batchrun.records import Answer, Completion, Endpoint, Fault, Lane, Rejection, Request, Usage
from batchrun.rules.canonical import digest
from batchrun.store.ingest import Change, Ingest
from batchrun.store.keeper import Keeper
from batchrun.store.store import Hidden, Store
from batchrun.store.till import Till

CHILD = Path(__file__).parent / "store_child.py"
PROVIDER = "simulated"
NO_DOUBT = Hidden(0, 0)
USAGE = Usage(10, 20)

# What a test opened and may have left open when it failed.
OPENED: list[Store] = []


class FakeClock:
    """Time that stands still until it is moved; whoever sleeps moves it."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self.at = at
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def random(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        raise NotImplementedError


def request(row: int, key: object | None = None) -> Request:
    """The request of a row; rows with the same key ask for the same."""
    body = json.dumps({"prompt": str(row if key is None else key)}).encode()
    return Request(row, digest(Endpoint.CHAT, body), Endpoint.CHAT, "m", body, 100, 1)


def answer(
    asked: Request, *, body: bytes = b'{"text": "yes"}', usage: Usage | None = USAGE, cost: int | None = 70,
    model: str = "m", finish: str = "stop", fault: Fault | None = None, latency_ms: int = 100, lane: Lane = Lane.LIVE,
) -> Answer:  # fmt: skip
    completion = Completion(body, model, finish, usage, fault)
    return Answer(asked.row, asked.digest, asked.model, len(asked.body), completion, lane, cost, latency_ms, 1)


def rejection(asked: Request, fault: Fault = Fault.BAD_REQUEST) -> Rejection:
    return Rejection(asked.row, asked.digest, fault, 400, "no", 1)


async def opened(path: str | Path, clock: Any = None, *, provider: str = PROVIDER, **options: Any) -> Store:
    store = await Store.open(str(path), clock or FakeClock(), provider=provider, **options)
    OPENED.append(store)
    return store


async def closed(store: Store, state: str = "finished") -> None:
    await store.close(state, None, doubt=NO_DOUBT)


async def want(store: Store, rows: Sequence[Any], chunk: int = 2000) -> Change:
    """Let these rows be the input, read in chunks."""
    ingest = Ingest(store)
    await ingest.begin()
    try:
        for first in range(0, len(rows), chunk):
            await ingest.add(rows[first : first + chunk])
        async with store.transaction() as sql:
            return await ingest.replace(sql)
    finally:
        await ingest.end()


@contextlib.asynccontextmanager
async def keeping(store: Store) -> AsyncIterator[Keeper]:
    """A keeper at work; at the end everything that waits is kept."""
    async with asyncio.TaskGroup() as group:
        keeper = Keeper(store, await Till.on(store))
        group.create_task(keeper.run())
        yield keeper
        keeper.close()


async def keep_all(store: Store, items: Iterable[Any]) -> None:
    async with keeping(store) as keeper, asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(keeper.keep(item))


def ask(path: str | Path, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """What a second connection sees, which may only read."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql, params).fetchall()


def number(path: str | Path, sql: str, *params: Any) -> int:
    return int(ask(path, sql, *params)[0][0])


class Child:
    """A writer in a process of its own, which does a line at a time and answers each."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def tell(self, words: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n".encode())
        return await self.answer()

    async def answer(self) -> str:
        assert self.process.stdout is not None
        self.said = (await self.process.stdout.readline()).decode().strip()
        return self.said

    async def end(self) -> int:
        """Without a word, at once."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def writer(path: str | Path, *words: str) -> AsyncIterator[Child]:
    """The writer, after it said how its opening went."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(path), *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    child = Child(process)
    try:
        await child.answer()
        yield child
    finally:
        await child.end()
