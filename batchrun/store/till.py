"""Books paid replies: numbers them in order of payment, packs their bodies, and moves the counters of money and tokens.

Which row a reply answers is not its affair: `keeper` links live answers by row, `results` those of a batch by digest.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from batchrun.records import Answer
from batchrun.rules.estimate import Gauge, one_reply
from batchrun.store.bodies import Packer, train
from batchrun.store.statements import Params, Statements
from batchrun.store.store import FOR_GOOD, Store

_PULSE_SECONDS = 10
_PULSE_KEPT = 600

_COUNTED = ("replies", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano")
_GAUGED = Gauge.__struct_fields__
_NOT_COUNTED = (0,) * len(_GAUGED)


class Till:
    """What every way of keeping answers shares; used inside a transaction of the store."""

    def __init__(self, store: Store, packer: Packer, names: dict[str, int]) -> None:
        self._store = store
        self._packer = packer
        self._names = names
        self._slice = 0

    @classmethod
    async def on(cls, store: Store) -> Till:
        """A till for this checkpoint, with what it already knows."""
        dictionaries = {number: content for number, content in await store.sql.all("dictionaries")}  # noqa: C416 - typed
        names = {text: number for number, text in await store.sql.all("names")}
        return cls(store, Packer(dictionaries), names)

    async def book(self, sql: Statements, answers: Sequence[Answer], now_ms: int) -> range:
        """Write the replies with bodies and counters; returns their numbers, in the same order."""
        names = await self._learn_names(sql, answers)
        (newest,) = await sql.one("paid_newest") or (0,)
        numbers = range(newest + 1, newest + 1 + len(answers))
        numbered = list(zip(numbers, answers, strict=True))
        await sql.many("add_paid", [_paid(number, answer, now_ms, names) for number, answer in numbered])
        await sql.many("add_body", [self._body(number, answer) for number, answer in numbered])
        await self._count(sql, answers, now_ms, names)
        self._store.unpriced_now += sum(answer.cost_nano is None for answer in answers)
        return numbers

    def forget(self) -> None:
        """The transaction was rolled back: names that were added in it are to be added again."""
        self._names = {}  # not emptied: another transaction may be at work with what it found there

    def _body(self, number: int, answer: Answer) -> Params:
        dictionary, frame = self._packer.pack(answer.completion.body)
        return {"id": number, "dictionary": dictionary, "reply": frame}

    async def _learn_names(self, sql: Statements, answers: Sequence[Answer]) -> Mapping[str, int]:
        texts = {text for a in answers for text in (a.lane, a.completion.model, a.completion.finish_reason)}
        names = self._names
        if not texts <= names.keys():
            await sql.many("add_name", [{"text": text} for text in sorted(texts)])
            names.update({text: number for number, text in await sql.all("names")})
        return names

    async def _count(self, sql: Statements, answers: Sequence[Answer], now_ms: int, names: Mapping[str, int]) -> None:
        spent: defaultdict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
        gauged: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
        for answer in answers:
            spent[answer.lane, answer.completion.model].append(_spent(answer))
            gauged[answer.asked].append(_gauged(answer))
        await sql.many(
            "count_spend",
            [
                {"lane": names[lane], "model": names[model], **_sums(_COUNTED, replies)}
                for (lane, model), replies in spent.items()
            ],
        )
        await sql.many(
            "count_gauge",
            [{"model": model, **_sums(_GAUGED, replies)} for model, replies in gauged.items()],
        )
        tokens = sum(prompt + completion for sums in spent.values() for _, _, prompt, completion, _ in sums)
        slice_now = now_ms // 1000 // _PULSE_SECONDS
        await sql.execute("count_pulse", ten_s=slice_now, replies=len(answers), tokens=tokens)
        if slice_now != self._slice:
            self._slice = slice_now
            await sql.execute("trim_pulse", ten_s=slice_now - _PULSE_KEPT)

    async def learn_dictionary(self) -> None:
        """Train a dictionary, once there are samples, in a thread, while answers go on arriving."""
        samples = self._packer.ready_samples()
        content = await asyncio.to_thread(train, samples) if samples else None
        if content is not None:
            async with self._store.transaction() as sql:
                row = await sql.one("add_dictionary", content=content)
            if row is not None:
                self._packer.use(row[0], content)


def _paid(number: int, answer: Answer, now_ms: int, names: Mapping[str, int]) -> Params:
    completion, usage = answer.completion, answer.completion.usage
    return {
        "id": number,
        "digest": answer.digest,
        "lane": names[answer.lane],
        "model": names[completion.model],
        "finish": names[completion.finish_reason],
        "prompt_tokens": usage and usage.prompt_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "cost_nano": answer.cost_nano,
        "latency_ms": answer.latency_ms,
        "attempts": answer.attempts,
        "kept_ms": now_ms,
        "fault": completion.fault,
        "checksum": zlib.crc32(completion.body),
        "repair": answer.repair,
        "retries": FOR_GOOD if answer.final else answer.retries,
    }


def _sums(names: Sequence[str], figures: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Figures of several replies, each in the order of the names, added up."""
    return {name: sum(column) for name, column in zip(names, zip(*figures, strict=True), strict=True)}


def _spent(answer: Answer) -> tuple[int, ...]:
    """What `_COUNTED` names."""
    usage, cost = answer.completion.usage, answer.cost_nano
    if usage is None:
        return 1, int(cost is None), 0, 0, cost or 0
    return 1, int(cost is None), usage.prompt_tokens, usage.completion_tokens, cost or 0


def _gauged(answer: Answer) -> tuple[int, ...]:
    """What the fields of a `Gauge` name; nothing when the server did not count."""
    usage = answer.completion.usage
    return _NOT_COUNTED if usage is None else one_reply(answer.size, usage.prompt_tokens, usage.completion_tokens)
