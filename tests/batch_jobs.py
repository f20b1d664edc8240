"""What tests of whole batch jobs share: the settings that make a job one, and what must hold of every checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import MODEL

from batchrun.clock import RealClock
from batchrun.job import Batching, Job
from batchrun.records import Price, Route
from batchrun.reports import Report
from batchrun.runner import Options, Run

# At this price, in nano-dollars a token, the discount is worth waiting for a batch.
DEAR = {MODEL: Price(100_000_000, 100_000_000)}
PATIENCE = 30.0  # seconds after which a test is taken to hang


def batching(route: Route = Route.BATCH, **fields: Any) -> dict[str, Any]:
    """The fields of a job that goes out in batches, by the user's wish or because that is cheaper."""
    made: dict[str, Any] = {
        "route": route,
        "batching": Batching(**{"lines": 50, "poll": 0.02, "grace": 0.05, **fields}),
    }
    return made if route is Route.BATCH else {**made, "discounts": {MODEL: 0.5}, "prices": DEAR}


class Hurried(RealClock):
    """A clock on which half an hour of waiting passes in a second: waits keep their order and their proportions."""

    SPEED = 2000.0

    def monotonic(self) -> float:
        return super().monotonic() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self.SPEED)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await super().wait(event, seconds / self.SPEED)


async def one_start(job: Job, clock: RealClock | None = None, **options: Any) -> Report:
    """One start, which must come to an end and leave a checkpoint in which everything fits together."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await Run(job, "any-key", clock, Options(**options)).go()
    finally:
        if Path(job.checkpoint).exists():
            assert_sound(job)


@contextlib.contextmanager
def looking_into(job: Job) -> Iterator[sqlite3.Connection]:
    """The closed checkpoint, to be read by hand."""
    connection = sqlite3.connect(f"file:{job.checkpoint}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def assert_sound(job: Job) -> None:
    """What holds of a checkpoint whatever has happened to it."""
    with looking_into(job) as sql:
        tally = dict(sql.execute("select state, rows from tally where rows > 0"))
        assert tally == dict(sql.execute("select state, count(*) from request group by state"))
        replies, cost = sql.execute("select count(*), coalesce(sum(cost_nano), 0) from paid").fetchone()
        assert (replies, cost) == sql.execute(
            "select coalesce(sum(replies), 0), coalesce(sum(cost_nano), 0) from spend"
        ).fetchone()
        strangers = "select row from request join paid on paid.id = answer where paid.digest <> request.digest"
        assert not sql.execute(strangers).fetchall()
        if not job.dedupe:
            assert not sql.execute("select answer from request group by answer having count(answer) > 1").fetchall()
        assert not sql.execute(
            "select row from request join paid on paid.id = answer where surplus is not null"
        ).fetchall()
        waiting = Counter(digest for (digest,) in sql.execute("select digest from request where state = 1"))
        assert waiting <= _lines(sql), "a row waits for a batch that does not ask for it"
        assert not sql.execute("select row from request where state = 3 and digest not in (select digest from rejection)").fetchall()  # fmt: skip # noqa: E501
        assert not sql.execute(
            "select id from batch where state = 'collected' and id in (select batch from batch_line)"
        ).fetchall()


def _lines(sql: sqlite3.Connection) -> Counter[bytes]:
    return Counter(
        digest
        for (digest,) in sql.execute(
            "select digest from batch_line join batch on batch.id = batch "
            "where outcome = 0 and batch.state not in ('collected', 'abandoned')"
        )
    )


def surplus_of(job: Job) -> int:
    """Paid replies that are no row's answer."""
    with looking_into(job) as sql:
        return int(
            sql.execute(
                "select count(*) from paid where id not in (select answer from request where answer is not null)"
            ).fetchone()[0]
        )


def rows_by_state(job: Job) -> dict[int, int]:
    with looking_into(job) as sql:
        return dict(sql.execute("select state, count(*) from request group by state"))


def batches_by_state(job: Job) -> dict[str, int]:
    with looking_into(job) as sql:
        return dict(sql.execute("select state, count(*) from batch group by state"))


def misses(job: Job) -> int:
    with looking_into(job) as sql:
        return int(sql.execute("select coalesce(sum(times), 0) from missed").fetchone()[0])


def diary(job: Job) -> str:
    with looking_into(job) as sql:
        return "\n".join(detail for (detail,) in sql.execute("select detail from event order by id"))
