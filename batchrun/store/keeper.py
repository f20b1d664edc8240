"""Group commit: outcomes are collected for a few milliseconds and committed together; `keep` returns after COMMIT.

The gap rule: commit at once when the last commit began long enough ago, else wait for the rest of the gap. A slot of
the pace waits for the commit, so the gap is a small share of the calls' latency.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Sequence

from batchrun.errors import StorageError
from batchrun.records import Answer, Doubt, Event, Rejection, State
from batchrun.store.store import Statements, Store
from batchrun.store.till import Till

# Seconds between the beginnings of two commits: 2 % of the median latency, between these two.
GAP_SHARE = 0.02
SHORTEST_GAP = 0.005
LONGEST_GAP = 0.025

_LATENCIES = 101


Item = Answer | Rejection | Doubt | Event


def gap(latencies: Sequence[float]) -> float:
    """Seconds between two commits, from the latest latencies in seconds."""
    if not latencies:
        return SHORTEST_GAP
    return min(LONGEST_GAP, max(SHORTEST_GAP, GAP_SHARE * statistics.median_low(latencies)))


class Keeper:
    """Keeps outcomes in groups; `run` is its one task."""

    def __init__(self, store: Store, till: Till) -> None:
        self._store = store
        self._till = till
        self._newest = 0
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._ended = False
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    async def keep(self, item: Item) -> None:
        """Keep it: returns after COMMIT, or raises. Cancelling the wait does not take the item back.

        Raises:
            StorageError: the commit failed; nothing of the group is kept.
        """
        await self._put(item)

    def note(self, kind: str, detail: str) -> None:
        """A line in the diary, with the next group; nobody waits for it."""
        self._put(Event(self._store.clock.now(), kind, detail))

    def _put(self, item: Item) -> asyncio.Future[None]:
        if self._ended:
            raise StorageError("Nothing more can be kept in this checkpoint.")
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, kept))
        self._arrived.set()
        return kept

    async def run(self) -> None:
        """Commit what arrives until `close`, and then the rest."""
        try:
            await self._commit_until_closed()
        finally:
            self._ended = True

    async def _commit_until_closed(self) -> None:
        clock, last = self._store.clock, float("-inf")
        while not self._closing or self._waiting:
            await self._arrived.wait()
            self._arrived.clear()
            rest = last + gap(self._latencies) - clock.monotonic()
            if rest > 0 and not self._closing:
                await clock.sleep(rest)
            if self._waiting:
                last = clock.monotonic()
                await self._commit_waiting()
                await self._till.learn_dictionary()

    def close(self) -> None:
        """Let `run` end when everything that waits is kept."""
        self._closing = True
        self._arrived.set()

    async def _commit_waiting(self) -> None:
        group, self._waiting = self._waiting, []
        try:
            await self._commit([item for item, _ in group])
        except BaseException as error:
            for _, kept in group:
                if not kept.done():
                    kept.set_exception(error)
                    kept.exception()  # whoever waited may be gone; the error is raised here all the same
            raise
        for _, kept in group:
            if not kept.done():
                kept.set_result(None)

    async def _commit(self, items: Sequence[Item]) -> None:
        answers = [item for item in items if isinstance(item, Answer)]
        rejections = [item for item in items if isinstance(item, Rejection)]
        doubts = [item for item in items if isinstance(item, Doubt)]
        now_ms = self._store.now_ms()
        async with self._store.transaction(
            kept=len(answers) + len(rejections),
            doubt_calls=sum(doubt.calls for doubt in doubts),
            doubt_nano=sum(doubt.nano for doubt in doubts),
        ) as sql:
            linked = await self._add_answers(sql, answers, now_ms) if answers else 0
            rejected = await _add_rejections(sql, rejections, now_ms) if rejections else 0
            if linked or rejected:
                moved = {State.PENDING: -linked - rejected, State.ANSWERED: linked, State.REJECTED: rejected}
                await sql.many("count_state", [{"state": state, "by": by} for state, by in moved.items() if by])
            for item in items:
                if isinstance(item, Event):
                    await sql.note(now_ms, item.kind, item.detail)
        if answers:
            self._store.tell(self._newest)

    async def _add_answers(self, sql: Statements, answers: Sequence[Answer], now_ms: int) -> int:
        """The paid replies, each linked to the row that asked; returns how many rows took theirs."""
        self._latencies.extend(answer.latency_ms / 1000 for answer in answers)
        numbers = await self._till.book(sql, answers, now_ms)
        links = [{"id": n, "row": a.row, "digest": a.digest} for n, a in zip(numbers, answers, strict=True)]
        linked = await sql.many("link", links)
        if linked < len(answers):
            await sql.many("mark_twice", [{"id": link["id"], "row": link["row"]} for link in links])
        self._newest = numbers[-1]
        return linked


async def _add_rejections(sql: Statements, rejections: Sequence[Rejection], now_ms: int) -> int:
    await sql.many(
        "add_rejection",
        [
            {
                "digest": rejection.digest,
                "fault": rejection.fault,
                "status": rejection.status,
                "message": rejection.message,
                "attempts": rejection.attempts,
                "kept_ms": now_ms,
            }
            for rejection in rejections
        ],
    )
    return await sql.many("reject", [{"row": rejection.row, "digest": rejection.digest} for rejection in rejections])
