"""The fault script: which requests go wrong, and how. What a fault looks like on the wire is in `misbehave`."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

_STATUSES = range(200, 600)


class FaultKind(StrEnum):
    """Everything that can go wrong here; the closed list."""

    CREDITS_END = "credits_end"  # 402 once `after` answers are paid, until credits are added
    STATUS = "status"  # any status with its real body, or the body given
    OVERLOAD = "overload"  # 503: the engine is busy
    THROTTLE = "throttle"  # 429, with `retry_after`, `reset` or neither
    UNKNOWN_MODEL = "unknown_model"  # 404 for every model
    REDIRECT = "redirect"  # 307 to `location`
    ERROR_OBJECT = "error_object"  # status 200 around an error body
    RESET_BEFORE = "reset_before"  # connection reset, nothing charged
    RESET_DURING = "reset_during"  # charged, reset before the first byte of a reply
    RESET_AFTER = "reset_after"  # charged, reset in the middle of the reply
    CUT_BODY = "cut_body"  # charged, closed cleanly before Content-Length is reached
    BROKEN_JSON = "broken_json"
    NO_CHOICES = "no_choices"
    WRONG_CONTENT_TYPE = "wrong_content_type"  # a good reply as text/plain
    BAD_UTF8 = "bad_utf8"
    BAD_GZIP = "bad_gzip"
    HANG = "hang"  # never answers; charged unless `charged` is false
    TRICKLE = "trickle"  # a good reply, a few bytes every `pause` seconds
    HUGE_BODY = "huge_body"  # a good reply of `size` bytes
    TWO_CONTENT_LENGTHS = "two_content_lengths"
    BIG_HEADER = "big_header"  # one header longer than the 8,190 bytes most clients allow
    NO_USAGE = "no_usage"  # a good reply with usage null
    NULL_CONTENT = "null_content"  # content null, the text in `reasoning`


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and when it strikes. All conditions given must hold; none given means always.

    `after` skips so many generation requests, counted since the fault was set (for `credits_end`: so many charged
    answers, counted over the account's life); `count` ends it after so many strikes; `every` strikes the k-th, 2k-th...
    of the requests left; `start` and `seconds` are a window since the fault was set; `content` is text that the prompt
    must contain.
    """

    kind: FaultKind
    after: int | None = None
    count: int | None = None
    every: int | None = None
    probability: float | None = None
    start: float | None = None
    seconds: float | None = None
    content: str | None = None
    charged: bool | None = None  # hang only: false when the call costs nothing
    status: int = 500
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    reset: float | None = None
    location: str = "/v1/moved/chat/completions"
    pause: float = 0.01
    size: int = 20_000_000

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability}")
        if self.status not in _STATUSES:
            raise ValueError(f"status must be between 200 and 599, not {self.status}")
        if self.charged is not None and self.kind is not FaultKind.HANG:
            raise ValueError(f"charged is a word of the hang fault only, not of {self.kind.value}")


@dataclass(frozen=True, slots=True)
class Moment:
    """What a fault's conditions are held against: one request, as it arrived."""

    number: int  # generation requests since the script was set, this one included
    answers: int  # answers charged over the account's life
    seconds: float  # since the script was set
    content: str


@dataclass(slots=True)
class _Armed:
    """A fault with its own tally."""

    fault: Fault
    seen: int = 0
    struck: int = 0
    over: bool = False


class Script:
    """The faults in force. The first whose conditions hold strikes; the others do not count that request."""

    def __init__(self, faults: Iterable[Fault], seed: int, answers_at_top_up: int | None = None) -> None:
        self._armed = [_Armed(fault) for fault in faults]
        self._dice = random.Random(f"faults {seed}")
        for armed in self._armed:
            armed.over = _was_paid_off(armed.fault, answers_at_top_up)

    def __len__(self) -> int:
        return len(self._armed)

    def pick(self, moment: Moment) -> Fault | None:
        """The fault that strikes this request, if any."""
        for armed in self._armed:
            if self._strikes(armed, moment):
                armed.struck += 1
                return armed.fault
        return None

    def credits_ended(self, moment: Moment) -> bool:
        """Whether a `credits_end` is in force, asked again for a call that was already in flight."""
        ends = (armed for armed in self._armed if armed.fault.kind is FaultKind.CREDITS_END)
        return any(not armed.over and _in_window(armed.fault, moment) for armed in ends)

    def top_up(self, moment: Moment) -> None:
        """Credits were added: every `credits_end` that had begun is over."""
        for armed in self._armed:
            if armed.fault.kind is FaultKind.CREDITS_END and _in_window(armed.fault, moment):
                armed.over = True

    def _strikes(self, armed: _Armed, moment: Moment) -> bool:
        fault = armed.fault
        if armed.over or not _in_window(fault, moment):
            return False
        if fault.content is not None and fault.content not in moment.content:
            return False
        armed.seen += 1
        if fault.every is not None and armed.seen % fault.every:
            return False
        if fault.probability is not None and self._dice.random() >= fault.probability:
            return False
        return fault.count is None or armed.struck < fault.count


def _in_window(fault: Fault, moment: Moment) -> bool:
    """Whether the fault has begun and not yet ended, by number and by time."""
    passed = moment.answers if fault.kind is FaultKind.CREDITS_END else moment.number - 1
    if passed < (fault.after or 0):
        return False
    start = fault.start or 0.0
    return moment.seconds >= start and (fault.seconds is None or moment.seconds < start + fault.seconds)


def _was_paid_off(fault: Fault, answers_at_top_up: int | None) -> bool:
    """Whether an earlier life of this account already added credits after this `credits_end` had begun."""
    if fault.kind is not FaultKind.CREDITS_END or answers_at_top_up is None:
        return False
    return answers_at_top_up >= (fault.after or 0)
