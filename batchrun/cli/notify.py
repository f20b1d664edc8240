"""`--notify`: addresses to what a run calls when somebody far away should know; errors that no run could tell, too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchrun import herald
from batchrun.cli import signals
from batchrun.errors import BusyError
from batchrun.reports import Happening

if TYPE_CHECKING:
    from batchrun.clock import Clock
    from batchrun.herald import Notify
    from batchrun.reports import Notice


def notify_of(urls: Sequence[str], clock: Clock | None = None) -> Notify | None:
    """What tells all of them, each by itself; None without any. The clock is the machine's unless another is given.

    Raises:
        UsageError: one of them is nothing a webhook can be.
    """
    if not urls:
        return None
    from batchrun.api.webhook import Webhook
    from batchrun.clock import RealClock
    from batchrun.faces.notice import payload

    hooks = [Webhook(url, clock or RealClock()) for url in dict.fromkeys(urls)]

    async def notify(notice: Notice) -> str | None:
        """Tell them all; why one of them could not be told."""
        body = payload(notice)
        async with asyncio.TaskGroup() as group:
            posts = [group.create_task(hook.post(body)) for hook in hooks]
        return " ".join(why for post in posts if (why := post.result()) is not None) or None

    return notify


class Teller:
    """What one start tells: the notices of its run, or else the error that ended the command without one.

    Attributes:
        checkpoint: its path, empty until it is known.
        notify: what the run tells its notices to; None when nobody wants to know.
    """

    def __init__(self, deliver: Notify | None) -> None:
        self.checkpoint = ""
        self.notify: Notify | None = None if deliver is None else self._notice
        self._deliver = deliver
        self._ended = False

    async def _notice(self, notice: Notice) -> str | None:
        self._ended = self._ended or notice.event is not Happening.RECOVERED
        return await self._told(notice)

    async def _told(self, notice: Notice) -> str | None:
        return None if self._deliver is None else await self._deliver(notice)

    def failed(self, error: Exception) -> str:
        """Tell of the error, unless the run did or another run will; returns, in a sentence, that it could not be told.

        It may take a minute; a signal ends it at once.
        """
        if self._deliver is None or self._ended or isinstance(error, BusyError):
            return ""
        notice = herald.failed(error, time.time(), self.checkpoint, None)
        # Whatever goes wrong, the error is what counts.
        with contextlib.suppress(Exception, KeyboardInterrupt, asyncio.CancelledError):
            why = asyncio.run(self._told_in_time(notice))
            return "" if why is None else herald.undelivered(notice, why)
        return ""

    async def _told_in_time(self, notice: Notice) -> str | None:
        telling = asyncio.ensure_future(self._told(notice))
        signals.hear_in(asyncio.get_running_loop(), lambda _code: telling.cancel())
        return await telling


_begun = Teller(None)


def begin(urls: Sequence[str]) -> Teller:
    """What this process tells from now on.

    Raises:
        UsageError: one of the addresses is nothing a webhook can be.
    """
    global _begun  # noqa: PLW0603 - a process is one start
    _begun = Teller(notify_of(urls))
    return _begun


def begun() -> Teller:
    """What tells of this process; nothing before `begin`, and in commands that tell nobody."""
    return _begun


def forget() -> None:
    """Another command begins in this process."""
    global _begun  # noqa: PLW0603 - as in `begin`
    _begun = Teller(None)
