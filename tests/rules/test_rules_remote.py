"""The life of a batch: a table of single steps, and long walks beside a provider that loses, delays and repeats."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from batchrun.rules import remote
from batchrun.rules.remote import (
    VANISHED,
    Abandon,
    BatchState,
    Cancel,
    Collect,
    Create,
    Excuse,
    Finish,
    KnownJob,
    Look,
    RemoteBatch,
    Step,
    Terms,
    Upload,
    Wait,
    Why,
    next_step,
)

S = BatchState
NOW, BEGAN, GRACE, PATIENCE = 1000.0, 900.0, 10.0, 500.0


def terms(*, turning: bool = False) -> Terms:
    return Terms(GRACE, PATIENCE, BEGAN, turning)


def known(status: str = "IN_PROGRESS", **fields: Any) -> KnownJob:
    told = {"id": "a", "progress": None, "output_file_id": None, "error_file_id": None, "error": ""}
    when = {"seen": 950.0, "moved": 950.0, "cancelled": None, "collected": None}
    return KnownJob(status=status, **{**told, **when, **fields})


def a_batch(state: BatchState, *jobs: KnownJob, **fields: Any) -> RemoteBatch:
    told = {"id": 1, "model": "m", "file_name": "f.jsonl", "nonce": "n", "lines": 6, "left": 6, "size": 9}
    more = {"sha256": bytes(32), "reserved_nano": 60, "planned": 940.0, "file_id": "f", "creating": 945.0}
    return RemoteBatch(state=state, jobs=jobs, **{**told, **more, "creates": 1, "excuse": None, **fields})


done = {"collected": 980.0}
ABANDON, DOUBT = Abandon(doubtful=False), Abandon(doubtful=True)

# What is written down, when the list was last asked for, and the next step: straight on, and when rows turn elsewhere.
STEPS: dict[str, tuple[RemoteBatch, float | None, Step, Step]] = {
    "planned": (a_batch(S.PLANNED), None, Upload(), ABANDON),
    "an upload may have begun": (a_batch(S.UPLOADING), None, Upload(), ABANDON),
    "uploaded": (a_batch(S.UPLOADED), None, Create(), ABANDON),
    "perhaps created, never looked": (a_batch(S.CREATING), None, Look(), Look()),
    "looked before it was created": (a_batch(S.CREATING, creating=990.0), 985.0, Wait(), Wait()),
    "perhaps created, within grace": (a_batch(S.CREATING, creating=990.0), 999.9, Wait(), Wait()),
    "perhaps created, long ago, looked too soon": (a_batch(S.CREATING), 954.9, Wait(), Wait()),
    "nothing has shown within grace": (a_batch(S.CREATING), 955.0, Create(again=True), DOUBT),
    "runs": (a_batch(S.RUNNING, known()), 990.0, Wait(), Cancel("a", Why.TURNED)),
    "runs with a status nobody knows": (
        a_batch(S.RUNNING, known("PAUSED")), 990.0, Wait(), Cancel("a", Why.TURNED),
    ),
    "cancelled by us, not ended": (
        a_batch(S.RUNNING, known(cancelled=995.0)), 990.0, Wait(), Wait(),
    ),
    "a cancel that may never have gone out": (
        a_batch(S.RUNNING, known(cancelled=899.0)), None, Cancel("a", Why.AGAIN), Cancel("a", Why.AGAIN),
    ),
    "vanished after our cancel, may show again": (
        a_batch(S.RUNNING, known(VANISHED, cancelled=970.0, **done)), 989.9, Wait(), Wait(),
    ),
    "a cancel that is not obeyed": (a_batch(S.RUNNING, known(cancelled=985.0)), 990.0, DOUBT, DOUBT),
    "a cancel that is not obeyed, nothing left": (
        a_batch(S.RUNNING, known(cancelled=985.0), left=0), 990.0, Finish(), Finish(),
    ),
    "too slow": (
        a_batch(S.RUNNING, known(seen=400.0)), 990.0, Cancel("a", Why.STUCK), Cancel("a", Why.TURNED),
    ),
    "two jobs": (
        a_batch(S.RUNNING, known(), known(id="b")), 990.0, Cancel("b", Why.DUPLICATE), Cancel("b", Why.TURNED),
    ),
    "two jobs, one cancelled": (
        a_batch(S.RUNNING, known(), known(id="b", cancelled=995.0)), 990.0, Wait(), Cancel("a", Why.TURNED),
    ),
    "two jobs, one brought everything": (
        a_batch(S.RUNNING, known("COMPLETED", **done), known(id="b"), left=0), 990.0,
        Cancel("b", Why.ANSWERED), Cancel("b", Why.TURNED),
    ),
    **{
        f"ended as {status}": (a_batch(S.RUNNING, known(status)), 990.0, Collect("a"), Collect("a"))
        for status in ("COMPLETED", "FAILED", "EXPIRED", "CANCELLED", "CANCELED", VANISHED)
    },
    "ended while another runs": (
        a_batch(S.RUNNING, known(), known("FAILED", id="b")), 990.0, Collect("b"), Collect("b"),
    ),
    "collected, not looked since": (
        a_batch(S.RUNNING, known("COMPLETED", **done), left=0), 980.0, Look(), Look(),
    ),
    "collected, looked since": (
        a_batch(S.RUNNING, known("COMPLETED", **done), left=0), 980.1, Finish(), Finish(),
    ),
    "failed, with lines left": (a_batch(S.RUNNING, known("FAILED", **done)), 980.1, Finish(), Finish()),
    **{
        f"{status} unasked, may show again": (a_batch(S.RUNNING, known(status, **done)), 989.9, Wait(), Wait())
        for status in ("EXPIRED", "CANCELLED", VANISHED)
    },
    "cancelled unasked, nothing left": (
        a_batch(S.RUNNING, known("CANCELLED", **done), left=0), 980.1, Finish(), Finish(),
    ),
    "cancelled for want of credits": (
        a_batch(S.RUNNING, known("CANCELLED", **done), excuse=Excuse.CREDITS), 980.1, Finish(), Finish(),
    ),
    "cancelled by us and collected": (
        a_batch(S.RUNNING, known("CANCELLED", cancelled=970.0, **done)), 980.1, Finish(), Finish(),
    ),
    "cancelled unasked, did not show again": (
        a_batch(S.RUNNING, known("CANCELLED", **done)), 990.0, Finish(), Finish(),
    ),
    "vanished, did not show again": (
        a_batch(S.RUNNING, known(VANISHED, **done)), 990.0, Finish(doubtful=True), Finish(doubtful=True),
    ),
    "vanished, another brought everything": (
        a_batch(S.RUNNING, known(VANISHED, **done), known("COMPLETED", id="b", **done), left=0), 990.0,
        Finish(), Finish(),
    ),
    "given up, runs on": (a_batch(S.ABANDONED, known()), None, Cancel("a", Why.TURNED), Cancel("a", Why.TURNED)),
    "given up and cancelled": (a_batch(S.ABANDONED, known(cancelled=950.0)), None, Wait(), Wait()),
    "given up, the cancel may never have gone out": (
        a_batch(S.ABANDONED, known(cancelled=899.0)), None, Cancel("a", Why.AGAIN), Cancel("a", Why.AGAIN),
    ),
    "given up, ended": (a_batch(S.ABANDONED, known("CANCELLED")), None, Collect("a"), Collect("a")),
    "given up, collected": (a_batch(S.ABANDONED, known("CANCELLED", **done)), None, Finish(), Finish()),
}  # fmt: skip


@pytest.mark.parametrize("what", STEPS)
def test_the_next_step(what: str) -> None:
    batch, looked, straight, turned = STEPS[what]
    assert next_step(batch, looked, NOW, terms()) == straight
    assert next_step(batch, looked, NOW, terms(turning=True)) == turned


def test_a_collected_batch_has_no_next_step() -> None:
    with pytest.raises(ValueError, match="no next step"):
        next_step(a_batch(S.COLLECTED), None, NOW, terms())


LIVES = [(known(),), (known(cancelled=995.0),), (known("FAILED"),), (known("GONE?"), known("EXPIRED", id="b", **done))]


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize("looked", [None, 990.0])
@pytest.mark.parametrize("state", [S.RUNNING, S.ABANDONED])
@pytest.mark.parametrize("jobs", LIVES)
def test_a_file_with_a_job_on_it_gets_no_other(
    state: BatchState, jobs: tuple[KnownJob, ...], looked: float | None, turning: bool
) -> None:
    step = next_step(a_batch(state, *jobs), looked, NOW, terms(turning=turning))
    assert not isinstance(step, Upload | Create)


@pytest.mark.parametrize(
    ("batch", "may_go_live", "counted"),
    [
        (a_batch(S.RUNNING, known("FAILED")), True, 1),
        (a_batch(S.RUNNING, known("CANCELLED", cancelled=1.0)), True, remote.MOST_MISSES),
        (a_batch(S.RUNNING, known("CANCELLED", cancelled=1.0)), False, 1),
        (a_batch(S.RUNNING, known("CANCELLED"), known("CANCELLED", cancelled=1.0)), True, 1),
        (a_batch(S.RUNNING, known("CANCELLED", cancelled=1.0), excuse=Excuse.TURNED), True, 0),
        (a_batch(S.RUNNING, known("FAILED"), excuse=Excuse.CREDITS), False, 0),
    ],
)
def test_what_a_batch_without_answers_counts_against_its_lines(
    batch: RemoteBatch, may_go_live: bool, counted: int
) -> None:
    assert remote.misses(batch, may_go_live=may_go_live) == counted


@pytest.mark.parametrize(
    ("job", "left", "suspicious"),
    [
        (known("CANCELLED"), 3, True),
        (known("CANCELED"), 3, True),
        (known("CANCELLED"), 0, False),
        (known("CANCELLED", cancelled=1.0), 3, False),
        (known("EXPIRED"), 3, False),
    ],
)
def test_a_cancel_nobody_asked_for_is_suspicious(job: KnownJob, left: int, suspicious: bool) -> None:
    assert remote.cancelled_by_provider(a_batch(S.RUNNING, job, left=left)) is suspicious


@pytest.mark.parametrize(
    ("age", "dice", "wait"),
    [(0.0, 0.0, 30.0), (0.0, 1.0, 60.0), (1800.0, 0.0, 30.0), (7200.0, 0.0, 120.0), (1e6, 0.0, 600.0)],
)
def test_an_old_batch_is_looked_at_more_rarely(age: float, dice: float, wait: float) -> None:
    assert remote.poll_after(age, 30.0, dice) == wait


def test_what_is_odd_about_a_job_is_said() -> None:
    assert remote.worry(known(seen=NOW, moved=NOW), NOW) == ""
    assert remote.worry(known(seen=NOW, moved=NOW), NOW + remote.STANDSTILL + 1) == "no progress for 6 hours"
    assert remote.worry(known(seen=NOW, moved=NOW), NOW + remote.EXPECTED + 1) == "at the provider for 24 hours"


# --- walks -----------------------------------------------------------------------------------------------------------


@dataclass
class Theirs:
    """A job as the provider knows it."""

    id: str
    made: float
    shows: float
    ends: float
    status: str
    lines: int
    brings: int
    again: bool
    cancelled: float | None = None
    stubborn: bool = False

    def status_at(self, now: float) -> str:
        if self.cancelled is not None and not self.stubborn and now >= self.cancelled:
            return "CANCELLED"
        return self.status if now >= self.ends else "IN_PROGRESS"


class Dead(Exception):  # noqa: N818 - the process, not a failure
    """This start ends without a word."""


class Walk:
    """One batch, our side of it as the checkpoint has it, theirs as it really is, and the dice between them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = NOW
        self.jobs: list[Theirs] = []
        self.numbers = itertools.count(1)
        self.lag = self.dice.choice([0.0, 2.0, GRACE * 0.8])
        self.deadly = self.dice.choice([0.0, 0.1])
        self.turn_at = NOW + self.dice.choice([5.0, 40.0, 1e9])
        self.made_by_us: list[float] = []
        self.batch = a_batch(S.PLANNED, creates=0, creating=None, file_id=None, planned=NOW)

    def go(self) -> None:
        """Start after start until the batch is over."""
        for _ in range(200):
            try:
                self.one_start()
                self.now += GRACE
            except Dead:
                self.now += self.dice.random() * 5
            if self.over:
                return
        raise AssertionError(f"it never ends: {self.batch}")

    @property
    def over(self) -> bool:
        """Whether later starts have nothing to do, or only to see what a job that obeys nobody will bring."""
        if self.batch.state is not S.ABANDONED:
            return self.batch.state is S.COLLECTED
        return not self.batch.jobs or (any(self.unended()) and all(job.stubborn for job in self.unended()))

    def unended(self) -> Iterator[Theirs]:
        return (job for job in self.jobs if job.status_at(self.now) == "IN_PROGRESS")

    def one_start(self) -> None:
        looked: float | None = None
        began = self.now
        for _ in range(500):
            self.now += 0.01
            said = Terms(GRACE, 60.0, began, turning=self.now >= self.turn_at)
            match next_step(self.batch, looked, self.now, said):
                case Upload():
                    self.write(state=S.UPLOADED, file_id="f")
                case Create(again):
                    self.create(again=again)
                case Look():
                    looked = self.look()
                case Wait():
                    if self.batch.state is S.ABANDONED and looked is not None:
                        return
                    self.now += 1.0 + self.dice.random()
                    looked = self.look()
                case Cancel(job):
                    self.cancel(job)
                    looked = self.look()
                case Collect(job):
                    self.collect(job)
                case Finish():
                    self.write(state=S.COLLECTED)
                    return
                case Abandon():
                    self.write(state=S.ABANDONED)
                    return
        raise AssertionError(f"no end of steps: {self.batch}")

    def write(self, **fields: Any) -> None:
        """A commit; the process may die before it or after it."""
        self.may_die()
        self.batch = msgspec.structs.replace(self.batch, **fields)
        self.may_die()

    def may_die(self) -> None:
        if self.dice.random() < self.deadly:
            raise Dead

    def change(self, number: str, also: dict[str, Any] | None = None, /, **fields: Any) -> None:
        jobs = [msgspec.structs.replace(job, **fields) if job.id == number else job for job in self.batch.jobs]
        self.write(jobs=tuple(jobs), **(also or {}))

    def create(self, *, again: bool) -> None:
        before = self.batch.creating
        if again:
            assert before is not None
            assert self.now - before >= GRACE, "created again while the job may still show"
        self.write(state=S.CREATING, creating=self.now, creates=self.batch.creates + 1)
        assert not self.jobs, "created again, and a job was there"
        fate = self.dice.choice(["well", "well", "reply lost", "call lost", "twins"])
        if fate == "call lost":
            return
        self.make(late=fate != "twins")
        if fate == "twins":
            self.make(late=False)
            self.jobs[0].again = self.jobs[1].again = False
        self.may_die()
        if fate != "reply lost":
            self.write(state=S.RUNNING, jobs=(self.told(self.jobs[0]),))
            self.jobs[0].status = self.dice.choice([self.jobs[0].status, VANISHED])

    def make(self, lines: int = 6, *, late: bool = True) -> None:
        words = ["COMPLETED", "COMPLETED", "FAILED", "EXPIRED", "CANCELLED"]
        status = self.dice.choice([*words, VANISHED] if self.batch.jobs else words)  # unseen and gone: nobody can tell
        ends = self.now + self.dice.choice([0.1, 3.0, 20.0, 1e9])
        brings = lines if status == "COMPLETED" else self.dice.randrange(lines)
        begins_again = status in {"EXPIRED", "CANCELLED", VANISHED} and self.dice.random() < 0.5
        stubborn = self.dice.random() < 0.1
        shows = self.now + (self.lag if late else 0.0)
        name = f"job{next(self.numbers)}"
        self.jobs.append(Theirs(name, self.now, shows, ends, status, lines, brings, begins_again, stubborn=stubborn))

    def begin_again(self) -> None:
        """What the provider does by itself: a new job for what one has left, as soon as that ends."""
        for job in self.jobs:
            if job.again and job.cancelled is None and self.now >= job.ends:
                job.again = False
                self.make(job.lines - job.brings)
                self.jobs[-1].made, self.jobs[-1].shows = job.ends, job.ends + self.lag

    def told(self, job: Theirs) -> KnownJob:
        return known(job.status_at(self.now), id=job.id, seen=self.now, moved=self.now)

    def look(self) -> float:
        """What the list shows, and what a look at each known job that it does not show says."""
        self.begin_again()
        listed = {job.id: job for job in self.jobs if job.shows <= self.now and job.status_at(self.now) != VANISHED}
        jobs = [
            job if job.collected is not None else msgspec.structs.replace(job, status=self.found(job, listed))
            for job in self.batch.jobs
        ]
        jobs += [self.told(job) for number, job in listed.items() if number not in {known.id for known in jobs}]
        if tuple(jobs) != self.batch.jobs:
            running = self.batch.state in {S.UPLOADED, S.CREATING}
            self.write(jobs=tuple(jobs), state=S.RUNNING if running else self.batch.state)
        return self.now

    def found(self, job: KnownJob, listed: dict[str, Theirs]) -> str:
        there = listed.get(job.id) or next(theirs for theirs in self.jobs if theirs.id == job.id)
        status = there.status_at(self.now)
        young = self.now - job.seen < GRACE
        return job.status if status == VANISHED and young else status

    def cancel(self, number: str) -> None:
        self.change(number, cancelled=self.now)
        job = next(theirs for theirs in self.jobs if theirs.id == number)
        if job.cancelled is None and job.status_at(self.now) == "IN_PROGRESS":
            job.cancelled = self.now + 0.5
        self.may_die()

    def collect(self, number: str) -> None:
        job = next(theirs for theirs in self.jobs if theirs.id == number)
        self.change(number, {"left": max(0, self.batch.left - job.brings)}, collected=self.now)


def test_five_thousand_batches_beside_a_treacherous_provider_all_come_to_an_end() -> None:
    for seed in range(5000):
        walk = Walk(seed)
        walk.go()
        walk.begin_again()
        unasked = [job for job in walk.unended() if job.cancelled is None]
        assert not unasked, f"seed {seed}: works on, and nobody asked it to stop: {unasked}"
