"""`--notify`: addresses to what a run calls when somebody far away should know; errors that come before it, too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from batchrun import herald
from batchrun.errors import BatchrunError, BusyError
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


@contextlib.contextmanager
def telling(notify: Notify | None, checkpoint: str) -> Iterator[Notify | None]:
    """What tells a run's notices, and an error that ends the command before there is a run: no key, a taken port."""
    ended = False

    async def noticed(notice: Notice) -> str | None:
        nonlocal ended
        ended = ended or notice.event is not Happening.RECOVERED
        return None if notify is None else await notify(notice)

    try:
        yield noticed if notify is not None else None
    except BusyError:
        raise  # the run that has it will tell
    except BatchrunError as error:
        if notify is not None and not ended:
            with contextlib.suppress(Exception):  # whatever it is, the error is what counts
                asyncio.run(_told(notify, herald.failed(error, time.time(), checkpoint, None)))
        raise


async def _told(notify: Notify, notice: Notice) -> None:
    await notify(notice)
