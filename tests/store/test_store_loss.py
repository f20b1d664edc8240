"""The lost `-wal`: whatever happens to it after a crash, a loss is noticed and what is whole raises no alarm."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from store_support import ask, closed, number, opened, writer

from batchrun.errors import StorageError

KEPT = 400


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of a writer that was killed, after a first run that ended well."""
    import asyncio

    async def make() -> None:
        path = folder / "c.db"
        async with writer(path) as child:
            await child.tell("want 1000")
            await child.tell("keep 0-50")
            await child.tell("close")
        shutil.copyfile(path, folder / "earlier")
        async with writer(path) as child:
            for first in range(50, KEPT, 50):
                await child.tell(f"keep {first}-{first + 50}")
            assert child.said == f"kept {KEPT}"

    folder = tmp_path_factory.mktemp("crashed")
    asyncio.run(make())
    return folder


@pytest.fixture
def path(crashed: Path, tmp_path: Path) -> Path:
    shutil.copytree(crashed, tmp_path / "copy")
    return tmp_path / "copy" / "c.db"


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def untouched(path: Path) -> None:
    assert beside(path, "-wal").stat().st_size > 4096


def removed(path: Path) -> None:
    beside(path, "-wal").unlink()


def removed_with_shm(path: Path) -> None:
    removed(path)
    beside(path, "-shm").unlink()


def cut(path: Path, share: float) -> None:
    with beside(path, "-wal").open("r+b") as file:
        file.truncate(int(beside(path, "-wal").stat().st_size * share))


def emptied(path: Path) -> None:
    cut(path, 0)


def halved(path: Path) -> None:
    cut(path, 0.5)


def cut_to_its_header(path: Path) -> None:
    with beside(path, "-wal").open("r+b") as file:
        file.truncate(32)


def without_its_last_byte(path: Path) -> None:
    with beside(path, "-wal").open("r+b") as file:
        file.truncate(beside(path, "-wal").stat().st_size - 1)


def overwritten_in_the_middle(path: Path) -> None:
    with beside(path, "-wal").open("r+b") as file:
        file.seek(beside(path, "-wal").stat().st_size // 2)
        file.write(random.Random(1).randbytes(64))


def replaced_by_an_older_main_file(path: Path) -> None:
    shutil.copyfile(path.with_name("earlier"), path)
    removed_with_shm(path)


def removed_with_the_lock(path: Path) -> None:
    removed(path)
    beside(path, ".lock").unlink()


def emptied_and_the_lock_removed(path: Path) -> None:
    emptied(path)
    beside(path, ".lock").unlink()


def only_the_lock_removed(path: Path) -> None:
    beside(path, ".lock").unlink()


def only_the_shm_removed(path: Path) -> None:
    beside(path, "-shm").unlink()


def folded_by_an_innocent_tool(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("select count(*) from paid").fetchone()
    assert not beside(path, "-wal").exists()


LOST = [
    removed, removed_with_shm, emptied, halved, cut_to_its_header, without_its_last_byte, overwritten_in_the_middle,
    replaced_by_an_older_main_file,
]  # fmt: skip
POSSIBLY = [removed_with_the_lock, emptied_and_the_lock_removed]
WHOLE = [untouched, only_the_lock_removed, only_the_shm_removed, folded_by_an_innocent_tool]
Harm = Callable[[Path], None]


def named(harm: Harm) -> str:
    return harm.__name__


@pytest.mark.parametrize("harm", [*LOST, *POSSIBLY], ids=named)
async def test_a_loss_is_noticed_until_it_is_accepted_and_then_stands_in_the_diary(harm: Harm, path: Path) -> None:
    harm(path)
    known = harm in LOST
    for _ in range(2):
        with pytest.raises(StorageError, match=r"missing.*-wal file was lost") as caught:
            await opened(path)
        assert caught.value.exit_code == 11
        assert "--accept-loss" in caught.value.next_step
    found = number(path, "select count(*) from paid")
    assert found < KEPT
    assert (f"{KEPT - found} paid answers are missing" in caught.value.message) == known
    assert ("number unknown" in caught.value.message) != known
    store = await opened(path, accept_loss=True)
    assert (await store.kept()).answered == found == number(path, "select count(*) from request where state = 2")
    await closed(store)
    ((kind, detail),) = ask(path, "select kind, detail from event")
    assert (kind, "missing" in detail) == ("loss", True)
    await closed(await opened(path))
    assert number(path, "select count(*) from event") == 1


@pytest.mark.parametrize("harm", WHOLE, ids=named)
async def test_what_is_whole_raises_no_alarm(harm: Harm, path: Path) -> None:
    harm(path)
    store = await opened(path)
    assert (await store.kept()).answered == KEPT
    await closed(store)
    assert ask(path, "select state from run order by id") == [("finished",), ("crashed",), ("finished",)]
    assert number(path, "select count(*) from event") == 0


@pytest.mark.parametrize("endings", [(), (".lock",)])
async def test_after_a_clean_close_nothing_is_at_stake(endings: tuple[str, ...], path: Path) -> None:
    await closed(await opened(path))
    assert not beside(path, "-wal").exists()
    for ending in endings:
        beside(path, ending).unlink()
    store = await opened(path)
    assert (await store.kept()).answered == KEPT
    await closed(store)


async def test_an_accepted_loss_goes_on_and_the_next_loss_is_counted_anew(path: Path) -> None:
    removed(path)
    async with writer(path, "accept") as child:
        assert child.said.startswith("open")
        await child.tell("keep 50-60")
    removed(path)
    with pytest.raises(StorageError, match="10 paid answers are missing"):
        await opened(path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
async def test_damage_at_any_place_of_the_wal_is_noticed(seed: int, path: Path) -> None:
    dice = random.Random(seed)
    size = beside(path, "-wal").stat().st_size
    with beside(path, "-wal").open("r+b") as file:
        file.seek(dice.randrange(0, size // 2))
        file.write(dice.randbytes(64))
    with pytest.raises(StorageError, match="missing"):
        await opened(path)
