"""Which model takes a request: the one asked for, or the first fallback that can be called.

A model that cannot be called stays out for the whole start. One that is overloaded rests, and one request at a time
looks whether it answers again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import msgspec

# Seconds between two looks at a model that rests.
LOOK_EVERY = 60.0


class Standing(msgspec.Struct, frozen=True):
    """Why a model is passed over: it is missing, or rests until a time (monotonic seconds) and is then looked at."""

    missing: bool = False
    until: float = 0.0
    looking: bool = False


class Pick(msgspec.Struct, frozen=True):
    """The model to send to, and whether this is a look at one that rests."""

    model: str
    look: bool = False


def pick(order: Sequence[str], standings: Mapping[str, Standing], now: float) -> Pick | None:
    """The first model of the order that can be called; when all of them rest, the first; None when all are missing."""
    resting = None
    for model in order:
        standing = standings.get(model)
        if standing is None:
            return Pick(model)
        if standing.missing:
            continue
        if standing.until <= now and not standing.looking:
            return Pick(model, look=True)
        resting = resting or model
    return None if resting is None else Pick(resting)


def has_other(model: str, order: Sequence[str], standings: Mapping[str, Standing]) -> bool:
    """Whether another model of the order is neither missing nor resting."""
    return any(other != model and other not in standings for other in order)


def order(model: str, fallbacks: Sequence[str]) -> tuple[str, ...]:
    """The models for a request, the one it asks for first."""
    return (model, *(name for name in fallbacks if name != model))


_DATED = re.compile(r"-\d{4}-?\d{2}(-?\d{2})?")


@functools.lru_cache
def is_another(asked: str, answered: str) -> bool:
    """Whether a reply names another model than was asked: providers replace models without a word.

    Another organisation before the name, or a date after one of the two, is the same model.
    """
    wanted, came = (name.removeprefix("simulated/").rpartition("/")[2].lower() for name in (asked, answered))
    short, long = sorted((wanted, came), key=len)
    return bool(came) and not (long.startswith(short) and (long == short or _DATED.fullmatch(long[len(short) :])))
