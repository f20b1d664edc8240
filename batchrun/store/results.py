"""Takes in what a job left: its answers and refusals, line by line, in one transaction.

A line that comes twice in a job's files counts once. A reply to a line that has its answer already, from an earlier
job, was paid again and is kept as surplus. Which rows take what came is decided at the end, by digest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from batchrun.records import Answer, Completion, Fault, Lane, State, Usage
from batchrun.rules.remote import Excuse, RemoteBatch
from batchrun.store import batches
from batchrun.store.store import Statements, Store
from batchrun.store.till import Till

_ANSWERED, _REJECTED = 1, 2


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A line that cannot succeed as it is."""

    fault: Fault
    status: int | None
    message: str


class Result(msgspec.Struct, frozen=True, gc=False):
    """What a job's files say of a line."""

    line: int
    said: Completion | Refused


class Collected(msgspec.Struct):
    """What a job brought: counts, and nano-dollars; `doubt_nano` is what replies of unknown cost may have cost."""

    answered: int = 0
    rejected: int = 0
    tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0
    doubt_nano: int = 0


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
        """Take in everything, or nothing at all; `excuse` is asked when all has been read."""
        try:
            async with self._store.transaction() as sql:
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

    def _fresh(self, chunk: Sequence[Result]) -> dict[int, Completion | Refused]:
        """The lines that come for the first time; numbers that are none of ours are left out."""
        fresh: dict[int, Completion | Refused] = {}
        for result in chunk:
            if 0 <= result.line < len(self._seen) and not self._seen[result.line]:
                self._seen[result.line] = 1
                fresh[result.line] = result.said
        return fresh

    async def _chunk(self, sql: Statements, fresh: dict[int, Completion | Refused]) -> None:
        numbers = msgspec.json.encode(list(fresh)).decode()
        lines = await sql.all("lines_of", batch=self._batch.id, lines=numbers)
        answers, answered, rejections = [], [], []
        for line, digest, size, outcome, misses in lines:
            said = fresh[line]
            if isinstance(said, Completion):
                answers.append(self._answer(digest, size, said, misses + 1))
                answered.append((line, digest, outcome))
            elif outcome == 0:
                rejections.append((line, digest, said, misses + 1))
        if answers:
            await self._book(sql, answers, answered)
        if rejections:
            await self._reject(sql, rejections)

    def _answer(self, digest: bytes, size: int, completion: Completion, attempts: int) -> Answer:
        waited = max(0.0, self._store.clock.now() - self._batch.begun)
        usage = completion.usage
        cost = self._cost(usage)
        self.collected.cost_nano += cost or 0
        self.collected.unpriced += cost is None
        self.collected.tokens += usage.prompt_tokens + usage.completion_tokens if usage else 0
        return Answer(
            None, digest, self._batch.model, size, completion, Lane.BATCH, cost, round(waited * 1000), attempts
        )

    async def _book(self, sql: Statements, answers: Sequence[Answer], lines: Sequence[tuple[int, bytes, int]]) -> None:
        numbers = await self._till.book(sql, answers, self._store.now_ms())
        self._newest = numbers[-1]
        booked = list(zip(numbers, lines, strict=True))
        first = [(number, line, digest) for number, (line, digest, outcome) in booked if outcome != _ANSWERED]
        again = [number for number, (_, _, outcome) in booked if outcome == _ANSWERED]
        await sql.many("mark_surplus", [{"id": number} for number in again])
        await sql.many("set_outcome", [self._outcome(line, _ANSWERED) for _, line, _ in first])
        await sql.many(
            "add_arrived",
            [{"line": line, "digest": d, "state": State.ANSWERED, "answer": number} for number, line, d in first],
        )
        self.collected.answered += len(first)

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

    def _outcome(self, line: int, outcome: int) -> dict[str, int]:
        return {"batch": self._batch.id, "line": line, "outcome": outcome}

    async def _settle(self, sql: Statements) -> None:
        """Give what came to the rows that wait for it; what is left over, to any row that wants it."""
        brought = self.collected.answered + self.collected.rejected
        if brought:
            settled = await sql.execute("settle_arrived")
            if settled < brought:
                await serve_unused(sql)
            await sql.execute("drop_arrived")
            await sql.recount()
        self.collected.doubt_nano = doubt = self._doubt()
        await sql.execute(
            "fence", run=self._store.run, token=self._store.token, kept=brought, doubt_calls=0, doubt_nano=doubt
        )

    def _doubt(self) -> int:
        """Replies that tell no usage may have cost all that was set aside, but for what the others did cost."""
        return max(0, self._batch.reserved_nano - self.collected.cost_nano) if self.collected.unpriced else 0


async def serve_unused(sql: Statements) -> None:
    """Paid replies that are no row's answer serve rows that want the same, wherever they stand."""
    for name in ("drop_free", "free_table", "free_index", "match", "settle_twice", "drop_free"):
        await sql.execute(name)
