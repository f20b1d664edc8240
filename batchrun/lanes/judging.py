"""What a job's files say, judged line by line: answers, refusals that stay, and lines that get another chance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import assert_never

from batchrun.api import jobs
from batchrun.files.bodies import Bodies
from batchrun.files.lines import read_lines
from batchrun.records import Completion, Fault, Trouble
from batchrun.records import Refusal as Said
from batchrun.rules import faults, pack
from batchrun.rules.remote import Excuse, RemoteBatch
from batchrun.store.results import Refused, Result

Redact = Callable[[str, bytes], str]

_NOT_SHOWN = "(not shown: the request file is gone, so the message cannot be searched for quotations)"


class Judge:
    """Reads the files of one job; afterwards it knows whether the whole batch has an excuse.

    Attributes:
        message: what the provider said of the excuse, "" without one.
        refused: the refusals, at most as many as tell whether the job is hopeless.
        unread: lines that could not be read.
    """

    MOST_TOLD = 400

    def __init__(self, batch: RemoteBatch, request_file: str, redact: Redact, *, job_model: str | None, now: float):
        self._batch = batch
        self._bodies = Bodies(request_file)
        self._redact = redact
        self._model_from_job = batch.model == job_model
        self._now = now
        self._excuse: Excuse | None = batch.excuse
        self.message = ""
        self.refused: list[Refused] = []
        self.unread = 0

    def excuse(self) -> Excuse | None:
        """Why lines may come back without it being their fault."""
        return self._excuse

    def whole_job(self, error: str) -> None:
        """Judge what the provider says of the job as a whole."""
        if faults.says_credits(error):
            self._excused(Excuse.CREDITS, error)

    async def results(self, paths: Sequence[str]) -> AsyncIterator[list[Result]]:
        """The lines of these files, in chunks; other work goes on in between."""
        for path in paths:
            for chunk in read_lines(path):
                yield [result for line in chunk if (result := self._result(line)) is not None]
                await asyncio.sleep(0)

    def _result(self, raw: bytes) -> Result | None:
        seen = jobs.result_line(raw, self._now)
        line = pack.line_number(self._batch.nonce, seen.custom_id) if seen is not None else None
        if seen is None or line is None:
            self.unread += 1
            return None
        if isinstance(seen.outcome, Completion):
            return Result(line, seen.outcome)
        outcome = seen.outcome
        if isinstance(outcome, Said):
            outcome = Said(outcome.status, outcome.kind, outcome.code, self._shown(line, outcome.message), outcome.wait)
        refused = self._judged(faults.trouble(outcome))
        return None if refused is None else Result(line, refused)

    def _shown(self, line: int, message: str) -> str:
        body = self._bodies.body(line)
        return _NOT_SHOWN if body is None else self._redact(message, body)

    def _judged(self, trouble: Trouble) -> Refused | None:
        """A refusal that stays, or None for a line that gets another chance."""
        match trouble.fault:
            case Fault.CREDITS:
                self._excused(Excuse.CREDITS, trouble.message)
            case Fault.KEY:
                self._excused(Excuse.KEY, trouble.message)
            case Fault.MODEL_MISSING if self._model_from_job:
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
        self.message = self.message or message
