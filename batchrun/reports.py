"""How a run stands and how it ended, as values to show; the nouns they count are `records`'."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from batchrun.job import TOGETHER
from batchrun.records import ParkReason


class Stage(enum.StrEnum):
    """What a run is doing."""

    READING = "reading the input"
    ASKING = "asking"
    SENDING = "sending"
    WRITING = "writing the output"


class Event(msgspec.Struct, frozen=True):
    """One line of the diary: when (seconds since the epoch), what kind, and a sentence."""

    at: float
    kind: str
    detail: str


class Entry(msgspec.Struct, frozen=True):
    """What one model cost by one lane, and of how much use it is; money in nano-dollars.

    Attributes:
        lane: by which way.
        model: the model that answered.
        replies: every reply that was paid for: useful, wasted and unused ones.
        unpriced: of these, how many at a price nobody knew; no sum of money holds them.
        prompt_tokens: as the server counted them.
        completion_tokens: the same.
        cost_nano: what the replies cost.
        useful: replies that are some row's answer.
        useful_nano: what they cost.
        wasted: replies that can be no row's answer, or came to one that had its answer already.
        wasted_nano: what they cost.
        unused: replies that no row wants any more; an equal row would take them.
        unused_nano: what they cost.
        wasted_unpriced: how many wasted replies came at an unknown price.
        unused_unpriced: how many unused ones did.
        reasons: the wasted ones by `cut`, `invalid`, `twice` and `probe`.
    """

    lane: str
    model: str
    replies: int
    unpriced: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    useful: int
    useful_nano: int
    wasted: int
    wasted_nano: int
    unused: int
    unused_nano: int
    wasted_unpriced: int = 0
    unused_unpriced: int = 0
    reasons: dict[str, int] = {}


class BatchStanding(msgspec.Struct, frozen=True):
    """A batch that is not over, as people want to see it.

    Attributes:
        number: ours, from 1.
        model: the model asked for.
        lines: requests in it.
        state: the provider's word once there is a job, else ours.
        progress: percent, None when the provider does not say.
        age: seconds since it was created.
        job: the provider's id, None before there is one.
        worry: what is odd about it, "" when nothing is.
    """

    number: int
    model: str
    lines: int
    state: str
    progress: float | None
    age: float
    job: str | None
    worry: str


class Progress(msgspec.Struct, frozen=True):
    """How a run stands at one moment; what faces show. Money in nano-dollars, times in seconds.

    `rows` counts what was read or written so far in those stages; the rest tells of the sending. `requests` are live
    calls and lines of batches that came back in this start, `faults` those that brought no answer, by their fault.
    """

    stage: Stage
    rows: int
    total: int
    answered: int
    rejected: int
    in_flight: int
    limit: int
    answers_per_second: float
    tokens_per_second: float
    throttled: int
    spent_nano: int
    seconds_left: float | None
    waiting: str
    wait_seconds: float
    batches: tuple[BatchStanding, ...] = ()
    requests: int = 0
    faults: Mapping[str, int] = {}
    unpriced: int = 0


class Redirect(msgspec.Struct, frozen=True):
    """Replies of this start that came from another model than was asked for."""

    asked: str
    answered: str
    replies: int


class Happening(enum.StrEnum):
    """What somebody far away is told of a run."""

    FINISHED = "finished"
    PARKED = "parked"
    RECOVERED = "recovered"
    FAILED = "failed"


class Sums(msgspec.Struct, frozen=True):
    """Rows and money of a whole checkpoint at one moment; `spent_now_nano` is this start's part. In nano-dollars.

    `maybe_twice_nano` is what crashes and broken replies may have hidden, at most; `left_nano` what the rest is
    expected to cost (low, likely, high), None when that is not known.
    """

    total: int
    answered: int
    rejected: int
    left: int
    spent_nano: int
    spent_now_nano: int
    maybe_twice_nano: int
    left_nano: tuple[int, int, int] | None = None


class Notice(msgspec.Struct, frozen=True):
    """What somebody far away is told; it holds no prompt, no answer and no key.

    Attributes:
        event: what happened.
        id: of this notice alone, and the same however often its delivery is tried.
        at: seconds since the epoch.
        checkpoint: the path of the checkpoint.
        message: what happened, in words.
        exit_code: the process's, None while the run goes on.
        next_step: what to do after an error, "" when the message says it or nothing is to be done.
        report: how the run ended, None while it goes on and after an error.
        sums: where the checkpoint stands, None when that cannot be told.
    """

    event: Happening
    id: str
    at: float
    checkpoint: str
    message: str
    exit_code: int | None = None
    next_step: str = ""
    report: Report | None = None
    sums: Sums | None = None


class Report(msgspec.Struct, frozen=True):
    """How a run ended: counts over the whole checkpoint, and what this start did.

    `again` counts answers that are to be asked for once more, `asked_again` those that were in this start, `replaced`
    paid replies that gave way to others; `redirects` are the server's doing, `stood_in` were fallbacks; `hint` is a
    sentence worth reading, or "". `left_nano` is what the rest is expected to cost (low, likely, high), None when that
    is not known; `enough_nano` what --max-cost would do for it, `enough_run_nano` what --max-cost-run the next row
    needs, None when it is no matter of that; `stopped_by_run` whether it was the limit of this start. `useful_nano`,
    `wasted_nano` and `unused_nano` are the parts of `spent_nano`, see `Entry`.
    """

    exit_code: int
    total: int
    answered: int
    rejected: int
    pending: int
    parked: ParkReason | None
    message: str
    answered_now: int
    seconds: float
    throttled: int
    prompt_tokens: int
    completion_tokens: int
    spent_nano: int
    spent_now_nano: int
    unpriced: int
    maybe_twice: int
    maybe_twice_nano: int
    checkpoint: str
    output: str | None
    written: bool
    rejections: Mapping[str, int]
    twice: int = 0
    twice_nano: int = 0
    twice_unpriced: int = 0
    submitted: int = 0
    batches: tuple[BatchStanding, ...] = ()
    again: int = 0
    asked_again: int = 0
    replaced: int = 0
    replaced_nano: int = 0
    replaced_unpriced: int = 0
    redirects: tuple[Redirect, ...] = ()
    stood_in: tuple[Redirect, ...] = ()
    provider: str = TOGETHER
    hint: str = ""
    left_nano: tuple[int, int, int] | None = None
    enough_nano: int | None = None
    enough_run_nano: int | None = None
    stopped_by_run: bool = False
    unpriced_now: int = 0
    useful_nano: int = 0
    wasted_nano: int = 0
    unused_nano: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain
