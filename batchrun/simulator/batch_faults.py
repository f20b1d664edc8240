"""The fault script of batches and files: which jobs, uploads and downloads go wrong, and what is planned for a job."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_STATUSES = range(200, 600)


class Status(StrEnum):
    """The states of a job, in the service's words."""

    VALIDATING = "VALIDATING"
    IN_PROGRESS = "IN_PROGRESS"
    CANCELING = "CANCELING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


CANCELLABLE = (Status.VALIDATING, Status.IN_PROGRESS)
TERMINAL = (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)
GONE = "GONE"
"""The `status` of a restarted job that does not end but is no longer there."""


class Call(StrEnum):
    """The calls of the two APIs, as they are counted."""

    UPLOAD_INIT = "upload_init"  # POST /v1/files
    PUT = "put"
    PREPROCESS = "preprocess"
    UPLOAD = "upload"  # POST /v1/files/upload
    FILES_LIST = "files_list"
    FILE_GET = "file_get"
    FILE_CONTENT = "file_content"
    FILE_DELETE = "file_delete"
    BATCH_CREATE = "batch_create"
    BATCH_GET = "batch_get"
    BATCH_LIST = "batch_list"
    BATCH_CANCEL = "batch_cancel"


class Files(StrEnum):
    """Which result files a job shows when it has ended."""

    NONE = "none"
    OUTPUT = "output"
    ERROR = "error"
    BOTH = "both"


class BatchFaultKind(StrEnum):
    """Everything that can go wrong with batches here; the closed list."""

    # How a job ends
    FAIL_VALIDATION = "fail_validation"  # FAILED with an error, no line was done
    FAIL_HALFWAY = "fail_halfway"  # FAILED after `share` of the lines
    EXPIRE = "expire"
    CANCELLED_BY_SERVER = "cancelled_by_server"
    END_WITH_NOTHING = "end_with_nothing"  # `status` without any file
    OUTPUT_ONLY = "output_only"  # `status`, and the failed lines are in no file
    ERROR_ONLY = "error_only"  # `status`, and every line failed
    BOTH = "both"  # `status`, and a share of the lines failed
    VANISH = "vanish"  # 404 after `share` of the lines, and not in the list
    RESTARTED = "restarted"  # ends with `status`, or is GONE; a job with another id does the rest
    # What happens to a job on its way, whatever its end
    LOSE_LINES = "lose_lines"  # `share` of the lines are in no file, uncharged
    REPEAT_LINES = "repeat_lines"  # `share` of the answers are in the output twice, charged once
    GARBAGE_LINE = "garbage_line"  # an undecodable line after the first answer
    STUCK = "stuck"  # stays in `status` at `progress`, for ever or for `seconds`
    UNKNOWN_STATUS = "unknown_status"  # shows the word `status`, for ever or for `seconds`
    # Creating a job
    DUPLICATE = "duplicate"  # one call makes two jobs
    CREATE_TIMEOUT = "create_timeout"  # the job is made; after `seconds` the connection closes, or `http` comes
    CREATE_ERROR = "create_error"  # `http`, and nothing is made
    REFUSE_CREATE = "refuse_create"  # 400 with `error`
    # Files
    LOST_UPLOAD_REPLY = "lost_upload_reply"  # the file's id exists, the 302 never arrives
    BROKEN_PUT = "broken_put"  # the connection is cut in the middle of the bytes
    PREPROCESS_ERROR = "preprocess_error"
    DOWNLOAD_CUT = "download_cut"  # closed before Content-Length is reached
    FILE_MISSING = "file_missing"  # the content of a result file is 404
    # Any call
    CALL_ERROR = "call_error"  # `http` for the call named `call`, with Retry-After if `seconds` is given


_ENDS = {
    BatchFaultKind.FAIL_VALIDATION: (Status.FAILED, 0.0, Files.NONE),
    BatchFaultKind.FAIL_HALFWAY: (Status.FAILED, 0.5, None),
    BatchFaultKind.EXPIRE: (Status.EXPIRED, 0.5, None),
    BatchFaultKind.CANCELLED_BY_SERVER: (Status.CANCELLED, 0.5, None),
    BatchFaultKind.END_WITH_NOTHING: (Status.COMPLETED, 1.0, Files.NONE),
    BatchFaultKind.OUTPUT_ONLY: (Status.COMPLETED, 1.0, Files.OUTPUT),
    BatchFaultKind.ERROR_ONLY: (Status.COMPLETED, 1.0, Files.ERROR),
    BatchFaultKind.BOTH: (Status.COMPLETED, 1.0, Files.BOTH),
    BatchFaultKind.VANISH: (Status.CANCELLED, 0.0, None),
    BatchFaultKind.RESTARTED: (Status.CANCELLED, 0.5, None),
}
"""The status, the share of lines done, and the files (None: those that have a line) each kind of end has by itself."""

_FAILING = {None: 0.0, Files.NONE: 0.0, Files.OUTPUT: 0.0, Files.ERROR: 1.0, Files.BOTH: 0.5}
_ON_THE_WAY = frozenset(
    {
        BatchFaultKind.LOSE_LINES,
        BatchFaultKind.REPEAT_LINES,
        BatchFaultKind.GARBAGE_LINE,
        BatchFaultKind.STUCK,
        BatchFaultKind.UNKNOWN_STATUS,
    }
)
_DEFAULT_SHARE = 0.1
_DEFAULT_WORD = "PAUSED_FOR_REVIEW"


@dataclass(frozen=True, slots=True)
class BatchFault:
    """One fault and what it strikes.

    `jobs` are ordinals counted from 1, none meaning all: of jobs created (for faults of creating: the job it would
    become; for downloads: the job whose file it is), of uploads begun, or for `call_error` of calls. `times` is how
    often it strikes at most. `model` is that of the job, for the kinds of how a job ends and what happens on its way.
    Of `share`, `failing` and `status` a kind has its own defaults.
    """

    kind: BatchFaultKind
    jobs: tuple[int, ...] = ()
    times: int | None = None
    model: str | None = None
    status: str | None = None
    files: Files | None = None
    share: float | None = None
    failing: float | None = None  # share of the lines done that fail, with code `timeout`
    seconds: float | None = None
    progress: float = 0.0  # percent
    error: str | None = None
    http: int | None = None
    call: Call | None = None

    def __post_init__(self) -> None:
        for name in ("share", "failing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        if self.http is not None and self.http not in _STATUSES:
            raise ValueError(f"http must be between 200 and 599, not {self.http}")
        if (self.kind is BatchFaultKind.CALL_ERROR) != (self.call is not None):
            raise ValueError("call is the word of call_error, which needs it")
        if self.model is not None and self.kind not in _ENDS and self.kind not in _ON_THE_WAY:
            raise ValueError(f"model is a word of what becomes of a job, not of {self.kind.value}")
        known = _statuses(self.kind)
        if self.status is not None and known is not None and self.status not in known:
            raise ValueError(f"status of {self.kind.value} must be one of {', '.join(known)}, not {self.status}")


def _statuses(kind: BatchFaultKind) -> tuple[str, ...] | None:
    """The words `status` may be; None for any."""
    if kind is BatchFaultKind.UNKNOWN_STATUS:
        return None
    if kind is BatchFaultKind.STUCK:
        return tuple(CANCELLABLE)
    return (*TERMINAL, GONE) if kind is BatchFaultKind.RESTARTED else TERMINAL


@dataclass(frozen=True, slots=True)
class Plan:
    """What will become of one job, settled when it is created so that a restart changes nothing."""

    status: Status = Status.COMPLETED
    share: float = 1.0  # of the lines, done before the end
    files: Files | None = None
    error: str = ""
    invalid: bool = False
    failing: float = 0.0
    losing: float = 0.0
    repeating: float = 0.0
    garbage: bool = False
    stuck: Status | None = None
    stuck_share: float = 0.0
    stuck_seconds: float | None = None
    word: str = ""  # shown while it is stuck
    vanishes: bool = False
    restarts: bool = False


class BatchScript:
    """The batch faults in force, each with its own tally."""

    def __init__(self, faults: Iterable[BatchFault]) -> None:
        self._left = [(fault, [fault.times]) for fault in faults]

    def strike(self, kind: BatchFaultKind, number: int | None, call: Call | None = None) -> BatchFault | None:
        """The first fault of this kind that strikes job or upload `number`, and one strike less for it."""
        for fault, left in self._left:
            if fault.kind is kind and fault.call is call and self._hits(fault, left, number):
                return fault
        return None

    def plan(self, number: int, model: str) -> Plan:
        """The life of job `number`: the first end that strikes it, and everything on its way."""
        ends: list[BatchFault] = []
        changes: list[BatchFault] = []
        for fault, left in self._left:
            into = changes if fault.kind in _ON_THE_WAY else ends if fault.kind in _ENDS and not ends else None
            meant = fault.model in (None, model)
            if into is not None and meant and self._hits(fault, left, number):
                into.append(fault)
        plan = _ending(ends[0]) if ends else Plan()
        for fault in changes:
            plan = _changed(plan, fault)
        return plan

    @staticmethod
    def _hits(fault: BatchFault, left: list[int | None], number: int | None) -> bool:
        if fault.jobs and number not in fault.jobs:
            return False
        if left[0] is None:
            return True
        left[0] -= 1
        return left[0] >= 0


def _ending(fault: BatchFault) -> Plan:
    """The plan of a job that ends as the fault says."""
    status, share, files = _ENDS[fault.kind]
    if fault.status is not None and fault.status != GONE:
        status = Status(fault.status)
    files = files if fault.files is None else fault.files
    gone = fault.kind is BatchFaultKind.VANISH or fault.status == GONE
    return Plan(
        status=status,
        share=share if fault.share is None else fault.share,
        files=files,
        error=_error(fault, status),
        invalid=fault.kind is BatchFaultKind.FAIL_VALIDATION,
        failing=_FAILING[files] if fault.failing is None else fault.failing,
        losing=1.0 if files is Files.NONE or gone else 0.0,  # what is in no file is not charged
        vanishes=gone,
        restarts=fault.kind is BatchFaultKind.RESTARTED,
    )


def _error(fault: BatchFault, status: Status) -> str:
    if fault.error is not None:
        return fault.error
    if fault.kind is BatchFaultKind.FAIL_VALIDATION:
        return "Invalid input file: line 1 could not be validated"
    return "Internal error while processing the batch" if status is Status.FAILED else ""


def _changed(plan: Plan, fault: BatchFault) -> Plan:
    """The same end, with what the fault does on the way."""
    share = _DEFAULT_SHARE if fault.share is None else fault.share
    stuck = dataclasses.replace(plan, stuck_share=fault.progress / 100, stuck_seconds=fault.seconds)
    match fault.kind:
        case BatchFaultKind.LOSE_LINES:
            return dataclasses.replace(plan, losing=max(plan.losing, share))
        case BatchFaultKind.REPEAT_LINES:
            return dataclasses.replace(plan, repeating=share)
        case BatchFaultKind.GARBAGE_LINE:
            return dataclasses.replace(plan, garbage=True)
        case BatchFaultKind.STUCK:
            return dataclasses.replace(stuck, stuck=Status(fault.status or Status.IN_PROGRESS))
        case BatchFaultKind.UNKNOWN_STATUS:
            return dataclasses.replace(stuck, stuck=Status.VALIDATING, word=fault.status or _DEFAULT_WORD)
        case _:
            return plan
