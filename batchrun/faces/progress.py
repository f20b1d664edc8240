"""A run while it runs: a bar for people, or JSON lines for programs. It polls one frozen value and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from batchrun.faces.words import duration, spent
from batchrun.reports import BatchStanding, Progress, Stage

Poll = Callable[[], Progress]

_BAR_EVERY = 0.25
_JSON_EVERY = 1.0
_FEW = 2  # batches that a line has room for
# A wait shorter than this is the pace at work, not news.
_WORTH_SAYING = 2.0

_LINE = "{desc}"
_BAR = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} {desc}"


async def face(kind: str, poll: Poll) -> None:
    """Show the run until cancelled: `bar`, `json` or `none`. A face that nobody can see any more goes quietly."""
    with contextlib.suppress(Exception):  # whatever it is: what is only shown must not stop what is paid for
        if kind == "bar":
            await _show_bar(poll)
        elif kind == "json":
            await _show_json(poll)


async def _show_bar(poll: Poll) -> None:
    from tqdm import tqdm

    bar: Any = tqdm(bar_format=_LINE, dynamic_ncols=True, file=sys.stderr, mininterval=0)
    try:
        while True:
            _draw(bar, poll())
            await asyncio.sleep(_BAR_EVERY)
    finally:
        _draw(bar, poll())
        bar.close()


def above_the_bar(line: str) -> None:
    """Write a line to standard error without tearing the bar that is drawn there."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def _draw(bar: Any, progress: Progress) -> None:
    """Reading and writing are told in a line, sending is a bar."""
    if progress.stage is Stage.ASKING:
        return  # the question stands where the bar would
    bar.bar_format = _BAR if progress.stage is Stage.SENDING else _LINE
    bar.total = progress.total
    bar.n = progress.answered + progress.rejected
    bar.set_description_str(line(progress), refresh=True)


async def _show_json(poll: Poll) -> None:
    while True:
        event = {"event": "progress", **msgspec.to_builtins(poll())}
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()
        await asyncio.sleep(_JSON_EVERY)


def line(progress: Progress) -> str:
    """Answers and tokens a second, in flight, 429s, spent, time left; or what it waits for, reads or writes."""
    if progress.stage is not Stage.SENDING:
        return f"{progress.stage}: {progress.rows:,} rows"
    if progress.waiting and progress.wait_seconds >= _WORTH_SAYING and progress.wait_seconds != float("inf"):
        return f"waiting {progress.wait_seconds:.0f} s: {progress.waiting}"
    if progress.batches and progress.in_flight == 0:
        return ", ".join([*batches(progress.batches), spent(progress.spent_nano, progress.unpriced)])
    parts = [f"{progress.answers_per_second:.1f}/s"]
    if progress.in_flight == 0 and progress.answered + progress.rejected < progress.total:
        parts.append("waiting to try again")
    elif progress.seconds_left is not None:
        parts.append(f"{_clock(progress.seconds_left)} left")
    money = spent(progress.spent_nano, progress.unpriced)
    parts += [f"{progress.in_flight} in flight", money, f"{progress.throttled} 429s"]
    if progress.rejected:
        parts.append(f"{progress.rejected} rejected")
    parts.append(f"{progress.tokens_per_second:,.0f} tok/s")
    return ", ".join(parts)


def batches(standing: Sequence[BatchStanding]) -> list[str]:
    """The batches in a few words: each when they are few, else how many are in which state, and the oldest."""
    if len(standing) <= _FEW:
        return [batch(one) for one in standing]
    states = Counter(one.state for one in standing)
    counted = [f"{count} batches {state}" for state, count in states.most_common()]
    return [*counted, f"oldest {duration(max(one.age for one in standing))}"]


def batch(one: BatchStanding) -> str:
    """A batch with its state and age."""
    done = "" if one.progress is None else f" {one.progress:.0f}%"
    worry = f" ({one.worry})" if one.worry else ""
    return f"batch {one.number} {one.state}{done} {duration(one.age)}{worry}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
