"""What was paid for by lane and model, and of how much use it is; and bodies that nobody needs, counted and removed.

Useful is what some row holds: all that was spent, less what is wasted or unused. So nothing here reads the useful ones.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from batchrun import door
from batchrun.errors import StorageError, UsageError
from batchrun.reports import Entry
from batchrun.store.store import Store

# Room that packing the file takes beside its new size: the write-ahead log is about as large once more.
_COPIES = 2


def entries(spend: Iterable[tuple[Any, ...]], aside: Iterable[tuple[Any, ...]]) -> list[Entry]:
    """The ledger from the rows of `spend_by_model` and `aside_by_model`."""
    why: dict[tuple[str, str], dict[str | None, tuple[int, int, int]]] = {}
    for lane, model, reason, *figures in aside:
        why.setdefault((lane, model), {})[reason] = (figures[0], figures[1], figures[2])
    return [_entry(row, why.get((row[0], row[1]), {})) for row in spend]


def _entry(row: tuple[Any, ...], why: Mapping[str | None, tuple[int, int, int]]) -> Entry:
    lane, model, replies, unpriced, prompt, completion, cost = row
    wasted = {reason: figures for reason, figures in why.items() if reason is not None}
    lost, lost_unpriced, lost_nano = map(sum, zip((0, 0, 0), *wasted.values(), strict=True))
    unused, unused_unpriced, unused_nano = why.get(None, (0, 0, 0))
    return Entry(
        lane=lane, model=model, replies=replies, unpriced=unpriced, prompt_tokens=prompt, completion_tokens=completion,
        cost_nano=cost, useful=replies - lost - unused, useful_nano=cost - lost_nano - unused_nano, wasted=lost,
        wasted_nano=lost_nano, unused=unused, unused_nano=unused_nano, wasted_unpriced=lost_unpriced,
        unused_unpriced=unused_unpriced, reasons={reason: figures[0] for reason, figures in wasted.items()},
    )  # fmt: skip


async def read(store: Store) -> list[Entry]:
    """The ledger as the writer sees it, at the end of a run."""
    return entries(await store.sql.all("spend_by_model"), await store.sql.all("aside_by_model"))


class Heap(msgspec.Struct, frozen=True):
    """Replies with a body that nobody needs; `unpriced` of them are not in `nano`, `size` is the bodies' bytes."""

    replies: int = 0
    unpriced: int = 0
    nano: int = 0
    size: int = 0


class Prunable(msgspec.Struct, frozen=True):
    """What could be removed: replies that no row wants any more, and wasted ones."""

    unused: Heap = Heap()
    wasted: Heap = Heap()


def prunable(rows: Iterable[tuple[Any, ...]], *, keep_unused: bool) -> Prunable:
    """From the rows of `prunable`; without the unused ones when those are to be kept."""
    heaps = {bool(wasted): Heap(*figures) for wasted, *figures in rows}
    return Prunable(Heap() if keep_unused else heaps.get(False, Heap()), heaps.get(True, Heap()))


async def prune(store: Store, said: Prunable, *, keep_unused: bool) -> None:
    """Remove the bodies that were spoken of, all or none; this start is withdrawn with it, for it sent nothing.

    Raises:
        UsageError: since then something else could be removed.
    """
    async with store.transaction() as sql:
        if prunable(await sql.all("prunable"), keep_unused=keep_unused) != said:
            raise UsageError("The checkpoint has changed since it was looked at; nothing was removed.", "Try again.")
        await sql.execute("prune_bodies", unused=not keep_unused)
        await sql.execute("mark_pruned", unused=not keep_unused)
        replies = said.unused.replies + said.wasted.replies
        await sql.note(store.now_ms(), "pruned", f"the texts of {replies} replies that no row holds")
        await sql.execute("withdraw_run", run=store.run, token=store.token)


async def give_back(store: Store) -> int:
    """After `prune`: let the disk have the room, when there is enough of it for the work; returns bytes given back."""
    before, needed = await store.sql.one("file_bytes") or (0, 0)
    if before == needed or _free(Path(store.path).parent) < _COPIES * needed:
        return 0
    door.passing("vacuum")
    with contextlib.suppress(StorageError):  # no room after all: SQLite has undone it
        await store.sql.execute("vacuum")
    after, _ = await store.sql.one("file_bytes") or (before, 0)
    return max(0, int(before - after))


def _free(folder: Path) -> int:
    """Bytes that the disk has free."""
    return shutil.disk_usage(folder).free
