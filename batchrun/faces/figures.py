"""The figures that Prometheus is told: which there are, and their values from a run's `Progress` and its checkpoint.

Plain values; how they are served is `metrics`'s. Naming: https://prometheus.io/docs/practices/naming/ (base units,
`_total` for what only grows); what may fall, such as the use of a reply, is a gauge, since a counter that falls counts
as begun anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from batchrun.job import Job
from batchrun.records import Fault, ParkReason
from batchrun.reports import Entry, Progress
from batchrun.rules.money import usd
from batchrun.store.store import Hidden, Kept
from batchrun.store.view import LastRun, View

# The other faults are marks on answers, or found before anything is sent.
NO_ANSWER = tuple(f for f in Fault if f not in {Fault.BAD_ROW, Fault.CUT_SHORT, Fault.FILTERED, Fault.INVALID_OUTPUT})
_STATES = ("running", "finished", "parked", "failed", "killed")

# Models are named by the server, whose words may be anything; a label takes only what is made like a model's name.
_MODEL_NAME = re.compile(r"[\w.:/@+-]{1,120}")
_NO_NAME = "other"


class Family(NamedTuple):
    """A metric: `counter` or `gauge`, its name, what it tells, and its labels beside `checkpoint`."""

    kind: str
    name: str
    told: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One value of a metric, with the values of its labels beside `checkpoint`."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


_LIFE = "over the checkpoint's life"

FAMILIES = (
    Family("gauge", "batchrun_running", "1 while a run is going on, 0 once it has ended."),
    Family("counter", "batchrun_requests_total", "Live calls, and lines of batches that came back, in this start."),
    Family("counter", "batchrun_faults_total", "Of these, those that brought no answer, in this start.", ("fault",)),
    Family("counter", "batchrun_throttled_total", "Live calls that were answered with 429 in this start."),
    Family("gauge", "batchrun_calls_in_flight", "Live calls sent whose outcome is not committed yet."),
    Family("gauge", "batchrun_calls_limit", "Live calls that the pace lets be in flight at once just now."),
    Family("gauge", "batchrun_checkpoint_readable", "0 when rows and money are missing: no checkpoint to read yet."),
    Family("gauge", "batchrun_rows", "Rows of the input by state; again: answered, a better one wanted.", ("state",)),
    Family("counter", "batchrun_replies_total", f"Paid replies kept, {_LIFE}.", ("lane", "model")),
    Family(
        "counter", "batchrun_unpriced_replies_total",
        "Of these, those at an unknown price; no sum of money holds them.", ("lane", "model"),
    ),
    Family("counter", "batchrun_tokens_total", f"Tokens of paid replies, {_LIFE}.", ("lane", "model", "kind")),
    Family(
        "counter", "batchrun_spend_dollars_total",
        f"US dollars that replies cost, {_LIFE}; missing where no price is known.", ("lane", "model"),
    ),
    Family(
        "gauge", "batchrun_replies_by_use",
        "Paid replies that are an answer (useful), can be none (wasted), or that no row wants now (unused).",
        ("lane", "model", "use"),
    ),
    Family("gauge", "batchrun_spend_by_use_dollars", "US dollars by use of the reply.", ("lane", "model", "use")),
    Family("gauge", "batchrun_possibly_paid_twice_calls", "At most so many calls may have been paid and not shown."),
    Family(
        "gauge", "batchrun_possibly_paid_twice_dollars",
        "At most so many US dollars may have been paid and not shown; missing where no price is known.",
    ),
    Family("gauge", "batchrun_max_cost_dollars", "--max-cost; missing without it."),
    Family("gauge", "batchrun_batches_at_provider", "Batches that the provider works on."),
    Family("gauge", "batchrun_last_answer_timestamp_seconds", "When the last paid reply was kept."),
    Family("gauge", "batchrun_last_success_timestamp_seconds", "When a run last finished: no row was left."),
    Family("gauge", "batchrun_last_run_start_timestamp_seconds", "When the last run began."),
    Family("gauge", "batchrun_last_run_state", "1 for how the last run stands or ended, else 0.", ("state",)),
    Family("gauge", "batchrun_last_run_parked", "1 for why the last run parked, else 0.", ("reason",)),
    Family("gauge", "batchrun_last_run_exit_code", "The exit code of the last run; missing while it is going on."),
)  # fmt: skip


def of_start(job: Job, progress: Progress, exit_code: int | None, *, going: bool) -> Iterator[Sample]:
    """What the run knows of itself; begins at 0 at each start."""
    yield Sample("batchrun_running", going)
    yield Sample("batchrun_requests_total", progress.requests)
    for fault in NO_ANSWER:
        yield Sample("batchrun_faults_total", progress.faults.get(fault.value, 0), (fault.value,))
    yield Sample("batchrun_throttled_total", progress.throttled)
    yield Sample("batchrun_calls_in_flight", progress.in_flight)
    yield Sample("batchrun_calls_limit", progress.limit)
    if job.limits.max_cost_nano is not None:
        yield Sample("batchrun_max_cost_dollars", usd(job.limits.max_cost_nano))
    if exit_code is not None and not going:
        yield Sample("batchrun_last_run_exit_code", exit_code)


def of_checkpoint(path: str, *, going: bool) -> list[Sample]:
    """What the checkpoint says, right over restarts; all of it or nothing."""
    try:
        with View(path) as view:
            last = view.last_run()
            return [
                Sample("batchrun_checkpoint_readable", 1),
                *_of_rows(view.kept()),
                *_of_money(view.ledger()),
                *_of_doubts(view.hidden()),
                Sample("batchrun_batches_at_provider", sum(batch.job is not None for batch in view.batches())),
                *_of_times(view),
                *([] if last is None else _of_last_run(last, "running" if going else "killed")),
            ]
    except Exception:  # noqa: BLE001 - none there yet, or being brought up to date: what is only shown waits
        return [Sample("batchrun_checkpoint_readable", 0)]


def _of_rows(kept: Kept) -> Iterator[Sample]:
    rows = {
        "pending": kept.pending - kept.submitted,
        "submitted": kept.submitted,
        "answered": kept.answered - kept.again,
        "again": kept.again,
        "rejected": kept.rejected,
    }
    for state, count in rows.items():
        yield Sample("batchrun_rows", count, (state,))


def _of_money(ledger: Iterable[Entry]) -> Iterator[Sample]:
    """Sums by lane and model, those of oddly named models together; what is not known is left out, and never 0."""
    sums: dict[tuple[str, str], Counter[str]] = {}
    for entry in ledger:
        model = entry.model if _MODEL_NAME.fullmatch(entry.model) else _NO_NAME
        of = sums.setdefault((entry.lane, model), Counter())
        of.update({name: getattr(entry, name) for name in _SUMMED})
    for labels, of in sums.items():
        yield Sample("batchrun_replies_total", of["replies"], labels)
        yield Sample("batchrun_unpriced_replies_total", of["unpriced"], labels)
        yield Sample("batchrun_tokens_total", of["prompt_tokens"], (*labels, "prompt"))
        yield Sample("batchrun_tokens_total", of["completion_tokens"], (*labels, "completion"))
        if of["cost_nano"] or not of["unpriced"]:
            yield Sample("batchrun_spend_dollars_total", usd(of["cost_nano"]), labels)
        of["useful_unpriced"] = of["unpriced"] - of["wasted_unpriced"] - of["unused_unpriced"]
        for use in ("useful", "wasted", "unused"):
            yield Sample("batchrun_replies_by_use", of[use], (*labels, use))
            if of[f"{use}_nano"] or not of[f"{use}_unpriced"]:
                yield Sample("batchrun_spend_by_use_dollars", usd(of[f"{use}_nano"]), (*labels, use))


_SUMMED = (
    "replies", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano", "useful", "useful_nano", "wasted",
    "wasted_nano", "wasted_unpriced", "unused", "unused_nano", "unused_unpriced",
)  # fmt: skip


def _of_doubts(hidden: Hidden) -> Iterator[Sample]:
    yield Sample("batchrun_possibly_paid_twice_calls", hidden.calls)
    if hidden.nano or not hidden.calls:
        yield Sample("batchrun_possibly_paid_twice_dollars", usd(hidden.nano))


def _of_times(view: View) -> Iterator[Sample]:
    answer, success = view.moments()
    if answer is not None:
        yield Sample("batchrun_last_answer_timestamp_seconds", answer)
    if success is not None:
        yield Sample("batchrun_last_success_timestamp_seconds", success)


def _of_last_run(last: LastRun, when_open: str) -> Iterator[Sample]:
    """Its words are ours and few; why one failed is a sentence, and no label."""
    now = when_open if last.closed is None else "killed" if last.state == "crashed" else last.state
    yield Sample("batchrun_last_run_start_timestamp_seconds", last.opened)
    for state in _STATES:
        yield Sample("batchrun_last_run_state", state == now, (state,))
    for reason in ParkReason:
        yield Sample("batchrun_last_run_parked", last.reason == reason.value, (reason.value,))
