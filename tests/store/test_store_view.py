"""Looking on while another process writes: true numbers, and nothing of the checkpoint is touched."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from store_support import answer, closed, keep_all, opened, request, want, writer

from batchrun.errors import StorageError, UsageError
from batchrun.faces.status import standing
from batchrun.store import view as view_module
from batchrun.store.view import View


def bytes_of(path: Path) -> dict[str, tuple[int, bytes]]:
    """The main file and the `-wal`; the `-shm` is the readers' and writers' notebook."""
    files = (path, path.with_name("c.db-wal"))
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files if file.exists()}


async def test_status_tells_the_truth_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("want 1000")
        for done in (0, 100, 500, 1000):
            if done:
                await child.tell(f"keep {0 if done == 100 else 100 if done == 500 else 500}-{done}")
            with View(str(path)) as view:
                kept, last = view.kept(), view.last_run()
                assert (kept.answered, kept.pending, kept.replies, kept.cost_nano) == (
                    done,
                    1000 - done,
                    done,
                    done * 70,
                )
                assert sum(outcome.body is not None for outcome in view.outcomes()) == done
                assert last is not None
                assert (last.state, last.closed) == ("open", None)
                assert standing(view, str(path), last.opened, 5).answered == done
        await child.tell("close")
    with View(str(path)) as view:
        last = view.last_run()
        assert last is not None
        assert (last.state, view.kept().answered) == ("finished", 1000)


async def test_a_reader_leaves_the_files_of_a_living_writer_and_of_a_dead_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("want 300")
        await child.tell("keep 0-300")
        before = bytes_of(path)
        for _ in range(3):
            with View(str(path)) as view:
                assert len(list(view.outcomes())) == 300
        assert bytes_of(path) == before
    with View(str(path)) as view:
        assert view.kept().answered == 300
    assert bytes_of(path) == before
    store = await opened(path)
    assert (await store.kept()).answered == 300
    await closed(store)


async def test_a_reader_sees_what_is_only_in_the_wal_and_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    asked: list[str] = []
    real = sqlite3.connect

    def connect(database: str, **options: Any) -> sqlite3.Connection:
        asked.append(database)
        return real(database, **options)

    store = await opened(path)
    await want(store, [request(0)])
    await keep_all(store, [answer(request(0))])
    monkeypatch.setattr(view_module.sqlite3, "connect", connect)
    with View(str(path)) as view:
        assert view.kept().answered == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            view._connection.execute("delete from request")
    assert "mode=ro" in asked[0]
    assert "immutable" not in asked[0]
    await closed(store)


async def test_a_reader_in_the_middle_sees_one_moment_and_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("want 1000")
        await child.tell("keep 0-500")
        with View(str(path)) as view:
            outcomes = view.outcomes()
            seen = [next(outcomes)]
            assert await child.tell("keep 500-1000") == "kept 1000"
            seen += outcomes
        assert sum(outcome.body is not None for outcome in seen) == 500


@pytest.mark.parametrize("name", ["a b.db", "per%cent.db", "what?.db", "hash#.db", "żółć.db"])
async def test_odd_names_are_read_and_written_alike(name: str, tmp_path: Path) -> None:
    store = await opened(tmp_path / name)
    await want(store, [request(0)])
    with View(str(tmp_path / name)) as view:
        assert view.kept().pending == 1
    await closed(store)
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}.lock"}


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        View(str(tmp_path / "c.db"))
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(StorageError, match="not a batchrun checkpoint"):
        View(str(tmp_path / "empty.db"))
    assert [file.name for file in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").read_bytes() == b""
