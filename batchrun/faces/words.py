"""Numbers as people read them."""

from __future__ import annotations

import os
import shlex

from batchrun.rules.money import usd

_MINUTE, _HOUR = 60, 3600


def count(number: int) -> str:
    """A count with separators."""
    return f"{number:,}"


def rows(number: int) -> str:
    """A count of rows."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def place(path: str) -> str:
    """A path as short as it can be typed from here, quoted for the shell."""
    relative = os.path.relpath(path)
    return shlex.quote(path if relative.startswith("..") else relative)


def dollars(nano: int) -> str:
    """Nano-dollars as dollars, with as many digits as tell something."""
    amount = usd(nano)
    digits = 2 if amount >= 100 or nano == 0 else 4 if amount >= 0.01 else 6  # noqa: PLR2004 - dollars
    return f"${amount:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as a length of time."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
