"""Replies that no row holds: given to rows that ask for the same, and marked unused when there is none.

Who comes to be loose, the rebuild (`ingest`) and the results of batches (`results`) say. Between transactions a reply
is unused exactly when no row holds it and it is no surplus.
"""

from __future__ import annotations

from batchrun.store.statements import Statements

_TABLES = ("loose_table", "free_table", "matched_table")
_EMPTY = ("clear_loose", "clear_free", "clear_matched")


async def begin(sql: Statements) -> None:
    """Empty tables to work with. They stay: dropping them would have to wait for whoever reads anything just then."""
    for table in _TABLES:
        await sql.execute(table)
    await _clear(sql)


async def serve(sql: Statements) -> None:
    """Of what was loosened and what was unused before: the k rows that want a digest take its k replies."""
    if await _any(sql):
        await sql.execute("hold_on")
    await sql.execute("loosen_aside")
    if await _any(sql):
        for name in ("find_free", "match", "settle_used", "settle_unused", "link_matched"):
            await sql.execute(name)
    await _clear(sql)


async def _any(sql: Statements) -> bool:
    found = await sql.one("any_loose")
    return bool(found and found[0])


async def _clear(sql: Statements) -> None:
    for name in _EMPTY:
        await sql.execute(name)
