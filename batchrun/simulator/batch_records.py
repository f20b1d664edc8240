"""What the state file keeps of files and batch jobs: each is written whole when it changes, and the last one counts."""

from dataclasses import dataclass, field
from enum import StrEnum

from batchrun.simulator.batch_faults import Plan, Status


class Kept(StrEnum):
    """How much there is of a file."""

    PENDING = "pending"  # begun, its bytes have not come
    STORED = "stored"
    DELETED = "deleted"


@dataclass(slots=True)
class StoredFile:
    """A file: uploaded, or made by a job. `claimed` is the checksum its uploader gave, `sha256` that of its bytes."""

    file_id: str
    number: int  # of the uploads begun, counted from 1; 0 for a job's
    name: str
    purpose: str
    file_type: str
    created: float
    claimed: str = ""
    sha256: str = ""
    bytes: int = 0
    kept: Kept = Kept.PENDING
    job: int = 0  # the number of the job that made it


@dataclass(slots=True)
class Job:
    """A batch job: what was asked, what is planned for it, and how far it has come.

    `done` counts lines dealt with in the order of this job, which is shuffled by `shuffle` and begins at `first`.
    `answers` is how many charges the account had when this was written: a later charge of this job is of a line that
    has to be answered again, and not charged again.
    """

    job_id: str
    number: int  # of the jobs created, counted from 1
    input_file_id: str
    endpoint: str
    created: float
    output_id: str
    error_id: str
    shuffle: str
    file_bytes: int = 0
    model_id: str = ""
    plan: Plan = field(default_factory=Plan)
    status: Status = Status.VALIDATING
    started: float = 0.0
    cancel_at: float = 0.0
    ended: float = 0.0
    error: str = ""
    lines: int = 0
    first: int = 0
    done: int = 0
    succeeded: int = 0
    failed: int = 0
    output_bytes: int = 0
    error_bytes: int = 0
    answers: int = 0
    output_shown: bool = False
    error_shown: bool = False
    gone: bool = False
    credits_gone: bool = False  # every line from here on fails for want of credits

    @property
    def id(self) -> str:
        """Its id, by the service's word."""
        return self.job_id

    @property
    def output_file_id(self) -> str | None:
        """The file with the answers, if it is there to be had."""
        return self.output_id if self.output_shown else None

    @property
    def error_file_id(self) -> str | None:
        """The file with the failed lines, if it is there to be had."""
        return self.error_id if self.error_shown else None


@dataclass(frozen=True, slots=True)
class BatchDelivered:
    """Every charge of that job is in an output file that exists."""

    batch_delivered: str
