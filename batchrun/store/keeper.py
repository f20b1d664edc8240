"""Group commit: outcomes are collected for a few milliseconds and committed together; `keep` returns after COMMIT.

The gap rule: commit at once when the last commit began long enough ago, else wait for the rest of the gap. A slot of
the pace waits for the commit, so the gap is a small share of the calls' latency.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter, deque
from collections.abc import Sequence

from batchrun.errors import StorageError
from batchrun.records import Answer, Before, Content, Doubt, Fault, Rejection, State
from batchrun.reports import Event
from batchrun.rules import repair
from batchrun.rules.probing import PROBE_ROW
from batchrun.store.statements import Statements
from batchrun.store.store import FOR_GOOD, Store
from batchrun.store.till import Till

# Seconds between the beginnings of two commits: 2 % of the median latency, between these two.
GAP_SHARE = 0.02
SHORTEST_GAP = 0.005
LONGEST_GAP = 0.025

_LATENCIES = 101


Item = Answer | Rejection | Content | Doubt | Event

# Why a reply with this mark is no row's answer.
_SURPLUS = {Fault.CUT_SHORT: "cut", Fault.INVALID_OUTPUT: "invalid"}


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
        self._waiting: list[tuple[Item, asyncio.Future[int | None]]] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._ended = False
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    async def keep(self, item: Item) -> int | None:
        """Keep it: returns after COMMIT, or raises. Cancelling the wait does not take the item back.

        Returns:
            The number of a paid reply, in order of payment.

        Raises:
            StorageError: the commit failed; nothing of the group is kept.
        """
        return await self._put(item)

    def note(self, kind: str, detail: str) -> None:
        """A line in the diary, with the next group; nobody waits for it."""
        self._put(Event(self._store.clock.now(), kind, detail))

    def _put(self, item: Item) -> asyncio.Future[int | None]:
        if self._ended:
            raise StorageError("Nothing more can be kept in this checkpoint.")
        kept: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
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
            numbers = iter(await self._commit([item for item, _ in group]))
        except BaseException as error:
            for _, kept in group:
                if not kept.done():
                    kept.set_exception(error)
                    kept.exception()  # whoever waited may be gone; the error is raised here all the same
            raise
        for item, kept in group:
            number = next(numbers) if isinstance(item, Answer) else None
            if not kept.done():
                kept.set_result(number)

    async def _commit(self, items: Sequence[Item]) -> range:
        """Commit them all; returns the numbers of the answers, in their order."""
        answers = [item for item in items if isinstance(item, Answer)]
        rejections = [item for item in items if isinstance(item, Rejection)]
        doubts = [item for item in items if isinstance(item, Doubt)]
        numbers = range(0)
        now_ms = self._store.now_ms()
        async with self._store.transaction(
            kept=len(answers) + len(rejections),
            doubt_calls=sum(doubt.calls for doubt in doubts),
            doubt_nano=sum(doubt.nano for doubt in doubts),
        ) as sql:
            moved: Counter[State] = Counter()
            if answers:
                numbers = await self._add_answers(sql, answers, now_ms, moved)
            if rejections:
                rejected = await _add_rejections(sql, rejections, now_ms)
                moved.update({State.PENDING: -rejected, State.REJECTED: rejected})
            for item in items:
                if isinstance(item, Event):
                    await sql.note(now_ms, item.kind, item.detail)
                elif isinstance(item, Content):
                    await _content(sql, item, moved)
            await sql.many("count_state", [{"state": state, "by": by} for state, by in moved.items() if by])
        if answers:
            self._store.tell(numbers[-1])
        return numbers

    async def _add_answers(
        self, sql: Statements, answers: Sequence[Answer], now_ms: int, moved: Counter[State]
    ) -> range:
        """The paid replies, each given to the row that asked; returns their numbers."""
        self._latencies.extend(answer.latency_ms / 1000 for answer in answers)
        numbers = await self._till.book(sql, answers, now_ms)
        await self._store.recovers(sql)
        for state in (State.ANSWERED, State.AGAIN):
            links = [
                {"id": number, "row": answer.row, "digest": answer.digest, "state": state}
                for number, answer in zip(numbers, answers, strict=True)
                if answer.before is None and answer.row != PROBE_ROW and _state(answer) is state
            ]
            linked = await sql.many("link", links) if links else 0
            moved.update({State.PENDING: -linked, state: linked})
            if linked < len(links):
                losers = [{"id": link["id"], "row": link["row"], "surplus": "twice"} for link in links]
                await sql.many("mark_surplus", losers)
        for number, answer in zip(numbers, answers, strict=True):
            if answer.before is not None:
                await self._replace(sql, number, answer, answer.before, moved)
            elif answer.row == PROBE_ROW:
                # It was cut by nothing, but must never serve a row, and 'cut' is what the column calls such a reply.
                await sql.execute("mark_surplus", id=number, row=PROBE_ROW, surplus="cut")
        plans = [{"digest": answer.digest, "plan": answer.plan} for answer in answers if answer.plan is not None]
        if plans:
            await sql.many("plan_repair", plans)
        return numbers

    async def _replace(
        self, sql: Statements, number: int, answer: Answer, before: Before, moved: Counter[State]
    ) -> None:
        """Of two replies to a row the better one is its answer, and the other surplus, unless a row still shares it."""
        state, fault = _state(answer), answer.completion.fault
        row = {"row": answer.row, "digest": answer.digest, "before": before.number, "state": state}
        if repair.is_better(answer.completion, before.fault):
            changed = await sql.execute("swap", id=number, **row)
            if changed and self._store.shares:
                changed += await sql.execute("swap_twins", id=number, **row)
            loser, why = (before.number, _SURPLUS.get(before.fault)) if changed else (number, None)
        else:
            changed = await sql.execute("stay", **row)
            if changed:
                retries = FOR_GOOD if answer.final else answer.retries
                await sql.execute("count_retry", id=before.number, retries=retries)
            loser, why = number, _SURPLUS.get(fault or before.fault, _SURPLUS.get(before.fault))
        moved[State.AGAIN] -= changed  # one after the other: they may be the same state
        moved[state] += changed
        await sql.execute("mark_surplus", id=loser, row=answer.row, surplus=why or "twice")


def _state(answer: Answer) -> State:
    return State.AGAIN if answer.wants_better else State.ANSWERED


async def _content(sql: Statements, item: Content, moved: Counter[State]) -> None:
    if item.final:
        await sql.execute("content", row=item.row, digest=item.digest, for_good=FOR_GOOD)
    settled = await sql.execute("settle_content", row=item.row, digest=item.digest)
    moved.update({State.AGAIN: -settled, State.ANSWERED: settled})


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
