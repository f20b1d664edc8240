"""The lines of a batch: checking an input file piece by piece, and one line to an answer or an error line."""

import math
import os
import random
import time
from array import array
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from batchrun.simulator import errors, replies
from batchrun.simulator.asks import Ask, Endpoint, parse
from batchrun.simulator.catalog import MODELS
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import Fault
from batchrun.simulator.refusals import refusal_of
from batchrun.simulator.settings import Settings

UNREADABLE = "error reading input file"
_LONGEST_ID = 64
_LOOK_AT_CLOCK = 64  # lines
_ROUNDING = 1e-9


class _Line(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: Any = None


_line_decoder = msgspec.json.Decoder(_Line)
_body_decoder = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


class Scan:
    """Where each line begins, the model of the first, and the mistake for which the whole file is refused."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.offsets = array("Q", [0])
        self.model = ""
        self.mistake: str | None = None
        self.over = False
        self._ids: set[str] = set()
        self._settings = settings
        self._file = path.open("rb")
        if os.fstat(self._file.fileno()).st_size > settings.batch_max_bytes:
            self._stop(f"the input file is larger than {settings.batch_max_bytes} bytes")

    @property
    def lines(self) -> int:
        """Lines found so far."""
        return len(self.offsets) - 1

    def go_on(self, until: float) -> None:
        """Read on until that time on the monotonic clock, or to the end."""
        while not self.over:
            for _ in range(_LOOK_AT_CLOCK):
                self._next()
                if self.over:
                    return
            if time.monotonic() >= until:
                return

    def close(self) -> None:
        """Give up the file."""
        self._file.close()

    def _next(self) -> None:
        line = self._file.readline()
        if not line:
            return self._stop(None if self.lines else "the input file is empty")
        if self.lines >= self._settings.batch_max_lines:
            return self._stop(f"the input file has more than {self._settings.batch_max_lines} lines")
        mistake = self._mistake(line)
        if mistake is not None:
            return self._stop(f"line {self.lines + 1}: {mistake}")
        self.offsets.append(self.offsets[-1] + len(line))
        return None

    def _mistake(self, line: bytes) -> str | None:
        try:
            read = _line_decoder.decode(line)
            body = _body_decoder.decode(read.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"not a JSON object with custom_id and body ({error})"
        if not read.custom_id or len(read.custom_id) > _LONGEST_ID:
            return f"custom_id must have 1 to {_LONGEST_ID} characters"
        if read.custom_id in self._ids:
            return f"custom_id {read.custom_id!r} is not unique"
        self._ids.add(read.custom_id)
        self.model = self.model or str(body.model or "")
        return unbatchable(body.model)

    def _stop(self, mistake: str | None) -> None:
        self.mistake = mistake
        self.over = True
        self._ids.clear()
        self.close()


def first_model(path: Path) -> str:
    """The model of the first line; empty when there is none to be read."""
    with path.open("rb") as file:
        try:
            model = _body_decoder.decode(_line_decoder.decode(file.readline()).body).model
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
    return model if isinstance(model, str) else ""


def unbatchable(model: Any) -> str | None:
    """The sentence for a model that is known and cannot be used in a batch."""
    known = MODELS.get(model) if isinstance(model, str) else None
    return None if known is None or known.batchable else f"Model {model} does not support batch"


class Order:
    """The order in which the lines are done: not that of the file, the same after a restart, and of no size."""

    def __init__(self, lines: int, shuffle: str) -> None:
        dice = random.Random(shuffle)
        self._lines = max(1, lines)
        self._begin = dice.randrange(self._lines)
        self._step = dice.randrange(self._lines // 3, self._lines) + 1
        while math.gcd(self._step, self._lines) != 1:
            self._step += 1

    def __getitem__(self, position: int) -> int:
        return (self._begin + position * self._step) % self._lines


@dataclass(frozen=True, slots=True)
class Answered:
    """A line that was answered: what goes into the output file, and what the ledger wants to know."""

    custom_id: str
    line: bytes
    ask: Ask
    used: dict[str, int]
    body: str  # sha256


@dataclass(frozen=True, slots=True)
class Failed:
    """A line that was not, as it goes into the error file."""

    custom_id: str
    line: bytes


def custom_id_of(line: bytes) -> str:
    """The id of a line that passed validation."""
    return _line_decoder.decode(line).custom_id


def answer_line(line: bytes, settings: Settings) -> Answered | Failed:
    """What becomes of a line that passed validation, in a job where nothing goes wrong."""
    read = _line_decoder.decode(line)
    if len(line) > settings.batch_max_line_bytes:
        return failed(read.custom_id, UNREADABLE, "invalid_request")
    body = bytes(read.body)
    ask = parse(Endpoint.CHAT, body, settings.context_status, settings.context_words)
    if isinstance(ask, Refusal):
        return _refused(read.custom_id, ask)
    return _answered(read.custom_id, ask, sha256(body).hexdigest(), settings, None)


def struck_line(answered: Answered, fault: Fault, settings: Settings) -> Answered | Failed:
    """What becomes of a line that would have been answered, when this fault strikes it."""
    refusal = refusal_of(fault, answered.ask)
    if refusal is not None:
        return _refused(answered.custom_id, refusal)
    return _answered(answered.custom_id, answered.ask, answered.body, settings, fault)


def _answered(custom_id: str, ask: Ask, body: str, settings: Settings, fault: Fault | None) -> Answered:
    choices = replies.answers(ask, fault)
    used = replies.usage(ask, choices, settings.cached_share)
    request_id = f"br_{uuid4().hex[:24]}"
    reply = replies.payload(ask, choices, used, request_id, fault)
    output = {
        "id": request_id,
        "custom_id": custom_id,
        "response": {"status_code": 200, "body": msgspec.Raw(reply)},
    }
    return Answered(custom_id, _encoder.encode(output) + b"\n", ask, used, body)


def failed(custom_id: str, message: str, code: str) -> Failed:
    """A line of the error file."""
    return Failed(
        custom_id, _encoder.encode({"custom_id": custom_id, "error": {"message": message, "code": code}}) + b"\n"
    )


def _refused(custom_id: str, refusal: Refusal) -> Failed:
    if refusal.status == errors.no_such_model("").status:
        return failed(custom_id, "Invalid model specified", "invalid_model")
    return failed(custom_id, refusal.message, str(refusal.code or "invalid_request"))


def is_hit(share: float, index: int) -> bool:
    """Whether the index-th thing is one of that share: the first is, and of n things the share rounded up."""
    return math.ceil((index + 1) * share - _ROUNDING) > math.ceil(index * share - _ROUNDING)
