"""Rows into batch files: by lines, by bytes, and by the length of a line."""

from __future__ import annotations

import msgspec

from batchrun.job import ADVISED_LINES

# https://docs.together.ai/docs/inference/batch/overview: 100 MB a file, 10 MB a line, custom ids of at most 64
# characters. Whether MB means 10^6 bytes or 2^20 is not said,
# so the smaller is taken, with room to spare.
LARGEST_FILE = 95_000_000
LARGEST_LINE = 9_900_000
# What a line has around its body: quotes, names and the longest custom id.
FRAME = 100

_MOST_DIGITS = 9


class Bounds(msgspec.Struct, frozen=True):
    """What a batch file may hold."""

    lines: int = ADVISED_LINES
    size: int = LARGEST_FILE


def fits_a_line(body: bytes) -> bool:
    """Whether a request may stand in a batch file at all; a longer one goes live."""
    return len(body) + FRAME <= LARGEST_LINE


def is_full(lines: int, size: int, body: bytes, bounds: Bounds) -> bool:
    """Whether a file of so many lines and bytes has no room for this request."""
    return lines >= bounds.lines or (lines > 0 and size + len(body) + FRAME > bounds.size)


def custom_id(nonce: str, line: int) -> str:
    """A line's name: its batch's nonce makes the bytes of every file unique, so that no upload is taken for another."""
    return f"{nonce}-{line}"


def line_number(nonce: str, name: str) -> int | None:
    """The line that a custom id names, None when it is not exactly a name of this batch's."""
    mine, _, number = name.rpartition("-")
    if mine != nonce or len(number) > _MOST_DIGITS or not (number.isascii() and number.isdecimal()):
        return None
    return int(number) if number == "0" or not number.startswith("0") else None
