"""A file that appears whole or not at all: temporary file beside it, fsync, rename. What is written is the caller's."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchrun import door
from batchrun.errors import StorageError

_BUFFER = 1 << 20
_NAME_LENGTH = 60  # of the target's name in the temporary one: together they must stay below 255 bytes

_LEFT_BEHIND = 3600.0  # seconds without a byte

_KEPT = "All answers are kept in the checkpoint. Make room or choose another place, then run `batchrun export`."


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        StorageError: the disk is full, the folder is missing or not ours to write.
    """
    target = os.path.realpath(path)  # a link goes on pointing where it did
    try:
        temporary, file = _beside(target)
        try:
            with file:
                yield file
                _settle(file)
            door.passing("rename")
            Path(temporary).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
        _sync_folder(target)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {_why(error)}.", _KEPT) from error


def _beside(target: str) -> tuple[str, BinaryIO]:
    folder, name = os.path.split(target)
    prefix = f".{name[:_NAME_LENGTH]}."
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".tmp")
    _sweep(folder, prefix, os.fstat(handle).st_mtime)
    return temporary, os.fdopen(handle, "wb", buffering=_BUFFER)


def _sweep(folder: str, prefix: str, now: float) -> None:
    """Remove what a killed process left here; a file that is still being written is younger than that."""
    for left in Path(folder).iterdir():
        if left.name.startswith(prefix) and left.suffix == ".tmp":
            with suppress(OSError):
                if now - left.stat().st_mtime > _LEFT_BEHIND:
                    left.unlink()


def _settle(file: BinaryIO) -> None:
    """All bytes on the disk, and the rights a new file would have: a temporary one is born private."""
    file.flush()
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(file.fileno(), 0o666 & ~mask)
    os.fsync(file.fileno())


def _sync_folder(target: str) -> None:
    """Without this a power cut may still undo the rename."""
    folder = os.open(Path(target).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _why(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full"
    return error.strerror or type(error).__name__
