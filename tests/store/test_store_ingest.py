"""What is wanted, rebuilt: equal input touches nothing, and k rows take their digest's k answers, wherever they are."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from store_support import answer, ask, closed, keep_all, number, opened, rejection, request, want

from batchrun.records import BadRow, Fault, Request
from batchrun.rules.canonical import bad_digest
from batchrun.store.store import Pending, Store


def rows_of(keys: list[int]) -> list[Request]:
    return [request(row, key) for row, key in enumerate(keys)]


async def written_by(store: Store, rows: list[Any], chunk: int) -> int:
    before = store._connection.total_changes
    await want(store, rows, chunk)
    return store._connection.total_changes - before


@pytest.mark.parametrize("chunk", [1, 7, 2000])
async def test_an_equal_input_touches_no_row(chunk: int, tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    rows = [*rows_of(list(range(50))), BadRow(50, bad_digest(b"x"), "f:51", "no"), *rows_of(list(range(60)))[51:]]
    assert await written_by(store, rows, chunk) > 60
    await keep_all(store, [answer(request(3)), rejection(request(4))])
    assert await written_by(store, rows, chunk) == 1  # the fence
    assert not (await want(store, rows, chunk)).changed
    await closed(store)


async def test_only_chunks_that_differ_are_written(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of(list(range(1000))), 10)
    edited = list(range(1000))
    edited[555] = 5000
    assert await written_by(store, rows_of(edited), 10) < 40
    await closed(store)


class World:
    """The same in plain Python: what was paid for each key in order of payment, and which keys were rejected."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.paid: dict[int, list[int]] = defaultdict(list)
        self.rejected: set[int] = set()
        self.keys = [self.dice.randrange(12) for _ in range(20)]
        self.newest = 0

    def change(self) -> None:
        dice, keys = self.dice, self.keys
        match dice.randrange(6):
            case 0:
                keys.extend(dice.randrange(16) for _ in range(dice.randrange(1, 6)))
            case 1:
                dice.shuffle(keys)
            case 2:
                keys[dice.randrange(len(keys))] = dice.randrange(16)
            case 3:
                del keys[max(1, dice.randrange(len(keys))) :]
            case 4:
                keys.insert(dice.randrange(len(keys)), dice.choice(keys))
            case 5:
                keys.insert(0, dice.randrange(16))

    def outcomes(self) -> tuple[Any, ...]:
        """How many rows of each key must be answered, and what the rest must be."""
        wanted = {key: self.keys.count(key) for key in self.keys}
        return tuple(sorted((key, min(count, len(self.paid[key]))) for key, count in wanted.items()))


async def pay_some(store: Store, world: World, keys: list[int]) -> None:
    """Some pending rows are answered, a few rejected, and now and then an answer comes twice."""
    items: list[Any] = []
    for row, state in ask(store.path, "select row, state from request"):
        asked, chance = request(row, keys[row]), world.dice.random()
        if state == 0 and chance < 0.3:
            items.append(answer(asked))
        elif state == 0 and chance < 0.35:
            items.append(rejection(asked))
            world.rejected.add(keys[row])
        elif state == 2 and chance < 0.03:
            items.append(answer(asked))
    world.dice.shuffle(items)
    for item in items:
        if not hasattr(item, "fault"):
            world.newest += 1
            world.paid[keys[item.row]].append(world.newest)
    await keep_all(store, items)


def check(store: Store, world: World, *, changed: bool, in_order: bool) -> None:
    rows = ask(store.path, "select row, state, answer, digest from request order by row")
    assert [digest for *_, digest in rows] == [request(0, key).digest for key in world.keys]
    taken: dict[int, list[int]] = defaultdict(list)
    for row, state, link, _ in rows:
        key = world.keys[row]
        if link is not None:
            assert state == 2
            taken[key].append(link)
        elif state == 3 or in_order:
            assert (state == 3) == (key in world.rejected), row
    for key, links in taken.items():
        assert len(set(links)) == len(links), "an answer serves one row"
        assert set(links) <= set(world.paid[key]), "an answer serves its own digest"
        if in_order:
            assert links == world.paid[key][: len(links)]
    if changed:
        assert tuple(sorted((key, len(taken[key])) for key in set(world.keys))) == world.outcomes()
    tally = dict(ask(store.path, "select state, rows from tally"))
    assert tally == {state: sum(row[1] == state for row in rows) for state in range(5)}
    if changed:
        wrong = "select count(*) from paid join request on answer = id where surplus is not null"
        assert number(store.path, wrong) == 0, "a row's answer is no surplus"


async def walk(seed: int, steps: int, chunk: int, tmp_path: Path) -> None:
    world = World(seed)
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of(world.keys), chunk)
    for _ in range(steps):
        await pay_some(store, world, world.keys)
        world.change()
        change = await want(store, rows_of(world.keys), chunk)
        check(store, world, changed=change.changed, in_order=change.changed and chunk > 1000)
    await closed(store)


@pytest.mark.parametrize("chunk", [2000, 3])
@pytest.mark.parametrize("seed", range(2))
async def test_a_walk_of_changes_gives_k_rows_their_k_answers(seed: int, chunk: int, tmp_path: Path) -> None:
    await walk(seed, 60, chunk, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("chunk", [2000, 3, 1])
@pytest.mark.parametrize("seed", range(2, 10))
async def test_a_long_walk_of_changes_gives_k_rows_their_k_answers(seed: int, chunk: int, tmp_path: Path) -> None:
    await walk(seed, 400, chunk, tmp_path)


async def test_an_answer_set_free_serves_a_waiting_row_in_a_stretch_that_did_not_change(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 2, 1, 3]), 2)
    await keep_all(store, [answer(request(0, 1))])
    await want(store, rows_of([9, 2, 1, 3]), 2)
    assert ask(store.path, "select row, answer from request where state = 2") == [(2, 1)]
    await closed(store)


async def test_an_answer_whose_row_was_cut_off_serves_a_waiting_row_that_stayed(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 2, 1]), 2000)
    await keep_all(store, [answer(request(2, 1))])
    await want(store, rows_of([1, 2]), 1)
    assert ask(store.path, "select row, answer from request where state = 2") == [(0, 1)]
    assert (await store.kept()).pending == 1
    await closed(store)


# --- bad rows --------------------------------------------------------------------------------------------------------


def bad(row: int, raw: bytes = b"{") -> BadRow:
    return BadRow(row, bad_digest(raw), f"in.jsonl:{row + 1}", "not JSON")


async def has_bad_rows(store: Store) -> bool:
    return bool((await store.sql.one("has_bad_rows") or (0,))[0])


async def test_bad_rows_are_rejections_that_no_retry_brings_back_and_a_mended_line_does(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, [request(0), bad(1), bad(2, b"["), request(3), bad(4)])
    assert ask(store.path, "select row, fault, message from request join rejection using (digest) order by row") == [
        (1, "bad_row", "in.jsonl:5: not JSON"),
        (2, "bad_row", "in.jsonl:3: not JSON"),
        (4, "bad_row", "in.jsonl:5: not JSON"),
    ]
    await keep_all(store, [rejection(request(3), Fault.SERVER)])
    assert await has_bad_rows(store)
    assert await store.retry_rejections() == 1
    kept = await store.kept()
    assert (kept.pending, kept.rejected) == (2, 3)
    await want(store, [request(0), request(1), bad(2, b"["), request(3), request(4)])
    kept = await store.kept()
    assert (kept.pending, kept.rejected) == (4, 1)
    assert await has_bad_rows(store)
    await want(store, [request(row) for row in range(5)])
    assert not await has_bad_rows(store)
    await closed(store)


class Refused(Exception):  # noqa: N818 - not an error
    pass


async def test_a_rebuild_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 2, 3]))
    await keep_all(store, [answer(request(0, 1)), rejection(request(1, 2))])
    tables = ("request", "tally", "rejection", "paid", "source", "written")
    before = [ask(store.path, f"select * from {table}") for table in tables]
    from batchrun.store.ingest import Ingest

    ingest = Ingest(store)
    await ingest.begin()
    await ingest.add([request(0, 7), bad(1), request(2, 2)])
    with contextlib.suppress(Refused):
        async with store.transaction() as sql:
            change = await ingest.replace(sql)
            raise Refused
    assert (change.unused, change.unused_nano, change.changed) == (1, 70, True)
    await ingest.end()
    assert [ask(store.path, f"select * from {table}") for table in tables] == before
    await closed(store)


async def test_an_answer_that_rows_share_counts_once_in_what_a_change_would_waste(tmp_path: Path) -> None:
    from batchrun.store.ingest import find_twins, share_with_twins

    store = await opened(tmp_path / "c.db")
    await want(store, rows_of([1, 1, 1]))
    await find_twins(store)
    assert [page async for page in store.pending(leaders=True)] == [[Pending(0, request(0, 1).digest, 0)]]
    await keep_all(store, [answer(request(0, 1))])
    await share_with_twins(store)
    assert (await store.kept()).answered == 3
    change = await want(store, rows_of([2, 2, 2]))
    assert (change.unused, change.unused_nano) == (1, 70)
    await closed(store)
