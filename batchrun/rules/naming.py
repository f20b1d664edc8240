"""Names of models: which listed one was meant, and what to say of one that cannot be called.

It gives advice and never switches: whether another model may answer is the user's word alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

# A name that is at least so alike is likely a slip of the pen (`difflib`'s own default).
_ALIKE = 0.6
# What many names have in common and no family is known by.
_COMMON = frozenset(
    {"base", "chat", "flash", "free", "hf", "instruct", "it", "large", "lite", "meta", "mini", "plus", "preview"}
    | {"pro", "reference", "small", "thinking", "tput", "turbo", "vl"}
)

_LOOK = "`batchrun models` lists what there is."


class Known(msgspec.Struct, frozen=True):
    """A listed model, as far as advice needs it.

    Attributes:
        id: its name.
        hourly: US dollars an hour of a dedicated endpoint, None when the list does not say.
        serverless_price: whether the list has a price by the token, which is what serverless models have.
    """

    id: str
    hourly: float | None
    serverless_price: bool


class Successor(msgspec.Struct, frozen=True):
    """What became of a model.

    Attributes:
        removed: when it was taken out of service: a date, a month or a year; "" when nobody knows.
        model: what follows it, "" when nothing does: a model may be gone without a successor.
    """

    removed: str = ""
    model: str = ""


def close_names(wanted: str, listed: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """The listed names that may have been meant, nearest first, those of the same family last.

    Capitals do not count, nor does the organisation before the slash; the wanted name itself is left out.
    """
    ranked = sorted((-_likeness(wanted, name), name) for name in set(listed) if name != wanted)
    return tuple(name for likeness, name in ranked if likeness)[:most]


def _likeness(wanted: str, name: str) -> float:
    """From 0 (nothing in common) to 3 (the same name but for capitals and organisation)."""
    asked, there = wanted.lower(), name.lower()
    short, short_there = _short(asked), _short(there)
    if not short:
        return 0.0
    alike = max(_ratio(asked, there), _ratio(short, short_there))
    if short == short_there:
        return 2.0 + alike
    parts = set(_parts(short))
    if parts and parts <= set(_parts(short_there)):
        return 1.0 + alike
    if _ratio(_core(short), _core(short_there)) >= _ALIKE:
        return alike
    return alike / 10 if _family(short) & _family(short_there) else 0.0


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[^a-z0-9.]+", name) if part]


def _core(name: str) -> str:
    """The name without what many names have in common: two that share only `-instruct-turbo` are not alike."""
    return "-".join(part for part in _parts(name) if part not in _COMMON) or name


def _family(name: str) -> set[str]:
    """The words a family is known by: `qwen` of qwen3.5-9b, `gpt` and `oss` of gpt-oss-20b."""
    return set(re.findall(r"[a-z]{3,}", name)) - _COMMON


def advice(model: str, listed: Sequence[Known], successors: Mapping[str, Successor]) -> str:
    """One sentence or two for a model that cannot be called. Prices are the list's own; none is made up.

    Args:
        model: the name that was refused.
        listed: what the server lists, empty when it has no list.
        successors: what is known of models that were taken out of service.
    """
    here = next((known for known in listed if known.id == model), None)
    if here is not None:
        return _listed_and_refused(here, listed)
    there = _worth_naming(listed)
    if model in successors:
        return _gone(model, there, successors)
    near = close_names(model, there)
    same = [name for name in near if _short(name.lower()) == _short(model.lower())]
    return f"Did you mean {_either(same or near)}?" if near else _LOOK


def _listed_and_refused(here: Known, listed: Sequence[Known]) -> str:
    if not any(known.serverless_price or known.hourly is not None for known in listed):
        return "It is listed and refused all the same. Ask who runs the server."  # a list without prices tells nothing
    if here.serverless_price:
        return (
            "It is listed with a price by the token and refused all the same: it may run on a dedicated endpoint only. "
            "Name another model."
        )
    start = "start one" if here.hourly is None else f"start one (${here.hourly:,.2f} an hour)"
    return f"It runs on a dedicated endpoint only: {start}, or name a serverless model."


def _gone(model: str, there: Sequence[str], successors: Mapping[str, Successor]) -> str:
    """What follows is named unless the server's list does not have it: it may be gone as well."""
    end, steps = model, 0
    while end in successors and successors[end].model and steps < len(successors):
        end, steps = successors[end].model, steps + 1
    is_there = steps > 0 and (end in there or not there) and end not in successors
    own = successors[model].removed
    first = f"It was taken out of service{_when(own)}" if own or not steps else ""
    if is_there:
        return f"{first}; its successor is {end}." if first else f"It was replaced by {end}."
    if steps:
        last = successors.get(end, Successor()).removed
        out = f"{end} followed it and {f'was removed{_when(last)} too' if end in successors else 'is not listed'}"
        first = f"{first}; {out}" if first else out
    near = close_names(end, there) or close_names(model, there)
    return f"{first}. {f'The nearest listed: {_either(near)}.' if near else _LOOK}"


def _when(day: str) -> str:
    """` on` a day, ` in` a month or a year."""
    return "" if not day else f" on {day}" if len(day) == len("2026-01-01") else f" in {day}"


def _worth_naming(listed: Sequence[Known]) -> list[str]:
    """The names worth suggesting: those with a price by the token, and all where the list tells no prices."""
    priced = [known.id for known in listed if known.serverless_price]
    return priced or [known.id for known in listed]


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
