"""Kept before counted: `keep` returns after COMMIT or raises, in groups, and nothing is half kept."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from store_support import FakeClock, answer, ask, closed, keep_all, keeping, number, opened, rejection, request, want
from support import MakeJob, content, paid_for, prompt, start, write_prompts

from batchrun import door
from batchrun.errors import StorageError
from batchrun.records import Doubt
from batchrun.reports import Event
from batchrun.simulator import Settings, Simulator
from batchrun.store.keeper import LONGEST_GAP, SHORTEST_GAP, gap
from batchrun.store.store import Store

EVERYTHING = ("paid", "body", "rejection", "event", "name", "spend", "pulse", "tally", "request", "run")


def all_of(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {table: ask(path, f"select * from {table} order by 1") for table in EVERYTHING}


def full(step: str) -> None:
    if step == "commit":
        raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await opened(tmp_path / "c.db")
    await want(made, [request(row) for row in range(200)])
    yield made
    await made.release()


async def test_keep_returns_after_the_commit_and_not_before(store: Store) -> None:
    seen: list[tuple[int, bool]] = []

    def look(step: str) -> None:
        if step == "commit":
            seen.append((number(store.path, "select count(*) from paid"), waiting.done()))

    async with keeping(store) as keeper:
        waiting = asyncio.ensure_future(keeper.keep(answer(request(3))))
        door.watch(look)
        await waiting
        assert number(store.path, "select count(*) from paid") == 1
        assert number(store.path, "select answer from request where row = 3") == 1
    assert seen == [(0, False)]
    await closed(store)


KINDS = [answer(request(1)), rejection(request(2)), Doubt(500), Event(0.0, "throttled", "slower")]


@pytest.mark.parametrize("item", KINDS, ids=lambda item: type(item).__name__)
async def test_a_failing_commit_raises_from_keep_and_leaves_no_trace(item: Any, store: Store) -> None:
    await keep_all(store, [answer(request(0))])
    before = all_of(Path(store.path))
    door.watch(full)
    waiting: list[asyncio.Future[None]] = []

    async def keep_them() -> None:
        async with keeping(store) as keeper:
            waiting.extend(asyncio.ensure_future(keeper.keep(one)) for one in (*KINDS, item))
            await asyncio.wait(waiting)

    with pytest.raises(ExceptionGroup) as caught:
        await keep_them()
    assert caught.group_contains(StorageError, match="disk is full")
    assert [type(task.exception()) for task in waiting] == [StorageError] * 5
    assert all_of(Path(store.path)) == before
    door.watch(None)
    await keep_all(store, [item])
    await closed(store)


async def test_a_really_full_file_raises_from_keep_and_leaves_no_trace(store: Store) -> None:
    await keep_all(store, [answer(request(0))])
    pages = number(store.path, "pragma page_count")
    await store._connection.execute(f"pragma max_page_count = {pages}")
    before = all_of(Path(store.path))
    big = [answer(request(row), body=bytes(range(256)) * row) for row in range(100, 140)]
    with pytest.raises(ExceptionGroup) as caught:
        await keep_all(store, big)
    assert caught.group_contains(StorageError, match="disk is full")
    assert all_of(Path(store.path)) == before
    await store.release()
    again = await opened(store.path)
    await keep_all(again, big)
    assert (await again.kept()).answered == 41
    await closed(again)


async def test_a_full_disk_ends_the_run_and_the_next_start_counts_what_it_may_hide(
    tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(120))
    async with Simulator(Settings(latency=0.001)) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 8})
        commits = 0

        def fail_later(step: str) -> None:
            nonlocal commits
            commits += step == "commit"
            if commits >= 12:
                full(step)

        door.watch(fail_later)
        with pytest.raises(StorageError, match="disk is full") as caught:
            await start(job)
        assert caught.value.exit_code == 11
        door.watch(None)
        marks = number(job.checkpoint, "select mark_calls from run")
        kept = number(job.checkpoint, "select count(*) from request where state = 2")
        paid_before = len(simulator.account.charges)
        assert kept <= paid_before <= kept + marks
        report = await start(job)
        assert (report.exit_code, report.answered, report.answered_now) == (0, 120, 120 - kept)
        assert marks <= report.maybe_twice
        assert set(paid_for(simulator.account.charges)) == {content(prompt(n)) for n in range(120)}
        assert len(simulator.account.charges) - 120 <= marks
    assert ask(job.checkpoint, "select state from run order by id") == [("crashed",), ("finished",)]


async def test_cancelling_whoever_waits_does_not_take_the_answer_back(store: Store) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with keeping(store) as keeper:
        door.watch(lambda _: loop.call_soon_threadsafe(begun.set))
        early = asyncio.ensure_future(keeper.keep(answer(request(0))))
        await asyncio.sleep(0)
        early.cancel()
        late = asyncio.ensure_future(keeper.keep(answer(request(1))))
        await begun.wait()
        late.cancel()
        await asyncio.wait({early, late})
        assert early.cancelled()
    assert ask(store.path, "select row from request where state = 2") == [(0,), (1,)]
    await closed(store)


async def test_closing_keeps_what_still_waits(store: Store) -> None:
    async with asyncio.TaskGroup() as group:
        from batchrun.store.keeper import Keeper
        from batchrun.store.till import Till

        keeper = Keeper(store, await Till.on(store))
        waiting = [group.create_task(keeper.keep(answer(request(row)))) for row in range(5)]
        await asyncio.sleep(0)
        keeper.close()
        group.create_task(keeper.run())
    assert all(task.done() for task in waiting)
    assert number(store.path, "select count(*) from paid") == 5
    await closed(store)


# --- groups ----------------------------------------------------------------------------------------------------------


def counted_commits() -> list[str]:
    steps: list[str] = []
    door.watch(lambda step: steps.append(step) if step == "commit" else None)
    return steps


async def test_many_in_flight_make_few_commits(store: Store) -> None:
    steps = counted_commits()
    await keep_all(store, [answer(request(row)) for row in range(200)])
    assert len(steps) == 1
    await closed(store)


async def test_an_idle_keeper_commits_at_once_and_a_busy_one_waits_for_the_rest_of_the_gap(store: Store) -> None:
    clock = store.clock
    assert isinstance(clock, FakeClock)
    async with keeping(store) as keeper:
        await keeper.keep(answer(request(0), latency_ms=600))
        assert clock.slept == []
        await keeper.keep(answer(request(1), latency_ms=600))
        assert clock.slept == pytest.approx([0.012])
        clock.at += 0.004
        await keeper.keep(answer(request(2), latency_ms=600))
        assert clock.slept == pytest.approx([0.012, 0.008])
        clock.at += 0.012
        await keeper.keep(answer(request(3), latency_ms=600))
        assert len(clock.slept) == 2
    await closed(store)


@pytest.mark.parametrize(
    ("latencies", "seconds"),
    [
        ([], SHORTEST_GAP),
        ([0.0], SHORTEST_GAP),
        ([0.2], SHORTEST_GAP),
        ([0.25], 0.005),
        ([0.5], 0.010),
        ([1.25], LONGEST_GAP),
        ([600.0], LONGEST_GAP),
        ([0.1, 0.5, 600.0], 0.010),
        ([0.5, 1.0], 0.010),
        ([1.0] * 50 + [0.01] * 51, SHORTEST_GAP),
    ],
)
def test_the_gap_is_two_per_cent_of_the_median_latency_within_bounds(
    latencies: Sequence[float], seconds: float
) -> None:
    assert gap(latencies) == pytest.approx(seconds)


# --- surplus ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
async def test_two_answers_for_one_row_are_both_kept_and_the_second_serves_a_later_equal_row(
    together: bool, tmp_path: Path
) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, [request(0, "same")])
    both = [answer(request(0, "same"), body=b"first"), answer(request(0, "same"), body=b"second")]
    for group in [both] if together else [[one] for one in both]:
        await keep_all(store, group)
    assert ask(store.path, "select id, surplus from paid order by id") == [(1, None), (2, "twice")]
    assert ask(store.path, "select state, answer from request") == [(2, 1)]
    kept = await store.kept()
    assert (kept.answered, kept.replies, kept.cost_nano) == (1, 2, 140)
    await want(store, [request(0, "same"), request(1, "same"), request(2, "same")])
    assert ask(store.path, "select row, state, answer from request") == [(0, 2, 1), (1, 2, 2), (2, 0, None)]
    await closed(store)


@pytest.mark.parametrize("why", ["cut", "invalid"])
async def test_surplus_that_is_no_good_serves_nobody(why: str, tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, [request(0, "same")])
    await keep_all(store, [answer(request(0, "same")), answer(request(0, "same"))])
    async with store.transaction():
        await store._connection.execute("update paid set surplus = ? where id = 2", (why,))
    await want(store, [request(0, "same"), request(1, "same")])
    assert ask(store.path, "select state, answer from request") == [(2, 1), (0, None)]
    await closed(store)


async def test_an_answer_whose_row_is_gone_is_kept_and_an_equal_row_takes_it(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    await want(store, [request(0)])
    await keep_all(store, [answer(request(7))])
    assert ask(store.path, "select surplus from paid") == [("twice",)]
    await want(store, [request(0), request(1, 7)])
    assert ask(store.path, "select state, answer from request") == [(0, None), (2, 1)]
    await closed(store)
