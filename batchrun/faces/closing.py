"""The last words of a run: five lines, or, parked, what happened and the command that goes on."""

from __future__ import annotations

import shlex

from batchrun.faces.words import about, about_dollars, bound, count, dollars, duration, place, spent
from batchrun.job import SIMULATED, TOGETHER
from batchrun.records import ParkReason
from batchrun.reports import Report
from batchrun.rules.money import usd

# What to do next, and the words that go behind `batchrun resume CHECKPOINT` for it; see `_what_next`.
_NEXT = {
    ParkReason.CREDITS: ("Top up, then", ""),
    ParkReason.KEY: ("Set a key that works (`batchrun doctor` tells which is read), then", ""),
    ParkReason.OVERLOAD: ("Try again later", ""),
    ParkReason.DEADLINE: ("Name a later time, or none", " --deadline TIME"),
    ParkReason.REMOTE: ("Collect what is ready, and go on", ""),
    ParkReason.HOPELESS: ("Mend the job and run it again; or, when so many may fail", " --max-rejected 30%"),
    ParkReason.MODEL: ("Run it with a model that can be called (-m), or let one stand in", " --fallback MODEL"),
    ParkReason.INTERRUPTED: ("Go on with", ""),
}
_RAISE = "Raise the limit (in the job file, if it stands there)"
_WHERE = {
    ParkReason.CREDITS: "Top up (https://api.together.ai/settings/billing), then",
    ParkReason.KEY: "Set a key that works (https://api.together.ai/settings/api-keys; `batchrun doctor` tells which is "
    "read), then",
}


def summary(report: Report) -> str:
    """What happened, as lines for standard error."""
    return "\n".join(_parked(report) if report.parked else _finished(report))


def outcome(report: Report) -> str:
    """In a sentence, what the end of the run was."""
    if report.parked is not None:
        return _sentence(report.message)
    return f"{count(report.answered)} of {count(report.total)} rows answered, {count(report.rejected)} rejected."


def next_command(report: Report) -> str:
    """The command that goes on, or shows what was rejected, wherever it is typed; "" when nothing is to be done."""
    checkpoint = shlex.quote(report.checkpoint)
    if report.parked is not None:
        return _resume(checkpoint, report, report.parked)
    return f"batchrun errors {checkpoint}" if report.rejected else ""


def _resume(checkpoint: str, report: Report, reason: ParkReason) -> str:
    return f"batchrun resume {checkpoint}{_what_next(report, reason)[1]}"


def _what_next(report: Report, reason: ParkReason) -> tuple[str, str]:
    return _budget(report) if reason is ParkReason.BUDGET else _NEXT[reason]


def _finished(report: Report) -> list[str]:
    written = "" if report.output is None else f"{place(report.output)}{'' if report.written else ' (as it was)'}"
    rejected = ", ".join(f"{fault} {count(rows)}" for fault, rows in report.rejections.items())
    return [
        f"Done: {count(report.answered)} of {count(report.total)} rows answered, {count(report.rejected)} rejected"
        + (f" ({rejected}; see `batchrun errors`)." if rejected else "."),
        _pace(report),
        _money(report),
        *_of_use(report),
        _twice(report),
        *_replaced(report),
        *_redirects(report),
        *([report.hint] if report.hint else []),
        f"Output: {written or 'none asked for'}. Checkpoint: {place(report.checkpoint)}",
    ]


def _parked(report: Report) -> list[str]:
    kept = (
        f"{count(report.answered)} of {count(report.total)} answers kept, {count(report.pending)} left"
        f"{_at_provider(report)}{_again(report)}{_left_may_cost(report)}."
    )
    return [
        _pace(report),
        _money(report),
        *_of_use(report),
        _twice(report),
        *_replaced(report),
        *_redirects(report),
        f"Parked ({report.parked}): {_sentence(report.message)} {kept}",
        _next(report, report.parked or ParkReason.INTERRUPTED),
    ]


def _next(report: Report, reason: ParkReason) -> str:
    """The command that goes on; at Together also where to go first."""
    todo, _ = _what_next(report, reason)
    if report.provider in {TOGETHER, SIMULATED}:
        todo = _WHERE.get(reason, todo)
    return f"{todo}: {_resume(place(report.checkpoint), report, reason)}"


def _budget(report: Report) -> tuple[str, str]:
    """Which limit to raise, and to what; nothing where the next start may spend as much again."""
    if report.enough_run_nano is not None:
        return _RAISE, f" --max-cost-run {usd(report.enough_run_nano):.2f}"
    if report.stopped_by_run:
        return "Each start may spend as much again", ""
    return _RAISE, " --max-cost USD" if report.enough_nano is None else f" --max-cost {usd(report.enough_nano):.2f}"


def _sentence(message: str) -> str:
    """With the full stop that servers leave out."""
    return message if message.endswith((".", "!", "?", "…")) else f"{message}."


def _replaced(report: Report) -> list[str]:
    """What asking again for better answers has used up."""
    if not report.replaced:
        return []
    money = spent(report.replaced_nano, report.replaced_unpriced)
    return [f"Not good enough: {count(report.replaced)} replies, {money}; asked again."]


def _redirects(report: Report) -> list[str]:
    """Providers put a newer model in the place of an older one without a word; the reply's own word tells."""
    stood_in = [
        f"Answered by a fallback: {count(seen.replies)} replies asked for from {seen.asked} came from {seen.answered}."
        for seen in report.stood_in
    ]
    return stood_in + [
        f"Answered by another model: {count(seen.replies)} replies asked of {seen.asked} came from {seen.answered}."
        for seen in report.redirects
    ]


def _at_provider(report: Report) -> str:
    """Of the rest, what batches at the provider are working on; they go on whatever parked this start."""
    return f" ({count(report.submitted)} of them in {_batches(report)})" if report.submitted else ""


def _again(report: Report) -> str:
    return f", {count(report.again)} to be asked for a better answer" if report.again else ""


def _batches(report: Report) -> str:
    number = len(report.batches)
    return f"{count(number)} batch{'' if number == 1 else 'es'} at the provider" if number else "batches"


def _left_may_cost(report: Report) -> str:
    """What the rest is expected to cost, better answers at the mean price of the first; nothing where it is unknown."""
    if not report.pending and report.again and not report.unpriced:
        return f", {about(report.spent_nano / report.answered * report.again)} more"
    if report.left_nano is None or not report.pending:
        return ""
    low, likely, high = report.left_nano
    span = f" ({about_dollars(low)} to {about_dollars(high)})" if about_dollars(low) != about_dollars(high) else ""
    return f", {about(likely)} more{span}"


def _pace(report: Report) -> str:
    rate = report.answered_now / report.seconds if report.seconds > 0 else 0.0
    better = f", {count(report.asked_again)} asked for once more," if report.asked_again else ""
    return (
        f"This start: {count(report.answered_now)} answers{better} in {duration(report.seconds)} ({rate:,.1f}/s), "
        f"{count(report.throttled)} calls throttled (429)."
    )


def _money(report: Report) -> str:
    amount = spent(report.spent_nano, report.unpriced)
    split = (
        f" in all, {spent(report.spent_now_nano, report.unpriced_now)} this start"
        if report.spent_nano or not report.unpriced
        else ""
    )
    return f"Spent: {amount}{split}; {count(report.prompt_tokens)} tokens in, {count(report.completion_tokens)} out."


def _of_use(report: Report) -> list[str]:
    """How much of the known cost is in the output; nothing when all of it is."""
    if not (report.wasted_nano or report.unused_nano):
        return []
    parts = [f"{dollars(report.useful_nano)} in the output"]
    if report.wasted_nano:
        parts.append(f"{dollars(report.wasted_nano)} wasted (cut, invalid, twice, probes)")
    if report.unused_nano:
        parts.append(f"{dollars(report.unused_nano)} for rows no longer asked for")
    return [f"Of that: {', '.join(parts)}."]


def _twice(report: Report) -> str:
    parts = []
    if report.twice:
        parts.append(f"{count(report.twice)} answers, {spent(report.twice_nano, report.twice_unpriced)}")
    if report.maybe_twice:
        parts.append(bound(report.maybe_twice, report.maybe_twice_nano))
    return f"Paid twice: {' and '.join(parts) or 'nothing'}."
