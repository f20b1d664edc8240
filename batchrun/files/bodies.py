"""The bodies of a request file, found again by the number of their line; the file itself is `lines`'s."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

_BETWEEN = b'","body":'


class Bodies:
    """Looks lines of a request file up. It reads nothing until it is asked; then eight bytes a line stay in memory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ends: array[int] | None = None

    def body(self, line: int) -> bytes | None:
        """The body of the n-th line, None when the file is gone or has no such line."""
        try:
            ends = self._ends if self._ends is not None else self._scanned()
            if line >= len(ends):
                return None
            begin = ends[line - 1] if line else 0
            with Path(self._path).open("rb") as file:
                file.seek(begin)
                text = file.read(ends[line] - begin)
        except OSError:
            return None
        return _body(text)

    def all(self) -> Iterator[bytes]:
        """Every body, one after the other.

        Raises:
            OSError: the file is gone.
        """
        with Path(self._path).open("rb") as file:
            for text in file:
                yield _body(text)

    def _scanned(self) -> array[int]:
        ends = array("q")
        at = 0
        with Path(self._path).open("rb") as file:
            for text in file:
                at += len(text)
                ends.append(at)
        self._ends = ends
        return ends


def _body(text: bytes) -> bytes:
    return text.partition(_BETWEEN)[2][:-2]
