"""The counters are what a recount gives, after whatever happened."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from store_support import FakeClock, answer, ask, closed, keep_all, number, opened, rejection, request, want
from support import assert_ledger

from batchrun.records import Doubt, Fault, Lane, Usage
from batchrun.store.store import Hidden, Store
from batchrun.store.view import View

SPEND = """
select lane, model, count(*), sum(cost_nano is null), sum(coalesce(prompt_tokens, 0)),
       sum(coalesce(completion_tokens, 0)), sum(coalesce(cost_nano, 0)) from paid group by 1, 2 order by 1, 2
"""
BEATS = """
select kept_ms / 10000, count(*), sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0))
from paid where kept_ms / 10000 >= ? group by 1 order by 1
"""


class Walk:
    """Outcomes, rebuilds, retries and starts in a seeded order, and what must be counted."""

    def __init__(self, seed: int, path: Path) -> None:
        self.dice = random.Random(seed)
        self.clock = FakeClock()
        self.path = path
        self.keys = [self.dice.randrange(40) for _ in range(60)]
        self.doubts = Hidden(0, 0)
        self.marks = (0, 0)
        self.outcomes = 0

    def item(self) -> Any:
        dice = self.dice
        row = dice.randrange(len(self.keys) + 3)
        asked = request(row, self.keys[row] if row < len(self.keys) else row)
        match dice.randrange(6):
            case 0:
                self.outcomes += 1
                return rejection(asked, dice.choice([Fault.SERVER, Fault.TOO_LONG]))
            case 1:
                doubt = Doubt(dice.randrange(1000), dice.randrange(2))
                self.doubts = Hidden(self.doubts.calls + doubt.calls, self.doubts.nano + doubt.nano)
                return doubt
            case _:
                self.outcomes += 1
                usage = (
                    None if dice.random() < 0.1 else Usage(dice.randrange(50), dice.randrange(50), dice.randrange(9))
                )
                cost = None if usage is None else dice.randrange(10_000)
                return answer(
                    asked, usage=usage, cost=cost, model=dice.choice("abc"), lane=dice.choice(list(Lane)),
                    finish=dice.choice(["stop", "length"]),
                )  # fmt: skip

    async def step(self, store: Store) -> Store:
        dice = self.dice
        match dice.randrange(12):
            case 0:
                self.keys = [dice.choice([key, dice.randrange(40)]) for key in self.keys][: dice.randrange(30, 61)]
                self.keys += [dice.randrange(40) for _ in range(dice.randrange(5))]
                await want(store, [request(row, key) for row, key in enumerate(self.keys)], dice.choice([3, 2000]))
            case 1:
                await store.retry_rejections(dice.choice([None, Fault.SERVER]), this_run=dice.random() < 0.3)
            case 2:
                calls, nano = dice.randrange(64), dice.randrange(5000)
                await store.raise_marks(calls, nano)
                self.marks = (max(self.marks[0], calls), max(self.marks[1], nano))
            case 3:
                store = await self.again(store)
            case _:
                await keep_all(store, [self.item() for _ in range(dice.randrange(1, 9))])
                self.clock.at += dice.choice([0, 1, 30, 3000])
        return store

    async def again(self, store: Store) -> Store:
        if self.dice.random() < 0.5:
            await closed(store, "parked")
        else:
            await store.release()
            self.doubts = Hidden(self.doubts.calls + self.marks[0], self.doubts.nano + self.marks[1])
        self.marks = (0, 0)
        return await opened(self.path, self.clock)

    async def check(self, store: Store) -> None:
        states = Counter(state for (state,) in ask(self.path, "select state from request"))
        assert dict(ask(self.path, "select state, rows from tally")) == {state: states[state] for state in range(5)}
        spend = "select lane, model, replies, unpriced, prompt_tokens, completion_tokens, cost_nano from spend"
        assert ask(self.path, spend) == ask(self.path, SPEND)
        oldest = number(self.path, "select coalesce(min(ten_s), 0) from pulse")
        assert ask(self.path, "select ten_s, replies, tokens from pulse order by 1") == ask(self.path, BEATS, oldest)
        newest = number(self.path, "select coalesce(max(ten_s), 0) from pulse")
        assert newest - oldest <= 600
        assert await store.hidden() == self.doubts
        assert number(self.path, "select sum(kept) from run") == self.outcomes
        assert_ledger(self.path)
        links = [link for (link,) in ask(self.path, "select answer from request where answer is not null")]
        assert len(links) == len(set(links))
        assert number(self.path, "select count(*) from body") == number(self.path, "select count(*) from paid")
        with View(str(self.path)) as view:
            assert view.kept() == await store.kept()
            assert view.hidden() == await store.hidden()
            assert sum(model.replies for model in view.ledger()) == view.kept().replies


async def walked(seed: int, steps: int, path: Path) -> None:
    walk = Walk(seed, path)
    store = await opened(path, walk.clock)
    await want(store, [request(row, key) for row, key in enumerate(walk.keys)])
    for _ in range(steps):
        store = await walk.step(store)
        await walk.check(store)
    await closed(store)


@pytest.mark.parametrize("seed", range(2))
async def test_counters_equal_a_recount_after_each_step_of_a_walk(seed: int, tmp_path: Path) -> None:
    await walked(seed, 150, tmp_path / "c.db")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
async def test_counters_equal_a_recount_after_each_step_of_a_long_walk(seed: int, tmp_path: Path) -> None:
    await walked(seed, 800, tmp_path / "c.db")
