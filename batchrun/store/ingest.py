"""What is wanted, rebuilt from the input: equal stretches stay untouched, the rest takes the paid replies it can use.

Everything changes in one transaction at the end, or nothing does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from batchrun.records import BadRow, Request
from batchrun.store import loose
from batchrun.store.statements import Params, Statements
from batchrun.store.store import Store


class Change(msgspec.Struct, frozen=True):
    """What a rebuild would do.

    Attributes:
        unused: answers that were some row's and would be no row's any more.
        unused_nano: what they cost.
        running: lines of running batches that were some row's and would be no row's any more.
        changed: whether any row changed.
    """

    unused: int
    unused_nano: int
    running: int
    changed: bool


class Ingest:
    """Collects the rows of the input, then replaces what was wanted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._total = 0
        self._incoming = 0

    async def begin(self) -> None:
        """Make room for rows that differ, beside the checkpoint."""
        for name in ("drop_incoming", "drop_bad", "incoming_table", "bad_table"):
            await self._store.sql.execute(name)

    async def add(self, rows: Sequence[Request | BadRow]) -> None:
        """Take the next rows of the input, in order and without gaps."""
        first, self._total = self._total, self._total + len(rows)
        packed = b"".join(row.digest for row in rows)
        stored = await self._store.sql.all("digests", first=first, count=len(rows))
        if b"".join(digest for (digest,) in stored) == packed:
            return
        self._incoming += len(rows)
        await self._store.sql.execute("add_incoming", first=first, count=len(rows), digests=packed)
        bad = [row for row in rows if isinstance(row, BadRow)]
        if bad:
            await self._store.sql.many("mark_incoming_bad", [{"row": row.row} for row in bad])
            await self._store.sql.many("add_bad", [_described(row) for row in bad])

    async def replace(self, sql: Statements) -> Change:
        """Inside a transaction: let the new rows be what is wanted, and give them what is paid for."""
        before, before_nano = await sql.one("aside") or (0, 0)
        (waited,) = await sql.one("count_waiting") or (0,)
        await loose.begin(sql)
        await sql.execute("loosen_rows", total=self._total)
        dropped = await sql.execute("drop_rows", total=self._total)
        changed = bool(self._incoming or dropped)
        if self._incoming:
            await sql.execute("take_bad", now_ms=self._store.now_ms())
            await sql.execute("take_incoming")
        if changed:
            await self._match(sql)
            await sql.recount()
        after, after_nano = await sql.one("aside") or (0, 0)
        (waits,) = await sql.one("count_waiting") or (0,)
        return Change(after - before, after_nano - before_nano, max(0, waited - waits), changed)

    async def _match(self, sql: Statements) -> None:
        """The k rows that want a digest take its k free replies, then its lines; rows rejected before stay so."""
        await sql.execute("unclaim_rows")
        await loose.serve(sql)
        lines = await sql.one("has_lines")
        if lines is not None and lines[0]:
            await sql.execute("claim_rows")
        await sql.execute("match_rejections")

    async def end(self) -> None:
        """Drop what was only needed for the comparison."""
        for name in ("drop_bad", "drop_incoming"):
            await self._store.sql.execute(name)


async def write_sources(sql: Statements, sources: Iterable[tuple[str, int, int, int]]) -> None:
    """Write down the input files: (path, size in bytes, mtime in nanoseconds, rows)."""
    await sql.execute("forget_sources")
    rows = [dict(zip(("path", "size", "mtime_ns", "rows"), source, strict=True)) for source in sources]
    await sql.many("add_source", rows)


async def share_with_twins(store: Store) -> None:
    """Identical rows take the outcome of the first of them (`--dedupe`)."""
    async with store.transaction() as sql:
        await sql.execute("give_up")
        if await sql.execute("share"):
            await sql.recount()


async def find_twins(store: Store) -> None:
    """Find the rows that will share an answer, for this run."""
    for name in ("drop_twins", "twin_table", "find_twins", "twin_index"):
        await store.sql.execute(name)
    store.shares = True


def _described(row: BadRow) -> Params:
    return {"digest": row.digest, "message": f"{row.where}: {row.message}"}
