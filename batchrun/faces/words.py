"""Numbers as people read them."""

from __future__ import annotations

import os
import shlex

from batchrun.reports import Entry
from batchrun.rules.money import usd

_MINUTE, _HOUR = 60, 3600
_KILO = 1000


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


def spent(nano: int, unpriced: int) -> str:
    """What replies cost, of which some may have no known price: what is not known is never shown as nothing."""
    if not unpriced:
        return dollars(nano)
    unknown = f"{count(unpriced)} answer{'' if unpriced == 1 else 's'} of unknown price"
    return f"{dollars(nano)} and {unknown}" if nano else f"unknown ({unknown})"


def bound(calls: int, nano: int) -> str:
    """What crashes and broken replies may have hidden, as the bound it is."""
    most = dollars(nano) if nano else "of unknown price"
    return f"at most {count(calls)} call{'' if calls == 1 else 's'}, {most} (crashes, broken replies)"


# Why a paid reply is no row's answer, for people.
_WASTED = {
    "cut": "cut short",
    "invalid": "not as the schema wants",
    "twice": "came twice",
    "probe": "to see whether the model answers",
}


def of_use(entry: Entry) -> list[str]:
    """What is useful of it, and what is not."""
    wasted = ", ".join(f"{count(entry.reasons[why])} {told}" for why, told in _WASTED.items() if why in entry.reasons)
    unpriced = entry.unpriced - entry.wasted_unpriced - entry.unused_unpriced
    parts = [f"useful {count(entry.useful)}: {spent(entry.useful_nano, unpriced)}"]
    if entry.wasted:
        parts.append(f"wasted {count(entry.wasted)}: {spent(entry.wasted_nano, entry.wasted_unpriced)} ({wasted})")
    if entry.unused:
        parts.append(f"unused {count(entry.unused)}: {spent(entry.unused_nano, entry.unused_unpriced)}")
    return parts


def size(number: int) -> str:
    """Bytes in the unit that fits."""
    amount, unit = float(number), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < _KILO:
            break
        amount, unit = amount / _KILO, larger
    return f"{number:,} bytes" if unit == "bytes" else f"{amount:,.1f} {unit}"


def about_dollars(nano: float) -> str:
    """An estimate has no more than cents to tell, except where it has less; only a real nothing is written 0."""
    amount = usd(round(nano))
    if 0 < amount < 0.01:  # noqa: PLR2004 - dollars
        return "< $0.01"
    return f"${amount:,.2f}"


def about(nano: float) -> str:
    """An estimate in a sentence."""
    amount = about_dollars(nano)
    return f"less than {amount[2:]}" if amount.startswith("< ") else f"about {amount}"


def duration(seconds: float) -> str:
    """Seconds as a length of time."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
