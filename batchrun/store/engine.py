"""What SQLite can do here, without a checkpoint: its version, a known bug, and a write-ahead log tried in a folder."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path

from batchrun.errors import StorageError

# From here on SQLite is without the WAL-reset bug; 3.44.6 and 3.50.7 were mended too.
# Source: https://www.sqlite.org/wal.html#walresetbug (found and mended in March 2026, there since 3.7.0).
_MENDED = (3, 51, 3)
_MENDED_BRANCHES: dict[tuple[int, ...], int] = {(3, 44): 6, (3, 50): 7}


def version() -> str:
    """SQLite's own version."""
    return sqlite3.sqlite_version


def has_wal_reset_bug(version: str) -> bool:
    """Whether this SQLite can damage a file that two connections write at the same instant.

    A checkpoint has one connection that writes, and its readers cannot, so the bug does not reach it; other programs
    that write to the same file could.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3])
    mended = _MENDED_BRANCHES.get(numbers[:2])
    return numbers < _MENDED and (mended is None or numbers[2] < mended)


def try_wal(folder: Path) -> None:
    """Make a small database with a write-ahead log in the folder, and remove it.

    Raises:
        StorageError: the folder cannot be written, or SQLite keeps no write-ahead log in it.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".batchrun-doctor-") as place:
            connection = sqlite3.connect(Path(place) / "try.db")
            with contextlib.closing(connection):
                mode = connection.execute("pragma journal_mode = wal").fetchone()
                connection.execute("create table tried(one)")
    except sqlite3.Error as error:
        raise StorageError(
            f"SQLite cannot write in the folder ({error}).", "Look at the disk, or name another place."
        ) from error
    except OSError as error:
        raise StorageError(
            f"The folder cannot be written: {error.strerror}.", "Look at its permissions, or name another place."
        ) from error
    if mode != ("wal",):
        raise StorageError("SQLite cannot keep a write-ahead log in the folder.", "Name a folder on a local disk.")
