"""The queries and the schema: every query fits it, every query is used, and no illegal row gets in."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from store_support import closed, number, opened

import batchrun
from batchrun.errors import StorageError
from batchrun.records import Fault, State
from batchrun.store import opening
from batchrun.store.sql import migrations, queries

ROOT = Path(batchrun.__file__).parent
FOLDER = resources.files("batchrun.store")
TEXT = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("queries.sql", "batches.sql"))


@pytest.fixture
def empty() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("pragma foreign_keys = on")
    for step in migrations():
        connection.executescript(step)
    yield connection
    connection.close()


def makes(sql: str) -> bool:
    return sql.startswith(("create temp table", "create table temp."))


@pytest.mark.parametrize("name", queries())
def test_every_query_can_be_prepared_on_an_empty_checkpoint(name: str, empty: sqlite3.Connection) -> None:
    for other, sql in queries().items():
        if other != name and makes(sql):
            with contextlib.suppress(sqlite3.OperationalError):  # made from a table that is the one under test
                empty.execute(sql)
    sql = queries()[name]
    parameters = dict.fromkeys(re.findall(r":([a-z_0-9]+)", sql), 0)
    assert empty.execute(f"explain {sql}", parameters).fetchall()


def test_names_of_queries_are_unique_and_each_has_its_sentence() -> None:
    names = Counter(re.findall(r"^-- name: (.*)$", TEXT, re.MULTILINE))
    assert set(names.values()) == {1}
    assert set(names) == set(queries())
    for part in TEXT.split("-- name: ")[1:]:
        sentence = part.splitlines()[1]
        assert re.match(r"-- [A-Z].*[.:]$", sentence) or part.splitlines()[2].startswith("-- "), part


def test_no_query_is_unused() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    assert not [name for name in queries() if f'"{name}"' not in code]


D = b"d" * 16
NAMES = "insert into name(id, text) values (1, 'm')"
PAID = "insert into paid(id, digest, lane, model, finish, latency_ms, attempts, kept_ms, checksum"
ONE = "values (1, ?, 1, 1, 1"
RUN = "insert into run(opened_ms, token"

LEGAL = {
    "pending": ("insert into request(row, digest) values (0, ?)", D),
    "answered": ("insert into request(row, digest, state, answer) values (0, ?, 2, 7)", D),
    "again": ("insert into request(row, digest, state, answer) values (0, ?, 4, 7)", D),
    "paid": (f"{PAID}) {ONE}, 0, 1, 0, 0)", D),
    "paid cut short": (f"{PAID}, fault, surplus) {ONE}, 0, 1, 0, 0, 'cut_short', 'cut')", D),
    "run": (f"{RUN}) values (1, ?)", D),
    "closed run": (f"{RUN}, state, closed_ms) values (1, ?, 'parked', 2)", D),
    "rejection": ("insert into rejection(digest, fault, message, attempts, kept_ms) values (?, 'server', '', 0, 0)", D),
    "job": ("insert into job(one, provider, job, columns) values (1, 'p', '{}', ?)", "[]"),
    "source": ("insert into source(path, size, mtime_ns, rows) values (?, 0, 0, 0)", "p"),
}

ILLEGAL = {
    "a negative row": ("insert into request(row, digest) values (-1, ?)", D),
    "a short digest": ("insert into request(row, digest) values (0, ?)", D[1:]),
    "a long digest": ("insert into request(row, digest) values (0, ?)", D + b"d"),
    "no digest": ("insert into request(row, digest) values (0, ?)", None),
    "a state below all": ("insert into request(row, digest, state) values (0, ?, -1)", D),
    "a state above all": ("insert into request(row, digest, state) values (0, ?, 5)", D),
    "answered without an answer": ("insert into request(row, digest, state) values (0, ?, 2)", D),
    "again without an answer": ("insert into request(row, digest, state) values (0, ?, 4)", D),
    "an answer but pending": ("insert into request(row, digest, state, answer) values (0, ?, 0, 7)", D),
    "an answer but submitted": ("insert into request(row, digest, state, answer) values (0, ?, 1, 7)", D),
    "an answer but rejected": ("insert into request(row, digest, state, answer) values (0, ?, 3, 7)", D),
    "paid with a short digest": (f"{PAID}) {ONE}, 0, 1, 0, 0)", b""),
    "paid by a lane without a name": (f"{PAID}) values (1, ?, 9, 1, 1, 0, 1, 0, 0)", D),
    "paid to a model without a name": (f"{PAID}) values (1, ?, 1, 9, 1, 0, 1, 0, 0)", D),
    "paid in negative time": (f"{PAID}) {ONE}, -1, 1, 0, 0)", D),
    "paid without an attempt": (f"{PAID}) {ONE}, 0, 0, 0, 0)", D),
    "paid a negative sum": (f"{PAID}, cost_nano) {ONE}, 0, 1, 0, 0, -1)", D),
    "negative prompt tokens": (f"{PAID}, prompt_tokens, completion_tokens) {ONE}, 0, 1, 0, 0, -1, 1)", D),
    "negative completion tokens": (f"{PAID}, prompt_tokens, completion_tokens) {ONE}, 0, 1, 0, 0, 1, -1)", D),
    "negative cached tokens": (f"{PAID}, cached_tokens) {ONE}, 0, 1, 0, 0, -1)", D),
    "half of the tokens": (f"{PAID}, prompt_tokens) {ONE}, 0, 1, 0, 0, 1)", D),
    "an answer with a fault that brings none": (f"{PAID}, fault) {ONE}, 0, 1, 0, 0, 'credits')", D),
    "surplus for no known reason": (f"{PAID}, surplus) {ONE}, 0, 1, 0, 0, 'because')", D),
    "a body of nothing": ("insert into body(id, reply) values (1, ?)", b""),
    "a body that is a text": ("insert into body(id, reply) values (1, ?)", "text"),
    "a run open and closed": (f"{RUN}, closed_ms) values (1, ?, 2)", D),
    "a run parked and not closed": (f"{RUN}, state) values (1, ?, 'parked')", D),
    "a run in no known state": (f"{RUN}, state, closed_ms) values (1, ?, 'tired', 2)", D),
    "a run with half a token": (f"{RUN}) values (1, ?)", D[:8]),
    "a run that kept less than nothing": (f"{RUN}, kept) values (1, ?, -1)", D),
    "a run with a negative mark of calls": (f"{RUN}, mark_calls) values (1, ?, -1)", D),
    "a run with a negative mark of money": (f"{RUN}, mark_nano) values (1, ?, -1)", D),
    "a run with negative doubt of calls": (f"{RUN}, doubt_calls) values (1, ?, -1)", D),
    "a run with negative doubt of money": (f"{RUN}, doubt_nano) values (1, ?, -1)", D),
    "a rejection with a short digest": ("insert into rejection values (?, 'server', 1, '', 0, 0)", D[1:]),
    "a rejection after less than no attempt": ("insert into rejection values (?, 'server', 1, '', -1, 0)", D),
    "a second job": ("insert into job(one, provider, job, columns) values (2, 'p', '{}', ?)", "[]"),
    "a file with negative rows": ("insert into source(path, size, mtime_ns, rows) values (?, 0, 0, -1)", "p"),
    "a name twice": ("insert into name(text) values (?)", "m"),
    "a negative tally": ("update tally set rows = -1 where state <> ?", 9),
    "a tally of no known state": ("insert into tally(state, rows) values (?, 0)", 5),
    "negative spend": ("insert into spend values (1, 1, 1, 0, 0, 0, ?)", -1),
    "a negative number of replies": ("insert into spend values (1, 1, ?, 0, 0, 0, 0)", -1),
    "a negative beat": ("insert into pulse values (1, ?, 0)", -1),
}


@pytest.mark.parametrize("row", LEGAL)
def test_a_legal_row_is_taken(row: str, empty: sqlite3.Connection) -> None:
    empty.execute(NAMES)
    empty.execute(LEGAL[row][0], (LEGAL[row][1],))


@pytest.mark.parametrize("row", ILLEGAL)
def test_an_illegal_row_is_refused(row: str, empty: sqlite3.Connection) -> None:
    empty.execute(NAMES)
    with pytest.raises(sqlite3.IntegrityError):
        empty.execute(ILLEGAL[row][0], (ILLEGAL[row][1],))


def test_a_paid_reply_that_has_a_body_cannot_vanish(empty: sqlite3.Connection) -> None:
    empty.execute(NAMES)
    empty.execute(LEGAL["paid"][0], (D,))
    empty.execute("insert into body(id, reply) values (1, x'00')")
    with pytest.raises(sqlite3.IntegrityError):
        empty.execute("delete from paid")


def test_the_closed_lists_of_the_schema_are_those_of_the_records(empty: sqlite3.Connection) -> None:
    assert [state for (state,) in empty.execute("select state from tally")] == list(State)
    for fault in (Fault.CUT_SHORT, Fault.FILTERED, Fault.INVALID_OUTPUT):
        assert f"'{fault}'" in migrations()[0]


# --- migrations ------------------------------------------------------------------------------------------------------


async def test_opening_again_changes_nothing_in_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await closed(await opened(path))
    before = number(path, "pragma schema_version")
    await closed(await opened(path))
    assert number(path, "pragma schema_version") == before
    assert number(path, "pragma user_version") == len(migrations())


async def test_a_new_step_runs_once_and_brings_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.db"
    await closed(await opened(path))
    steps = (*migrations(), "create table extra(one integer);\ninsert into extra values (1);")
    monkeypatch.setattr(opening, "migrations", lambda: steps)
    for _ in range(2):
        await closed(await opened(path))
        assert number(path, "pragma user_version") == len(steps)
        assert number(path, "select count(*) from extra") == 1


@pytest.mark.parametrize(
    "wrong", ["insert into missing values (1);", "create table;", "insert into tally values (9, 9);"]
)
async def test_a_step_that_fails_half_way_leaves_the_old_version_whole(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    await closed(await opened(path))
    good = "create table extra(one integer);\ndrop table event;\nupdate tally set rows = 7 where state = 0;\n"
    monkeypatch.setattr(opening, "migrations", lambda: (*migrations(), "create table second(one);", good + wrong))
    with pytest.raises(StorageError):
        await opened(path)
    assert number(path, "pragma user_version") == len(migrations()) + 1
    assert number(path, "select count(*) from sqlite_master where name in ('extra', 'event', 'second')") == 2
    assert number(path, "select sum(rows) from tally") == 0
    monkeypatch.setattr(opening, "migrations", lambda: (*migrations(), "create table second(one);", good))
    await closed(await opened(path))
    assert number(path, "pragma user_version") == len(migrations()) + 2
    assert number(path, "select rows from tally where state = 0") == 7


async def test_a_first_step_that_fails_leaves_a_file_that_can_still_become_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    with monkeypatch.context() as patched:
        patched.setattr(opening, "migrations", lambda: (migrations()[0] + "\ninsert into missing values (1);",))
        with pytest.raises(StorageError):
            await opened(path)
    await closed(await opened(path))
    assert number(path, "pragma application_id") == opening.APPLICATION_ID
