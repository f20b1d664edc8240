"""JSONL as rows, streamed: lines end at line feeds alone; blank ones are skipped, bad ones kept with the reason.

Opening what may be compressed is `opening`'s; what a row asks for is `prompt`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from batchrun.files import opening
from batchrun.files.row import Row

# A chunk ends after so many bytes of lines, however few rows that are.
CHUNK_BYTES = 8_000_000

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_KINDS = {"array": "a list", "str": "a string", "null": "null", "bool": "true or false", "int": "a number"}


class Lines:
    """One open JSONL file: either all of it in chunks, or ascending rows picked out of it."""

    def __init__(self, path: str, name: str, first: int) -> None:
        self._path = path
        self._origin = f"{name}:"
        self.first = self._next = first
        self._line = 0
        self._stream = opening.lines(path)

    @property
    def rows(self) -> int:
        """Rows passed so far."""
        return self._next - self.first

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def chunks(self, size: int) -> Iterator[list[Row]]:
        """All rows, at most `size` at a time and fewer when the lines are long."""
        rows: list[Row] = []
        weight = 0
        number, line, origin = self._next, self._line, self._origin
        with opening.reading(self._path):
            for text in self._stream:
                line += 1
                try:
                    row = Row(number, origin, line, _decode(text), text)
                except _UNREADABLE:
                    if text.isspace():
                        continue
                    row = Row(number, origin, line, None, text, _reason(text))
                rows.append(row)
                number += 1
                weight += len(text)
                if len(rows) >= size or weight >= CHUNK_BYTES:
                    self._next, self._line = number, line
                    del row, text  # a reader that waits must not hold on to a long line
                    yield rows
                    rows, weight = [], 0
        self._next, self._line = number, line
        if rows:
            yield rows

    def take(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows with these ascending numbers, up to the end of the file; lines between them are not parsed."""
        with opening.reading(self._path):
            for wanted in numbers:
                text = self._pass_to(wanted)
                if text is None:
                    return
                yield self._row(text)

    def _pass_to(self, wanted: int) -> bytes | None:
        number, line = self._next, self._line
        found = None
        for text in self._stream:
            line += 1
            if text.isspace():
                continue
            number += 1
            if number > wanted:
                found = text
                break
        self._next, self._line = number, line
        return found

    def _row(self, text: bytes) -> Row:
        try:
            return Row(self._next - 1, self._origin, self._line, _decode(text), text)
        except _UNREADABLE:
            return Row(self._next - 1, self._origin, self._line, None, text, _reason(text))


def _reason(line: bytes) -> str:
    """Why a line is no row. Positions count bytes from 1; the content is never quoted."""
    text = line.rstrip(b"\r\n")  # or an unclosed string would be blamed on the line end in it
    try:
        text.decode()
        _decode(text)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except RecursionError:
        return "nested too deeply"
    except msgspec.DecodeError as error:
        return _said(text, str(error))
    return "could not be read"


def _said(text: bytes, said: str) -> str:
    """The decoder's own words in ours."""
    if kind := re.match(r"Expected `object`, got `(\w+)`", said):
        return f"not a JSON object but {_KINDS.get(kind[1], 'a number')}"
    if "out of range" in said:
        return "holds a number out of range"
    if place := re.search(r"\(byte (\d+)\)", said):
        # Of a second value on the line the decoder names the byte after the one it met.
        return _malformed(text, int(place[1]) - ("trailing characters" in said))
    return _unfinished(text)


def _malformed(text: bytes, at: int) -> str:
    hint = " (NaN and Infinity are not JSON)" if text.startswith((b"NaN", b"Infinity", b"-Infinity"), at) else ""
    return f"not valid JSON at byte {at + 1}{hint}"


def _unfinished(text: bytes) -> str:
    """The decoder calls a lone surrogate "truncated" too; the standard library lets it pass and so tells them apart."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "not valid JSON: the line ends too soon"
    return "holds half of a surrogate pair (a broken \\u escape)"
