"""Opens JSONL files, compressed or not, as streams of bytes, and turns what goes wrong below into an `InputError`."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from batchrun.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER = 1 << 18
_BOM = b"\xef\xbb\xbf"

# What a file that calls itself JSONL may be instead, by its first bytes.
_DISGUISES = {
    b"\x1f\x8b": ("compressed with gzip", "Rename it so that it ends in .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Rename it so that it ends in .jsonl.zst"),
    b"PAR1": ("a Parquet file", "Rename it so that it ends in .parquet"),
    b"\xff\xfe": ("text in UTF-16", "Write it as UTF-8."),
    b"\xfe\xff": ("text in UTF-16", "Write it as UTF-8."),
}


def lines(path: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its ending and without a byte order mark.

    Raises:
        InputError: it cannot be opened, or is plainly no JSONL.
    """
    with reading(path):
        stream = _decompressed(path)
        try:
            _look(stream, path)
        except BaseException:
            stream.close()
            raise
        return stream


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Around everything that reads `path`.

    Raises:
        InputError: the file is cut short, damaged or cannot be read.
    """
    try:
        yield
    except EOFError as error:
        raise InputError(f"{path} is cut short: the compressed data ends too soon.", "Fetch the file again.") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: its compressed data cannot be read.", "Fetch the file again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or type(error).__name__}.") from error


def _decompressed(path: str) -> io.BufferedReader:
    if path.lower().endswith(".gz"):
        return io.BufferedReader(_Gzip(path), _BUFFER)
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstd(path), _BUFFER)
    return io.BufferedReader(io.FileIO(path), _BUFFER)


def _look(stream: io.BufferedReader, path: str) -> None:
    head = stream.peek(4)[:4]
    for magic, (what, next_step) in _DISGUISES.items():
        if head.startswith(magic):
            raise InputError(f"{path} is not JSONL but {what}.", next_step)
    if head.startswith(_BOM):
        stream.read(len(_BOM))


class _Gzip(io.RawIOBase):
    """A gzip file as a raw stream: the standard one, behind a buffer, iterates its lines in Python."""

    def __init__(self, path: str) -> None:
        self._file = gzip.GzipFile(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._file.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Zstd(io.RawIOBase):
    """A zstd file of one or more frames as a raw stream. The library's own reader takes a cut file for its end."""

    _PIECE = 1 << 14  # compressed bytes at a time; small, since what they expand to is held whole

    def __init__(self, path: str) -> None:
        import zstandard

        self._broken = zstandard.ZstdError
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115 - closed in `close`
        self._frames = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        while not self._ready:
            compressed = self._file.read(self._PIECE)
            if not compressed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._ready = memoryview(self._expand(compressed))
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _expand(self, compressed: bytes) -> bytes:
        parts = []
        try:
            while compressed:
                self._frame = self._frame or self._frames.decompressobj()
                parts.append(self._frame.decompress(compressed))
                compressed = b""
                if self._frame.eof:
                    compressed, self._frame = self._frame.unused_data, None
        except self._broken as error:
            raise zlib.error(str(error)) from error
        return b"".join(parts)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
