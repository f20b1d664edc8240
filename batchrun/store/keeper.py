"""Group commit: outcomes are collected for a few milliseconds and committed together; `keep` returns after COMMIT.

The gap rule: commit at once when the last commit began long enough ago, else wait for the rest of the gap. A slot of
the pace waits for the commit, so the gap is a small share of the calls' latency.
"""

from __future__ import annotations

import asyncio
import statistics
import zlib
from collections import Counter, deque
from collections.abc import Sequence

from batchrun.errors import StorageError
from batchrun.records import Answer, Doubt, Event, Rejection, State
from batchrun.store.bodies import Packer, train
from batchrun.store.store import Params, Statements, Store

# Seconds between the beginnings of two commits: 2 % of the median latency, between these two.
GAP_SHARE = 0.02
SHORTEST_GAP = 0.005
LONGEST_GAP = 0.025

_LATENCIES = 101
_PULSE_SECONDS = 10
_PULSE_KEPT = 600


Item = Answer | Rejection | Doubt | Event


def gap(latencies: Sequence[float]) -> float:
    """Seconds between two commits, from the latest latencies in seconds."""
    if not latencies:
        return SHORTEST_GAP
    return min(LONGEST_GAP, max(SHORTEST_GAP, GAP_SHARE * statistics.median_low(latencies)))


class Keeper:
    """Keeps outcomes in groups; `run` is its one task."""

    def __init__(self, store: Store, packer: Packer, names: dict[str, int], newest: int) -> None:
        self._store = store
        self._packer = packer
        self._names = names
        self._newest = newest
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._slice = 0
        self._closing = False
        self._ended = False
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    @classmethod
    async def on(cls, store: Store) -> Keeper:
        """A keeper for this checkpoint, with what it already knows."""
        dictionaries = {number: content for number, content in await store.sql.all("dictionaries")}  # noqa: C416 - typed
        names = {text: number for number, text in await store.sql.all("names")}
        newest = await store.sql.one("paid_newest")
        return cls(store, Packer(dictionaries), names, newest[0] if newest else 0)

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
                await self._learn_dictionary()

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
        self._newest += len(answers)
        self._store.tell(self._newest)

    async def _add_answers(self, sql: Statements, answers: Sequence[Answer], now_ms: int) -> int:
        """The paid replies with bodies, links and counters; returns how many rows took theirs."""
        await self._learn_names(sql, answers)
        numbered = list(enumerate(answers, start=self._newest + 1))
        await sql.many("add_paid", [self._paid(number, answer, now_ms) for number, answer in numbered])
        await sql.many("add_body", [self._body(number, answer) for number, answer in numbered])
        links = [{"id": number, "row": a.request.row, "digest": a.request.digest} for number, a in numbered]
        linked = await sql.many("link", links)
        if linked < len(answers):
            await sql.many("mark_twice", [{"id": link["id"], "row": link["row"]} for link in links])
        await self._count(sql, answers, now_ms)
        return linked

    def _paid(self, number: int, answer: Answer, now_ms: int) -> Params:
        completion, usage = answer.completion, answer.completion.usage
        self._latencies.append(answer.latency_ms / 1000)
        return {
            "id": number,
            "digest": answer.request.digest,
            "lane": self._names[answer.lane],
            "model": self._names[completion.model],
            "finish": self._names[completion.finish_reason],
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "cached_tokens": usage and usage.cached_tokens,
            "cost_nano": answer.cost_nano,
            "latency_ms": answer.latency_ms,
            "attempts": answer.attempts,
            "kept_ms": now_ms,
            "fault": completion.fault,
            "checksum": zlib.crc32(completion.body),
        }

    def _body(self, number: int, answer: Answer) -> Params:
        dictionary, frame = self._packer.pack(answer.completion.body)
        return {"id": number, "dictionary": dictionary, "reply": frame}

    async def _learn_names(self, sql: Statements, answers: Sequence[Answer]) -> None:
        texts = {text for a in answers for text in (a.lane, a.completion.model, a.completion.finish_reason)}
        if not texts <= self._names.keys():
            await sql.many("add_name", [{"text": text} for text in sorted(texts)])
            self._names.update({text: number for number, text in await sql.all("names")})

    async def _count(self, sql: Statements, answers: Sequence[Answer], now_ms: int) -> None:
        by_model: dict[tuple[str, str], Counter[str]] = {}
        for answer in answers:
            counts = by_model.setdefault((answer.lane, answer.completion.model), Counter())
            counts.update(_counts(answer))
        await sql.many(
            "count_spend",
            [
                {"lane": self._names[lane], "model": self._names[model], **{name: counts[name] for name in _COUNTED}}
                for (lane, model), counts in by_model.items()
            ],
        )
        tokens = sum(counts["prompt_tokens"] + counts["completion_tokens"] for counts in by_model.values())
        slice_now = now_ms // 1000 // _PULSE_SECONDS
        await sql.execute("count_pulse", ten_s=slice_now, replies=len(answers), tokens=tokens)
        if slice_now != self._slice:
            self._slice = slice_now
            await sql.execute("trim_pulse", ten_s=slice_now - _PULSE_KEPT)

    async def _learn_dictionary(self) -> None:
        """Train a dictionary, once there are samples, in a thread, while answers go on arriving."""
        samples = self._packer.ready_samples()
        content = await asyncio.to_thread(train, samples) if samples else None
        if content is not None:
            async with self._store.transaction() as sql:
                row = await sql.one("add_dictionary", content=content)
            if row is not None:
                self._packer.use(row[0], content)


_COUNTED = ("replies", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano")


def _counts(answer: Answer) -> dict[str, int]:
    usage = answer.completion.usage
    return {
        "replies": 1,
        "unpriced": int(answer.cost_nano is None),
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "completion_tokens": usage.completion_tokens if usage else 0,
        "cost_nano": answer.cost_nano or 0,
    }


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
