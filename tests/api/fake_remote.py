"""A server of the Files and Batch API that says what a test tells it to, and remembers every byte it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from batchrun.api.client import Client
from batchrun.api.remote import Remote
from batchrun.clock import RealClock
from batchrun.job import Timeouts

KEY = "an-example-key-of-24-chars"
PATIENCE = 20.0  # seconds after which a call that should have ended by itself fails the test


class Sent(NamedTuple):
    """One request as it came in; `target` is the path and query, byte for byte."""

    method: str
    target: str
    headers: Any
    body: bytes
    form: dict[str, Any]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(status: int = 200, body: Any = b"", **headers: str) -> Handler:
    """A handler that sends this; what is not bytes goes as JSON, and underscores in header names as hyphens."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handle(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=raw, headers=named)

    return handle


async def reset(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class FakeRemote:
    """Answers by `METHOD /path`; an entry may be one handler, or a list that is worked off."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler | list[Handler]] = {}
        self.sent: list[Sent] = []
        self.url = ""
        self.over = asyncio.Event()

    @property
    def named(self) -> str:
        """The same server under another origin."""
        return self.url.replace("127.0.0.1", "localhost")

    @property
    def calls(self) -> list[str]:
        return [f"{sent.method} {sent.target.split('?')[0]}" for sent in self.sent]

    async def silent(self, _: web.Request) -> web.StreamResponse:
        """Say nothing until the test is over."""
        await self.over.wait()
        return web.Response()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form: dict[str, Any] = {}
        body = b""
        if request.content_type == "multipart/form-data":
            async for part in await request.multipart():
                form[part.name] = (part.filename, bytes(await part.read()))
        else:
            body = await request.read()
        self.sent.append(Sent(request.method, request.raw_path, request.headers, body, form))
        found = self.answers[f"{request.method} {request.raw_path.split('?')[0]}"]
        return await (found.pop(0) if isinstance(found, list) else found)(request)


@contextlib.asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """The address of a server on this machine."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """The address of a server that says bytes; all its talks are over when the block is."""
    talks: list[asyncio.Task[Any] | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await asyncio.gather(*filter(None, talks))


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[FakeRemote]:
    fake = FakeRemote()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", fake.handle)
    async with running(app) as fake.url:
        try:
            yield fake
        finally:
            fake.over.set()


@contextlib.asynccontextmanager
async def remote_at(url: str, **timeouts: float) -> AsyncIterator[Remote]:
    async with Client(url, KEY, Timeouts(**timeouts), RealClock()) as client, asyncio.timeout(PATIENCE):
        yield Remote(client)
