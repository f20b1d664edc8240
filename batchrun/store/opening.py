"""What must hold before the checkpoint is written: a local disk, a known schema, the right provider, nothing lost."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiosqlite

from batchrun.errors import StorageError
from batchrun.records import ParkReason
from batchrun.store.sql import migrations, query

# "batr": tells a checkpoint from any other SQLite file.
APPLICATION_ID = 0x62617472

# Where WAL cannot work: its shared memory does not cross machines.
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs", "ceph", "glusterfs"})

_WAL_HEADER = 32

KILLED = "killed"

# Parks that time or a person mends, so that an answer is news.
_TROUBLES = frozenset({ParkReason.CREDITS, ParkReason.KEY, ParkReason.OVERLOAD, ParkReason.MODEL})

# A reader in the middle of something long (an export) may hold up the folding, but not the start of a run.
_PATIENCE_MS, _FOLD_PATIENCE_MS = 30_000, 500


def is_new(checkpoint: str) -> bool:
    """Whether there is no checkpoint yet. Ask before SQLite opens the file."""
    return not Path(checkpoint).exists()


def wal_has_frames(checkpoint: str) -> bool:
    """Whether the `-wal` beside the checkpoint holds anything. Ask before SQLite opens the file."""
    try:
        return Path(f"{checkpoint}-wal").stat().st_size > _WAL_HEADER
    except OSError:
        return False


def refuse_network(folder: Path) -> None:
    """Raise `StorageError` when the folder is on a network file system (known on Linux; elsewhere WAL itself tells)."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    where = f"{folder.resolve()}/"
    best, kind = "", ""
    for line in mounts.splitlines():
        _, folder_there, kind_there, *_ = f"{line}   ".split(" ")
        point = _plain(folder_there).rstrip("/") + "/"
        if where.startswith(point) and len(point) >= len(best):
            best, kind = point, kind_there
    if kind in _NETWORK:
        raise StorageError(
            f"The checkpoint would lie on a network file system ({kind}), where it is not safe.",
            "Name one on a local disk with --checkpoint.",
        )


def _plain(folder: str) -> str:
    """A mount point as it is: the kernel writes a blank in it as an octal number."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), folder)


async def connect(path: str) -> aiosqlite.Connection:
    """Open the file for writing, made private (0600) before SQLite sees it, with every promise switched on."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = await aiosqlite.connect(path, isolation_level=None, timeout=_PATIENCE_MS / 1000)
    try:
        await _prepare(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _prepare(connection: aiosqlite.Connection) -> None:
    for pragma in ("page_size = 4096", "cache_size = -8000", "temp_store = file", "foreign_keys = on"):
        await connection.execute(f"pragma {pragma}")
    await _check_schema(connection)
    mode = await one(connection, "pragma journal_mode = wal")
    if mode != ("wal",):
        raise StorageError("SQLite cannot keep a write-ahead log here.", "Name a checkpoint on a local disk.")
    await connection.execute("pragma synchronous = full")
    await connection.execute("pragma fullfsync = on")
    await migrate(connection)


async def _check_schema(connection: aiosqlite.Connection) -> None:
    """Refuse what is not ours before anything is written to it."""
    (identity,) = await one(connection, "pragma application_id")
    (version,) = await one(connection, "pragma user_version")
    (tables,) = await one(connection, "select count(*) from sqlite_master")
    if identity != APPLICATION_ID and (identity or version or tables):
        raise StorageError("This SQLite file is not a batchrun checkpoint.", "Name another one with --checkpoint.")
    if version > len(migrations()):
        raise StorageError(
            f"The checkpoint has schema {version}; this batchrun knows up to {len(migrations())}.",
            "Use the newer batchrun that wrote it.",
        )


async def migrate(connection: aiosqlite.Connection) -> None:
    """Bring the schema up to date, each step in one transaction with its number."""
    (version,) = await one(connection, "pragma user_version")
    for number, step in enumerate(migrations()[version:], start=version + 1):
        await connection.executescript(
            f"begin immediate;\n{step}\n"
            f"pragma application_id = {APPLICATION_ID};\npragma user_version = {number};\ncommit;"
        )


async def fold(connection: aiosqlite.Connection) -> None:
    """Move what the `-wal` holds into the main file, as far as readers let it."""
    await connection.execute(f"pragma busy_timeout = {_FOLD_PATIENCE_MS}")
    await connection.execute("pragma wal_checkpoint(truncate)")
    await connection.execute(f"pragma busy_timeout = {_PATIENCE_MS}")


async def one(connection: aiosqlite.Connection, sql: str) -> tuple[Any, ...]:
    """The only row of a query that has one."""
    async with connection.execute(sql) as cursor:
        row = await cursor.fetchone()
    return tuple(row or ())


async def check_loss(connection: aiosqlite.Connection, told: int | None, *, had_wal: bool, accept: bool) -> str | None:
    """Notice a lost `-wal`: paid answers vanish with it, and SQLite says nothing.

    Args:
        connection: the checkpoint, opened.
        told: answers the last holder knew to be kept, from the lock file; None when it is gone.
        had_wal: whether the `-wal` held anything before the file was opened.
        accept: whether the user accepts the loss.

    Returns:
        What was lost, for the diary, when the user accepts it; None when nothing was.

    Raises:
        StorageError: answers are missing, or may be.
    """
    found = int((await one(connection, query("paid_newest")))[0])
    left_open = (await one(connection, "select exists (select 1 from run where state = 'open')"))[0]
    if told is not None:
        loss = f"{told - found} paid answers are missing" if found < told else None
    else:
        unknown = left_open and not had_wal
        loss = "Paid answers may be missing, number unknown" if unknown else None
    if loss is not None and not accept:
        raise StorageError(
            f"{loss}: the checkpoint's -wal file was lost.",
            "Put the -wal file back if you can; else --accept-loss goes on and sends those rows again.",
        )
    return loss


def trouble(runs: Iterable[tuple[Any, ...]]) -> str:
    """What the newest starts (state, reason, outcomes kept) ended in, unless an answer has come since."""
    for state, reason, kept in runs:
        if state in {"open", "crashed"}:
            return KILLED
        if state == "parked" and reason in _TROUBLES:
            return f"parked: {reason}"
        if state == "finished" or kept:
            return ""
    return ""


def described(error: sqlite3.Error) -> StorageError:
    """SQLite's error as a sentence for the user."""
    text = str(error)
    if "not a database" in text:
        return StorageError("The checkpoint is not a SQLite file, or it is damaged.", "Name another with --checkpoint.")
    if "malformed" in text:
        return StorageError(
            "The checkpoint is damaged.", "Restore a copy of it, with its -wal; what can be read: batchrun export."
        )
    if "unable to open" in text:
        return StorageError("The checkpoint cannot be opened.", "Look at its permissions and those of its folder.")
    if "full" in text:
        return StorageError(
            "The disk is full. Every answer counted so far is kept.", "Free some space, then run the same command."
        )
    return StorageError(
        f"The checkpoint cannot be written ({text}). Every answer counted so far is kept.",
        "Look at the disk and its permissions, then run the same command.",
    )
