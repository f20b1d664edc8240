"""Takes in what a job left: its answers and refusals, line by line, in one transaction.

A line that comes twice in a job's files counts once. A reply to a line that has its answer already, from an earlier
job, was paid again and is kept as surplus. Which rows take what came is decided at the end, by digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from batchrun.records import Answer, Completion, Fault, Lane, State, Usage
from batchrun.rules.remote import Excuse, RemoteBatch
from batchrun.rules.repair import AS_ASKED, Repair, told
from batchrun.store import batches, loose
from batchrun.store.statements import Statements
from batchrun.store.store import Store
from batchrun.store.till import Till

_ANSWERED, _REJECTED = 1, 2


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A line that cannot succeed as it is."""

    fault: Fault
    status: int | None
    message: str


class Passing(msgspec.Struct, frozen=True, gc=False):
    """A line that failed for a reason that may pass, and the provider's words."""

    message: str


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a job's files say of a line: an answer, a refusal that stays, how to send it again, or nothing final."""

    line: int
    said: Completion | Refused | Repair | Passing
    wants_better: bool = False


class Collected(msgspec.Struct):
    """What a job brought: counts, and nano-dollars.

    `repaired` lines are sent again otherwise, `again` answers are to be asked for once more; `doubt_nano` is what
    replies of unknown cost may have cost; `models` counts the answers by the model that made them.
    """

    answered: int = 0
    rejected: int = 0
    repaired: int = 0
    again: int = 0
    tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0
    doubt_nano: int = 0
    models: Counter[str] = msgspec.field(default_factory=Counter)


Cost = Callable[[Usage | None], int | None]


class Results:
    """The results of one job being taken in."""

    def __init__(self, store: Store, till: Till, batch: RemoteBatch, job: str, cost: Cost) -> None:
        self._store = store
        self._till = till
        self._batch = batch
        self._job = job
        self._cost = cost
        self._seen = bytearray(batch.lines)
        self._newest = 0
        self.collected = Collected()

    async def take(self, chunks: AsyncIterator[Sequence[Result]], excuse: Callable[[], Excuse | None]) -> RemoteBatch:
        """Take in everything, or nothing at all; `excuse` is asked when all has been read.

        What a job left counts once: when it has been taken in before, nothing happens.
        """
        try:
            async with self._store.transaction() as sql:
                if await sql.all("is_collected", id=self._job):  # what is taken in twice would be paid for twice here
                    return self._batch
                await batches.begin_arrivals(sql)
                async for chunk in chunks:
                    await self._chunk(sql, self._fresh(chunk))
                await self._settle(sql)
                await sql.execute("collected_job", id=self._job, now_ms=self._store.now_ms())
                if (why := excuse()) is not None:
                    await sql.execute("set_excuse", batch=self._batch.id, excuse=why)
        except BaseException:
            self._till.forget()
            raise
        if self._newest:
            self._store.tell(self._newest)
        return await batches.read(self._store, self._batch.id)

    def _fresh(self, chunk: Sequence[Result]) -> dict[int, Result]:
        """The lines that come for the first time; numbers that are none of ours are left out."""
        fresh: dict[int, Result] = {}
        for result in chunk:
            if 0 <= result.line < len(self._seen) and not self._seen[result.line]:
                self._seen[result.line] = 1
                fresh[result.line] = result
        return fresh

    async def _chunk(self, sql: Statements, fresh: dict[int, Result]) -> None:
        numbers = msgspec.json.encode(list(fresh)).decode()
        lines = await sql.all("lines_of", batch=self._batch.id, lines=numbers)
        answers, answered, rejections, repairs, words = [], [], [], [], []
        for line, digest, size, outcome, misses, plan in lines:
            said = fresh[line].said
            mended = AS_ASKED if plan is None else msgspec.json.decode(plan, type=Repair)
            if isinstance(said, Completion):
                answers.append(self._answer(digest, size, fresh[line], said, misses + mended.refusals + 1, mended))
                answered.append((line, digest, outcome))
            elif outcome == 0 and isinstance(said, Repair):
                repairs.append((line, digest, said))
            elif outcome == 0 and isinstance(said, Passing):
                words.append({"digest": digest, "message": said.message})
            elif outcome == 0 and isinstance(said, Refused):
                rejections.append((line, digest, said, misses + mended.refusals + 1))
        if answers:
            await self._book(sql, answers, answered)
        if rejections:
            await self._reject(sql, rejections)
        if repairs:
            await self._repair(sql, repairs)
        if words:
            await sql.many("keep_words", words)

    def _answer(
        self, digest: bytes, size: int, result: Result, completion: Completion, attempts: int, mended: Repair
    ) -> Answer:
        waited = max(0.0, self._store.clock.now() - self._batch.begun)
        usage = completion.usage
        cost = self._cost(usage)
        self.collected.cost_nano += cost or 0
        self.collected.unpriced += cost is None
        self.collected.tokens += usage.prompt_tokens + usage.completion_tokens if usage else 0
        self.collected.models[completion.model] += 1
        return Answer(
            None, digest, self._batch.model, size, completion, Lane.BATCH, cost, round(waited * 1000), attempts,
            told(self._batch.asked, self._batch.model, mended), wants_better=result.wants_better,
        )  # fmt: skip

    async def _book(self, sql: Statements, answers: Sequence[Answer], lines: Sequence[tuple[int, bytes, int]]) -> None:
        numbers = await self._till.book(sql, answers, self._store.now_ms())
        await self._store.recovers(sql, self._batch.begun)
        self._newest = numbers[-1]
        booked = list(zip(numbers, lines, strict=True))
        better = {number for number, answer in zip(numbers, answers, strict=True) if answer.wants_better}
        first = [(number, line, digest) for number, (line, digest, outcome) in booked if outcome != _ANSWERED]
        again = [number for number, (_, _, outcome) in booked if outcome == _ANSWERED]
        await sql.many("mark_surplus", [{"id": number, "row": None, "surplus": "twice"} for number in again])
        await sql.many("set_outcome", [self._outcome(line, _ANSWERED) for _, line, _ in first])
        await sql.many(
            "add_arrived",
            [
                {
                    "line": line,
                    "digest": d,
                    "state": State.AGAIN if number in better else State.ANSWERED,
                    "answer": number,
                }
                for number, line, d in first
            ],
        )
        self.collected.answered += len(first)
        self.collected.again += len(better)

    async def _reject(self, sql: Statements, lines: Sequence[tuple[int, bytes, Refused, int]]) -> None:
        now_ms = self._store.now_ms()
        await sql.many(
            "add_rejection",
            [
                {
                    "digest": digest, "fault": said.fault, "status": said.status, "message": said.message,
                    "attempts": attempts, "kept_ms": now_ms,
                }
                for _, digest, said, attempts in lines
            ],
        )  # fmt: skip
        await sql.many("set_outcome", [self._outcome(line, _REJECTED) for line, *_ in lines])
        await sql.many(
            "add_arrived",
            [{"line": line, "digest": digest, "state": State.REJECTED, "answer": None} for line, digest, *_ in lines],
        )
        self.collected.rejected += len(lines)

    async def _repair(self, sql: Statements, lines: Sequence[tuple[int, bytes, Repair]]) -> None:
        """Refused as they were: their rows are pending, and it is written down what is sent next for them."""
        plans = [{"digest": digest, "plan": msgspec.json.encode(plan).decode()} for _, digest, plan in lines]
        await sql.many("plan_repair", plans)
        await sql.many("set_outcome", [self._outcome(line, _REJECTED) for line, *_ in lines])
        await sql.many(
            "add_arrived",
            [{"line": line, "digest": digest, "state": State.PENDING, "answer": None} for line, digest, _ in lines],
        )
        self.collected.repaired += len(lines)

    def _outcome(self, line: int, outcome: int) -> dict[str, int]:
        return {"batch": self._batch.id, "line": line, "outcome": outcome}

    async def _settle(self, sql: Statements) -> None:
        """Give what came to the rows that wait for it; what is left over, to any row that wants it."""
        brought = self.collected.answered + self.collected.rejected
        arrived = brought + self.collected.repaired
        if arrived:
            settled = await sql.execute("settle_arrived")
            if settled < arrived:
                await loose.begin(sql)
                await sql.execute("loosen_arrived")
                await loose.serve(sql)
            await sql.execute("drop_arrived")
            await sql.recount()
        self.collected.doubt_nano = doubt = self._doubt()
        await sql.execute(
            "fence", run=self._store.run, token=self._store.token, kept=brought, doubt_calls=0, doubt_nano=doubt
        )

    def _doubt(self) -> int:
        """Replies that tell no usage may have cost all that was set aside, but for what the others did cost."""
        return max(0, self._batch.reserved_nano - self.collected.cost_nano) if self.collected.unpriced else 0
