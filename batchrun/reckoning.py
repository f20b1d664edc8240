"""How a start ended, reckoned up over the whole checkpoint: the report, its exit code, and what the rest may cost."""

from __future__ import annotations

import msgspec

from batchrun.job import Job, allowed_rejections
from batchrun.lanes.lane import Counts, Parked
from batchrun.records import ParkReason, Route
from batchrun.reports import BatchStanding, Redirect, Report
from batchrun.rules import budget
from batchrun.rules.route import Plan
from batchrun.store import ledger
from batchrun.store.store import Hidden, Kept, Store

FINISHED, REJECTIONS, INTERRUPTED = 0, 10, 130
EXIT_CODES = {
    ParkReason.CREDITS: 3,
    ParkReason.KEY: 4,
    ParkReason.OVERLOAD: 5,
    ParkReason.BUDGET: 6,
    ParkReason.DEADLINE: 6,
    ParkReason.REMOTE: 7,
    ParkReason.HOPELESS: 9,
    ParkReason.MODEL: 9,
    ParkReason.INTERRUPTED: INTERRUPTED,
}


class Start(msgspec.Struct, frozen=True):
    """What one start did, as far as it knows itself.

    Attributes:
        counts: what it brought.
        seconds: how long it took.
        throttled: calls refused with 429.
        cut_off: calls that were in flight when it was ended at once.
        batches: those that are not over.
        hint: a sentence worth reading, or "".
        written: whether the output was written.
        stop_code: the exit code of an interrupt.
        rest: what is left, as a start would plan it now; None when that is not known.
    """

    counts: Counts
    seconds: float
    throttled: int
    cut_off: Hidden
    batches: tuple[BatchStanding, ...]
    hint: str
    written: bool
    stop_code: int
    rest: Plan | None


async def report(store: Store, job: Job, kept: Kept, parked: Parked | None, start: Start) -> Report:
    """The report of a start that ended."""
    hidden, counts = await store.hidden(), start.counts
    maybe_nano = hidden.nano + start.cut_off.nano
    twice, twice_nano, twice_unpriced = await store.sql.one("paid_twice") or (0, 0, 0)
    replaced, replaced_nano, replaced_unpriced = await store.sql.one("replaced") or (0, 0, 0)
    paid = await ledger.read(store)
    return Report(
        exit_code=exit_code(job, kept, parked, start.stop_code),
        total=kept.pending + kept.answered + kept.rejected,
        answered=kept.answered,
        rejected=kept.rejected,
        pending=kept.pending,
        parked=parked.reason if parked else None,
        message=parked.message if parked else "",
        answered_now=counts.answered,
        seconds=start.seconds,
        throttled=start.throttled,
        prompt_tokens=kept.prompt_tokens,
        completion_tokens=kept.completion_tokens,
        spent_nano=kept.cost_nano,
        spent_now_nano=counts.spent_nano,
        unpriced=kept.unpriced,
        unpriced_now=store.unpriced_now,
        maybe_twice=hidden.calls + start.cut_off.calls,
        maybe_twice_nano=maybe_nano,
        checkpoint=store.path,
        output=job.output if kept.pending == 0 else None,
        written=start.written,
        rejections=dict(await store.sql.all("rejections_by_fault")) if kept.rejected else {},
        twice=twice,
        twice_nano=twice_nano,
        twice_unpriced=twice_unpriced,
        submitted=kept.submitted,
        batches=start.batches,
        again=kept.again,
        asked_again=counts.better,
        replaced=replaced,
        replaced_nano=replaced_nano,
        replaced_unpriced=replaced_unpriced,
        hint=start.hint,
        redirects=tuple(Redirect(asked, came, n) for (asked, came), n in counts.redirects.most_common()),
        stood_in=tuple(Redirect(asked, came, n) for (asked, came), n in counts.stood_in.most_common()),
        provider=job.provider,
        left_nano=_span(start.rest),
        enough_nano=_enough(job, parked, start.rest, kept.cost_nano + maybe_nano),
        enough_run_nano=_enough_run(parked),
        stopped_by_run=parked is not None and parked.lack is not None and parked.lack.by_run,
        useful_nano=sum(entry.useful_nano for entry in paid),
        wasted_nano=sum(entry.wasted_nano for entry in paid),
        unused_nano=sum(entry.unused_nano for entry in paid),
    )


def _span(rest: Plan | None) -> tuple[int, int, int] | None:
    """Low, likely and high cost of the rest in nano-dollars."""
    if rest is None or rest.cost is None:
        return None
    return round(rest.cost.low), round(rest.cost.likely), round(rest.cost.high)


def _enough(job: Job, parked: Parked | None, rest: Plan | None, spent: int) -> int | None:
    """The --max-cost that would do for the rest; None where it is not that limit that stopped the start."""
    lack = None if parked is None else parked.lack
    if lack is None or lack.by_run or lack.later or rest is None or rest.live_cost is None:
        return None
    # Under --route batch the whole may be set aside at once; else what is live by then pays the full price.
    left = rest.most if job.route is Route.BATCH else rest.live_cost.high
    bound = max(lack.bound, rest.dearest)
    counted = max(spent, lack.limit - lack.left - lack.held)
    return None if left is None else budget.enough(counted, left, bound, rest.mean_bound)


def _enough_run(parked: Parked | None) -> int | None:
    """The --max-cost-run without which no start can go on; None where the next one may go on as it is."""
    lack = None if parked is None else parked.lack
    if lack is None or not lack.by_run or lack.bound <= lack.limit:
        return None
    return budget.enough(0, 0, lack.bound, 0)


def exit_code(job: Job, kept: Kept, parked: Parked | None, stop_code: int = INTERRUPTED) -> int:
    """The exit code of a start, `stop_code` for an interrupt."""
    if parked is not None:
        return stop_code if parked.reason is ParkReason.INTERRUPTED else EXIT_CODES[parked.reason]
    if kept.pending:
        raise RuntimeError("rows are left, and nothing says why")  # a bug: exit 0 would be a lie
    allowed = allowed_rejections(job.limits.max_rejected, kept.answered + kept.rejected)
    return FINISHED if kept.rejected <= allowed else REJECTIONS


def ending(ended: Report) -> tuple[str, str]:
    """The last line of a run in the diary: its kind, and what it says."""
    counts = f"{ended.answered} answered, {ended.rejected} rejected, {ended.pending} left"
    return ("finished", counts) if ended.parked is None else ("parked", f"{ended.parked}: {counts}")
