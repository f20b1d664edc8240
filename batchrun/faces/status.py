"""How a checkpoint stands, read from its counters: as values for programs, and as text for people."""

from __future__ import annotations

import time

import msgspec

from batchrun.faces.words import bound, count, duration, of_use, place, spent
from batchrun.reports import Entry, Event
from batchrun.store.lock import Holder, living_holder
from batchrun.store.view import BatchRow, LastRun, View

# What the last seconds say of a run that is going on.
_PULSE_SECONDS = 60.0


class Standing(msgspec.Struct, frozen=True):
    """What `status` shows; `--json` prints it as it is. Money in nano-dollars, times in seconds since the epoch."""

    checkpoint: str
    provider: str | None
    state: str
    holder: str | None
    reason: str | None
    opened: float | None
    closed: float | None
    total: int
    answered: int
    rejected: int
    pending: int
    rejections: dict[str, int]
    spent_nano: int
    unpriced: int
    maybe_twice: int
    maybe_twice_nano: int
    models: list[Entry]
    answers_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    events: list[Event]
    submitted: int
    batches: list[BatchRow]
    left_remote: int
    now: float
    again: int = 0


def standing(view: View, checkpoint: str, now: float, events: int) -> Standing:
    """Read it, in a few short queries."""
    kept, hidden, last, job = view.kept(), view.hidden(), view.last_run(), view.job()
    holder = living_holder(checkpoint) if last is not None and last.closed is None else None
    answers, tokens = 0.0, 0.0
    if last is not None and holder is not None:
        answers, tokens = view.pulse(now, min(_PULSE_SECONDS, max(1.0, now - last.opened)))
    return Standing(
        checkpoint=checkpoint,
        provider=job[0] if job else None,
        state=_state_of(last, holder),
        holder=f"process {holder.pid} on {holder.host}" if holder else None,
        reason=last.reason if last else None,
        opened=last.opened if last else None,
        closed=last.closed if last else None,
        total=kept.pending + kept.answered + kept.rejected,
        answered=kept.answered,
        rejected=kept.rejected,
        pending=kept.pending,
        rejections=view.rejections_by_fault() if kept.rejected else {},
        spent_nano=kept.cost_nano,
        unpriced=kept.unpriced,
        maybe_twice=hidden.calls,
        maybe_twice_nano=hidden.nano,
        models=view.ledger(),
        answers_per_second=answers,
        tokens_per_second=tokens,
        seconds_left=kept.pending / answers if answers else None,
        events=view.events(events) if events else [],
        submitted=kept.submitted,
        batches=view.batches(),
        left_remote=view.left_remote(),
        now=now,
        again=kept.again,
    )


def _state_of(last: LastRun | None, holder: Holder | None) -> str:
    """`new`, `running`, `killed`, or as the last run wrote it down when it ended."""
    if last is None:
        return "new"
    if last.closed is None:
        return "running" if holder else "killed"
    return last.state


def text(seen: Standing) -> str:
    """The same for people."""
    share = f" ({(seen.answered + seen.rejected) / seen.total:.0%} settled)" if seen.total else ""
    lines = [
        f"{place(seen.checkpoint)}: {_state(seen)}",
        (
            f"Rows: {count(seen.answered)} answered, {count(seen.rejected)} rejected, {count(seen.pending)} left "
            f"of {count(seen.total)}{share}"
        ),
    ]
    if seen.again:
        lines.append(f"Of the answered, {count(seen.again)} to be asked for a better answer.")
    if seen.rejections:
        lines.append("Rejected: " + ", ".join(f"{fault} {count(rows)}" for fault, rows in seen.rejections.items()))
    if seen.answers_per_second:
        left = f", about {duration(seen.seconds_left)} left" if seen.seconds_left else ""
        lines.append(
            f"Last minute: {seen.answers_per_second:.1f} answers/s, {seen.tokens_per_second:,.0f} tokens/s{left}"
        )
    lines += [_batch(one, seen.now) for one in seen.batches]
    if seen.left_remote:
        lines.append(
            f"Still at the provider: files of {count(seen.left_remote)} batch{'' if seen.left_remote == 1 else 'es'} "
            "(--delete-remote removes them when they are collected)"
        )
    lines += [f"Spent: {spent(seen.spent_nano, seen.unpriced)}"]
    lines += [line for entry in seen.models for line in _model(entry)]
    if seen.maybe_twice:
        lines.append(f"Possibly paid twice: {bound(seen.maybe_twice, seen.maybe_twice_nano)}")
    lines += [f"{_local(event.at)}  {event.kind}: {event.detail}" for event in seen.events]
    return "\n".join(lines)


def _state(seen: Standing) -> str:
    opened, closed = _local(seen.opened or 0.0), _local(seen.closed or 0.0)
    match seen.state:
        case "running":
            return f"running since {opened} ({seen.holder})"
        case "killed":
            return f"a run that began at {opened} was killed; the same command goes on"
        case "parked":
            return f"parked ({seen.reason}) at {closed}"
        case "failed":
            return f"stopped at {closed}: {seen.reason}"
        case "new":
            return "nothing has run yet"
        case _:
            return f"{seen.state} at {closed}"


def _batch(one: BatchRow, now: float) -> str:
    done = "" if one.progress is None else f" {one.progress:.0f} %"
    job = f", job {one.job}" if one.job else ""
    return (
        f"  batch {one.number}: {one.state}{done}, {count(one.lines)} rows of {one.model}, "
        f"{duration(max(0.0, now - one.since_ms / 1000))} old{job}"
    )


def _model(entry: Entry) -> list[str]:
    told = (
        f"  {entry.model} ({entry.lane}): {count(entry.replies)} replies, {count(entry.prompt_tokens)} tokens in, "
        f"{count(entry.completion_tokens)} out, {spent(entry.cost_nano, entry.unpriced)}"
    )
    return [told] if entry.useful == entry.replies else [told, f"    {'; '.join(of_use(entry))}"]


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
