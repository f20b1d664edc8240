"""The fault script: which requests go wrong, and how. What a fault looks like on the wire is in `misbehave`."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from batchrun.simulator.catalog import MODELS, nearest

_STATUSES = range(200, 600)
TOO_LONG_STATUSES = (400, 403, 413, 422)
"""The statuses a request that is too long has been refused with."""


class FaultKind(StrEnum):
    """Everything that can go wrong here; the closed list."""

    CREDITS_END = "credits_end"  # 402 once `after` answers are paid, until credits are added
    STATUS = "status"  # any status with its real body, or the body given
    OVERLOAD = "overload"  # 503: the engine is busy
    THROTTLE = "throttle"  # 429, with `retry_after`, `reset` or neither
    TOO_LONG = "too_long"  # `status` in those `words`, with `context` as the limit, of a request that would fit
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
    ANSWERED_BY = "answered_by"  # a good reply whose `model` is `served_by`; the model asked is charged
    NOT_JSON = "not_json"  # a good reply of plain text, whatever form was asked
    MISFIT = "misfit"  # a good reply of JSON that does not fit the schema
    FENCED = "fenced"  # a good reply inside a Markdown code fence


IN_BATCHES = frozenset(
    {FaultKind.TOO_LONG, FaultKind.ANSWERED_BY, FaultKind.NOT_JSON, FaultKind.MISFIT, FaultKind.FENCED}
)
"""The kinds that strike the lines of a batch too; all others need a connection of their own to spoil."""


class ContextWords(StrEnum):
    """The words for a request that does not fit the model's context; the sentences are in `errors`."""

    TOGETHER = "together"  # as recorded, with figures
    TOGETHER_DOCUMENTED = "together_documented"  # the sentence beside 403 in the service's error guide
    OPENAI = "openai"
    VLLM = "vllm"
    BARE = "bare"  # without any figures


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and when it strikes. All conditions given must hold; none given means always.

    `after` skips so many generation requests, counted since the fault was set (in a batch: so many lines; for
    `credits_end`: so many charged answers, counted over the account's life); `count` ends it after so many strikes;
    `start` and `seconds` are a window since the fault was set; `model` is the model asked, `content` is text that the
    prompt must contain; `first` strikes only the first so many requests with the same prompt, live and in batches
    together; `every` strikes the k-th, 2k-th... of the requests left.
    """

    kind: FaultKind
    model: str | None = None
    first: int | None = None
    after: int | None = None
    count: int | None = None
    every: int | None = None
    probability: float | None = None
    start: float | None = None
    seconds: float | None = None
    content: str | None = None
    charged: bool | None = None  # hang only: false when the call costs nothing
    status: int | None = None  # 500, and 400 for too_long
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    reset: float | None = None
    location: str = "/v1/moved/chat/completions"
    pause: float = 0.01
    size: int = 20_000_000
    served_by: str | None = None  # answered_by only, which needs it
    words: ContextWords = ContextWords.TOGETHER
    context: int | None = None  # too_long only: the limit it tells; half of the prompt's tokens if not given

    def __post_init__(self) -> None:
        for name in ("every", "first", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability}")
        if self.status is not None and self.status not in _STATUSES:
            raise ValueError(f"status must be between 200 and 599, not {self.status}")
        if self.model is not None and self.model not in MODELS:
            near = nearest(self.model)
            raise ValueError(f"requests for {self.model!r} never reach a fault: the nearest model known is {near!r}")
        self._check_words_of_one_kind()

    def _check_words_of_one_kind(self) -> None:
        if self.charged is not None and self.kind is not FaultKind.HANG:
            raise ValueError(f"charged is a word of the hang fault only, not of {self.kind.value}")
        if (self.kind is FaultKind.ANSWERED_BY) != (self.served_by is not None):
            raise ValueError("served_by is the word of answered_by, which needs it")
        if self.kind is FaultKind.TOO_LONG:
            if self.status not in (None, *TOO_LONG_STATUSES):
                raise ValueError(f"status of too_long must be 400, 403, 413 or 422, not {self.status}")
        elif self.context is not None or self.words is not ContextWords.TOGETHER:
            raise ValueError(f"words and context are words of too_long only, not of {self.kind.value}")


@dataclass(frozen=True, slots=True)
class Moment:
    """What a fault's conditions are held against: one request, as it arrived."""

    number: int  # generation requests since the script was set, or lines of batches, this one included
    answers: int  # answers charged over the account's life
    seconds: float  # since the script was set
    content: str
    model: str = ""


@dataclass(slots=True)
class _Armed:
    """A fault with its own tally."""

    fault: Fault
    seen: int = 0
    struck: int = 0
    over: bool = False
    asked: Counter[int] = field(default_factory=Counter)  # by the hash of the prompt, for `first`


class Script:
    """The faults in force. The first whose conditions hold strikes; the others do not count that request."""

    def __init__(self, faults: Iterable[Fault], seed: int, answers_at_top_up: int | None = None) -> None:
        self._armed = [_Armed(fault) for fault in faults]
        self._dice = random.Random(f"faults {seed}")
        for armed in self._armed:
            armed.over = _was_paid_off(armed.fault, answers_at_top_up)

    def __len__(self) -> int:
        return len(self._armed)

    def pick(self, moment: Moment, kinds: Collection[FaultKind] | None = None) -> Fault | None:
        """The fault that strikes this request, if any; of these kinds only, when they are given."""
        for armed in self._armed:
            if (kinds is None or armed.fault.kind in kinds) and self._strikes(armed, moment):
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
        if fault.model not in (None, moment.model):
            return False
        if fault.content is not None and fault.content not in moment.content:
            return False
        if fault.first is not None and _times_asked(armed, moment.content) > fault.first:
            return False
        armed.seen += 1
        if fault.every is not None and armed.seen % fault.every:
            return False
        if fault.probability is not None and self._dice.random() >= fault.probability:
            return False
        return fault.count is None or armed.struck < fault.count


def _times_asked(armed: _Armed, content: str) -> int:
    """How often this prompt has now come as far as this fault."""
    key = hash(content)
    armed.asked[key] += 1
    return armed.asked[key]


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
