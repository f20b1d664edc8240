"""Calls over HTTP: a request goes out, a `Reply` or a `Broken` comes back. It never retries and never judges."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import msgspec

from batchrun import door
from batchrun.api import wire
from batchrun.api.connections import Connections
from batchrun.clock import Clock
from batchrun.job import Timeouts
from batchrun.records import Broken, Refusal, Reply, Request

JSON = {"Content-Type": "application/json"}

# A list of models is worth waiting so many seconds for; prices and contexts are also known otherwise.
MODELS_TIMEOUT = 30.0

# Tells whose key it is and costs nothing (the official SDK's `whoami`).
WHOAMI_PATH = "/v3/whoami"
_GLANCE_TIMEOUT = 30.0


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
        listed = await self.listing()
        return listed if isinstance(listed, list) else None

    async def listing(self) -> list[wire.ModelInfo] | Refusal | Broken:
        """The server's model list, or why there is none; a refusal's message is redacted of the key."""
        try:
            async with asyncio.timeout(MODELS_TIMEOUT):
                reply = await self.connections.exchange("GET", wire.MODELS_PATH, headers=JSON, paid=False)
        except TimeoutError:
            return Broken("The server did not answer in time.", maybe_paid=False, garbled=False, seconds=MODELS_TIMEOUT)
        if isinstance(reply, Broken):
            return reply
        if reply.status != 200:  # noqa: PLR2004
            refused = wire.refusal(reply, self.connections.clock.now())
            return msgspec.structs.replace(refused, message=self.redacted(refused.message, b""))
        listed = wire.models(reply.body)
        return Broken("The server sent no model list.", False, True, reply.seconds) if listed is None else listed

    async def whoami(self) -> Reply | Broken:
        """Show the key in a call that costs nothing; the reply is returned as it came, its `Date` among the headers."""
        brief = Timeouts(*([_GLANCE_TIMEOUT] * 4))
        return await self.connections.exchange("GET", WHOAMI_PATH, timeouts=brief, paid=False)

    def redacted(self, message: str, body: bytes) -> str:
        """The server's sentence without quotations of the request and without the key."""
        return wire.redacted(message, body, self.connections.key)
