"""What either way of sending takes, live calls or batches: cost, time, files, and whether it can be taken at all.

Which of them is taken is `route`'s, what the rows left amount to `estimate`'s.
"""

from __future__ import annotations

import math

import msgspec

from batchrun.records import Endpoint, Price, Route
from batchrun.rules.estimate import Estimate, Load, Spread, cost
from batchrun.rules.limits import LEAST_RATE
from batchrun.rules.pack import FRAME, LARGEST_FILE, LARGEST_LINE

# A batch. The provider's overview of its Batch API (September 2026): the window is 24 h and cannot be changed, fewer
# than 1,000 requests "typically finish in minutes"; its announcement (June 2025): most are done "within hours".
BATCH_SECONDS = 86_400.0  # what a batch is assumed to take when it matters
BATCH_WAIT = Spread(600.0, 7_200.0, BATCH_SECONDS)  # what it may take: likely is the geometric middle, nobody says

# Live calls, when no rate is learned yet, in answers a second: 60 requests a minute is what a new account gets (rate
# limits page, January 2026), 600 and 6,000 were the lowest and the highest tier of the last table (mid 2026).
ASSUMED = Spread(1.0, 10.0, 100.0)
ASSUMED_RATE = ASSUMED.likely
LEARNED = Spread(0.7, 1.0, 1.5)  # times a learned rate: limits move with everybody's traffic

MOST_ROUNDS = 4  # batches after batches that a budget may need; each may take a day
_NEARLY = 0.95

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


class Situation(msgspec.Struct, frozen=True):
    """What the choice for one model depends on.

    Attributes:
        model: its name.
        endpoint: which endpoint its requests are for.
        wish: the user's route.
        load: what is left to send.
        estimate: the tokens of that load.
        price: nano-dollars a token, None when unknown.
        discount: what a batch is billed at, as a factor of the price; 1.0 is none, None unknown.
        batchable: whether the model is taken in batches, as far as we know.
        has_batches: whether the server has a Batch API, as far as we know.
        batch_lines: rows in a batch file.
        live_rate: learned answers a second, None when nothing is learned yet.
        rate_cap: the most answers a second that the user allows (`--rpm`), None for no bound.
        seconds_left: until the deadline, negative when it has passed, None without one.
        dearest_nano: the most that one of them can cost, 0 when unknown.
        most_nano: the most that the rows left can cost in nano-dollars at the full price, None when unknown.
        budget_left: nano-dollars of `--max-cost` that are left, None without one.
    """

    model: str
    endpoint: Endpoint
    wish: Route
    load: Load
    estimate: Estimate
    price: Price | None = None
    discount: float | None = None
    batchable: bool = True
    has_batches: bool = True
    batch_lines: int = 10_000
    live_rate: float | None = None
    rate_cap: float | None = None
    seconds_left: float | None = None
    dearest_nano: int = 0
    most_nano: int | None = None
    budget_left: int | None = None


class Way(msgspec.Struct, frozen=True):
    """One way to get the answers.

    Attributes:
        cost: nano-dollars, None when unknown or the way is closed.
        seconds: until the last answer, None when the way is closed.
        planned: seconds that a deadline is held against: the likely ones of live calls, the longest of a batch.
        possible: whether it can be taken at all.
        why_not: when it cannot, why, in words.
    """

    cost: Spread | None
    seconds: Spread | None
    planned: float
    possible: bool = True
    why_not: str = ""


def _fitting(load: Load) -> Load:
    """The part of a load that fits into batch files; of the rest only its least size is known."""
    return Load(max(0, load.rows - load.oversized), max(0, load.bytes - load.oversized * LARGEST_LINE))


def live(here: Situation) -> Way:
    """What live calls take."""
    seconds = _seconds(here.load.rows, rate(here))
    return Way(cost(here.estimate, here.price), seconds, seconds.likely)


def _seconds(rows: int, answers: Spread) -> Spread:
    return Spread(rows / answers.high, rows / answers.likely, rows / answers.low)


def batch(here: Situation) -> Way:
    """What batches take, and why there can be none."""
    why_not = _why_no_batch(here)
    if why_not:
        return Way(None, None, math.inf, possible=False, why_not=why_not)
    # Rows that are too long go live at the same time.
    beside = _seconds(here.load.oversized, rate(here))
    low, likely, high = BATCH_WAIT.low, BATCH_WAIT.likely, BATCH_WAIT.high
    times = min(MOST_ROUNDS, rounds(here))
    seconds = Spread(max(low * times, beside.low), max(likely * times, beside.likely), max(high * times, beside.high))
    return Way(batch_cost(here), seconds, max(BATCH_SECONDS * times, beside.likely))


def rounds(here: Situation) -> int:
    """How many times batches have to be filled, one after the other, to do all rows within the budget.

    A batch holds the most its rows can cost until its end and frees what they did not take, so of a budget that holds
    a share f of the rows, when they take a share r of the most, rounds fill f, f(1-r), f(1-r)^2... of them. A budget
    that will not do for all of them counts as one that nearly would; where their most is unknown, one round.
    """
    cost = batch_cost(here)
    if here.budget_left is None or here.most_nano is None or cost is None or here.most_nano <= here.budget_left:
        return 1
    if here.budget_left <= 0:
        return MOST_ROUNDS + 1
    share = here.budget_left / here.most_nano
    takes = min(cost.likely / here.most_nano, _NEARLY * share)
    return math.ceil(math.log(1 - takes / share) / math.log(1 - takes)) if takes > 0 else math.ceil(1 / share)


def _why_no_batch(here: Situation) -> str:
    if here.endpoint is Endpoint.COMPLETIONS:
        return "the completions endpoint takes no batches"
    if not here.has_batches:
        return "this server is not known to have a Batch API"
    if not here.batchable:
        return "this model is not taken in batches"
    if here.load.rows and here.load.oversized >= here.load.rows:
        return "every row is longer than the 10 MB a line of a batch may have"
    return ""


def batch_cost(here: Situation) -> Spread | None:
    """The discount is for what goes into batches; rows that are too long pay the full price."""
    full = cost(here.estimate, here.price)
    fits = _fitting(here.load)
    of_bytes = fits.bytes / here.load.bytes if here.load.bytes else 1.0
    of_rows = fits.rows / here.load.rows if here.load.rows else 1.0
    small = Estimate(here.estimate.prompt * of_bytes, here.estimate.completion * of_rows, here.estimate.basis)
    off = cost(small, here.price, factor(here) - 1)
    return None if full is None or off is None else full + off


def factor(here: Situation) -> float:
    """What a batch is billed at; an unknown discount is none."""
    return 1.0 if here.discount is None else here.discount


def batches(here: Situation) -> int:
    """Batch files for the rows that fit into one, at least: by lines, and by bytes."""
    fits = _fitting(here.load)
    by_bytes = math.ceil((fits.bytes + FRAME * fits.rows) / LARGEST_FILE)
    return max(math.ceil(fits.rows / here.batch_lines), by_bytes) if fits.rows else 0


def rate(here: Situation) -> Spread:
    """Live answers a second: learned, else assumed, and never more than the user allows."""
    value = ASSUMED if here.live_rate is None else LEARNED * here.live_rate
    cap = math.inf if here.rate_cap is None else here.rate_cap
    low, likely, high = (max(LEAST_RATE, min(cap, each)) for each in (value.low, value.likely, value.high))
    return Spread(low, likely, high)


# When to turn from batches to live calls, so that the deadline is made: live may be slower than it was, and what the
# batches have finished is collected first.
TURN_CARE = 1.5
TURN_MARGIN = 300.0  # seconds, and at most so much of the time there was
TURN_SHARE = 0.1


def live_seconds(rows: int, learned: float | None, cap: float | None) -> float:
    """Seconds that live calls are likely to take for so many rows, at a learned or an assumed rate (answers/s)."""
    return rows / max(LEAST_RATE, min(math.inf if cap is None else cap, ASSUMED_RATE if learned is None else learned))


def turn_at(deadline: float, began: float, needed: float) -> float:
    """When to stop waiting for batches (seconds since the epoch), if live calls need so many seconds for their rows."""
    margin = min(TURN_MARGIN, TURN_SHARE * max(0.0, deadline - began))
    return deadline - TURN_CARE * needed - margin


def about(seconds: float) -> str:
    """A length of time in words, no finer than an estimate is."""
    minutes = round(seconds / _MINUTE)
    if minutes <= 1:
        return "a minute"
    if minutes < 60:  # noqa: PLR2004 - minutes
        return f"{minutes} min"
    if minutes < 10 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    if seconds < 3 * _DAY:
        return f"{round(seconds / _HOUR)} h"
    return f"{round(seconds / _DAY):,} days"
