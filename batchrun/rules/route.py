"""Live calls or the Batch API: the choice for each model, and the reasons in words.

What either way takes is `ways`', what may be spent `money`'s; carrying the choice out is the lanes'.
"""

from __future__ import annotations

import math

import msgspec

from batchrun.records import Lane, Route
from batchrun.rules import ways
from batchrun.rules.estimate import Spread
from batchrun.rules.money import nano, usd
from batchrun.rules.ways import MOST_ROUNDS, Situation, Way, about, batches, rate, rounds

WORTH_WAITING = nano(0.10)  # a saving that is worth waiting up to a day for
MANY_ROWS = 1_000  # rows that are worth it when nobody knows the price

_CENT = nano(0.01)
_MINUTE = 60


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
        again_cost: nano-dollars of the better answers, None when unknown.
        budget_left: nano-dollars that the user's limits leave for this start, None without one.
    """

    models: tuple[Part, ...]
    total: int
    answered: int
    rejected: int = 0
    notes: tuple[str, ...] = ()
    again: int = 0
    again_cost: Spread | None = Spread(0.0, 0.0, 0.0)
    budget_left: int | None = None

    @property
    def left(self) -> int:
        """Rows to send."""
        return sum(part.situation.load.rows for part in self.models)

    @property
    def cost(self) -> Spread | None:
        """Nano-dollars of the ways chosen, and of better answers; None as soon as one of them is unknown."""
        return self._sum([part.choice.way.cost for part in self.models if part.situation.load.rows])

    @property
    def live_cost(self) -> Spread | None:
        """The same if everything went live."""
        return self._sum([part.choice.live.cost for part in self.models if part.situation.load.rows])

    def _sum(self, costs: list[Spread | None]) -> Spread | None:
        known = [cost for cost in (*costs, self.again_cost) if cost is not None]
        return sum(known, Spread(0.0, 0.0, 0.0)) if len(known) == len(costs) + 1 else None

    @property
    def may_cost(self) -> float | None:
        """The high estimate in nano-dollars, or what the user's limits leave, if that is less; None when unknown."""
        if self.cost is None:
            return None
        return self.cost.high if self.budget_left is None else min(self.cost.high, self.budget_left)

    @property
    def most(self) -> int | None:
        """The most that all rows can cost in nano-dollars, None when unknown."""
        most = [here.most_nano for here in self._rest]
        known = [each for each in most if each is not None]
        return sum(known) if len(known) == len(most) else None

    @property
    def dearest(self) -> int:
        """The most one of the rows can cost in nano-dollars, 0 when unknown."""
        return max((here.dearest_nano for here in self._rest), default=0)

    @property
    def mean_bound(self) -> int:
        """The most one of the rows can cost in nano-dollars, as a mean; 0 when unknown."""
        return math.ceil(self.most / self.left) if self.most and self.left else 0

    @property
    def _rest(self) -> list[Situation]:
        return [part.situation for part in self.models if part.situation.load.rows]


def choose(here: Situation) -> Choice:
    """The lane for one model. The first rule that decides wins.

    The user's wish; what is possible at all; the deadline; the budget; then the cheaper way, and live at one price.
    """
    live, batch = ways.live(here), ways.batch(here)
    before = _wished(here) or _closed(here, batch)
    lane, reason = before or _by_deadline(here, live, batch) or _by_budget(here) or _by_price(here, live, batch)
    late = here.load.rows > 0 and not _makes_it(here, batch if lane is Lane.BATCH else live)
    reasons = (reason, *_asides(here, lane, late=late and before is not None))
    return Choice(lane, reasons, live, batch, batches(here) if batch.possible else 0, not late)


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
    """A batch holds the most its rows can cost until its end, a live call only until its reply.

    A few rounds of batches are worth half the price, many are not worth the days.
    """
    if here.budget_left is None:
        return None
    if here.most_nano is None:
        return Lane.LIVE, "with a budget, rows whose highest cost is unknown are better sent one by one"
    if rounds(here) <= MOST_ROUNDS:
        return None
    return Lane.LIVE, (
        f"these rows can cost up to {_dollars(here.most_nano)} and {_dollars(max(0, here.budget_left))} of the budget "
        "is left: live calls free what they did not use at once, a batch only at its end"
    )


def _by_price(here: Situation, live: Way, batch: Way) -> _Decision:
    factor = ways.factor(here)
    saving = None if live.cost is None or batch.cost is None else live.cost.likely - batch.cost.likely
    if factor < 1 and saving is not None and saving >= WORTH_WAITING:
        return Lane.BATCH, f"a batch is billed at {factor:.0%} of the price and saves about {_dollars(saving)}"
    if factor < 1 and saving is None and here.load.rows - here.load.oversized >= MANY_ROWS:
        return Lane.BATCH, f"a batch is billed at {factor:.0%} of the price (which is unknown)"
    if factor <= 1 and live.planned > ways.BATCH_SECONDS:
        return Lane.BATCH, f"{_live_takes(here)}, longer than the 24 h a batch is assumed to take, and cost no less"
    return Lane.LIVE, _why_live(here, saving)


def _why_live(here: Situation, saving: float | None) -> str:
    factor = ways.factor(here)
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
    if lane is Lane.BATCH and (times := rounds(here)) > 1:
        several = f"about {times} rounds" if times <= MOST_ROUNDS else "many rounds"
        said.append(f"the budget holds a part of them at a time: {several} of batches, one after the other")
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
    both = [(part.choice.live, part.choice.batch) for part in plan.models if part.choice.lane is Lane.LIVE]
    both = [(live, batch) for live, batch in both if batch.possible]
    saved = sum(live.cost.likely - batch.cost.likely for live, batch in both if live.cost and batch.cost)
    if not throttled or not both:
        return ""
    if saved >= _CENT:
        return f"Throttled {throttled:,} times: --route batch would have cost about {_dollars(saved)} less."
    if all(batch.seconds is not None and seconds > batch.seconds.high for _, batch in both):
        return f"Throttled {throttled:,} times: --route batch would likely have been done sooner."
    return ""


# Words.


def told(part: Part) -> str:
    """The way chosen for one model, in a line."""
    rows, chosen = part.situation.load.rows, part.choice
    likely = "cost unknown" if chosen.way.cost is None else f"about ${usd(round(chosen.way.cost.likely)):.4f}"
    return f"{part.situation.model}: {chosen.lane}, {rows} rows, {likely}: {chosen.reasons[0]}"


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
