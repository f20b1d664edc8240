"""How messages speak of cells without quoting them: types in words, columns by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES_SHOWN = 12
_NAME_LENGTH = 40


def kind_of(value: Any) -> str:
    """A value's type in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string" if value else "an empty string"
        case list():
            return "a list"
        case dict():
            return "an object"
    return "bytes"


def names_of(cells: Mapping[str, Any]) -> str:
    """The columns there are, for a message: not all of very many, and none at full length when very long."""
    names = ["".join(c if c.isprintable() else "?" for c in name) for name in list(cells)[:_NAMES_SHOWN]]
    shown = [name if len(name) <= _NAME_LENGTH else name[:_NAME_LENGTH] + "…" for name in names]
    more = len(cells) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"
