"""One job at work: its lines from the input file to its two result files and the ledger. When and why: `batches`."""

import math
import os
import time
from enum import Enum
from hashlib import sha256

from batchrun.simulator import errors
from batchrun.simulator.account import Account, Charge
from batchrun.simulator.asks import Ask
from batchrun.simulator.batch_calls import Calls
from batchrun.simulator.batch_lines import (
    Answered,
    Failed,
    Order,
    Scan,
    answer_line,
    custom_id_of,
    failed,
    is_hit,
    struck_line,
)
from batchrun.simulator.batch_records import Job
from batchrun.simulator.file_store import FileStore
from batchrun.simulator.settings import CreditsEnd, Settings

BATCH_PATH = "/v1/batches"


class WorkEnd(Enum):
    """Why a stretch of work ended."""

    PAUSE = "pause"
    NO_CREDITS = "no_credits"


class Work:
    """A job's open files, and what it still has to do.

    Results are written before the job's record: what lies beyond the sizes in the record is of a stretch that was cut
    short by a kill, and is cut off here. Its lines are answered again, but those already in the ledger are not charged.
    """

    def __init__(self, job: Job, settings: Settings, account: Account, store: FileStore, calls: Calls) -> None:
        self.scan = Scan(store.path(job.input_file_id), settings)
        self._job = job
        self._settings = settings
        self._account = account
        self._calls = calls
        self._input = os.open(store.path(job.input_file_id), os.O_RDONLY | os.O_CLOEXEC)
        self._output = _open_at(store.path(job.output_id), job.output_bytes)
        self._errors = _open_at(store.path(job.error_id), job.error_bytes)
        self._order: Order | None = None
        self._charged = {charge.custom_id for charge in account.charges[job.answers :] if charge.batch == job.job_id}

    def close(self) -> None:
        """Close the files."""
        self.scan.close()
        for file in (self._input, self._output, self._errors):
            os.close(file)

    @property
    def goal(self) -> int:
        """How many lines are done when the job ends."""
        return math.ceil((self._job.lines - self._job.first) * self._job.plan.share)

    def due(self, now: float, *, stuck: bool) -> int:
        """How many lines must have been done by now."""
        goal = self.goal
        if stuck:
            goal = min(goal, int((self._job.lines - self._job.first) * self._job.plan.stuck_share))
        speed = self._settings.batch_speed
        return goal if speed is None else min(goal, int(max(0.0, now - self._job.started) * speed))

    def settle(self) -> bool:
        """Answer again the lines that were charged when a kill came before they were recorded, if there are any."""
        if not self._charged:
            return False
        self.scan.go_on(math.inf)
        output: list[bytes] = []
        failures: list[bytes] = []
        while self._charged and self._job.done < self.goal:
            self._next(output, failures)
        self._write(output, failures)
        return True

    def go_on(self, due: int, until: float) -> WorkEnd:
        """Do the lines that are due, until that time on the monotonic clock; then write what came of them."""
        job = self._job
        output: list[bytes] = []
        failures: list[bytes] = []
        end = WorkEnd.PAUSE
        while job.done < due and time.monotonic() < until:
            if self._credits_end():
                end = WorkEnd.NO_CREDITS
                break
            self._next(output, failures)
        self._write(output, failures)
        return end

    def _next(self, output: list[bytes], failures: list[bytes]) -> None:
        """Do one line."""
        self._take(self._outcome(self._line()), output, failures)
        self._job.done += 1

    def _write(self, output: list[bytes], failures: list[bytes]) -> None:
        job = self._job
        job.output_bytes += _write(self._output, output)
        job.error_bytes += _write(self._errors, failures)
        job.answers = self._account.answers

    def _line(self) -> bytes:
        job = self._job
        if self._order is None:
            self._order = Order(job.lines, job.shuffle)
        index = self._order[job.first + job.done]
        begin = self.scan.offsets[index]
        return os.pread(self._input, self.scan.offsets[index + 1] - begin, begin)

    def _credits_end(self) -> bool:
        """Whether the job ends here for want of credits; it goes on if the rest shall be error lines."""
        job = self._job
        if job.credits_gone or job.plan.losing == 1 or not self._calls.credits_ended():
            return False
        job.credits_gone = self._settings.batch_out_of_credits is CreditsEnd.ERROR_LINES
        return not job.credits_gone

    def _outcome(self, line: bytes) -> Answered | Failed | None:
        """What becomes of the next line; None for one that is in no file."""
        plan, index = self._job.plan, self._job.done
        if is_hit(plan.losing, index):
            return None
        custom_id = custom_id_of(line)
        if is_hit(plan.failing, index):
            return failed(custom_id, "Request timeout", "timeout")
        if self._job.credits_gone and custom_id not in self._charged:
            return failed(custom_id, errors.NO_CREDITS.message, "credit_limit")
        outcome = answer_line(line, self._settings)
        fault = self._calls.line_fault(outcome.ask) if isinstance(outcome, Answered) else None
        if fault is None or not isinstance(outcome, Answered):
            return outcome
        return struck_line(outcome, fault, self._settings)

    def _take(self, outcome: Answered | Failed | None, output: list[bytes], failures: list[bytes]) -> None:
        job = self._job
        match outcome:
            case Answered():
                self._charge(outcome)
                output.append(outcome.line)
                if is_hit(job.plan.repeating, job.succeeded):
                    output.append(outcome.line)
                if job.plan.garbage and job.succeeded == 0:
                    output.append(_garbage(outcome.line))
                job.succeeded += 1
            case Failed():
                failures.append(outcome.line)
                job.failed += 1
            case None:
                pass

    def _charge(self, answered: Answered) -> None:
        """Charge the line, unless it was charged before a kill."""
        if answered.custom_id in self._charged:
            self._charged.remove(answered.custom_id)
            return
        ask, used = answered.ask, answered.used
        self._account.charge(
            Charge(
                number=self._account.answers + 1,
                time=time.time(),
                path=BATCH_PATH,
                model=ask.model.id,
                content=sha256(ask.content.encode()).hexdigest(),
                body=answered.body,
                prompt_tokens=used["prompt_tokens"],
                completion_tokens=used["completion_tokens"],
                nano=self._price(ask, used),
                batch=self._job.job_id,
                custom_id=answered.custom_id,
            )
        )

    def _price(self, ask: Ask, used: dict[str, int]) -> int:
        full = ask.model.cost(used["prompt_tokens"], used["cached_tokens"], used["completion_tokens"])
        return round(full * self._settings.batch_discounts.get(ask.model.id, 1.0))


def _open_at(path: os.PathLike[str], size: int) -> int:
    """Open a result file to go on at its `size`."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.ftruncate(file, size)
    return file


def _write(file: int, lines: list[bytes]) -> int:
    """Write all of it; how many bytes that were."""
    data = b"".join(lines)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
    return len(data)


def _garbage(line: bytes) -> bytes:
    """A torn line with bytes that are never UTF-8."""
    return line[: len(line) // 2] + b"\xff\xfe\n"
