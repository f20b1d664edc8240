"""Live calls or the Batch API: the choice for each model, what either way would take, and the reasons in words.

What the rows left amount to is `estimate`'s, what may be spent `money`'s; carrying the choice out is the lanes'.
"""

from __future__ import annotations

import math

import msgspec

from batchrun.records import Endpoint, Lane, Price, Route
from batchrun.rules.estimate import Estimate, Load, Spread, cost
from batchrun.rules.limits import LEAST_RATE
from batchrun.rules.money import nano, usd
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

WORTH_WAITING = nano(0.10)  # a saving that is worth waiting up to a day for
MANY_ROWS = 1_000  # rows that are worth it when nobody knows the price

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_CENT = nano(0.01)


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


class Choice(msgspec.Struct, frozen=True):
    """How to go on with one model.

    Attributes:
        lane: the lane; rows too long for a batch file go live whatever it says.
        reasons: why, at least one short sentence, the deciding one first.
        live: what live calls would take.
        batch: what batches would take.
        batches: batch files, at least; 0 when batches are not possible.
        in_time: whether the lane is expected to be done by the deadline; true without one.
    """

    lane: Lane
    reasons: tuple[str, ...]
    live: Way
    batch: Way
    batches: int
    in_time: bool

    @property
    def way(self) -> Way:
        """The way chosen. It is closed only where the user asked for a batch that cannot be."""
        return self.batch if self.lane is Lane.BATCH else self.live


class Part(msgspec.Struct, frozen=True):
    """One model of a plan."""

    situation: Situation
    choice: Choice


class Plan(msgspec.Struct, frozen=True):
    """What a run would do.

    Attributes:
        models: each model that has rows, with the choice made for it.
        total: rows of the job.
        answered: rows that hold an answer already; `again` of them are asked for a better one.
        rejected: rows that were rejected and stay so.
        notes: sentences about the whole job.
    """

    models: tuple[Part, ...]
    total: int
    answered: int
    rejected: int = 0
    notes: tuple[str, ...] = ()
    again: int = 0

    @property
    def left(self) -> int:
        """Rows to send."""
        return sum(part.situation.load.rows for part in self.models)


def choose(here: Situation) -> Choice:
    """The lane for one model. The first rule that decides wins.

    The user's wish; what is possible at all; the deadline; the budget; then the cheaper way, and live at one price.
    """
    live, batch = _live(here), _batch(here)
    before = _wished(here) or _closed(here, batch)
    lane, reason = before or _by_deadline(here, live, batch) or _by_budget(here) or _by_price(here, live, batch)
    late = here.load.rows > 0 and not _makes_it(here, batch if lane is Lane.BATCH else live)
    reasons = (reason, *_asides(here, lane, late=late and before is not None))
    return Choice(lane, reasons, live, batch, batches(here) if batch.possible else 0, not late)


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


# What either way takes.


def _fitting(load: Load) -> Load:
    """The part of a load that fits into batch files; of the rest only its least size is known."""
    return Load(max(0, load.rows - load.oversized), max(0, load.bytes - load.oversized * LARGEST_LINE))


def _live(here: Situation) -> Way:
    seconds = _seconds(here.load.rows, rate(here))
    return Way(cost(here.estimate, here.price), seconds, seconds.likely)


def _seconds(rows: int, answers: Spread) -> Spread:
    return Spread(rows / answers.high, rows / answers.likely, rows / answers.low)


def _batch(here: Situation) -> Way:
    why_not = _why_no_batch(here)
    if why_not:
        return Way(None, None, math.inf, possible=False, why_not=why_not)
    # Rows that are too long go live at the same time.
    beside = _seconds(here.load.oversized, rate(here))
    low, likely, high = BATCH_WAIT.low, BATCH_WAIT.likely, BATCH_WAIT.high
    seconds = Spread(max(low, beside.low), max(likely, beside.likely), max(high, beside.high))
    return Way(_batch_cost(here), seconds, max(BATCH_SECONDS, beside.likely))


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


def _batch_cost(here: Situation) -> Spread | None:
    """The discount is for what goes into batches; rows that are too long pay the full price."""
    full = cost(here.estimate, here.price)
    fits = _fitting(here.load)
    of_bytes = fits.bytes / here.load.bytes if here.load.bytes else 1.0
    of_rows = fits.rows / here.load.rows if here.load.rows else 1.0
    small = Estimate(here.estimate.prompt * of_bytes, here.estimate.completion * of_rows, here.estimate.basis)
    off = cost(small, here.price, _factor(here) - 1)
    return None if full is None or off is None else full + off


def _factor(here: Situation) -> float:
    return 1.0 if here.discount is None else here.discount


# The rules, in their order.

_Decision = tuple[Lane, str]


def _wished(here: Situation) -> _Decision | None:
    if here.wish is Route.AUTO:
        return None
    return Lane(here.wish.value), f"you asked for {here.wish.value}"


def _closed(here: Situation, batch: Way) -> _Decision | None:
    if not here.load.rows:
        return Lane.LIVE, "nothing is left to send"
    return None if batch.possible else (Lane.LIVE, batch.why_not)


def _by_deadline(here: Situation, live: Way, batch: Way) -> _Decision | None:
    if here.seconds_left is None or (_makes_it(here, live) and _makes_it(here, batch)):
        return None
    if here.seconds_left <= 0:
        return Lane.LIVE, _PASSED
    left = about(here.seconds_left)
    if _makes_it(here, live):
        return Lane.LIVE, f"the deadline is in {left}: a batch may take {about(batch.planned)}, {_live_takes(here)}"
    if _makes_it(here, batch):
        return Lane.BATCH, f"the deadline is in {left}: {_live_takes(here)}, a batch at most {about(batch.planned)}"
    done = min(here.load.rows, int(here.seconds_left * rate(here).likely))
    return Lane.LIVE, (
        f"neither way is sure to make the deadline in {left}; live calls get the most done, "
        f"about {done:,} of {here.load.rows:,} rows"
    )


_PASSED = "the deadline has passed: only what is ready is collected"


def _makes_it(here: Situation, way: Way) -> bool:
    return here.seconds_left is None or (here.seconds_left > 0 and way.planned <= here.seconds_left)


def _by_budget(here: Situation) -> _Decision | None:
    """A batch holds the most its rows can cost until its end, a live call only until its reply."""
    if here.budget_left is None:
        return None
    if here.most_nano is None:
        return Lane.LIVE, "with a budget, rows whose highest cost is unknown are better sent one by one"
    if here.most_nano <= here.budget_left:
        return None
    return Lane.LIVE, (
        f"these rows can cost up to {_dollars(here.most_nano)} and {_dollars(max(0, here.budget_left))} of the budget "
        "is left: live calls free what they did not use at once, a batch only at its end"
    )


def _by_price(here: Situation, live: Way, batch: Way) -> _Decision:
    factor = _factor(here)
    saving = None if live.cost is None or batch.cost is None else live.cost.likely - batch.cost.likely
    if factor < 1 and saving is not None and saving >= WORTH_WAITING:
        return Lane.BATCH, f"a batch is billed at {factor:.0%} of the price and saves about {_dollars(saving)}"
    if factor < 1 and saving is None and here.load.rows - here.load.oversized >= MANY_ROWS:
        return Lane.BATCH, f"a batch is billed at {factor:.0%} of the price (which is unknown)"
    if factor <= 1 and live.planned > BATCH_SECONDS:
        return Lane.BATCH, f"{_live_takes(here)}, longer than the 24 h a batch is assumed to take, and cost no less"
    return Lane.LIVE, _why_live(here, saving)


def _why_live(here: Situation, saving: float | None) -> str:
    factor = _factor(here)
    if here.discount is None:
        return f"no batch discount is known for this model, and {_live_takes(here)}"
    if factor > 1:
        return f"a batch is billed at {factor:.0%} of the price"
    if factor == 1:
        return f"a batch costs the same, and {_live_takes(here)}"
    if saving is None:
        return "the price is unknown, and so few rows are not worth waiting up to 24 h for a batch"
    if saving <= 0:
        return f"a batch would save nothing, and {_live_takes(here)}"
    return f"a batch would save {_dollars(saving)}, which is not worth waiting up to 24 h; {_live_takes(here)}"


def _asides(here: Situation, lane: Lane, *, late: bool) -> list[str]:
    """What else there is to know, whatever decided; `late` when the reason does not speak of the deadline it misses."""
    said = []
    if lane is Lane.BATCH and 0 < here.load.oversized < here.load.rows:
        rows = f"{here.load.oversized:,} row{' is' if here.load.oversized == 1 else 's are'}"
        said.append(f"{rows} longer than the 10 MB a line of a batch may have: sent live")
    if late and here.seconds_left is not None:
        late_ones = "what is late moves to live" if lane is Lane.BATCH else _live_takes(here)
        in_time = f"not all rows are sure to be done by the deadline in {about(here.seconds_left)}: {late_ones}"
        said.append(in_time if here.seconds_left > 0 else _PASSED)
    return said


def hint(plan: Plan, throttled: int, seconds: float) -> str:
    """What to say of batches after live calls were throttled: "" unless they would have been cheaper or faster.

    Args:
        plan: what was done.
        throttled: calls refused with 429.
        seconds: what it took.
    """
    ways = [(part.choice.live, part.choice.batch) for part in plan.models if part.choice.lane is Lane.LIVE]
    ways = [(live, batch) for live, batch in ways if batch.possible]
    saved = sum(live.cost.likely - batch.cost.likely for live, batch in ways if live.cost and batch.cost)
    if not throttled or not ways:
        return ""
    if saved >= _CENT:
        return f"Throttled {throttled:,} times: --route batch would have cost about {_dollars(saved)} less."
    if all(batch.seconds is not None and seconds > batch.seconds.high for _, batch in ways):
        return f"Throttled {throttled:,} times: --route batch would likely have been done sooner."
    return ""


# Words.


def _live_takes(here: Situation) -> str:
    answers = rate(here).likely
    assumed = "an assumed " if here.live_rate is None else ""
    seconds = here.load.rows / answers
    if seconds < _MINUTE:
        return "live calls take less than a minute"
    return f"live calls take about {about(seconds)} at {assumed}{_number(answers)} a second"


def _number(value: float) -> str:
    """Few digits, but never a zero that is none."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"  # noqa: PLR2004 - two digits


def _dollars(nano_dollars: float) -> str:
    amount = usd(round(nano_dollars))
    if 0 < nano_dollars < _CENT:
        return "less than a cent"
    return f"${amount:,.0f}" if amount >= 1_000 else f"${amount:,.2f}"  # noqa: PLR2004 - dollars
