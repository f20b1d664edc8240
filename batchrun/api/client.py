"""Calls over HTTP: a request goes out, a `Reply` or a `Broken` comes back. It never retries and never judges."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp

from batchrun import door
from batchrun.api import wire
from batchrun.clock import Clock
from batchrun.job import Timeouts, is_loopback
from batchrun.records import Broken, Reply, Request

USER_AGENT = "batchrun/0.1.0"

# A reply of 20 MB has been seen; one of this size is not a reply.
LARGEST_BODY = 256 * 1024 * 1024
# aiohttp's own limit of 8,190 bytes turns a long header of a good, paid reply into an error.
LARGEST_HEADER = 256 * 1024

# A list of models is worth waiting so many seconds for; prices and contexts are also known otherwise.
MODELS_TIMEOUT = 30.0

_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Client:
    """One connection pool to one server; an async context manager."""

    def __init__(self, base_url: str, key: str | None, timeouts: Timeouts, clock: Clock) -> None:
        self._base_url = base_url
        self._key = key
        self._timeouts = timeouts
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": USER_AGENT, "Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            # How many calls are in flight is the quota's business alone.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect),
            headers=headers,
            trust_env=not is_loopback(self._base_url),  # HTTPS_PROXY and its kin
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=LARGEST_HEADER,
            max_line_size=LARGEST_HEADER,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, request: Request) -> Reply | Broken:
        """Send one request, once."""
        door.passing("call")
        return await self._exchange("POST", wire.PATHS[request.endpoint], request.body)

    async def models(self) -> list[wire.ModelInfo] | None:
        """The server's model list; None when it has none, since not every server does, or is slow to say."""
        try:
            async with asyncio.timeout(MODELS_TIMEOUT):
                reply = await self._exchange("GET", wire.MODELS_PATH, None)
        except TimeoutError:
            return None
        return wire.models(reply.body) if isinstance(reply, Reply) and reply.status == 200 else None  # noqa: PLR2004

    def redacted(self, message: str, body: bytes) -> str:
        """The server's sentence without quotations of the request and without the key."""
        return wire.redacted(message, body, self._key)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> Reply | Broken:
        began = self._clock.monotonic()
        try:
            status, headers, content = await self._bytes(method, path, body)
        except _NOT_SENT as error:
            return self._broken(began, f"The server cannot be reached ({_why(error)}).", maybe_paid=False)
        except TimeoutError:
            return self._broken(began, "The server did not answer in time.")
        except aiohttp.ClientPayloadError as error:
            return self._broken(began, f"The reply was cut off ({_why(error)}).", garbled=True)
        except (aiohttp.ClientResponseError, aiohttp.ContentTypeError, ValueError) as error:
            return self._broken(began, f"The reply cannot be read ({_why(error)}).", garbled=True)
        except (aiohttp.ClientError, OSError) as error:
            return self._broken(began, f"The connection broke ({_why(error)}).")
        return Reply(status, headers, content, self._clock.monotonic() - began)

    async def _bytes(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. One alarm watches: the first byte, then each pause, and the whole."""
        if self._session is None:
            raise RuntimeError("the client is used outside its `async with`")
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeouts.total
        async with asyncio.timeout_at(min(end, loop.time() + self._timeouts.first_byte)) as alarm:
            async with self._session.request(
                method, self._base_url + path, data=body, allow_redirects=False
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > LARGEST_BODY:
                        raise ValueError("the body is too long")
                    alarm.reschedule(min(end, loop.time() + self._timeouts.idle))
                return response.status, response.headers, bytes(content)

    def _broken(self, began: float, message: str, *, maybe_paid: bool = True, garbled: bool = False) -> Broken:
        return Broken(message, maybe_paid, garbled, self._clock.monotonic() - began)


def _why(error: Exception) -> str:
    """The kind of error, in words that hold nothing of the request: messages of libraries may quote URLs or bytes."""
    number = getattr(getattr(error, "os_error", error), "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
