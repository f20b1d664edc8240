"""The named queries on one connection, and the lines of the diary that a transaction has written so far."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import aiosqlite

from batchrun.store import opening
from batchrun.store.sql import query

Params = Mapping[str, Any]


@contextlib.contextmanager
def _described() -> Iterator[None]:
    """SQLite's errors as sentences for the user."""
    try:
        yield
    except sqlite3.Error as error:
        raise opening.described(error) from error


class Statements:
    """The named queries on one connection; what SQLite refuses is a `StorageError`.

    A statement that was run to its end holds nothing, so its cursor is let go of without a way to SQLite's thread and
    back: there are ten such ways in every commit.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._noted: list[tuple[int, str, str]] = []

    async def execute(self, name: str, **params: Any) -> int:
        """Run a statement; returns how many rows it changed."""
        with _described():
            return (await self._connection.execute(query(name), params)).rowcount

    async def many(self, name: str, params: Iterable[Params]) -> int:
        """Run a statement for each set of parameters; returns how many rows they changed in all."""
        with _described():
            return (await self._connection.executemany(query(name), params)).rowcount

    async def one(self, name: str, **params: Any) -> tuple[Any, ...] | None:
        """The first row of a query, None when there is none."""
        rows = await self.all(name, **params)
        return rows[0] if rows else None

    async def all(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        """Every row of a query; for small ones. Read in one go: while a query is half read, SQLite drops no table."""
        with _described():
            return [tuple(row) for row in await self._connection.execute_fetchall(query(name), params)]

    async def recount(self) -> None:
        """After rows changed in bulk: count them anew, and know that a written output is out of date."""
        for name in ("zero_tally", "recount_tally", "outdate_written"):
            await self.execute(name)

    async def note(self, at_ms: int, kind: str, detail: str) -> None:
        """A line in the diary, in the transaction it explains."""
        await self.execute("add_event", at_ms=at_ms, kind=kind, detail=detail)
        self._noted.append((at_ms, kind, detail))

    def has_noted(self, kind: str) -> bool:
        """Whether a line of this kind was written since `take_noted`."""
        return any(noted == kind for _, noted, _ in self._noted)

    def take_noted(self) -> list[tuple[int, str, str]]:
        """The lines written since this was asked last: when (ms), what kind, what. They hold once committed."""
        noted, self._noted = self._noted, []
        return noted
