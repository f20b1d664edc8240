"""The last words of a run: five lines, or, parked, what happened and the command that goes on."""

from __future__ import annotations

from batchrun.faces.words import count, dollars, duration, place
from batchrun.job import SIMULATED, TOGETHER
from batchrun.records import ParkReason
from batchrun.reports import Report

# What to do next, and the words that go behind `batchrun resume CHECKPOINT` for it.
_NEXT = {
    ParkReason.CREDITS: ("Top up, then", ""),
    ParkReason.KEY: ("Set a key that works (`batchrun doctor` tells which is read), then", ""),
    ParkReason.OVERLOAD: ("Try again later", ""),
    ParkReason.BUDGET: ("Raise the limit", " --max-cost USD"),
    ParkReason.DEADLINE: ("Name a later time, or none", " --deadline TIME"),
    ParkReason.REMOTE: ("Collect what is ready, and go on", ""),
    ParkReason.HOPELESS: ("Mend the job and run it again; or, when so many may fail", " --max-rejected 30%"),
    ParkReason.MODEL: ("Run it with a model that can be called (-m), or let one stand in", " --fallback MODEL"),
    ParkReason.INTERRUPTED: ("Go on with", ""),
}
_WHERE = {
    ParkReason.CREDITS: "Top up (https://api.together.ai/settings/billing), then",
    ParkReason.KEY: "Set a key that works (https://api.together.ai/settings/api-keys; `batchrun doctor` tells which is "
    "read), then",
}


def summary(report: Report) -> str:
    """What happened, as lines for standard error."""
    return "\n".join(_parked(report) if report.parked else _finished(report))


def _finished(report: Report) -> list[str]:
    written = "" if report.output is None else f"{place(report.output)}{'' if report.written else ' (as it was)'}"
    rejected = ", ".join(f"{fault} {count(rows)}" for fault, rows in report.rejections.items())
    return [
        f"Done: {count(report.answered)} of {count(report.total)} rows answered, {count(report.rejected)} rejected"
        + (f" ({rejected}; see `batchrun errors`)." if rejected else "."),
        _pace(report),
        _money(report),
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
        _twice(report),
        *_replaced(report),
        *_redirects(report),
        f"Parked ({report.parked}): {_sentence(report.message)} {kept}",
        _next(report, report.parked or ParkReason.INTERRUPTED),
    ]


def _next(report: Report, reason: ParkReason) -> str:
    """The command that goes on; at Together also where to go first."""
    todo, words = _NEXT[reason]
    if report.provider in {TOGETHER, SIMULATED}:
        todo = _WHERE.get(reason, todo)
    return f"{todo}: batchrun resume {place(report.checkpoint)}{words}"


def _sentence(message: str) -> str:
    """With the full stop that servers leave out."""
    return message if message.endswith((".", "!", "?", "…")) else f"{message}."


def _replaced(report: Report) -> list[str]:
    """What asking again for better answers has used up."""
    if not report.replaced:
        return []
    return [f"Not good enough: {count(report.replaced)} replies, {dollars(report.replaced_nano)}; asked again."]


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
    """The rest at the mean price of what was answered; nothing where that is not known."""
    if not report.answered or not report.spent_nano or report.unpriced:
        return ""
    left = report.pending + report.again
    return f", about {dollars(round(report.spent_nano / report.answered * left))} more" if left else ""


def _pace(report: Report) -> str:
    rate = report.answered_now / report.seconds if report.seconds > 0 else 0.0
    better = f", {count(report.asked_again)} asked for once more," if report.asked_again else ""
    return (
        f"This start: {count(report.answered_now)} answers{better} in {duration(report.seconds)} ({rate:,.1f}/s), "
        f"{count(report.throttled)} calls throttled (429)."
    )


def _money(report: Report) -> str:
    unpriced = f", {count(report.unpriced)} answers of unknown price" if report.unpriced else ""
    return (
        f"Spent: {dollars(report.spent_nano)} in all, {dollars(report.spent_now_nano)} this start{unpriced}; "
        f"{count(report.prompt_tokens)} tokens in, {count(report.completion_tokens)} out."
    )


def _twice(report: Report) -> str:
    parts = []
    if report.twice:
        parts.append(f"{count(report.twice)} answers, {dollars(report.twice_nano)}")
    if report.maybe_twice:
        most = dollars(report.maybe_twice_nano) if report.maybe_twice_nano else "of unknown price"
        parts.append(f"at most {count(report.maybe_twice)} calls, {most} (crashes, broken replies)")
    return f"Paid twice: {' and '.join(parts) or 'nothing'}."
