"""Batch request and result files on disk: requests written and hashed in one go, results read line by line.

What goes into which file is `rules`'; what a result line says is `api`'s; what is known of a file is the checkpoint's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from batchrun.errors import StorageError

# A result line longer than this is not one: the largest reply the live lane takes is as large.
LARGEST_RESULT = 256 * 1024 * 1024
# A chunk ends after so many bytes of lines, however few lines that are.
CHUNK_BYTES = 8_000_000

# What a batch folder holds; anything else in it is somebody else's.
SUFFIXES = (".jsonl", ".part", ".tmp")

_BUFFER = 1 << 20
_BEFORE, _BETWEEN, _AFTER = b'{"custom_id":', b',"body":', b"}\n"

_KEPT = "All answers are kept in the checkpoint. Make room, then run the same command again."


class RequestFile:
    """A batch request file being written; `close` it or `discard` it. It makes no check of limits."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.lines = 0
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()

    @classmethod
    def create(cls, folder: str, name: str) -> Self:
        """A new file (0600) of this name, in a folder (0700) that is made when it is not there.

        Raises:
            StorageError: there is such a file already, or none can be written.
        """
        path = Path(folder) / name
        with _writing(path):
            _make_folder(path.parent)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            return cls(path, os.fdopen(handle, "wb", buffering=_BUFFER))

    def add(self, custom_id: str, body: bytes) -> int:
        """Append one request, its body (JSON on one line) as it is; the bytes it took.

        Raises:
            StorageError: the disk is full.
        """
        line = b"".join((_BEFORE, msgspec.json.encode(custom_id), _BETWEEN, body, _AFTER))
        with _writing(self.path):
            self._file.write(line)
        self._digest.update(line)
        self.lines += 1
        self.size += len(line)
        return len(line)

    def close(self) -> bytes:
        """Put all of it on the disk; its sha256.

        Raises:
            StorageError: the disk is full.
        """
        with _writing(self.path):
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            _sync(self.path.parent)
        return self._digest.digest()

    def discard(self) -> None:
        """Let go of the file, closed or not, and remove it."""
        with contextlib.suppress(OSError):  # a full disk cannot take the rest, which nobody wants
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def read_lines(path: str, chunk: int = 500) -> Iterator[list[bytes]]:
    """The lines of a result file without their ends, at most `chunk` at a time; blank ones are skipped.

    Memory holds one chunk: at most `CHUNK_BYTES` and one line.

    Raises:
        StorageError: the file cannot be read, or a line has no end within `LARGEST_RESULT` bytes.
    """
    try:
        with Path(path).open("rb", buffering=_BUFFER) as file:
            lines: list[bytes] = []
            weight = 0
            while line := file.readline(LARGEST_RESULT + 1):
                if len(line) > LARGEST_RESULT:
                    raise StorageError("A batch result file holds a line that is too long to be one.")
                if line.isspace():
                    continue
                lines.append(line.rstrip(b"\r\n"))
                weight += len(line)
                if len(lines) >= chunk or weight >= CHUNK_BYTES:
                    del line  # a reader that waits must not hold on to a long line
                    yield lines
                    lines, weight = [], 0
            if lines:
                yield lines
    except OSError as error:
        raise StorageError(f"A batch result file cannot be read ({_why(error)}).") from error


def sweep(folder: str, keep: Collection[str]) -> None:
    """Remove the request and result files whose names nobody knows any more, and the folder when it is empty then.

    Args:
        folder: may be missing.
        keep: names or paths of files to leave alone.
    """
    known = {Path(name).name for name in keep}
    with contextlib.suppress(OSError):  # what cannot be removed now is no harm, and is tried again
        for left in list(Path(folder).iterdir()):
            if left.name not in known and left.suffix in SUFFIXES:
                with contextlib.suppress(OSError):
                    left.unlink()
        Path(folder).rmdir()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({_why(error)}).", _KEPT) from error


def _make_folder(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Without this a power cut may still take the name away."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
