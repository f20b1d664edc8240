"""`prune`: removes the texts of replies that no row holds, after saying what they are; the money stays in the books."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click
import msgspec

from batchrun.cli.question import is_attended
from batchrun.cli.words import newest_checkpoint
from batchrun.errors import BatchrunError, StorageError, UsageError

if TYPE_CHECKING:
    from batchrun.store.ledger import Prunable


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--keep-unused", is_flag=True, help="Only wasted ones: rows that come back find their answers.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def prune(checkpoint: str | None, *, keep_unused: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove paid replies that no row of the input holds.

    Unused ones, whose rows were removed from the input or edited, and wasted
    ones: cut off or invalid ones that gave way to better ones, and those that
    came twice. Says how many, how large and what they cost, then asks.
    Without CHECKPOINT: the newest in checkpoints/.

    What is lost: a row that comes back to the input later is asked and paid
    again. --keep-unused keeps the replies that could serve such rows. What
    was paid stays in the books: --max-cost goes on counting it.
    """
    from batchrun.faces import prune as face

    path = newest_checkpoint(checkpoint)
    provider, found = _found(path, keep_unused=keep_unused)
    if not face.replies(found):
        which = "wasted " if keep_unused else ""
        _end(found, f"No {which}reply that could go has its text still: there is nothing to remove.", as_json=as_json)
        return
    click.echo(face.told(found), err=True)
    if dry_run:
        _end(found, "Nothing was removed (--dry-run).", as_json=as_json)
        return
    _free(path)
    click.echo(face.lost(found), err=True)
    if not yes and not _agreed():
        _end(found, "Nothing was removed.", as_json=as_json)
        return
    given_back = _removed(path, provider, found, keep_unused=keep_unused)
    _end(found, face.done(found, given_back), as_json=as_json, removed=True, given_back=given_back)


def _end(found: Prunable, said: str, *, as_json: bool, removed: bool = False, given_back: int = 0) -> None:
    from batchrun.faces import prune as face

    click.echo(said, err=True)
    if as_json:
        click.echo(msgspec.json.encode(face.as_json(found, removed=removed, given_back=given_back)))


def _found(path: str, *, keep_unused: bool) -> tuple[str, Prunable]:
    """Whose checkpoint it is, and what could go."""
    from batchrun.store.ledger import Prunable
    from batchrun.store.view import View

    with View(path) as view:
        stored = view.job()
        return ("", Prunable()) if stored is None else (stored[0], view.prunable(keep_unused=keep_unused))


def _free(path: str) -> None:
    """Raise `BusyError` while a run holds the checkpoint, before anybody is asked; it is not held while they think."""
    from batchrun.store.lock import Lock

    lock = Lock(path)
    lock.take()
    lock.release()


def _agreed() -> bool:
    if not is_attended():
        raise UsageError(
            "Nothing was removed: there is no terminal to ask on.", "Say --yes, or --dry-run to only look."
        )
    return click.confirm("Remove them?", err=True)


def _removed(path: str, provider: str, found: Prunable, *, keep_unused: bool) -> int:
    import asyncio

    return asyncio.run(_remove(path, provider, found, keep_unused=keep_unused))


async def _remove(path: str, provider: str, found: Prunable, *, keep_unused: bool) -> int:
    """Under the lock, as a start that sends nothing; returns the bytes that the disk has back."""
    from batchrun.clock import RealClock
    from batchrun.store import ledger
    from batchrun.store.store import Store

    store = await Store.open(path, RealClock(), provider=provider)
    try:
        try:
            await ledger.prune(store, found, keep_unused=keep_unused)
        except BatchrunError:
            with contextlib.suppress(StorageError):
                await store.withdraw()
            raise
        return await ledger.give_back(store)
    finally:
        await store.release()
