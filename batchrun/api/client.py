"""Calls over HTTP: a request goes out, a `Reply` or a `Broken` comes back. It never retries and never judges."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from batchrun import door
from batchrun.api import wire
from batchrun.api.connections import Connections
from batchrun.clock import Clock
from batchrun.job import Timeouts
from batchrun.records import Broken, Reply, Request

JSON = {"Content-Type": "application/json"}

# A list of models is worth waiting so many seconds for; prices and contexts are also known otherwise.
MODELS_TIMEOUT = 30.0


class Client:
    """One server, as the live lane calls it; an async context manager. `remote.Remote` shares its connections."""

    def __init__(self, base_url: str, key: str | None, timeouts: Timeouts, clock: Clock) -> None:
        self.connections = Connections(base_url, key, timeouts, clock)

    async def __aenter__(self) -> Self:
        await self.connections.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.connections.__aexit__(kind, error, trace)

    async def call(self, request: Request) -> Reply | Broken:
        """Send one request, once."""
        door.passing("call")
        return await self.connections.exchange("POST", wire.PATHS[request.endpoint], request.body, headers=JSON)

    async def models(self) -> list[wire.ModelInfo] | None:
        """The server's model list; None when it has none, since not every server does, or is slow to say."""
        try:
            async with asyncio.timeout(MODELS_TIMEOUT):
                reply = await self.connections.exchange("GET", wire.MODELS_PATH, headers=JSON)
        except TimeoutError:
            return None
        return wire.models(reply.body) if isinstance(reply, Reply) and reply.status == 200 else None  # noqa: PLR2004

    def redacted(self, message: str, body: bytes) -> str:
        """The server's sentence without quotations of the request and without the key."""
        return wire.redacted(message, body, self.connections.key)
