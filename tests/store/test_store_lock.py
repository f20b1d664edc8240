"""One writer: a second start is refused, a dead one lets go, a stopped one does not, and a fenced one stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from store_support import answer, ask, closed, keep_all, number, opened, request, want, writer

from batchrun.errors import BusyError, StorageError
from batchrun.store.lock import Lock
from batchrun.store.view import View


async def test_a_second_start_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        assert child.said == f"open {child.process.pid}"
        with pytest.raises(BusyError, match="is being written by") as caught:
            await opened(path)
        assert f"process {child.process.pid} on {socket.gethostname()} since " in caught.value.message
        assert caught.value.exit_code == 8
        await child.tell("want 10")
        with View(str(path)) as view:
            assert view.kept().pending == 10
        assert await child.tell("keep 0-3") == "kept 3"
        with View(str(path)) as view:
            assert view.kept().answered == 3


async def test_a_start_is_refused_by_another_of_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    first = await opened(path)
    with pytest.raises(BusyError, match=f"process {os.getpid()} "):
        await opened(path)
    await want(first, [request(0)])
    await keep_all(first, [answer(request(0))])
    await closed(first)
    await closed(await opened(path))
    assert number(path, "select count(*) from paid") == 1


async def test_of_many_starts_at_once_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as one, writer(path) as two, writer(path) as three:
        said = sorted(child.said.split()[0] for child in (one, two, three))
        assert said == ["open", "refused", "refused"]


async def test_a_killed_holder_lets_the_next_one_in(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("want 10")
        await child.tell("keep 0-4")
        assert await child.end() == -signal.SIGKILL
    store = await opened(path)
    assert (await store.kept()).answered == 4
    await closed(store)
    assert ask(path, "select state from run order by id") == [("crashed",), ("finished",)]


async def test_a_stopped_holder_still_holds(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("want 10")
        child.process.send_signal(signal.SIGSTOP)
        with pytest.raises(BusyError):
            await opened(path)
        with View(str(path)) as view:
            assert view.kept().pending == 10
        child.process.send_signal(signal.SIGCONT)
        assert await child.tell("keep 0-10") == "kept 10"
        assert await child.tell("close") == "closed"


async def test_a_living_grandchild_does_not_keep_the_lock(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    sleeper = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, close_fds=False)
    try:
        await closed(store)
        await closed(await opened(tmp_path / "c.db"))
    finally:
        sleeper.kill()
        await sleeper.communicate()


async def test_with_the_lock_removed_by_hand_the_first_writer_is_fenced_out_at_its_next_commit(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    first = await opened(path)
    await want(first, [request(row) for row in range(20)])
    await keep_all(first, [answer(request(0))])
    (tmp_path / "c.db.lock").unlink()
    async with writer(path) as second:
        assert second.said.startswith("open ")
        with pytest.raises(ExceptionGroup) as caught:
            await keep_all(first, [answer(request(1))])
        assert caught.group_contains(StorageError, match="Another run has taken over")
        for step in (first.note("resumed", ""), first.raise_marks(1, 1), first.retry_rejections(), closed(first)):
            with pytest.raises(StorageError, match="Another run has taken over"):
                await step
        await first.release()
        assert await second.tell("keep 1-5") == "kept 5"
        assert await second.tell("close") == "closed"
    assert ask(path, "select state from run order by id") == [("crashed",), ("finished",)]
    assert number(path, "select count(*) from paid") == 5


async def test_a_lock_file_with_rubbish_in_it_is_taken_and_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "c.db.lock").write_bytes(b"\xff" * 40)
    lock = Lock(str(tmp_path / "c.db"))
    assert lock.take() is None
    (tmp_path / "c.db.lock").write_bytes(b"")
    with pytest.raises(BusyError, match="Another run is writing"):
        Lock(str(tmp_path / "c.db")).take()
    lock.release()


def test_the_lock_remembers_what_it_was_told(tmp_path: Path) -> None:
    told = []
    for kept in (0, 5, 12_345_678_901, 3):
        lock = Lock(str(tmp_path / "c.db"))
        told.append(lock.take())
        lock.tell(kept)
        lock.release()
        lock.release()
    assert told == [None, 0, 5, 12_345_678_901]
