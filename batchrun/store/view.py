"""Read-only looks at a checkpoint, also while a run is writing it: for status, export and errors.

Always `mode=ro` and short, never `immutable=1` (it would not see what is still in the `-wal`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec
import zstandard

from batchrun.errors import StorageError, UsageError
from batchrun.records import Outcome, State
from batchrun.reports import Entry, Event
from batchrun.rules.estimate import Gauge
from batchrun.store.bodies import Unpacker
from batchrun.store.ledger import Prunable, entries, prunable
from batchrun.store.opening import APPLICATION_ID, described
from batchrun.store.sql import migrations, query
from batchrun.store.store import FOR_GOOD, Hidden, Kept, kept_of


class LastRun(msgspec.Struct, frozen=True):
    """The newest start: when (seconds since the epoch), how it stands, and why it stopped."""

    opened: float
    closed: float | None
    state: str
    reason: str | None


class Marked(msgspec.Struct, frozen=True):
    """Answers with one mark: how many, and how often at most one of them was asked for again.

    `asked` is None when none of them can be had better: what the context leaves is used up, or more was refused.
    """

    answers: int
    asked: int | None


class Rejected(msgspec.Struct, frozen=True):
    """A rejected row, with why."""

    row: int
    fault: str
    status: int | None
    message: str
    attempts: int


class BatchRow(msgspec.Struct, frozen=True):
    """A batch that is not over: `state` is the provider's word once there is a job; `since` in ms since the epoch."""

    number: int
    model: str
    lines: int
    state: str
    progress: float | None
    since_ms: int
    job: str | None


class View:
    """A reader of one checkpoint; a context manager."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise UsageError(f"There is no checkpoint at {path}.", "Start one with `batchrun run`.")
        try:
            self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=10.0)
        except sqlite3.Error as error:
            raise described(error) from error
        try:
            self._check()
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error):
                raise described(error) from error
            raise

    def _check(self) -> None:
        (identity,) = self._connection.execute("pragma application_id").fetchone()
        (version,) = self._connection.execute("pragma user_version").fetchone()
        if identity != APPLICATION_ID:
            raise StorageError("This file is not a batchrun checkpoint.", "Name another one.")
        if version != len(migrations()):
            raise StorageError(
                f"The checkpoint has schema {version}; this batchrun reads {len(migrations())}.",
                "Use the batchrun that wrote it, or let `batchrun run` bring it up to date.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if isinstance(error, sqlite3.Error):
            raise described(error) from error

    def _all(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query(name), params).fetchall()

    @contextlib.contextmanager
    def _one_moment(self) -> Iterator[None]:
        """What is read meanwhile fits together: a run that is writing is not seen in between."""
        self._connection.execute("begin")
        try:
            yield
        finally:
            self._connection.rollback()

    def job(self) -> tuple[str, str, str] | None:
        """(provider, the job as JSON, the output's columns as JSON), None before the first input was read."""
        rows = self._all("read_job")
        return None if not rows else (rows[0][0], rows[0][1], rows[0][2])

    def sources(self) -> list[tuple[str, int, int, int]]:
        """The input files: path, size, mtime in nanoseconds, rows."""
        return [(path, size, mtime, rows) for path, size, mtime, rows in self._all("sources")]

    def kept(self) -> Kept:
        """Rows by state and money, from the counters."""
        rows: dict[int, int] = dict(self._connection.execute(query("tally")).fetchall())
        return kept_of(rows, self._all("spend")[0])

    def hidden(self) -> Hidden:
        """What crashes and broken replies may have cost."""
        return Hidden(*self._all("hidden")[0])

    def last_run(self) -> LastRun | None:
        """The newest start."""
        rows = self._all("last_run")
        if not rows:
            return None
        opened, closed, state, reason = rows[0]
        return LastRun(opened / 1000, None if closed is None else closed / 1000, state, reason)

    def moments(self) -> tuple[float | None, float | None]:
        """When a reply was last kept and when a run last finished, in seconds since the epoch; None before that."""
        answer, success = self._all("moments")[0]
        return (None if answer is None else answer / 1000), (None if success is None else success / 1000)

    def pulse(self, now: float, seconds: float = 60.0) -> tuple[float, float]:
        """Answers and tokens a second over the last so many seconds."""
        replies, tokens = self._all("pulse_since", ten_s=int((now - seconds) // 10))[0]
        return replies / seconds, tokens / seconds

    def learned(self) -> str | None:
        """What the pace of an earlier start found out, as it was written down."""
        rows = self._all("learned")
        return rows[0][0] if rows else None

    def gauges(self) -> dict[str, Gauge]:
        """Observed usage by the model that was asked for."""
        return {model: Gauge(*sums) for model, *sums in self._all("gauges")}

    def reserved_by_batches(self) -> int:
        """Nano-dollars set aside for batches that are not over."""
        return sum(nano for _, nano in self._all("reserved_by_batches"))

    def batches(self) -> list[BatchRow]:
        """Batches that are not over, oldest first."""
        return [BatchRow(*row) for row in self._all("batches_standing")]

    def left_remote(self) -> int:
        """Batches that have files at the provider."""
        return len(self._all("left_remote"))

    def ledger(self) -> list[Entry]:
        """Money and tokens by lane and model, and of how much use it all is; of one moment, also while a run writes."""
        with self._one_moment():
            return entries(self._all("spend_by_model"), self._all("aside_by_model"))

    def prunable(self, *, keep_unused: bool) -> Prunable:
        """Bodies that nobody needs; reads each of them, to tell how large it is."""
        return prunable(self._all("prunable"), keep_unused=keep_unused)

    def rejections_by_fault(self) -> dict[str, int]:
        """Rejected rows counted by fault, most first."""
        return {fault: count for fault, count in self._all("rejections_by_fault")}  # noqa: C416 - typed

    def marked_answers(self) -> dict[str, Marked]:
        """Rows whose answer carries a mark (cut short, filtered, no fit), counted by mark, most first."""
        return {fault: Marked(*counts) for fault, *counts in self._all("marked_answers", for_good=FOR_GOOD)}

    def rejected(self) -> Iterator[Rejected]:
        """Every rejected row, in input order."""
        for row in self._connection.execute(query("rejected_rows")):
            yield Rejected(*row)

    def events(self, count: int = 20) -> list[Event]:
        """The newest lines of the diary, oldest first."""
        return [Event(at / 1000, kind, detail) for at, kind, detail in self._all("events", count=count)]

    def outcomes(self, *, once: bool = False) -> Generator[Outcome]:
        """How every row ended, in input order, streamed.

        Args:
            once: count the cost of an answer that several rows share at the first of them only.

        Raises:
            StorageError: a reply is damaged.
        """
        seen = bytearray()
        with contextlib.closing(self._connection.execute(query("outcomes"))) as cursor:
            # Read while the cursor is open, so that they are of the same moment: a run may be adding one.
            unpacker = Unpacker(dict(self._connection.execute(query("dictionaries")).fetchall()))
            for row in cursor:
                outcome = _outcome(row, unpacker)
                if once and outcome.state is State.ANSWERED and _taken(seen, row[3]):
                    outcome = msgspec.structs.replace(outcome, cost_nano=0)
                yield outcome


def _taken(seen: bytearray, number: int) -> bool:
    """Whether the answer came by before; one bit an answer."""
    byte, bit = number >> 3, 1 << (number & 7)
    if byte >= len(seen):
        seen.extend(bytes(byte + 1 - len(seen)))
    before = bool(seen[byte] & bit)
    seen[byte] |= bit
    return before


def _outcome(row: tuple[Any, ...], unpacker: Unpacker) -> Outcome:
    number, digest, state, answer, dictionary, reply, model, finish, *rest = row
    prompt, completion, cached, cost, lane, latency, attempts, checksum, mark, fault, message, tries, repair = rest
    if answer is None:
        return Outcome(number, digest, State(state), attempts=tries, fault=fault, fault_message=message)
    return Outcome(
        number, digest, State.ANSWERED, _unpacked(unpacker, number, dictionary, reply, checksum), model, finish,
        prompt, completion, cached, cost, lane, attempts, latency, mark, repair=repair,
    )  # fmt: skip


def _unpacked(unpacker: Unpacker, row: int, dictionary: int | None, reply: bytes | None, checksum: int) -> bytes:
    try:
        body = unpacker.unpack(dictionary, reply or b"")
    except (zstandard.ZstdError, KeyError) as error:
        raise StorageError(f"The reply of row {row} in the checkpoint is damaged.") from error
    if zlib.crc32(body) != checksum:
        raise StorageError(f"The reply of row {row} in the checkpoint does not match its checksum.")
    return body
