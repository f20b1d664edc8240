"""The checkpoint as its one writer holds it: opened, fenced, closed, and asked what is left.

Keeping outcomes is `keeper`'s, replacing what is wanted is `ingest`'s, reading for others is `view`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiosqlite
import msgspec

from batchrun import diary, door
from batchrun.clock import Clock
from batchrun.errors import StorageError, UsageError
from batchrun.job import Repairs
from batchrun.records import Before, Fault, State, Usage
from batchrun.rules.estimate import Gauge
from batchrun.rules.repair import AS_ASKED, Repair
from batchrun.store import opening
from batchrun.store.lock import Lock
from batchrun.store.sql import query
from batchrun.store.statements import Statements

# So many retries are counted for an answer that cannot be had better: more than anybody says.
FOR_GOOD = 1000

# From these lines on, what ended the start before is no news any more.
_EPISODES = frozenset({"recovered", "credits"})


class Hidden(msgspec.Struct, frozen=True):
    """What may have been paid for without an answer to show: calls, and nano-dollars at most."""

    calls: int
    nano: int


class Pending(msgspec.Struct, frozen=True, gc=False):
    """A row that wants an answer, or a better one.

    Attributes:
        row: its number.
        digest: what it asks for.
        misses: how many batches brought it none.
        repair: what is to be sent in place of what was asked.
        before: the answer it holds, when it wants a better one.
    """

    row: int
    digest: bytes
    misses: int
    repair: Repair = AS_ASKED
    before: Before | None = None


def _pending(row: tuple[Any, ...]) -> Pending:
    number, digest, misses, plan, answer, fault, retries, prompt, completion = row
    repair = AS_ASKED if plan is None else msgspec.json.decode(plan, type=Repair)
    if answer is None:
        return Pending(number, digest, misses, repair)
    usage = None if prompt is None else Usage(prompt, completion)
    return Pending(number, digest, misses, repair, Before(answer, Fault(fault), retries, usage))


class Kept(msgspec.Struct, frozen=True):
    """Rows by state, and what the checkpoint ever spent.

    `pending` counts all that is left, also what is in batches; `again`, of the answered, those that want a better one.
    """

    pending: int
    submitted: int
    answered: int
    again: int
    rejected: int
    replies: int
    unpriced: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int


def kept_of(rows: Mapping[int, int], spend: Sequence[int]) -> Kept:
    """Where a checkpoint stands, from its counters."""
    submitted = rows.get(State.SUBMITTED, 0)
    again = rows.get(State.AGAIN, 0)
    answered = rows.get(State.ANSWERED, 0) + again
    return Kept(rows.get(State.PENDING, 0) + submitted, submitted, answered, again, rows.get(State.REJECTED, 0), *spend)


class Store:
    """The only writer of one checkpoint, from `open` to `close`."""

    def __init__(self, path: str, connection: aiosqlite.Connection, lock: Lock, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.run = 0
        self.sql = Statements(connection)
        self._connection = connection
        self._lock = lock
        self.token = os.urandom(16)
        self.unpriced_now = 0  # replies of this run whose price nobody knows
        self.trouble = ""  # what ended the start before, until an answer shows that it is over; see `recovers`
        self._since = clock.now()
        self._listeners: list[Callable[[str, str], None]] = []
        self.shares = False  # whether identical rows share one answer, see `ingest.find_twins`
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(cls, path: str, clock: Clock, *, provider: str, accept_loss: bool = False) -> Store:
        """Take the lock, open the file, make sure nothing is lost, and write down that a run has begun.

        Raises:
            BusyError: another run holds it.
            StorageError: it cannot be written or trusted.
            UsageError: it belongs to another provider.
        """
        folder = Path(path).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"The folder of the checkpoint cannot be made: {error.strerror}.") from error
        opening.refuse_network(folder)
        lock = Lock(path)
        told = lock.take()
        try:
            return await cls._opened(path, clock, lock, told, provider, accept_loss)
        except sqlite3.Error as error:
            lock.release()
            raise opening.described(error) from error
        except OSError as error:
            lock.release()
            raise StorageError(f"The checkpoint cannot be opened: {error.strerror}.") from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    async def _opened(
        cls, path: str, clock: Clock, lock: Lock, told: int | None, provider: str, accept_loss: bool
    ) -> Store:
        if opening.is_new(path):
            told = None  # what the lock file tells is of a checkpoint that was taken away
        had_wal = opening.wal_has_frames(path)
        connection = await opening.connect(path)
        store = cls(path, connection, lock, clock)
        try:
            await store._check_provider(provider)
            await store.sql.execute("sharing_table")
            loss = await opening.check_loss(connection, told, had_wal=had_wal, accept=accept_loss)
            await store._begin(loss)
        except BaseException:
            await connection.close()
            raise
        return store

    async def _check_provider(self, provider: str) -> None:
        job = await self.sql.one("read_job")
        if job is not None and job[0] != provider:
            raise UsageError(
                f"This checkpoint holds answers of {job[0]!r}; this run would ask {provider!r}.",
                "Name another one with --checkpoint.",
            )

    async def _begin(self, loss: str | None) -> None:
        """Write the run down and fold it into the main file, so that a lost `-wal` shows."""
        now_ms = self.now_ms()
        (found,) = await self.sql.one("paid_newest") or (0,)
        if loss is None:
            self._lock.tell(found)  # at once, or an end before the first commit would look like a loss
        self.trouble = opening.trouble(await self.sql.all("newest_runs"))
        await self._connection.execute("begin immediate")
        if loss is not None:
            await self.sql.note(now_ms, "loss", loss)
        await self._connection.execute(query("crash_open_runs"), {"now_ms": now_ms})
        async with self._connection.execute(query("open_run"), {"now_ms": now_ms, "token": self.token}) as cursor:
            row = await cursor.fetchone()
        self.run = int(row[0]) if row else 0
        await self._connection.execute("commit")
        self._told()
        self._lock.tell(found)
        await opening.fold(self._connection)

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.clock.now() * 1000)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def pending(
        self, page: int = 500, *, leaders: bool = False, again: bool = False
    ) -> AsyncIterator[list[Pending]]:
        """Pages of rows that want an answer, or (`again`) a better one; with `leaders`, one row of identical ones."""
        name, after = "pending_leaders" if leaders else "pending", -1
        state = State.AGAIN if again else State.PENDING
        while rows := await self.sql.all(name, after=after, count=page, state=state):
            after = rows[-1][0]
            yield [_pending(row) for row in rows]

    async def hidden(self) -> Hidden:
        """What crashes and broken replies may have cost, over the life of the checkpoint."""
        calls, nano = await self.sql.one("hidden") or (0, 0)
        return Hidden(calls, nano)

    async def kept(self) -> Kept:
        """Where the checkpoint stands, from its counters."""
        rows: dict[int, int] = {state: count for state, count in await self.sql.all("tally")}  # noqa: C416 - typed
        spend = await self.sql.one("spend") or (0, 0, 0, 0, 0)
        return kept_of(rows, spend)

    async def learned(self) -> str | None:
        """What the pace of an earlier start found out, as it was written down."""
        row = await self.sql.one("learned")
        return None if row is None else row[0]

    async def has_missed(self, times: int) -> bool:
        """Whether any row came back from so many batches without an answer."""
        row = await self.sql.one("has_missed", times=times)
        return bool(row and row[0])

    async def any_repair(self) -> bool:
        """Whether anything is to be sent in place of what was asked."""
        return bool(await self.sql.all("any_repair"))

    async def gauges(self) -> dict[str, Gauge]:
        """Observed usage by the model that was asked for."""
        return {model: Gauge(*sums) for model, *sums in await self.sql.all("gauges")}

    async def unpriced(self) -> list[tuple[str, int, int]]:
        """Models that answered at an unknown price, with the tokens of prompts and answers."""
        return [(model, prompt, completion) for model, prompt, completion in await self.sql.all("unpriced")]

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def transaction(
        self, *, kept: int = 0, doubt_calls: int = 0, doubt_nano: int = 0
    ) -> AsyncIterator[Statements]:
        """One transaction, fenced: it commits at the end, or rolls back and raises.

        Raises:
            StorageError: the disk refused, or another run has taken over.
        """
        async with self._one_at_a_time:
            try:
                await self._connection.execute("begin immediate")
                await self._fence(kept, doubt_calls, doubt_nano)
                yield self.sql
                door.passing("commit")
                await self._connection.execute("commit")
                self._told()
            except BaseException as error:
                self.sql.take_noted()  # they never happened
                with contextlib.suppress(sqlite3.Error, ValueError):
                    await self._connection.rollback()
                if isinstance(error, sqlite3.Error):
                    raise opening.described(error) from error
                raise

    def _told(self) -> None:
        """What was just committed to the diary goes to the log, and to whoever listens."""
        for at_ms, kind, detail in self.sql.take_noted():
            diary.tell(at_ms, kind, detail, self.path)
            if kind in _EPISODES:
                self.trouble = ""
            for listener in self._listeners:
                listener(kind, detail)

    def when_noted(self, listener: Callable[[str, str], None]) -> None:
        """Call it with the kind and the detail of each line of the diary, once that is committed."""
        self._listeners.append(listener)

    async def _fence(self, kept: int, doubt_calls: int, doubt_nano: int) -> None:
        counts = {"kept": kept, "doubt_calls": doubt_calls, "doubt_nano": doubt_nano}
        if await self.sql.execute("fence", run=self.run, token=self.token, **counts) != 1:
            raise StorageError(
                "Another run has taken over this checkpoint; this one stops. What it counted is kept.",
                "Let one run at a time write a checkpoint.",
            )

    async def raise_marks(self, calls: int, nano: int) -> None:
        """Commit the most calls in flight and the most nano-dollars reserved, before either may be used."""
        async with self.transaction() as sql:
            await sql.execute("raise_marks", calls=calls, nano=nano, run=self.run, token=self.token)

    async def retry_rejections(self, fault: str | None = None, *, this_run: bool = False) -> int:
        """Put rejected rows back to pending, all or those of one fault or of this run; bad input rows stay.

        Returns:
            How many rows went back.
        """
        since = await self.sql.one("opened", run=self.run) if this_run else None
        which = {"fault": fault, "since_ms": since[0] if since else 0}
        async with self.transaction() as sql:
            rows = await sql.execute("retry_rows", **which)
            if not this_run:  # else the next start would put them into three more batches
                await sql.execute("forget_misses", **which)
            await sql.execute("forget_repairs", **which)
            await sql.execute("retry_rejections", **which)
            if rows:
                await sql.recount()
        return rows

    async def want_better(self, said: Repairs) -> None:
        """Let answered rows want a better answer, or want none any more, as the user says at this start."""
        most = {"length_retries": said.length_retries, "invalid_retries": said.invalid_retries}
        async with self.transaction() as sql:
            moved = await sql.execute("want_no_better", **most)
            if said.length_retries or said.invalid_retries:
                moved += await sql.execute("want_better", **most)
            if moved:
                await sql.recount()
            await _find_sharing(sql)
            await _forget_done(sql)

    def tell(self, kept: int) -> None:
        """After a commit: so many paid replies are in the checkpoint."""
        self._lock.tell(kept)

    async def note(self, kind: str, detail: str) -> None:
        """A line in the diary, in a transaction of its own."""
        async with self.transaction() as sql:
            await sql.note(self.now_ms(), kind, detail)

    async def recovers(self, sql: Statements, begun: float = math.inf) -> None:
        """Inside the transaction that keeps answers: if the start before ended in trouble, that is over now.

        Args:
            sql: the transaction.
            begun: when what brought the answers was asked for, in seconds since the epoch. A batch from before this
                start shows nothing of credits, key or model, but that somebody collects it again after a kill.
        """
        if begun < self._since and self.trouble != opening.KILLED:
            return
        if self.trouble and not sql.has_noted("recovered"):
            await sql.note(self.now_ms(), "recovered", f"Answers again; the run before was {self.trouble}.")

    async def note_apart(self, kind: str, detail: str) -> None:
        """A line in the diary as long as this process holds the lock, so also after `end`."""
        async with self._one_at_a_time:
            await self.sql.note(self.now_ms(), kind, detail)  # commits by itself, as it is in no transaction
            self._told()

    async def close(self, state: str, reason: str | None, *, learned: str | None = None, doubt: Hidden) -> None:
        """Write down how the run ended, then let go of the file and the lock; see `end`."""
        await self.end(state, reason, learned=learned, doubt=doubt)
        await self.release()

    async def end(self, state: str, reason: str | None, *, learned: str | None = None, doubt: Hidden) -> None:
        """Write down how the run ended; the lock stays held until `release`.

        Args:
            state: `finished`, `parked` or `failed`.
            reason: why it parked or failed.
            learned: what the pace learned, as JSON, for the next start.
            doubt: calls cut off in flight, which may have been paid for.
        """
        async with self.transaction() as sql:
            await sql.execute(
                "close_run", state=state, reason=reason, now_ms=self.now_ms(), learned=learned, run=self.run,
                token=self.token, doubt_calls=doubt.calls, doubt_nano=doubt.nano,
            )  # fmt: skip

    async def withdraw(self) -> None:
        """End a start that sent nothing: how the run before it ended stays what `status` tells; then as `close`."""
        async with self.transaction() as sql:
            await sql.execute("withdraw_run", run=self.run, token=self.token)
        await self.release()

    async def release(self) -> None:
        """Let go of the file and the lock; the run stays open in it, as after a crash, unless `close` came first."""
        await self._connection.close()
        self._lock.release()


async def _find_sharing(sql: Statements) -> None:
    """Find the rows whose answer is no surplus yet when one of them has a better one."""
    await sql.execute("forget_sharing")
    if dict(await sql.all("tally")).get(State.AGAIN):
        await sql.execute("find_sharing")


async def _forget_done(sql: Statements) -> None:
    """Let go of plans and words that no row needs any more: while there are any, each start looks through all rows."""
    if await sql.all("any_repair"):
        await sql.execute("forget_old_repairs")
    if await sql.all("any_words"):
        await sql.execute("forget_old_words")
