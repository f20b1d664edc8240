"""Batches in the checkpoint: illegal states are refused, old checkpoints go on, and results come in whole or not."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from store_support import FakeClock, answer, closed, keep_all, opened, request, want

from batchrun import door
from batchrun.errors import StorageError
from batchrun.output import cells
from batchrun.records import Completion, Fault, RemoteJob, Request, Usage
from batchrun.rules.remote import BatchState, RemoteBatch
from batchrun.store import batches
from batchrun.store.batches import Draft, Line
from batchrun.store.opening import APPLICATION_ID
from batchrun.store.results import Collected, Refused, Result, Results
from batchrun.store.sql import migrations
from batchrun.store.store import Hidden, Store
from batchrun.store.till import Till
from batchrun.store.view import View

SHA = bytes(32)
COST = 70


@pytest.fixture(autouse=True)
def _door_open() -> Any:
    yield
    door.watch(None)


def draft(rows: Sequence[Request], name: str = "one") -> Draft:
    lines = [Line(row.row, row.digest, len(row.body)) for row in rows]
    return Draft("m", f"batchrun-{name}.jsonl", name, 100, SHA, 500, lines)


async def running(store: Store, rows: Sequence[Request], name: str = "one") -> RemoteBatch:
    """A batch of these rows whose job has ended."""
    batch = await batches.plan(store, draft(rows, name))
    batch = await batches.uploading(store, batch)
    batch = await batches.uploaded(store, batch, f"file-{name}")
    batch = await batches.creating(store, batch, None)
    return await batches.told(store, batch, [RemoteJob(f"job-{name}", f"file-{name}", "COMPLETED")])


def said(text: str = "yes") -> Completion:
    return Completion(f'{{"text": "{text}"}}'.encode(), "m", "stop", Usage(10, 20), None)


NO = Refused(Fault.BAD_REQUEST, 400, "no")


async def chunks(*given: Sequence[Result]) -> AsyncIterator[Sequence[Result]]:
    for chunk in given:
        yield chunk


async def taken(
    store: Store, batch: RemoteBatch, *given: Sequence[Result], job: str | None = None
) -> tuple[RemoteBatch, Collected]:
    results = Results(store, await Till.on(store), batch, job or batch.jobs[0].id, lambda _usage: COST)
    after = await results.take(chunks(*given), lambda: None)
    return after, results.collected


async def states(store: Store) -> list[int]:
    cursor = await store._connection.execute("select state from request order by row")
    return [state for (state,) in await cursor.fetchall()]


async def counted(store: Store) -> dict[int, int]:
    counters = {state: rows for state, rows in await store.sql.all("tally") if rows}
    found = await states(store)
    assert counters == {state: found.count(state) for state in set(found)}
    return counters


# --- what the tables refuse ------------------------------------------------------------------------------------------

PLANNED = (
    "insert into batch(id, model, file_name, nonce, lines, size, sha256, reserved_nano, planned_ms) "
    "values (1, 'm', 'f', 'n', 2, 10, zeroblob(32), 0, 1)"
)
ILLEGAL = [
    "update batch set state = 'lost'",
    "update batch set state = 'uploaded'",  # without a file
    "update batch set state = 'creating', file_id = 'x'",  # without a time
    "update batch set state = 'running', creating_ms = 1",
    "update batch set state = 'collected', file_id = 'x', creating_ms = 1",  # without an end
    "update batch set state = 'abandoned'",
    "update batch set ended_ms = 1",  # over, and yet not
    "update batch set lines = 0",
    "update batch set size = 0",
    "update batch set sha256 = zeroblob(16)",
    "update batch set reserved_nano = -1",
    "update batch set creates = -1",
    "update batch set excuse = 'rain'",
    "update batch set left_remote = 2",
    PLANNED.replace("(1, 'm', 'f', 'n'", "(3, 'm', 'f', 'other'"),  # a file name twice
    PLANNED.replace("(1, 'm', 'f', 'n'", "(3, 'm', 'other', 'n'"),  # a nonce twice
    "insert into batch_line(batch, line, digest, size) values (9, 0, zeroblob(16), 1)",
    "insert into batch_line(batch, line, digest, size) values (1, -1, zeroblob(16), 1)",
    "insert into batch_line(batch, line, digest, size) values (1, 0, zeroblob(8), 1)",
    "insert into batch_line(batch, line, digest, size) values (1, 0, zeroblob(16), 0)",
    "insert into batch_line(batch, line, digest, size, outcome) values (1, 0, zeroblob(16), 1, 3)",
    "insert into batch_job(id, batch, status, seen_ms, moved_ms) values ('j', 9, 'COMPLETED', 1, 1)",
    "insert into missed(digest, times) values (zeroblob(16), 0)",
    "update request set state = 1, answer = 1 where row = 0",  # waits, and yet holds an answer
    "delete from batch where id = 2",  # one that has lines
]


@pytest.mark.parametrize("statement", ILLEGAL)
async def test_illegal_rows_are_refused(statement: str, tmp_path: Path) -> None:
    store = await opened(tmp_path / "a.db")
    await want(store, [request(0)])
    await store._connection.execute(PLANNED)
    await store._connection.execute(PLANNED.replace("(1, 'm', 'f', 'n'", "(2, 'm', 'g', 'o'"))
    await store._connection.execute("insert into batch_line(batch, line, digest, size) values (2, 0, zeroblob(16), 1)")
    with pytest.raises(sqlite3.IntegrityError):
        await store._connection.execute(statement)
    await closed(store)


# --- from version 1 --------------------------------------------------------------------------------------------------


def old_checkpoint(path: Path, rows: Sequence[Request]) -> None:
    """A checkpoint as the first version wrote it: one row answered, one rejected, the rest pending."""
    connection = sqlite3.connect(path)
    connection.executescript(f"{migrations()[0]}\npragma application_id = {APPLICATION_ID};\npragma user_version = 1;")
    for row in rows:
        connection.execute("insert into request(row, digest) values (?, ?)", (row.row, row.digest))
    connection.execute("insert into name(id, text) values (1, 'live'), (2, 'm'), (3, 'stop')")
    connection.execute(
        "insert into paid(id, digest, lane, model, finish, prompt_tokens, completion_tokens, cached_tokens, cost_nano, "
        "latency_ms, attempts, kept_ms, checksum) values (1, ?, 1, 2, 3, 10, 20, 0, 70, 5, 1, 1, 0)",
        (rows[0].digest,),
    )
    connection.execute("insert into body(id, reply) values (1, x'00')")
    connection.execute("update request set state = 2, answer = 1 where row = 0")
    connection.execute("insert into rejection values (?, 'bad_request', 400, 'no', 1, 1)", (rows[1].digest,))
    connection.execute("update request set state = 3 where row = 1")
    connection.execute("insert into spend values (1, 2, 1, 0, 10, 20, 70)")
    connection.execute("update tally set rows = case state when 0 then ? else state in (2, 3) end", (len(rows) - 2,))
    connection.commit()
    connection.close()


async def test_a_checkpoint_of_the_first_version_goes_on(tmp_path: Path) -> None:
    rows = [request(n) for n in range(6)]
    old_checkpoint(tmp_path / "a.db", rows)
    store = await opened(tmp_path / "a.db")
    assert await counted(store) == {0: 4, 2: 1, 3: 1}
    assert (await store.kept()).cost_nano == 70
    assert [pending.misses for page in [p async for p in store.pending()] for pending in page] == [0] * 4
    batch = await running(store, rows[2:])
    assert await counted(store) == {1: 4, 2: 1, 3: 1}
    batch, _ = await taken(store, batch, [Result(n, said()) for n in range(4)])
    await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    assert await counted(store) == {2: 5, 3: 1}
    assert (await store.kept()).cost_nano == 70 + 4 * COST
    await closed(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        assert connection.execute("pragma user_version").fetchone() == (len(migrations()),)
        assert connection.execute("pragma foreign_key_check").fetchall() == []


# --- taking in results -----------------------------------------------------------------------------------------------


async def test_answers_refusals_and_lines_without_either_go_to_their_rows(tmp_path: Path) -> None:
    rows = [request(n) for n in range(4)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    assert await states(store) == [1, 1, 1, 1]
    batch, brought = await taken(store, batch, [Result(2, said()), Result(0, NO)], [Result(1, said())])
    assert (brought.answered, brought.rejected, brought.cost_nano, brought.tokens) == (2, 1, 2 * COST, 60)
    assert (await states(store), batch.left) == ([3, 2, 2, 1], 1)
    await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    assert await counted(store) == {0: 1, 2: 2, 3: 1}
    assert await store.sql.one("has_lines") == (0,)
    (page,) = [page async for page in store.pending()]
    assert [(pending.row, pending.misses) for pending in page] == [(3, 1)]
    await closed(store)


async def test_what_came_twice_in_the_files_of_a_job_counts_once(tmp_path: Path) -> None:
    rows = [request(n) for n in range(3)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    both = [Result(0, said()), Result(0, said("again")), Result(1, NO), Result(1, said("after all"))]
    _, brought = await taken(store, batch, both, [Result(0, NO), Result(7, said()), Result(2, said())])
    assert (brought.answered, brought.rejected) == (2, 1)
    assert await states(store) == [2, 3, 2]
    assert (await store.kept()).replies == 2
    await closed(store)


async def test_a_file_taken_twice_changes_no_row_and_keeps_what_was_paid_again_as_surplus(tmp_path: Path) -> None:
    rows = [request(n) for n in range(3)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    first = [Result(0, said("first")), Result(1, NO), Result(2, said("first"))]
    batch, _ = await taken(store, batch, first)
    before = await store.sql.all("sources"), await states(store)
    job = RemoteJob("job-again", "file-one", "COMPLETED")
    batch = await batches.told(store, batch, [job])
    batch, brought = await taken(store, batch, [Result(0, said("second")), Result(1, NO), Result(2, NO)], job=job.id)
    assert (brought.answered, brought.rejected) == (0, 0)
    assert (await store.sql.all("sources"), await states(store)) == before
    await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    await closed(store)
    with View(store.path) as view:
        assert [outcome.body for outcome in view.outcomes()] == [b'{"text": "first"}', None, b'{"text": "first"}']
        assert view.kept().replies == 3
        assert view.kept().cost_nano == 3 * COST
    with contextlib.closing(sqlite3.connect(store.path)) as connection, connection:
        surplus = connection.execute("select surplus from paid order by id").fetchall()
    assert surplus == [(None,), (None,), ("twice",)]


async def test_an_answer_of_a_second_job_mends_a_refusal_of_the_first(tmp_path: Path) -> None:
    rows = [request(n) for n in range(2)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    batch, _ = await taken(store, batch, [Result(0, NO)])
    assert await states(store) == [3, 1]
    batch = await batches.told(store, batch, [RemoteJob("job-again", "file-one", "COMPLETED")])
    await taken(store, batch, [Result(0, said()), Result(1, said())], job="job-again")
    assert await states(store) == [2, 2]
    assert await counted(store) == {2: 2}
    await closed(store)


async def test_answers_nobody_wants_any_more_wait_for_a_row_that_does(tmp_path: Path) -> None:
    rows = [request(n) for n in range(3)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    change = await want(store, [request(0)])
    assert (change.running, await states(store)) == (2, [1])
    batch, brought = await taken(store, batch, [Result(n, said()) for n in range(3)])
    assert brought.answered == 3
    await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    assert await counted(store) == {2: 1}
    await want(store, [request(0, 2), request(1, 0), request(2, 1), request(3, 3)])
    assert await states(store) == [2, 2, 2, 0]
    await closed(store)


async def test_k_equal_rows_take_what_k_lines_brought_answers_first(tmp_path: Path) -> None:
    rows = [request(n, "same") for n in range(4)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows[:3])
    batch, _ = await taken(store, batch, [Result(0, NO), Result(2, said())])
    assert await states(store) == [2, 3, 1, 0]
    await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    assert await states(store) == [2, 3, 0, 0]
    await closed(store)


async def test_a_rebuild_lets_equal_rows_wait_for_as_many_lines_as_there_are(tmp_path: Path) -> None:
    store = await opened(tmp_path / "a.db")
    await want(store, [request(0, "a"), request(1, "a"), request(2, "b")])
    await running(store, [request(0, "a"), request(1, "a"), request(2, "b")])
    await want(store, [request(0, "b"), request(1, "a"), request(2, "a"), request(3, "a"), request(4, "b")])
    assert await states(store) == [1, 1, 1, 0, 0]
    assert await counted(store) == {0: 2, 1: 3}
    await closed(store)


async def test_a_rebuild_of_one_stretch_counts_the_rows_that_wait_in_the_others(tmp_path: Path) -> None:
    store = await opened(tmp_path / "a.db")
    rows = [request(n, key) for n, key in enumerate("abcd")]
    await want(store, rows, chunk=2)
    await running(store, rows)
    await want(store, [*rows[:2], request(2, "a"), rows[3]], chunk=2)
    assert await states(store) == [1, 1, 0, 1]
    await want(store, [*rows[:2], request(2, "a"), request(3, "c")], chunk=2)
    assert await states(store) == [1, 1, 0, 1]
    await closed(store)


async def test_a_line_that_has_its_answer_is_waited_for_by_nobody(tmp_path: Path) -> None:
    store = await opened(tmp_path / "a.db")
    await want(store, [request(n, "same") for n in range(2)])
    batch = await running(store, [request(n, "same") for n in range(2)])
    await taken(store, batch, [Result(0, said())])
    assert await states(store) == [2, 1]
    await want(store, [request(n, "same") for n in range(4)])
    assert await states(store) == [2, 1, 0, 0]
    await closed(store)


async def test_kept_answers_go_before_running_lines_at_a_rebuild(tmp_path: Path) -> None:
    store = await opened(tmp_path / "a.db")
    await want(store, [request(0, "a"), request(1, "a")])
    await keep_all(store, [answer(request(0, "a"))])
    await running(store, [request(1, "a")])
    await want(store, [request(0, "z"), request(1, "a"), request(2, "a"), request(3, "a")])
    assert await states(store) == [0, 1, 2, 0] or await states(store) == [0, 2, 1, 0]
    await closed(store)


async def test_replies_that_tell_no_usage_keep_the_money_in_doubt(tmp_path: Path) -> None:
    rows = [request(n) for n in range(3)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    silent = Completion(b"{}", "m", "stop", None, None)
    results = Results(store, await Till.on(store), batch, "job-one", lambda usage: COST if usage else None)
    await results.take(chunks([Result(0, said()), Result(1, silent), Result(2, silent)]), lambda: None)
    assert (results.collected.cost_nano, results.collected.unpriced) == (COST, 2)
    assert results.collected.doubt_nano == batch.reserved_nano - COST
    assert await store.hidden() == Hidden(0, batch.reserved_nano - COST)
    assert (await store.kept()).unpriced == 2
    await closed(store)


# --- what must not be left half done ---------------------------------------------------------------------------------


class TornError(Exception):
    """The file could not be read to its end."""


async def torn(*given: Sequence[Result]) -> AsyncIterator[Sequence[Result]]:
    for chunk in given:
        yield chunk
    raise TornError


async def test_a_result_file_that_breaks_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = [request(n) for n in range(4)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)
    till = await Till.on(store)
    with pytest.raises(TornError):
        await Results(store, till, batch, "job-one", lambda _usage: COST).take(
            torn([Result(0, said()), Result(1, NO)]), lambda: None
        )
    assert (await states(store), (await store.kept()).replies) == ([1, 1, 1, 1], 0)
    assert (await batches.read(store, batch.id)).jobs[0].collected is None
    # The same till, which had learned names in the transaction that is gone.
    results = Results(store, till, batch, "job-one", lambda _usage: COST)
    await results.take(chunks([Result(n, said()) for n in range(4)]), lambda: None)
    assert await counted(store) == {2: 4}
    await closed(store)


async def test_a_commit_that_fails_leaves_nothing_of_a_result_file_behind(tmp_path: Path) -> None:
    rows = [request(n) for n in range(4)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    batch = await running(store, rows)

    def full(step: str) -> None:
        if step == "commit":
            raise sqlite3.OperationalError("database or disk is full")

    door.watch(full)
    with pytest.raises(StorageError, match="disk is full"):
        await taken(store, batch, [Result(n, said()) for n in range(4)])
    door.watch(None)
    assert (await states(store), (await store.kept()).replies) == ([1, 1, 1, 1], 0)
    assert await store.sql.all("rejected_rows") == []
    _, brought = await taken(store, await batches.read(store, batch.id), [Result(n, said()) for n in range(4)])
    assert brought.answered == 4
    assert await counted(store) == {2: 4}
    await closed(store)


async def test_results_come_in_while_others_read_the_checkpoint(tmp_path: Path) -> None:
    """SQLite drops no table while a query of the same connection is half read."""
    rows = [request(n) for n in range(200)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    made = [await running(store, rows[n : n + 20], f"n{n}") for n in range(0, 200, 20)]
    await want(store, rows[:190])  # some answers are nobody's
    over = asyncio.Event()

    async def read() -> None:
        while not over.is_set():
            await store.sql.all("digests", first=0, count=200)
            await store.sql.one("tally")

    async def bring(batch: RemoteBatch) -> None:
        after, _ = await taken(store, batch, [Result(n, said()) for n in range(0, 20, 2)])
        await batches.over(store, after, BatchState.COLLECTED, misses=1, told="done")

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read()) for _ in range(3)]
        await asyncio.gather(*(bring(batch) for batch in made))
        over.set()
        await asyncio.gather(*readers)
    assert await counted(store) == {0: 95, 2: 95}
    await closed(store)


async def test_two_results_are_never_taken_in_at_once(tmp_path: Path) -> None:
    rows = [request(n) for n in range(40)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    one, two = await running(store, rows[:20], "one"), await running(store, rows[20:], "two")

    async def slow(batch: RemoteBatch) -> None:
        given = [[Result(n, said())] for n in range(20)]
        await taken(store, batch, *given)

    await asyncio.gather(slow(one), slow(two))
    assert await counted(store) == {2: 40}
    await closed(store)


# --- as others see it ------------------------------------------------------------------------------------------------


async def test_an_export_shows_rows_that_wait_for_a_batch_as_pending(tmp_path: Path) -> None:
    rows = [request(n) for n in range(3)]
    store = await opened(tmp_path / "a.db", FakeClock())
    await want(store, rows)
    batch = await running(store, rows[:2])
    await taken(store, batch, [Result(0, said())])
    await closed(store, "parked")
    with View(store.path) as view:
        assert [cells(outcome)["state"] for outcome in view.outcomes()] == ["answered", "pending", "pending"]
        assert (view.kept().pending, view.kept().submitted) == (2, 1)


async def test_rejected_rows_that_are_tried_again_begin_with_a_clean_sheet(tmp_path: Path) -> None:
    """Else a row that three batches brought no answer for would be given up again without having been sent."""
    rows = [request(n) for n in range(2)]
    store = await opened(tmp_path / "a.db")
    await want(store, rows)
    for n in range(3):
        batch = await running(store, rows, f"n{n}")
        await batches.over(store, batch, BatchState.COLLECTED, misses=1, told="done")
    (page,) = [page async for page in store.pending()]
    assert [pending.misses for pending in page] == [3, 3]
    batch = await running(store, rows, "last")
    await taken(store, batch, [Result(0, NO), Result(1, NO)])
    assert await store.retry_rejections() == 2
    (page,) = [page async for page in store.pending()]
    assert [pending.misses for pending in page] == [0, 0]
    await closed(store)
