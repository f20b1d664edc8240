"""What is opened and what is refused: private files, foreign files left as they were, no network disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_support import answer, ask, closed, keep_all, number, opened, request, want, writer

from batchrun.errors import BatchrunError, StorageError, UsageError
from batchrun.store import opening
from batchrun.store.sql import migrations
from batchrun.store.view import View


@pytest.fixture
def open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_handed")
async def test_the_checkpoint_and_all_beside_it_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    await want(store, [request(0)])
    await keep_all(store, [answer(request(0))])
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("c.db", "c.db-wal", "c.db-shm", "c.db.lock"), 0o600)
    with View(str(path)) as view:
        assert view.kept().answered == 1
    await closed(store)
    with View(str(path)):
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


async def test_the_promises_of_durability_are_switched_on(tmp_path: Path) -> None:
    store = await opened(tmp_path / "c.db")
    pragmas = {
        name: (await opening.one(store._connection, f"pragma {name}"))[0]
        for name in ("journal_mode", "synchronous", "fullfsync", "foreign_keys", "page_size", "temp_store")
    }
    await closed(store)
    assert pragmas == {
        "journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "foreign_keys": 1, "page_size": 4096, "temp_store": 1
    }  # fmt: skip


# --- refused, and untouched ------------------------------------------------------------------------------------------


def another_application(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("create table diary(day, thought); insert into diary values (1, 'rain');")


def with_only_a_number(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma application_id = 77")


def in_a_wal_of_its_own(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("pragma journal_mode = wal; create table diary(day); insert into diary values (1);")


def a_text(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)


def two_letters(path: Path) -> None:
    path.write_text("xy")


def a_cut_header(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(40))


FOREIGN = {
    another_application: "not a batchrun checkpoint",
    with_only_a_number: "not a batchrun checkpoint",
    in_a_wal_of_its_own: "not a batchrun checkpoint",
    a_text: "not a SQLite file",
    two_letters: "not a SQLite file",
    a_cut_header: "not a SQLite file",
}


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
async def test_a_foreign_file_is_refused_in_a_clear_line_and_left_as_it_was(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "c.db"
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StorageError, match=FOREIGN[make]) as caught:
            await opened(path)
        assert (caught.value.exit_code, "--checkpoint" in caught.value.next_step) == (11, True)
        assert path.read_bytes() == before
    with pytest.raises(StorageError):
        View(str(path))
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused_by_writer_and_reader_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await closed(await opened(path))
    newer = len(migrations()) + 1
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"pragma user_version = {newer}")
    before = path.read_bytes()
    with pytest.raises(StorageError, match=rf"schema {newer}; this batchrun knows up to {newer - 1}"):
        await opened(path)
    with pytest.raises(StorageError, match=f"schema {newer}"):
        View(str(path))
    assert path.read_bytes() == before


async def test_a_checkpoint_of_another_provider_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    async with store.transaction() as sql:
        await sql.execute("write_job", provider="simulated", job="{}", columns="{}")
    await closed(store)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="answers of 'simulated'; this run would ask 'together'") as caught:
        await opened(path, provider="together")
    assert caught.value.exit_code == 2
    assert path.read_bytes() == before
    await closed(await opened(path))
    assert number(path, "select count(*) from run") == 2


async def test_a_refused_opening_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    a_text(path)
    for _ in range(3):
        with pytest.raises(StorageError, match="not a SQLite file"):
            await opened(path)


async def test_a_folder_in_the_way_is_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "c.db").mkdir()
    with pytest.raises(StorageError, match=r"cannot be opened: Is a directory"):
        await opened(tmp_path / "c.db")


async def test_a_folder_that_cannot_be_made_is_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="folder of the checkpoint cannot be made"):
        await opened(tmp_path / "file" / "c.db")


@pytest.mark.usefixtures("by_hand")
async def test_a_damaged_page_is_a_clear_line_for_writer_and_reader(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    await want(store, [request(row) for row in range(2000)])
    await closed(store)
    (root,) = ask(path, "select rootpage from sqlite_master where name = 'request'")[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    store = await opened(path)
    with pytest.raises(StorageError, match="damaged"):
        _ = [page async for page in store.pending()]
    await closed(store)
    with pytest.raises(StorageError, match="damaged"), View(str(path)) as view:
        _ = list(view.outcomes())


SMALL = """
import asyncio, resource, sys
from batchrun.errors import BatchrunError
from store_support import opened
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    asyncio.run(opened(sys.argv[1]))
except BatchrunError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("most_bytes", [0, 200, 256, 300, 5000, 30_000])
def test_a_disk_that_takes_no_more_is_a_clear_line_from_the_first_byte_on(most_bytes: int, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SMALL, str(tmp_path / "c.db"), str(most_bytes)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert (done.returncode, done.stderr) == (11, "")
    assert done.stdout.startswith("The checkpoint")


# --- network file systems --------------------------------------------------------------------------------------------


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    real = Path.read_text

    def read_text(self: Path, *args: object, **kwargs: object) -> str:
        return "\n".join(lines) if str(self) == "/proc/self/mounts" else real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"])
async def test_a_network_file_system_is_refused_before_anything_is_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, "/dev/sda / ext4 rw 0 0", f"host:/x {tmp_path} {kind} rw 0 0")
    with pytest.raises(StorageError, match=rf"network file system \({kind}\)") as caught:
        await opened(tmp_path / "c.db")
    assert caught.value.exit_code == 11
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("host:/ / nfs rw 0 0", "/dev/sdb {folder} xfs rw 0 0"),
        ("/dev/sda / ext4 rw 0 0", "host:/x {folder}-elsewhere nfs rw 0 0"),
        ("/dev/sda / ext4 rw 0 0", "host:/x {folder}/deeper nfs rw 0 0"),
        ("host:/x {folder} nfs rw 0 0", "/dev/sdb {folder} ext4 rw 0 0"),
        ("tmpfs / tmpfs rw 0 0",),
        ("",),
        ("odd",),
    ],
)
async def test_a_local_disk_is_taken_whatever_else_is_mounted(
    lines: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, *(line.replace("{folder}", str(tmp_path)) for line in lines))
    await closed(await opened(tmp_path / "c.db"))


async def test_a_network_mount_with_a_blank_in_its_name_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my share"
    folder.mkdir()
    mounted(monkeypatch, "/dev/sda / ext4 rw 0 0", f"host:/x {tmp_path}/my\\040share nfs4 rw 0 0")
    with pytest.raises(StorageError, match="network file system"):
        await opened(folder / "c.db")


async def test_a_link_into_a_network_mount_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounted(monkeypatch, "/dev/sda / ext4 rw 0 0", f"host:/x {tmp_path}/far nfs4 rw 0 0")
    with pytest.raises(StorageError, match="network file system"):
        await opened(tmp_path / "near" / "c.db")


# --- the first moments -----------------------------------------------------------------------------------------------


CUT_OFF = """
import asyncio, os, signal, sys
from batchrun.store import opening
from batchrun.store.lock import Lock
from store_support import opened
def end(*_): os.kill(os.getpid(), signal.SIGKILL)
told = []
def tell(self, kept, real=Lock.tell):
    told.append(kept)
    end() if len(told) == int(sys.argv[2]) else real(self, kept)
Lock.tell = tell
if sys.argv[2] == "3":
    fold = opening.fold
    async def folded(connection):
        await fold(connection)
        end()
    opening.fold = folded
asyncio.run(opened(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", [1, 2, 3])
async def test_a_start_killed_in_its_first_moments_raises_no_alarm(moment: int, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    words = [sys.executable, "-c", CUT_OFF, str(path), str(moment)]
    process = await asyncio.create_subprocess_exec(*words, cwd=Path(__file__).parent)
    assert await process.wait() == -9
    await closed(await opened(path))
    assert ask(path, "select state from run order by id desc limit 1") == [("finished",)]


async def test_a_start_that_breaks_off_in_its_first_moments_raises_no_alarm(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def broken(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "fold", broken)
        with pytest.raises(KeyboardInterrupt):
            await opened(path)
    await closed(await opened(path))
    assert ask(path, "select state from run order by id") == [("crashed",), ("finished",)]


async def test_a_long_reader_does_not_hold_up_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    await want(store, [request(row) for row in range(10)])
    await closed(store)
    monkeypatch.setattr(opening, "_FOLD_PATIENCE_MS", 1)
    with View(str(path)) as view:
        reading = view.outcomes()
        next(reading)
        async with asyncio.timeout(10):
            store = await opened(path)
        assert (await opening.one(store._connection, "pragma busy_timeout"))[0] > 1000
        await keep_all(store, [answer(request(0))])
        await closed(store)
        assert len(list(reading)) == 9
    assert number(path, "select count(*) from paid") == 1


async def test_every_start_is_written_down_and_a_crash_counts_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with writer(path) as child:
        await child.tell("marks 16-5000")
    store = await opened(path)
    assert await store.hidden() == (await store.hidden()).__class__(16, 5000)
    await store.raise_marks(8, 100)
    await closed(store)
    with View(str(path)) as view:
        assert (view.hidden().calls, view.hidden().nano) == (16, 5000)
        last = view.last_run()
        assert last is not None
        assert (last.state, last.closed is None) == ("finished", False)


def test_errors_of_this_room_have_an_exit_code_and_say_what_to_do() -> None:
    for text in ("database or disk is full", "file is not a database", "disk I/O error", "database is locked"):
        error: BatchrunError = opening.described(sqlite3.OperationalError(text))
        assert (error.exit_code, bool(error.message), bool(error.next_step)) == (11, True, True)
