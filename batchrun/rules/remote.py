"""The life of a batch at the provider: from what we wrote down and what the provider says to the next step.

The API knows no idempotency key, so safety lies in the order: every state is committed before the remote step it
announces, a create is never repeated while the job it may have made could still show in the list, and every job on our
file is followed to its end. Facts: docs.together.ai/docs/inference/batch (tutorial, manage, overview), 2026.
"""

from __future__ import annotations

import enum

import msgspec

# A batch is assumed to take up to a day; one that takes longer, or stands still for so long, is worth a word.
EXPECTED = 24 * 3600.0
STANDSTILL = 6 * 3600.0

# An old batch is looked at more rarely.
SLOWEST_POLL = 600.0
POLLS_AN_AGE = 60.0

# A line that came back from so many batches without an answer is not put into another one.
MOST_MISSES = 3


class BatchState(enum.StrEnum):
    """How far a batch has come, as it is committed; what each means stands in `migrations/0002.sql`."""

    PLANNED = "planned"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    CREATING = "creating"
    RUNNING = "running"
    COLLECTED = "collected"
    ABANDONED = "abandoned"


class Excuse(enum.StrEnum):
    """Why a batch's lines came back without it being their own fault: they are not counted as missed."""

    CREDITS = "credits"
    MODEL = "model"
    KEY = "key"
    CANCELLED = "cancelled"
    TURNED = "turned"


VANISHED = "VANISHED"  # our word for a job the provider knows nothing of any more
_CANCELLED = frozenset({"CANCELLED", "CANCELED"})
_ENDED = frozenset({"COMPLETED", "FAILED", "EXPIRED", VANISHED}) | _CANCELLED
# What a job shows that the provider took back of its own accord, and may begin again under another id.
_TAKEN_BACK = frozenset({"EXPIRED", VANISHED}) | _CANCELLED


def ended(status: str) -> bool:
    """Whether a job with this status changes no more. A word nobody knows yet is not the end."""
    return status in _ENDED


class KnownJob(msgspec.Struct, frozen=True):
    """A job of the provider's on our file, as written down; times in seconds since the epoch."""

    id: str
    status: str
    progress: float | None
    output_file_id: str | None
    error_file_id: str | None
    error: str
    seen: float
    moved: float
    cancelled: float | None
    collected: float | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return ended(self.status)


class RemoteBatch(msgspec.Struct, frozen=True):
    """A batch as written down; times in seconds since the epoch, sizes in bytes, money in nano-dollars.

    Attributes:
        left: lines without an outcome.
        creates: how often a create went out.
        jobs: the provider's jobs on its file, as they were first seen.
        stands_for: the model that its rows ask for, None when it is the one it is sent to.
    """

    id: int
    state: BatchState
    model: str
    file_name: str
    nonce: str
    lines: int
    left: int
    size: int
    sha256: bytes
    reserved_nano: int
    planned: float
    file_id: str | None
    creating: float | None
    creates: int
    excuse: Excuse | None
    jobs: tuple[KnownJob, ...]
    stands_for: str | None = None

    @property
    def asked(self) -> str:
        """The model that its rows ask for."""
        return self.stands_for or self.model

    @property
    def begun(self) -> float:
        """Since when it is at the provider, as far as we know."""
        return self.jobs[0].seen if self.jobs else self.creating or self.planned


class Why(enum.StrEnum):
    """Why we cancel a job, for the diary."""

    DUPLICATE = "another job works on the same file"
    ANSWERED = "every line has its answer already"
    TURNED = "its rows go another way"
    STUCK = "it has taken longer than --batch-patience"
    AGAIN = "asked once more: an earlier start may have ended before it could ask"


class Upload(msgspec.Struct, frozen=True):
    """Bring the request file to the provider."""


class Create(msgspec.Struct, frozen=True):
    """Create a job on the file; `again`: an earlier create was never answered and has left no trace."""

    again: bool = False


class Look(msgspec.Struct, frozen=True):
    """See what the provider lists, now."""


class Wait(msgspec.Struct, frozen=True):
    """See what the provider lists, when it is time again."""


class Cancel(msgspec.Struct, frozen=True):
    """Cancel a job."""

    job: str
    why: Why


class Collect(msgspec.Struct, frozen=True):
    """Take what an ended job has left: both files, either, or none."""

    job: str


class Finish(msgspec.Struct, frozen=True):
    """Nothing more will come: lines without an outcome go back; `doubtful`: a job took what it did of them with it."""

    doubtful: bool = False


class Abandon(msgspec.Struct, frozen=True):
    """Give it up: its lines go back; `doubtful`: the provider may work on them and bill them all the same."""

    doubtful: bool


Step = Upload | Create | Look | Wait | Cancel | Collect | Finish | Abandon


class Terms(msgspec.Struct, frozen=True):
    """What the user says of batches.

    Attributes:
        grace: seconds after which a job that does not show in the list was not created, or a cancel not obeyed.
        patience: seconds after which a job is taken back.
        began: when this start began; what was to be cancelled before may never have been asked for.
        turning: whether its rows shall go another way, so that nothing new begins.
    """

    grace: float
    patience: float
    began: float
    turning: bool


def next_step(batch: RemoteBatch, looked: float | None, now: float, terms: Terms) -> Step:
    """What to do next about a batch that is not over.

    Args:
        batch: what we wrote down, the newest listing included.
        looked: when that listing was asked for, None when there was none in this run.
        now: seconds since the epoch.
        terms: the user's.
    """
    match batch.state:
        case BatchState.PLANNED | BatchState.UPLOADING:
            return Abandon(doubtful=False) if terms.turning else Upload()
        case BatchState.UPLOADED:
            return Abandon(doubtful=False) if terms.turning else Create()
        case BatchState.CREATING:
            return _perhaps_created(batch, looked, terms)
        case BatchState.RUNNING:
            return _running(batch, looked, now, terms)
        case BatchState.ABANDONED:
            return _given_up(batch, terms)
        case BatchState.COLLECTED:
            raise ValueError("a collected batch has no next step")


def _perhaps_created(batch: RemoteBatch, looked: float | None, terms: Terms) -> Step:
    """No job has shown so far. Create again only when it had its time to show."""
    if looked is None or batch.creating is None:
        return Look()
    if looked - batch.creating < terms.grace:
        return Wait()
    return Abandon(doubtful=True) if terms.turning else Create(again=True)


def _running(batch: RemoteBatch, looked: float | None, now: float, terms: Terms) -> Step:
    for job in batch.jobs:
        if job.over and job.collected is None:
            return Collect(job.id)
        if _perhaps_unasked(job, terms):
            return Cancel(job.id, Why.AGAIN)
    live = [job for job in batch.jobs if not job.over and not _lost(job, now, terms)]
    wanted = [job for job in live if job.cancelled is None]
    if wanted and (reason := _reason_to_cancel(batch, wanted, now, terms)) is not None:
        return Cancel(wanted[-1].id, reason)
    if live:
        return Wait()
    taken = max((job.collected or 0.0 for job in batch.jobs), default=0.0)
    if looked is None or looked <= taken:
        return Look()  # the provider may have begun again under a new id
    if _may_begin_again(batch) and looked - taken < terms.grace:
        return Wait()
    if batch.left and any(not job.over for job in batch.jobs):
        return Abandon(doubtful=True)
    return Finish(doubtful=batch.left > 0 and any(job.status == VANISHED for job in batch.jobs))


def _may_begin_again(batch: RemoteBatch) -> bool:
    """Whether lines are left of a job that did not end at our word: another for them may show as late as any."""
    if not batch.left or batch.excuse not in {None, Excuse.TURNED}:
        return False
    return any(
        job.status in _TAKEN_BACK and (job.cancelled is None or job.status not in _CANCELLED) for job in batch.jobs
    )


def _given_up(batch: RemoteBatch, terms: Terms) -> Step:
    """Its rows went another way; what it brings all the same is paid for, and kept."""
    for job in batch.jobs:
        if job.over and job.collected is None:
            return Collect(job.id)
        if not job.over and job.cancelled is None:
            return Cancel(job.id, Why.TURNED)
        if _perhaps_unasked(job, terms):
            return Cancel(job.id, Why.AGAIN)
    return Finish() if batch.jobs and all(job.over for job in batch.jobs) else Wait()


def _perhaps_unasked(job: KnownJob, terms: Terms) -> bool:
    """A cancel is written down before it is asked for; a start may end between the two. Asking twice does no harm."""
    return not job.over and job.cancelled is not None and job.cancelled < terms.began


def _lost(job: KnownJob, now: float, terms: Terms) -> bool:
    """Cancelled by us, and the provider does not say that it has ended."""
    return job.cancelled is not None and now - job.cancelled > terms.grace


def _reason_to_cancel(batch: RemoteBatch, wanted: list[KnownJob], now: float, terms: Terms) -> Why | None:
    """Of several jobs the first stays: it has come furthest."""
    if terms.turning:
        return Why.TURNED
    if not batch.left:
        return Why.ANSWERED
    if len(wanted) > 1:
        return Why.DUPLICATE
    return Why.STUCK if now - wanted[0].seen > terms.patience else None


def cancelled_by_provider(batch: RemoteBatch) -> bool:
    """Whether the provider cancelled a job that nobody asked it to: credits may have run out."""
    return batch.left > 0 and any(job.status in _CANCELLED and job.cancelled is None for job in batch.jobs)


def misses(batch: RemoteBatch, *, may_go_live: bool) -> int:
    """How much a finished batch counts against its lines without an outcome.

    One, or nothing when it is excused; a batch that was taken back for its slowness sends them to live calls at once.
    """
    if batch.excuse is not None:
        return 0
    slow = bool(batch.jobs) and all(job.cancelled is not None for job in batch.jobs)
    return MOST_MISSES if slow and may_go_live else 1


def poll_after(age: float, base: float, dice: float) -> float:
    """Seconds until the next look at a batch of this age: `base` to twice that, more as it ages."""
    patient = min(max(base, age / POLLS_AN_AGE), max(base, SLOWEST_POLL))
    return patient * (1.0 + dice)


def worry(job: KnownJob, now: float) -> str:
    """What is odd about a job that has not ended, "" when nothing is."""
    if now - job.seen > EXPECTED:
        return f"at the provider for {(now - job.seen) / 3600:.0f} hours"
    if now - job.moved > STANDSTILL:
        return f"no progress for {(now - job.moved) / 3600:.0f} hours"
    return ""
