"""What a job's files say, judged line by line: answers, refusals that stay, and lines that get another chance."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import assert_never

import msgspec

from batchrun.api import jobs
from batchrun.files.bodies import Bodies
from batchrun.files.lines import read_lines
from batchrun.lanes.mending import Mender
from batchrun.records import Broken, Completion, Endpoint, Fault, Request, Trouble
from batchrun.records import Refusal as Said
from batchrun.rules import faults, lengths, pack
from batchrun.rules.remote import Excuse, RemoteBatch
from batchrun.rules.repair import AS_ASKED, Repair, limit_of
from batchrun.store.results import Passing, Refused, Result

Redact = Callable[[str, bytes], str]

_NOT_SHOWN = "(not shown: the request file is gone, so the message cannot be searched for quotations)"

_NO_REASON = "the provider gave no reason"


class Judge:
    """Reads the files of one job; afterwards it knows whether the whole batch has an excuse.

    Attributes:
        message: what the provider said of an excuse that this job's files gave, "" when they gave none.
        error: what the provider said of the job as a whole, without quotations.
        refused: the refusals, at most as many as tell whether the job is hopeless.
        unread: lines that could not be read.
        read: lines that could.
        faults: what went wrong with lines, counted.
    """

    MOST_TOLD = 400

    def __init__(
        self,
        batch: RemoteBatch,
        request_file: str,
        redact: Redact,
        mender: Mender,
        repairs: Mapping[int, Repair],
        *,
        job_model: str | None,
        now: float,
    ):
        """Make one; `repairs` tells how lines differ from what their rows asked, by the number of the line."""
        self._batch = batch
        self._mender = mender
        self._repairs = repairs
        self._bodies = Bodies(request_file)
        self._redact = redact
        self._model_from_job = batch.asked == job_model
        self._now = now
        self._excuse: Excuse | None = batch.excuse
        self._said_of_job = ""
        self.error = ""
        self.message = ""
        self.refused: list[Refused] = []
        self.unread = 0
        self.read = 0
        self.faults: Counter[Fault] = Counter()

    def excuse(self) -> Excuse | None:
        """Why lines may come back without it being their fault."""
        return self._excuse

    def whole_job(self, error: str) -> None:
        """Take what the provider says of the job as a whole, to be judged with its files."""
        self._said_of_job = error

    async def results(self, paths: Sequence[str]) -> AsyncIterator[list[Result]]:
        """The lines of these files, in chunks; other work goes on in between."""
        if self._said_of_job:
            await self._judge_job()
        for path in paths:
            for chunk in read_lines(path):
                yield [result for line in chunk if (result := self._result(line)) is not None]
                await asyncio.sleep(0)

    async def _judge_job(self) -> None:
        """It may quote any line of the request file, and a quotation must neither be shown nor decide."""
        said = await asyncio.to_thread(self._without_any_prompt, self._said_of_job)
        self.error = _NOT_SHOWN if said is None else said
        decides = self._said_of_job if said is None else said
        if faults.says_credits(decides):
            self._excused(Excuse.CREDITS, self.error)
        elif faults.says_missing(decides) and self._is_no_rows_fault(self.error):
            self._excused(Excuse.MODEL, self.error)

    def _is_no_rows_fault(self, message: str) -> bool:
        """Whether a model that cannot be called was named for the whole job, or another one can stand in for it."""
        standins = self._mender.standins
        able = bool(standins.fallbacks) and standins.missing(self._batch.model, self._batch.asked, message)
        return able or self._model_from_job

    def _without_any_prompt(self, said: str) -> str | None:
        """Without quotations of the request file, None when that is gone. Slow: call it in a thread."""
        try:
            for body in self._bodies.all():
                said = self._redact(said, body)
        except OSError:
            return None
        return said

    def _result(self, raw: bytes) -> Result | None:
        seen = jobs.result_line(raw, self._now)
        line = pack.line_number(self._batch.nonce, seen.custom_id) if seen is not None else None
        if seen is None or line is None:
            self.unread += 1
            return None
        self.read += 1
        mended = self._repairs.get(line, AS_ASKED)
        if isinstance(seen.outcome, Completion):
            completion = self._mender.marked(seen.outcome)
            sent = self._sent(line) if completion.fault is not None else None
            better = sent and self._mender.after_reply(sent, mended, completion, 0)
            return Result(line, completion, wants_better=better is not None)
        trouble = self._trouble(line, seen.outcome)
        self.faults[trouble.fault] += 1
        sent = self._sent(line) if trouble.fault is Fault.TOO_LONG else None
        again = sent and self._mender.after_refusal(sent, mended, trouble)
        if again:
            return Result(line, again)
        return Result(line, self._judged(trouble) or Passing(trouble.message))

    def _sent(self, line: int) -> Request | None:
        """What was sent in a line, None when the request file is gone."""
        body = self._bodies.body(line)
        return None if body is None else as_request(self._batch.model, body)

    def _trouble(self, line: int, said: Said | Broken) -> Trouble:
        """What went wrong with a line. A quotation of the prompt is taken out first, so that it decides nothing."""
        if isinstance(said, Broken):
            return faults.trouble(said)
        body = self._bodies.body(line)
        if body is None:
            own = msgspec.structs.replace(said, message=lengths.own_words(said.message) or "")
            return msgspec.structs.replace(faults.trouble(own), message=_NOT_SHOWN)
        return faults.trouble(msgspec.structs.replace(said, message=self._redact(said.message, body)))

    def _judged(self, trouble: Trouble) -> Refused | None:
        """A refusal that stays, or None for a line that gets another chance."""
        match trouble.fault:
            case Fault.CREDITS:
                self._excused(Excuse.CREDITS, trouble.message)
            case Fault.KEY:
                self._excused(Excuse.KEY, trouble.message)
            case Fault.MODEL_MISSING if self._is_no_rows_fault(trouble.message):
                self._excused(Excuse.MODEL, trouble.message)
            case Fault.MODEL_MISSING | Fault.TOO_LONG | Fault.BAD_REQUEST | Fault.BAD_ROW:
                return self._refuse(Refused(trouble.fault, trouble.status or None, trouble.message))
            case Fault.THROTTLED | Fault.OVERLOADED | Fault.SERVER | Fault.NETWORK | Fault.GARBLED:
                return None
            case Fault.CUT_SHORT | Fault.FILTERED | Fault.INVALID_OUTPUT:
                raise ValueError(f"{trouble.fault} marks an answer, it is no trouble")
            case _:
                assert_never(trouble.fault)
        return None

    def _refuse(self, refused: Refused) -> Refused:
        if len(self.refused) < self.MOST_TOLD:
            self.refused.append(refused)
        return refused

    def _excused(self, excuse: Excuse, message: str) -> None:
        self._excuse = excuse
        self.message = self.message or message or _NO_REASON


def as_request(model: str, body: bytes) -> Request:
    """A line's body as a request again, as far as repairs need it; which row it was for is not known."""
    fields = msgspec.json.decode(body)
    return Request(-1, b"", Endpoint.CHAT, model, body, limit_of(fields), fields.get("n") or 1)
