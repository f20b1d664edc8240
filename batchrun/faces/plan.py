"""A plan in words and as JSON: what would be sent which way, why, and what either way would take."""

from __future__ import annotations

import textwrap
from typing import Any

from batchrun.faces.words import about as about_money
from batchrun.faces.words import about_dollars, count, rows
from batchrun.records import Lane
from batchrun.rules.estimate import Basis, Spread
from batchrun.rules.money import usd
from batchrun.rules.route import Choice, Part, Plan
from batchrun.rules.ways import Situation, Way, about, rate

_WIDTH = 100
_INDENT = "  "
_UNKNOWN = "unknown"
_HEADER = ("way", "batches", "cost: low", "likely", "high", "time")


def text(plan: Plan) -> str:
    """The plan for people, at most 100 columns wide (a longer model name stays whole)."""
    lines = [_opening(plan)]
    for part in plan.models:
        if part.situation.load.rows:
            lines += ["", *_part(part)]
    lines += _total(plan)
    if plan.notes:
        lines.append("")
    for note in plan.notes:
        lines += _wrapped(note)
    return "\n".join(lines)


def question(plan: Plan) -> str:
    """What the user is asked before much is spent."""
    if plan.cost is None or plan.may_cost is None:
        return f"{rows(plan.left)} at an unknown price. Go on?"
    likely = min(plan.may_cost, plan.cost.likely)
    return f"This may cost {about_dollars(plan.may_cost)}, about {about_dollars(likely)} is likely. Go on?"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values: money in US dollars, times in seconds, null for what is unknown."""
    return {
        "total": plan.total,
        "answered": plan.answered,
        "rejected": plan.rejected,
        "left": plan.left,
        "again": plan.again,
        "again_cost_usd": _usd(plan.again_cost),
        "cost_usd": _usd(plan.cost),
        "notes": list(plan.notes),
        "models": [_model(part.situation, part.choice) for part in plan.models],
    }


def _opening(plan: Plan) -> str:
    rejected = f", {count(plan.rejected)} rejected" if plan.rejected else ""
    cost = "cost unknown" if plan.again_cost is None else about_money(plan.again_cost.likely)
    again = f" ({count(plan.again)} to be asked for a better answer, {cost})" if plan.again else ""
    done = f"{rows(plan.total)}: {count(plan.answered)} answered{again}{rejected}"
    if plan.left:
        return f"{done}, {count(plan.left)} to send."
    return f"{done}." if plan.again else f"{done}. Nothing is left to send."


def _part(part: Part) -> list[str]:
    here, choice = part.situation, part.choice
    reasons = "; ".join(choice.reasons)
    title = f"{here.model}: {choice.lane.value}, {rows(here.load.rows)}. {reasons[0].upper()}{reasons[1:]}."
    table = [_HEADER, _row(Lane.BATCH, choice), _row(Lane.LIVE, choice)]
    told = choice.batch.possible or choice.batch.why_not in choice.reasons
    closed = [] if told else [f"No batch: {choice.batch.why_not}."]
    notes = [line for note in (*closed, *_guesses(here)) for line in _wrapped(note, _INDENT)]
    return [*_wrapped(title), *_aligned(table if choice.batch.possible else [_HEADER, table[2]]), *notes]


def _row(lane: Lane, choice: Choice) -> tuple[str, ...]:
    way = choice.batch if lane is Lane.BATCH else choice.live
    mark = f"> {lane.value}" if lane is choice.lane else f"  {lane.value}"
    files = count(choice.batches) if lane is Lane.BATCH else ""
    return (mark, files, *_cost(way.cost), _time(lane, way))


def _cost(cost: Spread | None) -> tuple[str, str, str]:
    if cost is None:
        return "", _UNKNOWN, ""
    return about_dollars(cost.low), about_dollars(cost.likely), about_dollars(cost.high)


def _time(lane: Lane, way: Way) -> str:
    if way.seconds is None:
        return _UNKNOWN
    low, likely, high = (about(each) for each in (way.seconds.low, way.seconds.likely, way.seconds.high))
    if lane is Lane.BATCH:
        return f"{low} to {high}"  # nobody says what is likely in between
    return likely if low == high else f"{likely} ({low} to {high})"


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    """The first and the last column to the left, figures to the right."""
    width = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    last = len(_HEADER) - 1
    lines = []
    for row in table:
        middle = "  ".join(row[column].rjust(width[column]) for column in range(1, last))
        lines.append(f"{_INDENT}{row[0].ljust(width[0])}  {middle}  {row[last]}".rstrip())
    return lines


def _guesses(here: Situation) -> list[str]:
    """What in the table was not observed."""
    said = []
    if here.price is None:
        said.append(f"The price is unknown: `--price {here.model}=IN/OUT` names it, in dollars per million tokens.")
    elif here.estimate.basis is Basis.GUESSED:
        said.append("Cost is a guess: too few answers were seen yet.")
    if here.live_rate is None:
        said.append(f"Live time assumes {rate(here).likely:,.3g} answers a second.")
    return [" ".join(said)] if said else []


def _total(plan: Plan) -> list[str]:
    """The sum over several models; a single one has said it."""
    if sum(part.situation.load.rows > 0 for part in plan.models) < 2:  # noqa: PLR2004 - a sum has two parts
        return []
    cost = plan.cost
    if cost is None:
        return ["", "All of it costs: unknown."]
    low, likely, high = map(about_dollars, (cost.low, cost.likely, cost.high))
    return ["", f"All of it costs about {likely} ({low} to {high})."]


def _wrapped(sentence: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        sentence,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent or _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _model(here: Situation, choice: Choice) -> dict[str, Any]:
    return {
        "model": here.model,
        "endpoint": here.endpoint.value,
        "rows": here.load.rows,
        "oversized": here.load.oversized,
        "route": here.wish.value,
        "lane": choice.lane.value,
        "reasons": list(choice.reasons),
        "in_time": choice.in_time,
        "batches": choice.batches,
        "basis": here.estimate.basis.value,
        "prompt_tokens": _rounded(here.estimate.prompt),
        "completion_tokens": _rounded(here.estimate.completion),
        "answers_per_second": rate(here).likely,
        "rate_assumed": here.live_rate is None,
        "discount": here.discount,
        "live": _way(choice.live),
        "batch": _way(choice.batch),
    }


def _way(way: Way) -> dict[str, Any]:
    return {
        "possible": way.possible,
        "why_not": way.why_not or None,
        "cost_usd": _usd(way.cost),
        "seconds": None if way.seconds is None else _rounded(way.seconds),
    }


def _usd(cost: Spread | None) -> dict[str, float] | None:
    if cost is None:
        return None
    return {"low": usd(round(cost.low)), "likely": usd(round(cost.likely)), "high": usd(round(cost.high))}


def _rounded(spread: Spread) -> dict[str, int]:
    return {"low": round(spread.low), "likely": round(spread.likely), "high": round(spread.high)}
