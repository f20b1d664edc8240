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
    SENDING = "sending"
    WRITING = "writing the output"


class Event(msgspec.Struct, frozen=True):
    """One line of the diary: when (seconds since the epoch), what kind, and a sentence."""

    at: float
    kind: str
    detail: str


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

    `rows` counts what was read or written so far in those stages; the rest tells of the sending.
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


class Redirect(msgspec.Struct, frozen=True):
    """Replies of this start that came from another model than was asked for."""

    asked: str
    answered: str
    replies: int


class Report(msgspec.Struct, frozen=True):
    """How a run ended: counts over the whole checkpoint, and what this start did.

    `again` counts answers that are to be asked for once more, `asked_again` those that were in this start, `replaced`
    paid replies that gave way to others; `redirects` are the server's doing, `stood_in` were fallbacks; `hint` is a
    sentence worth reading, or "".
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
    submitted: int = 0
    batches: tuple[BatchStanding, ...] = ()
    again: int = 0
    asked_again: int = 0
    replaced: int = 0
    replaced_nano: int = 0
    redirects: tuple[Redirect, ...] = ()
    stood_in: tuple[Redirect, ...] = ()
    provider: str = TOGETHER
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain
