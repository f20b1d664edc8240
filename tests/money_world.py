"""One job over many starts at a treacherous provider, and what must hold of its money after every one of them.

The simulator's ledger of charges is the oracle: what it billed is held against what the checkpoint says was paid,
what it says may have been paid, and what the user allowed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from batch_jobs import PATIENCE, assert_sound, looking_into
from support import prompt, read_rows

from batchrun import door
from batchrun.clock import RealClock
from batchrun.errors import StorageError
from batchrun.job import Job
from batchrun.reports import Report
from batchrun.runner import Options, Run
from batchrun.simulator import Charge, Simulator
from batchrun.simulator.batch_records import Job as BatchJob

BEGAN = time.time()
PLAIN, DEARER = "openai/gpt-oss-20b", "openai/gpt-oss-120b"
DISCOUNTED = "meta-llama/Llama-3.3-70B-Instruct-Turbo"  # half price in batches
SMALL = "simulator/tiny-512"


class Row(msgspec.Struct, frozen=True):
    """One input row: what it asks, of whom, and how many tokens and choices it may take."""

    number: int
    model: str
    max_tokens: int | None
    n: int = 1
    words: int = 0

    def line(self) -> str:
        """The row as a line of the input."""
        text = prompt(self.number) + " more" * self.words
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        body |= {"max_tokens": self.max_tokens} if self.max_tokens is not None else {}
        body |= {"n": self.n} if self.n > 1 else {}
        return json.dumps({"custom_id": f"row-{self.number}", "id": self.number, "body": body}) + "\n"


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(row.line() for row in rows))
    return path


class Fast(RealClock):
    """Half an hour passes in a second, by either way of telling the time: waits keep their order and proportions.

    The time of day goes on from one start to the next, also when a start is a process of its own.
    """

    SPEED = 2000.0

    def __init__(self, began: float = BEGAN) -> None:
        super().__init__()
        self._day = began

    def now(self) -> float:
        return self._day + (super().now() - self._day) * self.SPEED

    def monotonic(self) -> float:
        return super().monotonic() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.SPEED)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await super().wait(event, seconds / self.SPEED)


# --- how a start may end ---------------------------------------------------------------------------------------------


class Crash(BaseException):
    """What a killed process would have been, inside a test."""


class Ending(msgspec.Struct, frozen=True):
    """How a start is ended before its time: `how` at the n-th `step`."""

    how: str
    number: int
    step: str = "*"


class _Tripwire:
    """Acts at the n-th step, and (when it `lasts`) at every later one: a process that is dead takes none."""

    def __init__(self, ending: Ending, act: Callable[[], None], *, lasts: bool) -> None:
        self._left = ending.number
        self._step = ending.step
        self._act = act
        self._lasts = lasts

    def __call__(self, step: str) -> None:
        meant = self._step in (step, "*")
        self._left -= meant
        if meant and (self._left == 0 or (self._left < 0 and self._lasts)):
            self._act()


def _crash() -> None:
    raise Crash


def _full_disk() -> None:
    raise sqlite3.OperationalError("database or disk is full")


# --- the books -------------------------------------------------------------------------------------------------------


class Books(msgspec.Struct, frozen=True):
    """What a checkpoint that nobody writes says of its money, in nano-dollars, calls and lines.

    Attributes:
        recorded: what the paid replies cost, answers and surplus.
        replies: how many there are.
        unpriced: those whose cost nobody told.
        twice: those that came twice.
        doubt_calls, doubt_nano: what may have been paid without showing; a run found open counts as crashed.
        open_nano, open_lines: what batches that are not over may cost.
        again: how often a create that was not answered went out again, by the file it works on.
        planned: the batch that works on a file.
        newest: the number of the newest batch.
        seen: the provider's jobs it knows of, and whether it has taken what they left.
    """

    recorded: int
    replies: int
    unpriced: int
    twice: int
    doubt_calls: int
    doubt_nano: int
    open_nano: int
    open_lines: int
    again: dict[str, int]
    planned: dict[str, int]
    newest: int
    seen: dict[str, bool]


_PAID = """
select coalesce(sum(cost_nano), 0), count(*), count(*) - count(cost_nano), count(*) filter (where surplus = 'twice')
from paid"""
_HIDDEN = """
select coalesce(sum(doubt_calls + case when state in ('crashed', 'open') then mark_calls else 0 end), 0),
       coalesce(sum(doubt_nano + case when state in ('crashed', 'open') then mark_nano else 0 end), 0) from run"""
_AGAIN = "select detail from event where detail like 'batch %: no job has shown for the last create%'"
_OPEN = """
select coalesce(sum(reserved_nano), 0), coalesce(sum(lines), 0) from batch
where state not in ('collected', 'abandoned')"""


def books_of(job: Job) -> Books:
    with looking_into(job) as sql:
        recorded, replies, unpriced, twice = sql.execute(_PAID).fetchone()
        files = sql.execute("select file_id, id from batch where file_id is not null").fetchall()
        again = Counter(int(detail.split()[1].rstrip(":")) for (detail,) in sql.execute(_AGAIN))
        (newest,) = sql.execute("select coalesce(max(id), 0) from batch").fetchone()
        return Books(
            recorded, replies, unpriced, twice, *sql.execute(_HIDDEN).fetchone(), *sql.execute(_OPEN).fetchone(),
            {file: again[number] for file, number in files}, dict(files), newest,
            dict(sql.execute("select id, collected_ms is not null from batch_job")),
        )  # fmt: skip


def _goes_on(made: BatchJob, before: BatchJob) -> bool:
    """Whether the provider made this job to do what that one left."""
    return made.first > 0 and before.plan.restarts and made.first == before.first + before.done


class Night(msgspec.Struct, frozen=True):
    """One start: what it was allowed, and which charges, batches and jobs of the provider's came in it (from, to)."""

    run_limit: int | None
    charges: tuple[int, int]
    batches: tuple[int, int]
    jobs: tuple[int, int]


class World:
    """One job over its starts on one simulator.

    Attributes:
        starts: what each start was allowed and made.
        broken: whether a start was ended by force, so that what it paid may not have been kept.
        limit: the highest --max-cost so far, None when a start had none.
    """

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.folder = folder
        self.starts: list[Night] = []
        self.broken = False
        self.limit: int | None = 0
        self._before = (0, 0, 0)

    async def start(self, job: Job, ending: Ending | None = None, **options: Any) -> Report | None:
        """One start, and everything that must hold of the money after it; None when it was ended by force."""
        limit = job.limits.max_cost_nano
        self.limit = None if limit is None or self.limit is None else max(limit, self.limit)
        report = await self._ended(job, ending, options)
        await self._quiet()
        if not Path(job.checkpoint).exists():
            return report
        assert_sound(job)
        books = books_of(job)
        self._turn_over(job, books)
        self.holds(job, books)
        if report is not None:
            said = (report.spent_nano, report.maybe_twice, report.maybe_twice_nano)
            assert said == (books.recorded, books.doubt_calls, books.doubt_nano)
        return report

    async def _ended(self, job: Job, ending: Ending | None, options: dict[str, Any]) -> Report | None:
        if ending is not None and ending.how == "kill":
            self.broken = True
            return await self._killed(job, ending)
        run = Run(job, "any-key", Fast(), Options(**options))
        door.watch(None if ending is None else self._wire(run, ending))
        try:
            async with asyncio.timeout(PATIENCE):
                return await run.go()
        except StorageError:
            assert ending is not None
            assert ending.how in {"full disk", "crash"}
            self.broken = True
        except BaseException as error:
            if ending is None or ending.how != "crash" or isinstance(error, TimeoutError):
                raise
            self.broken = True  # whatever else the pieces say that fell apart
        finally:
            door.watch(None)
        return None

    def _wire(self, run: Run, ending: Ending) -> _Tripwire:
        if ending.how == "interrupt":
            return _Tripwire(ending, run.interrupt, lasts=False)
        if ending.how == "interrupt at once":
            self.broken = True
            return _Tripwire(ending, lambda: [run.interrupt() for _ in range(2)] and None, lasts=False)
        return _Tripwire(ending, _crash if ending.how == "crash" else _full_disk, lasts=True)

    async def _killed(self, job: Job, ending: Ending) -> None:
        stored = self.folder / "job.json"
        stored.write_bytes(msgspec.json.encode(job))
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(stored), str(BEGAN), ending.step, str(ending.number),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert b"Traceback" not in said, said.decode()

    async def _quiet(self) -> None:
        """Calls whose caller is gone are charged all the same: let them come to their end."""
        async with asyncio.timeout(PATIENCE):
            while self.simulator.account.in_flight:  # noqa: ASYNC110 - the account tells of arrivals, not of ends
                await asyncio.sleep(0.002)

    def _turn_over(self, job: Job, books: Books) -> None:
        before, self._before = self._before, (
            len(self.simulator.account.charges), books.newest, len(self.simulator.batches.jobs),
        )  # fmt: skip
        charges, batches, jobs = zip(before, self._before, strict=True)
        self.starts.append(Night(job.limits.max_cost_run_nano, charges, batches, jobs))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def holds(self, job: Job, books: Books) -> None:
        """The promise about money."""
        bill, charges = self.simulator.account.spent, self.simulator.account.charges
        gifts = self._uninvited(books)
        given, lines = sum(charge.nano for charge in gifts), len(gifts)
        assert books.recorded <= bill
        unknown = sum(charge.nano for charge in gifts if not books.seen.get(charge.batch))
        assert bill - unknown <= books.recorded + books.doubt_nano + books.open_nano, self._told(job, books)
        assert books.replies <= len(charges) <= books.replies + books.doubt_calls + books.open_lines + lines
        assert books.twice <= books.doubt_calls + lines, self._told(job, books)
        if self.limit is not None:
            assert bill - given <= self.limit, self._told(job, books)
        self._every_start_keeps_to_its_own(books, {charge.number for charge in gifts})
        if not (self.broken or books.open_lines or books.unpriced or books.doubt_calls):
            assert bill - unknown <= books.recorded, self._told(job, books)

    def _uninvited(self, books: Books) -> list[Charge]:
        """Charges of jobs that the provider made of its own accord: one call made two, and nobody can foresee that.

        A job that goes on where another was taken back belongs to that one.
        """
        by_job: dict[str, list[Charge]] = defaultdict(list)
        for charge in self.simulator.account.charges:
            by_job[charge.batch].append(charge)
        works: dict[str, list[tuple[list[BatchJob], list[Charge]]]] = defaultdict(list)
        for made in self.simulator.batches.jobs:
            known = works[made.input_file_id]
            before = [work for work in known if _goes_on(made, work[0][-1])]
            work = before[0] if before else ([], [])
            known += [] if before else [work]
            work[0].append(made)
            work[1].extend(by_job[made.job_id])
        found: list[Charge] = []
        for file, jobs in works.items():
            jobs.sort(key=lambda job: (job[0][0].job_id not in books.seen, -sum(charge.nano for charge in job[1])))
            found += [charge for _, charged in jobs[1 + books.again.get(file, 0) :] for charge in charged]
        return found

    def _every_start_keeps_to_its_own(self, books: Books, gifts: set[int]) -> None:
        """What a start's own calls and batches cost, whenever that is billed, is within its --max-cost-run."""
        costs: Counter[str] = Counter()
        for charge in self.simulator.account.charges:
            costs[charge.batch] += charge.nano * (charge.number not in gifts)
        planned: Counter[int] = Counter()  # by batch, what the first job on its file costs, and what goes on for it
        created: Counter[int] = Counter()  # by number of the job, when it is a later one
        known: set[str] = set()
        for made in self.simulator.batches.jobs:
            if made.first or made.input_file_id not in known:
                planned[books.planned.get(made.input_file_id, 0)] += costs[made.job_id]
            else:
                created[made.number] += costs[made.job_id]
            known.add(made.input_file_id)
        for number, night in enumerate(self.starts, start=1):
            calls = self.simulator.account.charges[slice(*night.charges)]
            own = sum(charge.nano for charge in calls if not charge.batch)
            own += sum(planned[batch] for batch in range(night.batches[0] + 1, night.batches[1] + 1))
            own += sum(created[job] for job in range(night.jobs[0] + 1, night.jobs[1] + 1))
            assert night.run_limit is None or own <= night.run_limit, f"start {number} cost {own} of {night.run_limit}"

    def _told(self, job: Job, books: Books) -> str:
        with looking_into(job) as sql:
            events = sql.execute("select kind, detail from event order by id").fetchall()
        diary = "\n".join(f"{kind}: {detail}" for kind, detail in events)
        jobs = [(made.number, made.status.value, made.done, made.lines) for made in self.simulator.batches.jobs]
        return f"bill {self.simulator.account.spent}, limit {self.limit}\n{books}\njobs {jobs}\n{diary}"

    def settled(self, job: Job, rows: Sequence[Row]) -> None:
        """Every row stands in the output once, answered or rejected."""
        assert job.output is not None
        found = read_rows(job.output)
        assert [row["id"] for row in found] == [row.number for row in rows]
        assert {row["state"] for row in found} <= {"answered", "rejected"}

    async def sends_nothing(self, job: Job) -> None:
        """One more start costs nothing, and asks nothing."""
        before = self._asked()
        report = await self.start(job)
        assert report is not None
        assert (report.exit_code in {0, 10}, report.answered_now) == (True, 0), report.message
        assert self._asked() == before

    def _asked(self) -> tuple[int, int, int]:
        account = self.simulator.account
        return account.requests, len(account.charges), len(self.simulator.batches.jobs)


def main() -> None:
    """A start in a process of its own, which kills itself: `money_world.py JOB.json BEGAN STEP N`."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    ending = Ending("kill", int(sys.argv[4]), sys.argv[3])
    door.watch(_Tripwire(ending, lambda: os.kill(os.getpid(), signal.SIGKILL), lasts=True))
    asyncio.run(Run(job, "any-key", Fast(float(sys.argv[2]))).go())


if __name__ == "__main__":
    main()
