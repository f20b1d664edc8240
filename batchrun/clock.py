"""The only door to time and dice; everything else is handed `now` or a `Clock`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of batchrun may know of time and chance."""

    def now(self) -> float:
        """Seconds since the epoch, for what is written down."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, for what is measured."""
        ...

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set, or when so many seconds have passed (math.inf: never)."""
        ...


class RealClock:
    """The machine's clock and dice."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def random(self) -> float:
        """A number in [0, 1)."""
        return random.random()  # noqa: S311 - jitter, not secrets

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass on the event loop."""
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set, or when so many seconds have passed on the event loop."""
        if seconds == math.inf:
            await event.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
