"""What `prune` would remove and what it did, for people and for programs."""

from __future__ import annotations

from typing import Any

from batchrun.faces.words import count, size, spent
from batchrun.store.ledger import Heap, Prunable


def told(found: Prunable) -> str:
    """How many texts could go, how large they are and what they cost; only of those there are any of."""
    wasted = "that were wasted (cut, invalid, twice, probes)"
    heaps = (("that no row wants any more", found.unused), (wasted, found.wasted))
    return "\n".join(_heap(which, heap) for which, heap in heaps if heap.replies)


def _heap(which: str, heap: Heap) -> str:
    replies = f"{count(heap.replies)} repl{'y' if heap.replies == 1 else 'ies'}"
    return f"{replies} {which}: {size(heap.size)}, paid with {spent(heap.nano, heap.unpriced)}."


def lost(found: Prunable) -> str:
    """What removing them means."""
    comes_back = " A row that comes back to the input is asked and paid again." if found.unused.replies else ""
    return f"Their texts go for good; what they cost stays in the books.{comes_back}"


def done(found: Prunable, given_back: int) -> str:
    """What was removed, and what became of the room."""
    removed = f"Removed {count(replies(found))} texts."
    if given_back:
        return f"{removed} The file is {size(given_back)} smaller."
    return f"{removed} The file keeps its size, and the room in it is used again."


def replies(found: Prunable) -> int:
    """How many replies it is about."""
    return found.unused.replies + found.wasted.replies


def as_json(found: Prunable, *, removed: bool, given_back: int) -> dict[str, Any]:
    """The same as plain values; money in nano-dollars, sizes in bytes."""
    return {"unused": found.unused, "wasted": found.wasted, "removed": removed, "given_back": given_back}
