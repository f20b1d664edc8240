"""The nouns of batchrun, frozen, with the closed lists they draw on. No behaviour beyond reading themselves."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec


class Endpoint(enum.StrEnum):
    """Which kind of endpoint a request is for."""

    CHAT = "chat"
    COMPLETIONS = "completions"


class Route(enum.StrEnum):
    """The user's wish."""

    AUTO = "auto"
    LIVE = "live"
    BATCH = "batch"


class Lane(enum.StrEnum):
    """How an answer was got."""

    LIVE = "live"
    BATCH = "batch"


class State(enum.IntEnum):
    """Where one input row stands; the numbers are stored."""

    PENDING = 0
    SUBMITTED = 1
    ANSWERED = 2
    REJECTED = 3
    AGAIN = 4


class Fault(enum.StrEnum):
    """What went wrong with a call or a row (the closed list)."""

    CREDITS = "credits"
    KEY = "key"
    MODEL_MISSING = "model_missing"
    TOO_LONG = "too_long"
    BAD_REQUEST = "bad_request"
    BAD_ROW = "bad_row"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    SERVER = "server"
    NETWORK = "network"
    GARBLED = "garbled"
    CUT_SHORT = "cut_short"
    FILTERED = "filtered"
    INVALID_OUTPUT = "invalid_output"


class ParkReason(enum.StrEnum):
    """Why a run stopped cleanly with everything kept."""

    CREDITS = "credits"
    KEY = "key"
    OVERLOAD = "overload"
    BUDGET = "budget"
    MODEL = "model"
    HOPELESS = "hopeless"
    DEADLINE = "deadline"
    REMOTE = "remote"
    INTERRUPTED = "interrupted"


class TooLong(enum.StrEnum):
    """What to do with a row that does not fit the model's context."""

    REJECT = "reject"
    TRUNCATE = "truncate"
    SHRINK = "shrink-output"
    FALLBACK = "fallback"


class Cut(enum.StrEnum):
    """Which part of a text that is too long goes."""

    HEAD = "head"
    MIDDLE = "middle"
    TAIL = "tail"


class Request(msgspec.Struct, frozen=True, gc=False):
    """One input row turned into an API body.

    Attributes:
        row: the row's number over all inputs, from 0.
        digest: 16 bytes of BLAKE2b over endpoint and body: what the row asks for, wherever it stands.
        endpoint: which endpoint takes the body.
        model: the model named in the body.
        body: JSON, exactly as it is sent.
        max_tokens: the most tokens one choice may have, None when the body does not say.
        n: choices asked for.
    """

    row: int
    digest: bytes
    endpoint: Endpoint
    model: str
    body: bytes
    max_tokens: int | None
    n: int


class BadRow(msgspec.Struct, frozen=True, gc=False):
    """An input row that cannot become a request; `message` says why without quoting it."""

    row: int
    digest: bytes
    where: str
    message: str


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the server counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What came back over the wire, before anyone judged it: status, headers by any case, body, seconds it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Broken(msgspec.Struct, frozen=True, gc=False):
    """A call that brought no reply that can be read.

    Attributes:
        message: what broke, for people.
        maybe_paid: whether the request may have reached the server, so that the answer may have been paid for.
        garbled: whether bytes came back, but none that make a reply (else the network failed).
        seconds: how long it took.
    """

    message: str
    maybe_paid: bool
    garbled: bool
    seconds: float


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A reply that is no answer, read but not yet judged.

    Attributes:
        status: the HTTP status, 0 when a batch's error line names none.
        kind: the error's type, lower case, "" when there is none.
        code: the error's code, lower case, "" when there is none.
        message: the server's sentence, already redacted.
        wait: seconds the server asks us to stay away, None when it does not say.
    """

    status: int
    kind: str
    code: str
    message: str
    wait: float | None


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A good reply, read: what the output needs of it, and the whole body beside it.

    `fault` marks an answer that came back cut short or filtered; it is an answer all the same.
    """

    body: bytes
    model: str
    finish_reason: str
    usage: Usage | None
    fault: Fault | None


class RemoteFile(msgspec.Struct, frozen=True):
    """A file at the provider; `size` in bytes, None when it does not say."""

    id: str
    name: str
    size: int | None


class RemoteJob(msgspec.Struct, frozen=True):
    """A batch job as the provider tells of it.

    Attributes:
        id: the provider's id.
        input_file_id: the file it works on.
        status: the provider's word, upper case; words nobody has seen yet are possible.
        progress: percent, None when it does not say; there are no counts.
        output_file_id: where the answers are, if anywhere.
        error_file_id: where the failed lines are, if anywhere.
        error: what the provider says went wrong with the whole job, "" when nothing.
        created: seconds since the epoch, None when it does not say.
    """

    id: str
    input_file_id: str
    status: str
    progress: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    error: str = ""
    created: float | None = None


class ResultLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a batch's output or error file: whose it is, and what it says."""

    custom_id: str
    outcome: Completion | Refusal | Broken


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """A call that brought no answer, judged: which fault, what the server said, and when it lets us try again.

    Attributes:
        fault: the entry of the closed list.
        status: the HTTP status, None when there was none.
        message: for people, redacted.
        wait: seconds the server asks us to stay away, None when it did not say.
        maybe_paid: whether the attempt may have been paid for all the same.
    """

    fault: Fault
    status: int | None
    message: str
    wait: float | None = None
    maybe_paid: bool = False


class Before(msgspec.Struct, frozen=True, gc=False):
    """The answer a row holds while a better one is wanted.

    Attributes:
        number: the paid reply's, in order of payment.
        fault: why a better one is wanted.
        retries: replies to this row that came before it and were not good enough.
        usage: the tokens it took, None when the server did not count.
    """

    number: int
    fault: Fault
    retries: int
    usage: Usage | None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A paid reply to keep: whose it is, what it cost and how it came.

    Attributes:
        row: the row that asked, None when it came by a batch, whose lines know no rows; see also `probing.PROBE_ROW`.
        digest: what was asked.
        asked: the model it was sent to.
        size: bytes of the body that was sent.
        completion: the reply.
        lane: by which way.
        cost_nano: nano-dollars, None when unknown.
        latency_ms: from the sending, or the creation of the batch, to the reply.
        attempts: how often the row was sent, this time included.
        repair: what was sent in place of what was asked, in words; None when it was sent as asked.
        before: the answer it may take the place of, None for a first one.
        wants_better: whether the row is to be asked again.
        plan: for a marked one, how it was sent, as JSON: a better one is to be sent so too.
        final: whether a marked one cannot be had better, however often it is asked for.
    """

    row: int | None
    digest: bytes
    asked: str
    size: int
    completion: Completion
    lane: Lane
    cost_nano: int | None
    latency_ms: int
    attempts: int
    repair: str | None = None
    before: Before | None = None
    wants_better: bool = False
    plan: str | None = None
    final: bool = False

    @property
    def retries(self) -> int:
        """Replies to the row that came before this one and were not good enough."""
        return 0 if self.before is None else self.before.retries + 1


class Content(msgspec.Struct, frozen=True, gc=False):
    """A row that keeps the answer it has: a better one cannot be had, for good (`final`) or in this start."""

    row: int
    digest: bytes
    final: bool


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """A row that cannot succeed as it is, with the fault that says why; `message` is redacted and short."""

    row: int
    digest: bytes
    fault: Fault
    status: int | None
    message: str
    attempts: int


class Doubt(msgspec.Struct, frozen=True):
    """Money that may have been spent without showing: a call that brought no readable reply, or one that told no usage.

    Attributes:
        nano: nano-dollars at most.
        calls: calls that may be paid twice, 0 when the answer itself is kept.
    """

    nano: int
    calls: int = 1


class Price(msgspec.Struct, frozen=True):
    """Nano-dollars a token (= US dollars per 1,000,000,000 tokens), rounded up; cached input is `input` when None."""

    input: int
    output: int
    cached: int | None = None


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How one row ended, as the output shows it; the body of an answered row is the whole reply."""

    row: int
    digest: bytes
    state: State
    body: bytes | None = None
    model: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_nano: int | None = None
    lane: str | None = None
    attempts: int | None = None
    latency_ms: int | None = None
    fault: str | None = None
    fault_message: str | None = None
    repair: str | None = None
