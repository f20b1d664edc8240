"""A small server in a thread of its own that says what a test tells it to, and the command line run against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from batchrun.cli.main import main
from batchrun.simulator import Settings, Simulator

KEY = "5ec2e7-key-of-a-test-that-nobody-may-see"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Command = Callable[..., tuple[int, str, str]]
T = TypeVar("T")


def saying(status: int = 200, body: Any = b"", **headers: str) -> Handler:
    """A handler that sends this; what is not bytes goes as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=raw, headers=headers)

    return handle


@contextlib.contextmanager
def threaded(held: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Hold an async context manager in a loop of its own, so that the command line may run its own here."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    manager = held()
    try:
        yield run(manager.__aenter__())
    finally:
        run(manager.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def serving(routes: Mapping[str, Handler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server with these handlers, by `METHOD /path`; anything else is a 404 in plain text."""

    async def handle(request: web.Request) -> web.StreamResponse:
        handler = routes.get(f"{request.method} {request.path}")
        return await handler(request) if handler else web.Response(status=404, text="nothing here")

    @contextlib.asynccontextmanager
    async def server() -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    with threaded(server) as url:
        yield url


@contextlib.contextmanager
def simulating(**settings: Any) -> Iterator[Simulator]:
    """The simulator, answering at once."""
    with threaded(lambda: Simulator(Settings(latency=0.0, refusal_latency=0.0, **settings))) as simulator:
        yield simulator


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in the folder: exit code, standard output and error, neither of which shows the key."""
    monkeypatch.chdir(folder)
    for name in (
        "TOGETHER_API_KEY_FILE",
        "TOGETHER_BASE_URL",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["batchrun", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "Internal error" not in err
        assert KEY not in out + err
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call
