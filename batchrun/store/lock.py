"""One writer: a file beside the checkpoint, locked by the kernel for as long as its holder lives.

The same file tells how many answers the holder was told are kept, so that a lost `-wal` is noticed. The checkpoint
itself is never locked or opened here: closing it by any hand but SQLite's would drop SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

import msgspec

from batchrun.errors import BusyError, StorageError

_FIRST_LINE = 256
_COUNT_DIGITS = 20


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock, and since when (local time, for people)."""

    pid: int
    host: str
    since: str


class Lock:
    """The lock file of one checkpoint, held from `take` to `release`."""

    def __init__(self, checkpoint: str) -> None:
        self._checkpoint = checkpoint
        self._path = Path(f"{checkpoint}.lock")
        self._fd = -1

    def take(self) -> int | None:
        """Take the lock; returns how many answers the last holder had been told are kept, None when unknown.

        Raises:
            BusyError: another process holds it.
            StorageError: the file cannot be made.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"The checkpoint's lock cannot be made: {error.strerror}.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise BusyError(_busy(self._checkpoint, holder), "Wait for it, or stop that process first.") from None
        except OSError as error:
            os.close(fd)
            raise StorageError(
                f"This file system has no file locks ({error.strerror}).", "Use a local disk."
            ) from error
        self._fd = fd
        told = _told(fd)
        try:
            self._sign()
        except StorageError:
            self.release()
            raise
        return told

    def tell(self, kept: int) -> None:
        """Write down that so many answers are kept. Not synced: the page cache outlives a killed process.

        Raises:
            StorageError: the file cannot be written.
        """
        self._write(f"{kept:0{_COUNT_DIGITS}d}\n".encode(), _FIRST_LINE)

    def release(self) -> None:
        """Let the next one in."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _sign(self) -> None:
        holder = Holder(os.getpid(), _host(), time.strftime("%Y-%m-%d %H:%M:%S"))
        self._write(msgspec.json.encode(holder).ljust(_FIRST_LINE - 1) + b"\n", 0)

    def _write(self, text: bytes, at: int) -> None:
        try:
            os.pwrite(self._fd, text, at)
        except OSError as error:
            raise StorageError(
                f"The checkpoint's lock cannot be written: {error.strerror}. Every answer counted so far is kept.",
                "Look at the disk and its permissions, then run the same command.",
            ) from error


def living_holder(checkpoint: str) -> Holder | None:
    """Who holds the checkpoint, as far as a reader can tell without touching the lock; None when nobody alive does."""
    try:
        with Path(f"{checkpoint}.lock").open("rb") as file:
            holder = _holder(file.fileno())
    except OSError:
        return None
    if holder is None or (holder.host == _host() and not _lives(holder.pid)):
        return None
    return holder


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return socket.gethostname()[:64]


def _holder(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, _FIRST_LINE, 0), type=Holder)
    except msgspec.DecodeError:
        return None


def _told(fd: int) -> int | None:
    digits = os.pread(fd, _COUNT_DIGITS, _FIRST_LINE)
    return int(digits) if len(digits) == _COUNT_DIGITS and digits.isdigit() else None


def _busy(checkpoint: str, holder: Holder | None) -> str:
    if holder is None:
        return f"Another run is writing {checkpoint}."
    return f"{checkpoint} is being written by process {holder.pid} on {holder.host} since {holder.since}."
