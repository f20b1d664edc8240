"""Tells somebody far away what happens to a run: one notice after the other, beside the run and never in its way.

How a notice travels is the business of whoever wants it told (`Options.notify`); its JSON is `faces/notice.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from batchrun.errors import BatchrunError, first_of
from batchrun.reports import Happening, Notice, Report, Sums

# Delivers a notice; returns None, or in a sentence why it could not. What it raises is no more than that either.
Notify = Callable[[Notice], Awaitable[str | None]]


class Herald:
    """Delivers notices in their order; one that cannot be delivered is written down and changes nothing else."""

    def __init__(self, notify: Notify | None, undelivered: Callable[[str], Awaitable[None]]) -> None:
        """Make one.

        Args:
            notify: delivers one notice; None when nobody wants to know.
            undelivered: writes down, in a sentence, what could not be delivered and why.
        """
        self._notify = notify
        self._undelivered = undelivered
        self._waiting: deque[Notice] = deque()
        self._news = asyncio.Event()
        self._closing = False
        self._given_up = False
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Deliver beside what goes on inside; at its end, by an error too, wait for what is still to be delivered."""
        if self._notify is None:
            yield
            return
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            self._task = group.create_task(self._work(self._notify))
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised below: inside it would end the delivery of its notice
                failure = error
            self._closing = True
            self._news.set()
        if failure is not None:
            raise failure

    def put(self, notice: Notice) -> None:
        """Have it delivered after those before it."""
        if self._notify is not None and not self._given_up:
            self._waiting.append(notice)
            self._news.set()

    def give_up(self) -> None:
        """Deliver nothing more: the user does not want to wait."""
        self._given_up = True
        if self._task is not None:
            self._task.cancel()

    async def _work(self, notify: Notify) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            notice = self._waiting.popleft()
            why = await _delivered(notify, notice)
            if why is not None:
                await self._undelivered(undelivered(notice, why))


_TOLD = {
    Happening.FINISHED: "finished",
    Happening.PARKED: "was parked",
    Happening.RECOVERED: "recovered",
    Happening.FAILED: "failed",
}


async def _delivered(notify: Notify, notice: Notice) -> str | None:
    """None, or why it was not: somebody else's code may raise anything, and its words may hold anything."""
    try:
        return await notify(notice)
    except Exception as error:  # noqa: BLE001 - a run does not end because nobody listens
        return f"{type(error).__name__}."


def undelivered(notice: Notice, why: str) -> str:
    """That it could not be delivered, in a sentence for the user."""
    return f"The notice that the run {_TOLD[notice.event]} could not be delivered: {why}"


def ended(report: Report, at: float) -> Notice:
    """The notice of a run that finished or parked."""
    sums = Sums(
        report.total, report.answered, report.rejected, report.pending, report.spent_nano, report.spent_now_nano,
        report.maybe_twice_nano, report.left_nano,
    )  # fmt: skip
    event = Happening.FINISHED if report.parked is None else Happening.PARKED
    return Notice(
        event, _new_id(), at, report.checkpoint, report.message, report.exit_code, report=report, sums=sums
    )  # fmt: skip


def recovered(message: str, at: float, checkpoint: str, sums: Sums) -> Notice:
    """The notice that what was in trouble answers again."""
    return Notice(Happening.RECOVERED, _new_id(), at, checkpoint, message, sums=sums)


def failed(error: Exception, at: float, checkpoint: str, sums: Sums | None) -> Notice:
    """The notice of a start that ended with an error; of one that is not ours only the kind is told."""
    cause = first_of(error) if isinstance(error, BaseExceptionGroup) else error
    if isinstance(cause, BatchrunError):
        code, message, next_step = cause.exit_code, cause.message, cause.next_step
    else:
        code, message, next_step = 1, f"Internal error: {type(cause).__name__}.", "Run the same command to go on."
    return Notice(Happening.FAILED, _new_id(), at, checkpoint, message, code, next_step, sums=sums)


def _new_id() -> str:
    return uuid.uuid4().hex
