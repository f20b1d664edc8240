"""The deadline of a run: when what is in batches has to go live to make it, and when it is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from batchrun.clock import Clock
from batchrun.lanes.quota import LocalQuota
from batchrun.reports import BatchStanding
from batchrun.rules import ways

# Seconds between two looks at whether live calls can still make it.
_LOOK_EVERY = 1.0


async def watch(
    at: float,
    clock: Clock,
    needed: Callable[[], float],
    may_turn: Callable[[], bool],
    turn: Callable[[str], Awaitable[None]],
) -> None:
    """Return at the deadline (seconds since the epoch); `turn`, with words for the diary, while live can make it.

    Args:
        at: the deadline.
        clock: time.
        needed: seconds that live calls would take for what is in batches.
        may_turn: whether anything can still go live that was meant for batches.
        turn: lets it.
    """
    began = clock.now()
    while (now := clock.now()) < at:
        seconds = needed()
        if may_turn() and now >= ways.turn_at(at, began, seconds):
            how_much = "can still be done" if seconds <= at - now else "cannot all be done, but most of it,"
            await turn(f"batches are cancelled: what is left {how_much} live")
        await clock.sleep(min(at - now, _LOOK_EVERY))


def live_seconds(standing: Iterable[BatchStanding], quota: LocalQuota | None, rpm: float | None) -> float:
    """What live calls would take for the rows that are in batches, at the rates found out so far."""
    lines: dict[str, int] = {}
    for batch in standing:
        lines[batch.model] = lines.get(batch.model, 0) + batch.lines
    rates = {model: None if quota is None else quota.rate(model) for model in lines}
    cap = None if rpm is None else rpm / 60
    return max((ways.live_seconds(count, rates[model], cap) for model, count in lines.items()), default=0.0)
