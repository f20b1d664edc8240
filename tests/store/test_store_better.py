"""A row may want a better answer than it holds: of two replies the better one is its answer, and nothing is lost."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from store_support import answer, ask, closed, keep_all, keeping, number, opened, rejection, request, want

from batchrun.job import Repairs
from batchrun.records import Answer, Before, Content, Fault, Request, Usage
from batchrun.rules.probing import PROBE_ROW
from batchrun.rules.remote import RemoteBatch
from batchrun.rules.repair import AS_ASKED, Repair, is_better
from batchrun.store import batches
from batchrun.store.batches import Draft, Line
from batchrun.store.ingest import find_twins, share_with_twins
from batchrun.store.keeper import Keeper
from batchrun.store.opening import APPLICATION_ID
from batchrun.store.results import Refused, Result, Results
from batchrun.store.sql import migrations
from batchrun.store.store import Pending, Store
from batchrun.store.till import Till

CUT, INVALID, FILTERED = Fault.CUT_SHORT, Fault.INVALID_OUTPUT, Fault.FILTERED
ONCE = Repairs(length_retries=1)
EVER = Repairs(length_retries=3, invalid_retries=3)
ROWS = 6
_FINISH = {None: "stop", CUT: "length", INVALID: "stop", FILTERED: "content_filter"}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await opened(tmp_path / "c.db")
    await want(made, [request(row) for row in range(ROWS)])
    yield made
    await made.release()


def reply(asked: Request, fault: Fault | None, before: Before | None = None, *, better: bool = False) -> Answer:
    made = answer(asked, fault=fault, finish=_FINISH[fault])
    return replace(made, before=before, wants_better=better)


async def kept(store: Store, item: Any) -> int:
    async with keeping(store) as keeper:
        return await keeper.keep(item) or 0


async def first_cut(store: Store, row: int = 2, fault: Fault = CUT) -> tuple[Request, Before]:
    """A row that holds a reply and wants a better one."""
    asked = request(row)
    found = await kept(store, reply(asked, fault, better=True))
    return asked, Before(found, fault, 0, None)


def standing(store: Store, row: int) -> tuple[int, int | None]:
    (found,) = ask(store.path, "select state, answer from request where row = ?", row)
    return found[0], found[1]


async def all_pending(store: Store) -> list[Pending]:
    """Rows that want an answer, and rows that want a better one, in their order."""
    found = [seen for again in (False, True) async for page in store.pending(again=again) for seen in page]
    return sorted(found, key=lambda seen: seen.row)


def surplus(store: Store) -> dict[int, str]:
    return dict(ask(store.path, "select id, surplus from paid where surplus is not null order by id"))


def sound(path: str | Path, *, shared: bool = False) -> None:
    """Every counter is what a recount finds, and no row shows a reply that is surplus."""
    tally = dict(ask(path, "select state, rows from tally where rows > 0"))
    assert tally == dict(ask(path, "select state, count(*) from request group by state"))
    columns = "coalesce(sum({0}), 0)"
    names = ("prompt_tokens", "completion_tokens", "cost_nano")
    sums = ", ".join(columns.format(name) for name in names)
    assert ask(path, f"select coalesce(sum(replies), 0), {sums} from spend") == ask(
        path, f"select count(*), {sums} from paid"
    )
    assert not ask(path, "select row from request join paid on paid.id = answer where surplus is not null")
    assert not ask(path, "select row from request join paid on paid.id = answer where paid.digest <> request.digest")
    if not shared:
        assert not ask(path, "select answer from request group by answer having count(answer) > 1")
    assert not ask(path, "select id from paid where id not in (select id from body)")


# --- two replies to a row --------------------------------------------------------------------------------------------


async def test_a_first_reply_that_is_not_good_enough_is_the_answer_until_a_better_one_comes(store: Store) -> None:
    asked, before = await first_cut(store)
    assert standing(store, 2) == (4, before.number)
    now = await store.kept()
    assert (now.answered, now.again, now.pending) == (1, 1, ROWS - 1)
    assert asked.row not in [seen.row async for page in store.pending() for seen in page]
    (seen,) = [seen async for page in store.pending(again=True) for seen in page]
    assert seen.before == Before(before.number, CUT, 0, Usage(10, 20))
    sound(store.path)


@pytest.mark.parametrize("fault", [CUT, INVALID])
@pytest.mark.parametrize("better", [None, CUT, INVALID])
async def test_a_reply_that_is_better_or_as_good_becomes_the_answer(
    store: Store, fault: Fault, better: Fault | None
) -> None:
    asked, before = await first_cut(store, fault=fault)
    second = await kept(store, reply(asked, better, before))
    assert standing(store, 2) == (2, second)
    assert surplus(store) == {before.number: "cut" if fault is CUT else "invalid"}
    assert ask(store.path, "select retries from paid order by id") == [(0,), (1,)]
    sound(store.path)


@pytest.mark.parametrize(("fault", "why"), [(CUT, "cut"), (INVALID, "invalid")])
async def test_a_worse_reply_is_surplus_and_the_row_keeps_what_it_had(store: Store, fault: Fault, why: str) -> None:
    asked, before = await first_cut(store, fault=fault)
    second = await kept(store, reply(asked, FILTERED, before))
    assert standing(store, 2) == (2, before.number)
    assert surplus(store) == {second: why}
    sound(store.path)


async def test_a_worse_reply_counts_as_a_retry_at_the_next_start_too(store: Store) -> None:
    asked, before = await first_cut(store)
    await kept(store, reply(asked, FILTERED, before))
    await store.want_better(ONCE)
    assert standing(store, 2) == (2, before.number)
    await store.want_better(Repairs(length_retries=2))
    (seen,) = [seen async for page in store.pending(again=True) for seen in page]
    assert seen.before is not None
    assert seen.before.retries == 1


async def test_a_row_may_be_asked_again_and_again_and_every_reply_but_the_last_is_surplus(store: Store) -> None:
    asked, before = await first_cut(store)
    for _ in range(3):
        found = await kept(store, reply(asked, CUT, before, better=True))
        before = Before(found, CUT, before.retries + 1, None)
    assert standing(store, 2) == (4, before.number)
    last = await kept(store, reply(asked, None, before))
    assert standing(store, 2) == (2, last)
    assert surplus(store) == dict.fromkeys(range(1, last), "cut")
    assert ask(store.path, "select retries from paid order by id") == [(n,) for n in range(5)]
    sound(store.path)


async def test_replies_to_many_rows_swap_in_one_commit(store: Store) -> None:
    befores = dict([await first_cut(store, row) for row in range(ROWS)])
    await keep_all(store, [reply(asked, None, before) for asked, before in befores.items()])
    assert ask(store.path, "select state, answer > 6 from request") == [(2, 1)] * ROWS
    assert surplus(store) == dict.fromkeys(range(1, ROWS + 1), "cut")
    sound(store.path)


async def test_a_row_whose_better_answer_cannot_be_had_is_content_for_good(store: Store) -> None:
    asked, before = await first_cut(store)
    await kept(store, Content(asked.row, asked.digest, final=True))
    assert standing(store, 2) == (2, before.number)
    await store.want_better(EVER)
    assert standing(store, 2) == (2, before.number)
    assert surplus(store) == {}
    sound(store.path)


async def test_content_says_nothing_to_a_row_that_wants_no_better_answer(store: Store) -> None:
    await kept(store, answer(request(1)))
    for row in (0, 1):
        await kept(store, Content(row, request(row).digest, final=True))
    assert (standing(store, 0), standing(store, 1)) == ((0, None), (2, 1))
    assert ask(store.path, "select retries from paid") == [(0,)]
    sound(store.path)


# --- rows that are not where they were -------------------------------------------------------------------------------


MOVED = {
    "edited": "update request set digest = zeroblob(16), state = 0, answer = null where row = 2",
    "removed": "delete from request where row = 2",
    "settled": "update request set state = 2 where row = 2",
}


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("fault", [None, FILTERED])
async def test_a_reply_whose_row_is_not_there_any_more_is_kept_as_surplus(
    store: Store, moved: str, fault: Fault | None
) -> None:
    asked, before = await first_cut(store)
    await store._connection.execute(MOVED[moved])
    await store.sql.recount()
    await store._connection.commit()
    stood = ask(store.path, "select * from request order by row")
    second = await kept(store, reply(asked, fault, before))
    assert ask(store.path, "select * from request order by row") == stood
    assert surplus(store) == {second: "twice" if fault is None else "cut"}
    sound(store.path)


async def test_a_reply_to_a_row_that_got_another_answer_meanwhile_is_surplus(store: Store) -> None:
    asked, before = await first_cut(store)
    winner = await kept(store, reply(asked, CUT, before, better=True))
    late = await kept(store, reply(asked, None, before))
    assert standing(store, 2) == (4, winner)
    assert surplus(store) == {before.number: "cut", late: "twice"}
    sound(store.path)


async def test_only_a_reply_that_came_twice_may_serve_an_equal_row(store: Store) -> None:
    asked, before = await first_cut(store)
    winner = await kept(store, reply(asked, CUT, before, better=True))
    late = await kept(store, reply(asked, None, before))
    await want(store, [request(row) for row in range(ROWS)] + [request(ROWS + n, 2) for n in range(3)])
    assert [standing(store, row) for row in (2, ROWS)] == [(2, late), (2, winner)]
    assert [standing(store, row) for row in (ROWS + 1, ROWS + 2)] == [(0, None)] * 2
    assert surplus(store) == {before.number: "cut"}
    sound(store.path)


async def test_an_answer_to_a_probe_serves_no_row(store: Store) -> None:
    await kept(store, replace(reply(request(1), CUT), row=PROBE_ROW))
    await want(store, [request(row) for row in range(ROWS - 1)])
    assert standing(store, 1) == (0, None)
    assert surplus(store) == {1: "cut"}
    sound(store.path)


# --- the user's word at a start --------------------------------------------------------------------------------------


async def marked(store: Store) -> None:
    """Rows 0 to 3 are answered: good, cut off, not fitting, filtered; row 4 is rejected, row 5 pending."""
    await keep_all(store, [answer(request(0)), rejection(request(4))])
    for row, fault in ((1, CUT), (2, INVALID), (3, FILTERED)):
        await kept(store, reply(request(row), fault))


WISHES = [(0, 0, set()), (1, 0, {1}), (0, 2, {2}), (3, 1, {1, 2})]


@pytest.mark.parametrize(("length", "invalid", "rows"), WISHES)
async def test_only_rows_with_the_mark_are_wanted_again_and_let_be_when_the_word_changes(
    store: Store, length: int, invalid: int, rows: set[int]
) -> None:
    await marked(store)
    said = Repairs(length_retries=length, invalid_retries=invalid)
    await store.want_better(EVER)
    for _ in range(2):
        await store.want_better(said)
        assert {row for (row,) in ask(store.path, "select row from request where state = 4")} == rows
        sound(store.path)
    await store.want_better(Repairs())
    assert (await store.kept()).again == 0
    sound(store.path)


async def test_an_output_is_out_of_date_only_when_rows_are_wanted_again(store: Store) -> None:
    await marked(store)
    async with store.transaction() as sql:
        await sql.execute("note_written", path="out", size=1, mtime_ns=1, revision=9)
    await store.want_better(Repairs())
    assert ask(store.path, "select revision from written") == [(9,)]
    await store.want_better(ONCE)
    assert ask(store.path, "select revision from written") == [(-1,)]


# --- a changed input -------------------------------------------------------------------------------------------------


async def wanting(store: Store) -> dict[int, int]:
    """Every row holds a cut-off answer and wants a better one; returns row -> answer."""
    return {row: (await first_cut(store, row))[1].number for row in range(ROWS)}


EDITS: dict[str, list[int]] = {
    "appended": [0, 1, 2, 3, 4, 5, 6],
    "reordered": [5, 3, 1, 0, 2, 4],
    "edited": [0, 1, 99, 3, 4, 5],
    "removed": [1, 2, 4],
    "doubled": [0, 0, 1, 1, 2, 2],
}


@pytest.mark.parametrize("edit", EDITS)
async def test_rows_that_want_a_better_answer_hold_what_they_have_through_an_edit(store: Store, edit: str) -> None:
    held = await wanting(store)
    keys = EDITS[edit]
    await want(store, [request(row, key) for row, key in enumerate(keys)])
    await store.want_better(ONCE)
    sound(store.path)
    found = dict(ask(store.path, "select row, answer from request where state = 4"))
    assert sorted(found.values()) == sorted(held[key] for key in set(keys) if key < ROWS)
    assert {held[keys[row]] for row in found} == set(found.values())
    wanted = {row for (row,) in ask(store.path, "select row from request where state = 0")}
    assert wanted == set(range(len(keys))) - set(found)
    await want(store, [request(row) for row in range(ROWS)])  # and back
    await store.want_better(ONCE)
    assert dict(ask(store.path, "select row, answer from request where state = 4")) == held
    sound(store.path)


async def test_of_two_free_replies_the_good_one_serves_first(store: Store) -> None:
    asked = request(2)
    cut = await kept(store, reply(asked, CUT))
    await want(store, [request(row) for row in range(3)] + [request(3, 2)])
    good = await kept(store, reply(request(3, 2), None))
    await want(store, [request(0), request(1, 2)])
    assert standing(store, 1) == (2, good)
    await want(store, [request(0), request(1, 2), request(2, 2)])
    assert standing(store, 2) == (2, cut)
    sound(store.path)


# --- identical rows that share one answer ----------------------------------------------------------------------------


async def twins(store: Store) -> Before:
    """Rows 0, 2, 4 ask for the same and share a cut-off answer; a better one is wanted."""
    await want(store, [request(row, row % 2) for row in range(ROWS)])
    await find_twins(store)
    found = await kept(store, reply(request(0), CUT))
    await kept(store, answer(request(1)))
    await share_with_twins(store)
    await store.want_better(ONCE)
    await find_twins(store)
    return Before(found, CUT, 0, None)


async def leaders(store: Store) -> list[int]:
    return [
        seen.row for again in (False, True) async for page in store.pending(leaders=True, again=again) for seen in page
    ]


async def test_of_twins_one_is_asked_again_and_all_get_the_better_answer(store: Store) -> None:
    before = await twins(store)
    assert await leaders(store) == [0]
    better = await kept(store, reply(request(0), None, before))
    assert [standing(store, row) for row in (0, 2, 4)] == [(2, better)] * 3
    sound(store.path, shared=True)


async def test_twins_that_get_a_reply_that_is_no_better_yet_go_on_wanting_together(store: Store) -> None:
    before = await twins(store)
    second = await kept(store, reply(request(0), CUT, before, better=True))
    assert [standing(store, row) for row in (0, 2, 4)] == [(4, second)] * 3
    sound(store.path, shared=True)
    await store.want_better(Repairs())
    assert [standing(store, row) for row in (0, 2, 4)] == [(2, second)] * 3
    sound(store.path, shared=True)


@pytest.mark.parametrize("end", ["worse", "content"])
async def test_twins_keep_what_they_share_when_there_is_nothing_better(store: Store, end: str) -> None:
    before = await twins(store)
    item: Any = Content(0, request(0).digest, final=True) if end == "content" else reply(request(0), FILTERED, before)
    await kept(store, item)
    await share_with_twins(store)
    await store.want_better(ONCE)
    assert [standing(store, row) for row in (0, 2, 4)] == [(2, before.number)] * 3
    sound(store.path, shared=True)


async def test_a_twin_with_a_good_answer_leads_before_one_that_wants_a_better(store: Store) -> None:
    await want(store, [request(row, 7) for row in range(3)])
    await kept(store, reply(request(0, 7), CUT))
    good = await kept(store, reply(request(2, 7), None))
    await store.want_better(ONCE)
    await find_twins(store)
    assert await leaders(store) == []
    await share_with_twins(store)
    assert [standing(store, row) for row in range(3)] == [(2, good)] * 3
    sound(store.path, shared=True)


ALIKE = (0, 2, 4)


async def parted(store: Store, tmp_path: Path) -> tuple[Store, Before]:
    """The twins, after a start that does not say --dedupe: each asks for itself."""
    before = await twins(store)
    await store.release()
    alone = await opened(tmp_path / "c.db")
    await alone.want_better(ONCE)
    assert [seen.row for seen in await all_pending(alone)] == [*ALIKE]
    return alone, before


async def test_an_answer_that_is_still_another_rows_is_no_surplus(store: Store, tmp_path: Path) -> None:
    alone, before = await parted(store, tmp_path)
    for row in ALIKE:
        assert surplus(alone) == {}
        await kept(alone, reply(request(row, 0), None, before))
        sound(alone.path, shared=True)
    assert surplus(alone) == {before.number: "cut"}, "the last row has let go of it"
    assert len({standing(alone, row) for row in ALIKE}) == 3


async def test_a_row_that_keeps_the_answer_it_shared_goes_on_having_it(store: Store, tmp_path: Path) -> None:
    alone, before = await parted(store, tmp_path)
    await kept(alone, Content(2, request(2, 0).digest, final=True))
    for row in (0, 4):
        await kept(alone, reply(request(row, 0), None, before))
    assert (standing(alone, 2), surplus(alone)) == ((2, before.number), {})
    sound(alone.path, shared=True)
    await want(alone, [request(row, 0) for row in range(3)])
    assert {standing(alone, row)[0] for row in range(3)} == {2}, "all three may serve equal rows elsewhere"
    sound(alone.path)


async def test_rows_that_begin_to_share_give_up_answers_which_may_serve_others_later(store: Store) -> None:
    await want(store, [request(row, row % 2) for row in range(ROWS)])
    cut = [await kept(store, reply(request(row, row % 2), CUT)) for row in range(ROWS)]
    await store.want_better(ONCE)
    await find_twins(store)
    assert await leaders(store) == [0, 1]
    better = await kept(store, reply(request(0, 0), None, Before(cut[0], CUT, 0, None)))
    await share_with_twins(store)
    assert [standing(store, row) for row in ALIKE] == [(2, better)] * 3
    assert [standing(store, row) for row in (1, 3, 5)] == [(4, cut[row]) for row in (1, 3, 5)], "no better one yet"
    assert surplus(store) == {cut[0]: "cut", cut[2]: "twice", cut[4]: "twice"}
    sound(store.path, shared=True)
    await want(store, [request(row, 0) for row in range(4)])
    assert [standing(store, row) for row in range(4)] == [(2, better), (2, cut[2]), (2, cut[4]), (0, None)]
    assert surplus(store) == {cut[0]: "cut"}
    sound(store.path)


# --- plans and words -------------------------------------------------------------------------------------------------


CUT_SHORTER = Repair(message=0, keep=10, length=99, refusals=1)
CUT_TWICE = Repair(message=0, keep=5, length=99, refusals=2)


async def planned(store: Store, digests: Iterable[bytes]) -> None:
    """A plan, and a word of the provider, for each of them."""
    async with store.transaction() as sql:
        for digest in digests:
            await sql.execute("plan_repair", digest=digest, plan=msgspec.json.encode(CUT_SHORTER).decode())
            await sql.execute("keep_words", digest=digest, message="busy")


async def test_a_start_forgets_plans_and_words_that_no_row_needs_any_more(store: Store) -> None:
    await batches.plan(store, Draft("m", "batchrun-one.jsonl", "one", 100, bytes(32), 500, [line_of(request(0))]))
    await keep_all(store, [answer(request(1)), reply(request(2), CUT), rejection(request(3))])
    await planned(store, [request(row).digest for row in range(ROWS + 2)])
    await store.want_better(ONCE)
    needed = {request(row).digest for row in (0, 2, 4, 5)}  # in a batch, to be bettered, pending
    for table in ("repair", "last_words"):
        assert {digest for (digest,) in ask(store.path, f"select digest from {table}")} == needed
    await keep_all(store, [answer(request(row)) for row in (4, 5)])
    await want(store, [request(row) for row in range(1, ROWS)])
    await store.want_better(Repairs())
    assert not await store.any_repair()
    assert ask(store.path, "select * from last_words") == []


def line_of(asked: Request, repair: Repair = AS_ASKED) -> Line:
    return Line(asked.row, asked.digest, len(asked.body), repair)


async def test_equal_lines_are_told_apart_by_what_was_sent_in_each(store: Store) -> None:
    await want(store, [request(row, 7) for row in range(3)])
    await planned(store, [request(0, 7).digest])
    lines = [line_of(request(row, 7), sent) for row, sent in enumerate((AS_ASKED, CUT_SHORTER, CUT_TWICE))]
    batch = await batches.plan(store, Draft("m", "batchrun-one.jsonl", "one", 100, bytes(32), 500, lines))
    async with store.transaction() as sql:
        await sql.execute("forget_all_repairs")
    assert not await store.any_repair()
    assert await batches.repairs(store, batch) == {1: CUT_SHORTER, 2: CUT_TWICE}
    await brought(store, batch, [Result(line, answer(request(line, 7)).completion) for line in range(3)])
    told = [f"middle of message 1 cut, {keep} of 99 characters sent" for keep in (10, 5)]
    assert ask(store.path, "select repair, attempts from paid order by id") == [(None, 1), (told[0], 2), (told[1], 3)]
    sound(store.path)


async def brought(store: Store, batch: RemoteBatch, said: list[Result]) -> None:
    """What a job of the batch left is taken in."""

    async def chunks() -> AsyncIterator[list[Result]]:
        yield said

    await Results(store, await Till.on(store), batch, "job-1", lambda _usage: 70).take(chunks(), lambda: None)


@pytest.mark.parametrize("refusals", [0, 1, 2])
async def test_a_refusal_that_stays_counts_what_its_own_line_went_through(store: Store, refusals: int) -> None:
    sent = [AS_ASKED, CUT_SHORTER, CUT_TWICE][refusals]
    await planned(store, [request(0).digest])
    draft = Draft("m", "batchrun-one.jsonl", "one", 100, bytes(32), 500, [line_of(request(0), sent)])
    batch = await batches.plan(store, draft)
    await brought(store, batch, [Result(0, Refused(Fault.TOO_LONG, 400, "no"))])
    assert ask(store.path, "select attempts from rejection") == [(refusals + 1,)]
    sound(store.path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_of_equal_lines_that_are_repaired_the_one_refused_more_often_says_what_is_sent_next(
    store: Store, order: tuple[int, int]
) -> None:
    await want(store, [request(row, 7) for row in range(2)])
    lines = [line_of(request(row, 7), (AS_ASKED, CUT_SHORTER)[refusals]) for row, refusals in enumerate(order)]
    batch = await batches.plan(store, Draft("m", "batchrun-one.jsonl", "one", 100, bytes(32), 500, lines))
    said = [(CUT_SHORTER, CUT_TWICE)[refusals] for refusals in order]
    await brought(store, batch, [Result(line, plan) for line, plan in enumerate(said)])
    assert [(seen.row, seen.repair) for seen in await all_pending(store)] == [(0, CUT_TWICE), (1, CUT_TWICE)]
    sound(store.path)


# --- from a batch ----------------------------------------------------------------------------------------------------


async def test_an_answer_of_a_batch_may_want_a_better_one(store: Store) -> None:
    await collect(store, {0: (CUT, True), 1: (None, False), 2: (INVALID, True), 3: (FILTERED, False)})
    assert ask(store.path, "select state from request order by row") == [(4,), (2,), (4,), (2,), (0,), (0,)]
    sound(store.path)
    (first, *_) = await all_pending(store)
    assert (first.row, first.before) == (0, Before(1, CUT, 0, Usage(10, 20)))
    better = await kept(store, reply(request(0), None, first.before))
    assert standing(store, 0) == (2, better)
    sound(store.path)


async def test_when_a_batch_brings_more_answers_than_rows_wait_the_good_ones_are_taken(store: Store) -> None:
    await want(store, [request(row, 7) for row in range(3)])
    await collect(store, {0: (CUT, True), 1: (None, False), 2: (INVALID, True)}, key=7, keep=1)
    assert standing(store, 0) == (2, 2)
    sound(store.path)


async def collect(store: Store, said: dict[int, tuple[Fault | None, bool]], key: Any = None, keep: int = ROWS) -> None:
    """A batch of the first rows is submitted, the input is cut to `keep` rows, and the batch's answers come in."""
    requests = [request(row, key) for row in said]
    drawn = [line_of(asked) for asked in requests]
    batch = await batches.plan(store, Draft("m", "batchrun-one.jsonl", "one", 100, bytes(32), 500, drawn))
    if keep < len(said):
        await want(store, [request(row, key) for row in range(keep)])
    completions = [
        answer(asked, fault=fault).completion for asked, (fault, _) in zip(requests, said.values(), strict=True)
    ]
    found = zip(completions, said.values(), strict=True)
    await brought(store, batch, [Result(n, one, wants_better=better) for n, (one, (_, better)) in enumerate(found)])


# --- an older checkpoint ---------------------------------------------------------------------------------------------


def old_checkpoint(path: Path) -> None:
    """A checkpoint as version 2 left it: three answered rows, one of them cut off, and one pending."""
    connection = sqlite3.connect(path)
    for script in migrations()[:2]:
        connection.executescript(script)
    connection.execute("pragma user_version = 2")
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute("insert into name values (1, 'live'), (2, 'm'), (3, 'stop'), (4, 'length')")
    for row in range(3):
        digest, fault = request(row).digest, CUT if row == 1 else None
        connection.execute("insert into request values (?, ?, 2, ?)", (row, digest, row + 1))
        connection.execute(
            "insert into paid values (?, ?, 1, 2, ?, 10, 20, 0, 70, 5, 1, 1, ?, 0, null)",
            (row + 1, digest, 4 if fault else 3, fault),
        )
        connection.execute("insert into body values (?, null, x'28b52ffd200011000074657374')", (row + 1,))
    connection.execute("insert into request values (3, ?, 0, null)", (request(3).digest,))
    connection.execute("update tally set rows = case state when 2 then 3 when 0 then 1 else 0 end")
    connection.execute("insert into spend values (1, 2, 3, 0, 30, 60, 210)")
    connection.commit()
    connection.close()


async def test_a_checkpoint_of_the_version_before_has_its_cut_answers_bettered(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old_checkpoint(path)
    store = await opened(path)
    sound(path)
    await store.want_better(ONCE)
    assert ask(path, "select row, state, answer from request") == [(0, 2, 1), (1, 4, 2), (2, 2, 3), (3, 0, None)]
    seen = await all_pending(store)
    assert [(one.row, one.repair, one.before) for one in seen] == [
        (1, AS_ASKED, Before(2, CUT, 0, Usage(10, 20))),
        (3, AS_ASKED, None),
    ]
    better = await kept(store, reply(request(1), None, seen[0].before))
    assert (standing(store, 1), surplus(store)) == ((2, better), {2: "cut"})
    sound(path)
    await closed(store)


# --- seeded walks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_each_row_holds_the_best_of_its_replies(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    store = await opened(tmp_path / "c.db")
    await want(store, [request(row) for row in range(ROWS)])
    best: dict[int, tuple[int, Fault | None]] = {}
    for _ in range(40):
        said = Repairs(length_retries=dice.randrange(4), invalid_retries=dice.randrange(3))
        await store.want_better(said)
        pending = await all_pending(store)
        async with keeping(store) as keeper:
            for seen in dice.sample(pending, min(len(pending), dice.randrange(1, 4))):
                await one_reply(keeper, dice, seen.row, seen.before, best)
        sound(store.path)
        found = dict(ask(store.path, "select row, answer from request where answer is not null"))
        assert found == {row: number for row, (number, _) in best.items()}
        if dice.random() < 0.2:  # the process is gone without a word
            await store.release()
            store = await opened(tmp_path / "c.db")
    most = number(store.path, "select max(times) from (select count(*) as times from paid group by digest)")
    assert most <= 4, "one row was asked more often than the most that was ever said"
    await closed(store)


async def one_reply(
    keeper: Keeper, dice: random.Random, row: int, before: Before | None, best: dict[int, tuple[int, Fault | None]]
) -> None:
    asked = request(row)
    fault = dice.choice([None, CUT, CUT, INVALID, FILTERED])
    made = reply(asked, fault, before, better=fault in (CUT, INVALID) and dice.random() < 0.5)
    found = await keeper.keep(made) or 0
    if before is None or is_better(made.completion, before.fault):
        best[row] = (found, fault)
