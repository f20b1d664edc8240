"""The ledger: every paid reply is useful, wasted or unused at any moment, and counts once whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from store_support import answer, ask, closed, keep_all, number, opened, rejection, request, want
from support import assert_ledger

from batchrun import door
from batchrun.errors import StorageError, UsageError
from batchrun.faces.words import of_use, spent
from batchrun.job import Repairs
from batchrun.records import Before, Completion, Fault, Lane, RemoteJob
from batchrun.reports import Entry
from batchrun.rules.probing import PROBE_ROW
from batchrun.rules.remote import RemoteBatch
from batchrun.store import batches, ledger
from batchrun.store.batches import Draft, Line
from batchrun.store.ingest import find_twins, share_with_twins
from batchrun.store.ledger import Heap, Prunable
from batchrun.store.opening import APPLICATION_ID
from batchrun.store.results import Result, Results
from batchrun.store.sql import migrations
from batchrun.store.store import Store
from batchrun.store.till import Till
from batchrun.store.view import View

COST = 70  # nano-dollars of a reply in these tests


def rows_of(keys: list[int]) -> list[Any]:
    return [request(row, key) for row, key in enumerate(keys)]


def unused(store: Store) -> list[int]:
    assert_ledger(store.path)
    return [number for (number,) in ask(store.path, "select id from paid where unused = 1 order by id")]


def held(store: Store) -> list[int | None]:
    return [link for (link,) in ask(store.path, "select answer from request order by row")]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Four rows, answered in their order by the replies 1 to 4."""
    made = await opened(tmp_path / "c.db")
    await want(made, rows_of([0, 1, 2, 3]))
    for row in range(4):
        await keep_all(made, [answer(request(row))])
    yield made
    await made.release()


# --- unused ----------------------------------------------------------------------------------------------------------


async def test_the_answer_of_a_row_that_is_removed_or_edited_is_unused_until_it_comes_back(store: Store) -> None:
    assert unused(store) == []
    change = await want(store, rows_of([0, 9, 2]))
    assert (change.unused, change.unused_nano) == (2, 2 * COST)
    assert unused(store) == [2, 4]
    change = await want(store, rows_of([0, 9, 2, 1]))
    assert (change.unused, change.unused_nano) == (-1, -COST)
    assert (unused(store), held(store)) == ([4], [1, None, 3, 2])
    await want(store, rows_of([3, 2, 1, 0]))
    assert (unused(store), held(store)) == ([], [4, 3, 2, 1])


async def test_a_rebuild_that_is_refused_leaves_every_mark(store: Store) -> None:
    await want(store, rows_of([0, 1]))
    before = ask(store.path, "select * from paid")
    from batchrun.store.ingest import Ingest

    ingest = Ingest(store)
    await ingest.begin()
    await ingest.add(rows_of([3, 8]))
    with contextlib.suppress(UsageError):
        async with store.transaction() as sql:
            assert (await ingest.replace(sql)).changed
            raise UsageError("no")
    await ingest.end()
    assert ask(store.path, "select * from paid") == before
    await want(store, rows_of([0, 1, 2, 3]))
    assert (unused(store), held(store)) == ([], [1, 2, 3, 4])


async def test_a_reply_that_came_twice_is_wasted_and_useful_when_an_equal_row_takes_it(store: Store) -> None:
    await keep_all(store, [answer(request(1))])
    (entry,) = await ledger.read(store)
    assert (entry.useful, entry.wasted, entry.unused, entry.reasons) == (4, 1, 0, {"twice": 1})
    assert (entry.useful_nano, entry.wasted_nano) == (4 * COST, COST)
    await want(store, rows_of([0, 1, 2, 3, 1]))
    (entry,) = await ledger.read(store)
    assert (entry.useful, entry.wasted, entry.unused, entry.reasons) == (5, 0, 0, {})


async def test_an_answer_that_rows_share_is_unused_when_the_last_of_them_is_gone(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 1, 1, 2]))
    await find_twins(store)
    await keep_all(store, [answer(request(0, 1)), answer(request(3, 2))])
    await share_with_twins(store)
    assert held(store).count(1) == 3
    for keys, left in (([1, 1, 2], []), ([5, 1, 2], []), ([5, 6, 2], [1])):
        await want(store, rows_of(keys), chunk=1)
        assert unused(store) == left, keys
    await closed(store)


async def test_a_twin_that_takes_another_answer_leaves_its_own_to_waste(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 1]))
    cut = [replace(answer(request(row, 1), fault=Fault.CUT_SHORT), wants_better=True) for row in range(2)]
    await keep_all(store, cut)
    await find_twins(store)
    better = replace(answer(request(0, 1)), before=Before(held(store)[0] or 0, Fault.CUT_SHORT, 0, None))
    await keep_all(store, [better])
    await share_with_twins(store)
    (entry,) = await ledger.read(store)
    assert (entry.useful, entry.reasons) == (1, {"cut": 1, "twice": 1})
    await want(store, rows_of([7]))
    assert unused(store) == [3]
    await closed(store)


async def test_a_better_reply_leaves_a_wasted_one_and_a_probe_is_wasted(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([0, 1]))
    await store.want_better(Repairs(length_retries=1))
    for row, fault in enumerate((Fault.CUT_SHORT, Fault.INVALID_OUTPUT)):
        await keep_all(store, [replace(answer(request(row), fault=fault), wants_better=True)])
        before = Before(held(store)[row] or 0, fault, 0, None)
        await keep_all(store, [replace(answer(request(row), cost=None), before=before)])
    await keep_all(store, [replace(answer(request(5), cost=3), row=PROBE_ROW)])
    (entry,) = await ledger.read(store)
    assert entry.reasons == {"cut": 1, "invalid": 1, "probe": 1}
    assert (entry.useful, entry.useful_nano, entry.unpriced, entry.wasted_unpriced) == (2, 0, 2, 0)
    assert (entry.wasted, entry.wasted_nano) == (3, 2 * COST + 3)
    assert of_use(entry) == [
        "useful 2: unknown (2 answers of unknown price)",
        "wasted 3: $0.000000 (1 cut short, 1 not as the schema wants, 1 to see whether the model answers)",
    ]
    with View(store.path) as view:
        assert view.ledger() == [entry]
    await closed(store)


async def test_lanes_and_models_are_told_apart(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([0, 1, 2, 3]))
    for row, (model, lane) in enumerate((m, lane) for m in "ba" for lane in Lane):
        await keep_all(store, [answer(request(row), model=model, lane=lane)])
    await want(store, rows_of([0, 1, 2]))
    found = {(e.lane, e.model): (e.replies, e.useful, e.unused_nano) for e in await ledger.read(store)}
    assert found == {
        ("live", "b"): (1, 1, 0), ("batch", "b"): (1, 1, 0), ("live", "a"): (1, 1, 0), ("batch", "a"): (1, 0, COST),
    }  # fmt: skip
    await closed(store)


# --- batches ---------------------------------------------------------------------------------------------------------


async def sent(store: Store, count: int) -> RemoteBatch:
    """A batch whose job is at the provider, with a line for each of these rows."""
    lines = [Line(row, request(row).digest, 100) for row in range(count)]
    batch = await batches.plan(store, Draft("m", "one.jsonl", "one", 100, bytes(32), 500, lines))
    batch = await batches.uploaded(store, await batches.uploading(store, batch), "file-1")
    batch = await batches.creating(store, batch, None)
    return await batches.told(store, batch, [RemoteJob("job-1", "file-1", "COMPLETED")])


async def taken(store: Store, batch: RemoteBatch, said: list[Result], breaks: Exception | None = None) -> None:
    async def chunks() -> AsyncIterator[list[Result]]:
        yield said
        if breaks is not None:
            raise breaks

    await Results(store, await Till.on(store), batch, "job-1", lambda _usage: COST).take(chunks(), lambda: None)


def good(line: int) -> Result:
    said: Completion = answer(request(line)).completion
    return Result(line, said)


async def test_lines_that_no_row_wants_any_more_are_unused_until_their_rows_come_back(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([0, 1, 2, 3]))
    batch = await sent(store, 4)
    await want(store, rows_of([0, 8]))
    await taken(store, batch, [good(line) for line in range(4)])
    assert (unused(store), held(store)) == ([2, 3, 4], [1, None])
    await want(store, rows_of([0, 3, 1]))
    assert (unused(store), held(store)) == ([3], [1, 4, 2])
    await closed(store)


async def test_a_line_serves_a_row_that_was_given_up_meanwhile(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([0, 1]))
    batch = await sent(store, 1)
    await want(store, rows_of([9, 1, 0]))
    async with store.transaction() as sql:
        await sql.execute("unclaim_rows")
    await keep_all(store, [rejection(request(2, 0))])
    async with store.transaction() as sql:
        await sql.recount()
    await taken(store, batch, [good(0)])
    assert (unused(store), held(store)) == ([], [None, None, 1])
    await closed(store)


async def test_what_a_job_left_counts_once_however_often_it_is_taken(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([0, 1, 2]))
    batch = await sent(store, 3)
    for breaks in (ConnectionError(), None, None):  # broken off in the middle, taken, and taken once more
        with contextlib.suppress(ConnectionError):
            await taken(store, batch, [good(line) for line in range(3)], breaks)
        assert_ledger(store.path)
        (entry,) = await ledger.read(store) or [None]
        assert (entry and entry.replies, entry and entry.useful_nano) == (
            (None, None) if breaks is not None else (3, 3 * COST)
        )
    await closed(store)


# --- an old checkpoint -----------------------------------------------------------------------------------------------


def old_checkpoint(path: Path) -> None:
    """Version 3, with an answer, one that no row holds, and one that came twice."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as sql:
        for step in migrations()[:3]:
            sql.executescript(step)
        sql.executescript(f"pragma application_id = {APPLICATION_ID}; pragma user_version = 3")
        sql.executemany("insert into name(id, text) values (?, ?)", enumerate(("live", "m", "stop"), start=1))
        for paid, key in ((1, 0), (2, 1), (3, 0)):
            sql.execute(
                "insert into paid(id, digest, lane, model, finish, prompt_tokens, completion_tokens, cost_nano, "
                "latency_ms, attempts, kept_ms, checksum, surplus) values (?, ?, 1, 2, 3, 1, 2, 70, 0, 1, 0, 0, ?)",
                (paid, request(0, key).digest, "twice" if paid == 3 else None),
            )
            sql.execute("insert into body(id, reply) values (?, x'00')", (paid,))
        sql.execute("insert into spend values (1, 2, 3, 0, 3, 6, 210)")
        sql.execute("insert into request(row, digest, state, answer) values (0, ?, 2, 1)", (request(0).digest,))
        sql.execute("update tally set rows = 1 where state = 2")


async def test_an_old_checkpoint_learns_what_no_row_holds(tmp_path: Path) -> None:
    old_checkpoint(tmp_path / "c.db")
    store = await opened(tmp_path / "c.db")
    assert unused(store) == [2]
    (entry,) = await ledger.read(store)
    assert (entry.useful, entry.wasted, entry.unused) == (1, 1, 1)
    await want(store, rows_of([0, 1, 0]))
    assert (unused(store), held(store)) == ([], [1, 2, 3])
    await closed(store)


ILLEGAL = {
    "a reply unused and wasted": "update paid set unused = 1 where id = 3",
    "a wasted reply that is unused too": "update paid set surplus = 'cut' where id = 2",
    "an answer that is pruned": "delete from body; update paid set pruned = 1 where id = 1",
    "a pruned reply with a body": "update paid set pruned = 1 where id = 2",
    "a pruned reply that is of use again": "delete from body; update paid set pruned = 1 where id = 2;"
    "update paid set unused = 0 where id = 2",
    "half unused": "update paid set unused = 2 where id = 2",
    "half pruned": "delete from body; update paid set pruned = 2 where id = 2",
    "a row with an unused answer": "update request set answer = 2 where row = 0",
    "a row with a wasted answer": "update request set answer = 3 where row = 0",
}


@pytest.mark.parametrize("row", ILLEGAL)
async def test_money_that_does_not_add_up_is_refused(row: str, tmp_path: Path) -> None:
    old_checkpoint(tmp_path / "c.db")
    await closed(await opened(tmp_path / "c.db"))
    *before, last = ILLEGAL[row].split(";")
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as sql:
        sql.execute("begin")
        for step in before:
            sql.execute(step)
        with pytest.raises(sqlite3.IntegrityError):
            sql.execute(last)
        sql.execute("rollback")


# --- prune -----------------------------------------------------------------------------------------------------------


def could_go(store: Store, *, keep_unused: bool = False) -> Prunable:
    with View(store.path) as view:
        return view.prunable(keep_unused=keep_unused)


async def aside(store: Store) -> Prunable:
    """Two unused replies and a wasted one."""
    await keep_all(store, [answer(request(0))])
    await want(store, rows_of([0, 1]))
    assert unused(store) == [3, 4]
    return could_go(store)


async def test_bodies_go_the_money_stays_and_a_row_that_comes_back_is_asked_again(store: Store) -> None:
    found = await aside(store)
    sizes = dict(ask(store.path, "select id, length(reply) from body"))
    assert found == Prunable(Heap(2, 0, 2 * COST, sizes[3] + sizes[4]), Heap(1, 0, COST, sizes[5]))
    before = await ledger.read(store)
    await ledger.prune(store, found, keep_unused=False)
    assert await ledger.read(store) == before
    assert ask(store.path, "select id from body") == [(1,), (2,)]
    assert could_go(store) == Prunable()
    await store.release()
    again = await opened(store.path)
    change = await want(again, rows_of([0, 1, 2, 3, 0]))
    assert (change.unused, held(again)) == (0, [1, 2, None, None, None])
    assert (await again.kept()).cost_nano == 5 * COST
    await keep_all(again, [answer(request(2))])
    with View(again.path) as view:
        assert [outcome.body is None for outcome in view.outcomes()] == [False, False, False, True, True]
    await closed(again)


async def test_only_the_wasted_ones_go_when_unused_ones_are_to_stay(store: Store) -> None:
    await aside(store)
    found = could_go(store, keep_unused=True)
    assert (found.unused, found.wasted.replies) == (Heap(), 1)
    await ledger.prune(store, found, keep_unused=True)
    assert could_go(store).unused.replies == 2
    await store.release()
    again = await opened(store.path)
    await want(again, rows_of([0, 1, 2, 3, 0]))
    assert held(again) == [1, 2, 3, 4, None]
    await closed(again)


async def test_nothing_goes_when_it_is_not_what_was_spoken_of(store: Store) -> None:
    found = await aside(store)
    await want(store, rows_of([0]))
    with pytest.raises(UsageError, match="has changed"):
        await ledger.prune(store, found, keep_unused=False)
    assert number(store.path, "select count(*) from body") == 5


async def test_a_removal_that_breaks_off_has_removed_nothing_and_can_be_made_again(store: Store) -> None:
    found = await aside(store)

    def refuse(step: str) -> None:
        if step == "commit":
            raise StorageError("The disk is full.")

    door.watch(refuse)
    with pytest.raises(StorageError):
        await ledger.prune(store, found, keep_unused=False)
    door.watch(None)
    assert (number(store.path, "select count(*) from body"), could_go(store)) == (5, found)
    await ledger.prune(store, found, keep_unused=False)
    assert number(store.path, "select count(*) from body") == 2


async def test_the_disk_has_the_room_back_unless_there_is_none_for_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for room in (0, 10**12):
        path = tmp_path / f"{room}.db"
        store = await opened(path)
        await want(store, rows_of(list(range(40))))
        await keep_all(store, [answer(request(row), body=random.Random(row).randbytes(20_000)) for row in range(40)])
        await want(store, rows_of([0]))
        with View(store.path) as view:
            found = view.prunable(keep_unused=False)
        await ledger.prune(store, found, keep_unused=False)
        monkeypatch.setattr(ledger, "_free", lambda _path, room=room: room)
        given_back = await ledger.give_back(store)
        assert (given_back > 700_000) == bool(room)
        await store.release()
        sizes[room] = path.stat().st_size
        again = await opened(path)
        assert held(again) == [1]
        await closed(again)
    assert sizes[0] > 800_000 > 200_000 > sizes[10**12]


async def test_a_long_reader_neither_holds_it_up_nor_loses_what_it_reads(store: Store) -> None:
    found = await aside(store)
    with View(store.path) as view:
        outcomes = view.outcomes()
        seen = [next(outcomes)]
        await ledger.prune(store, found, keep_unused=False)
        await ledger.give_back(store)
        seen += outcomes
    assert [outcome.body for outcome in seen] == [b'{"text": "yes"}'] * 2


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nano", "unpriced", "told"),
    [
        (0, 0, "$0.00"),
        (1_200_000_000, 0, "$1.2000"),
        (0, 40, "unknown (40 answers of unknown price)"),
        (0, 1, "unknown (1 answer of unknown price)"),
        (1_200_000_000, 40, "$1.2000 and 40 answers of unknown price"),
    ],
)
def test_what_is_not_known_is_never_shown_as_nothing(nano: int, unpriced: int, told: str) -> None:
    assert spent(nano, unpriced) == told


def test_of_use_names_only_what_there_is() -> None:
    entry = Entry("live", "m", 3, 0, 1, 1, 30, 2, 20, 0, 0, 1, 10)
    assert of_use(entry) == ["useful 2: $0.000000", "unused 1: $0.000000"]


async def test_a_walk_of_everything_keeps_the_books(tmp_path: Path) -> None:
    """Rows come and go, answers come once and twice, are better or not, shared or not: at each step all adds up."""
    dice = random.Random(5)
    store = await opened(tmp_path / "c.db")
    keys = [dice.randrange(8) for _ in range(12)]
    await want(store, rows_of(keys))
    for step in range(120):
        match dice.randrange(6):
            case 0:
                keys = [dice.choice([key, dice.randrange(8)]) for key in keys][: dice.randrange(6, 13)]
                keys += [dice.randrange(8) for _ in range(dice.randrange(4))]
                await want(store, rows_of(keys), dice.choice([1, 5, 2000]))
            case 1:
                await store.want_better(dice.choice([Repairs(), Repairs(length_retries=3, invalid_retries=2)]))
            case 2:
                await find_twins(store)
                await share_with_twins(store)
                store.shares = False
            case 3 if not dice.randrange(3):
                found = could_go(store)
                await ledger.prune(store, found, keep_unused=False)
                await store.release()
                store = await opened(tmp_path / "c.db")
            case _:
                await keep_all(store, await outcomes(store, keys, dice))
        await asyncio.sleep(0)
        assert_ledger(store.path)
        assert number(store.path, "select count(*) from request where answer is not null") <= len(keys), step
    await closed(store)


async def outcomes(store: Store, keys: list[int], dice: random.Random) -> list[Any]:
    """Replies to some rows: first ones, second ones, and some that are no better than what is there."""
    items: list[Any] = []
    for again in (False, True):
        async for page in store.pending(again=again):
            for row in page:
                fault = dice.choice([None, None, Fault.CUT_SHORT, Fault.INVALID_OUTPUT, Fault.FILTERED])
                made = answer(request(row.row, keys[row.row]), fault=fault, cost=dice.choice([None, 70]))
                better = fault in {Fault.CUT_SHORT, Fault.INVALID_OUTPUT} and dice.random() < 0.5
                if dice.random() < 0.4:
                    items.append(replace(made, before=row.before, wants_better=better))
    row_twice = dice.randrange(len(keys))
    return [*items, answer(request(row_twice, keys[row_twice]))]
