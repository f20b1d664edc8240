"""One way to exchange over HTTP: one pool, one alarm an exchange, and which failure makes which `Broken`.

What is said to whom is the business of `client` and `remote`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import AsyncIterable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from batchrun.clock import Clock
from batchrun.errors import StorageError
from batchrun.job import Timeouts, is_loopback
from batchrun.records import Broken, Reply

USER_AGENT = "batchrun/0.1.0"

# A reply of 20 MB has been seen; one of this size is not a reply.
LARGEST_BODY = 256 * 1024 * 1024
# aiohttp's own limit of 8,190 bytes turns a long header of a good, paid reply into an error.
LARGEST_HEADER = 256 * 1024

# What a resolver says of a name that nobody has; it may also be out of order.
_NO_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

T = TypeVar("T")


class Unfit(Exception):  # noqa: N818 - becomes a `Broken`, never leaves this room
    """A reply that goes against what we may do; the message is a sentence of ours and quotes nothing."""


_URLS_KEPT = 64


class Alarm:
    """Watches one exchange inside `async with`: the first byte, then each pause, and the whole; rings TimeoutError."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = timeouts.idle
        self._end = self._loop.time() + timeouts.total
        self._timeout = asyncio.timeout_at(min(self._end, self._loop.time() + timeouts.first_byte))

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def moved(self) -> None:
        """Say that bytes went by; the pause is counted from here."""
        with contextlib.suppress(RuntimeError):  # it has rung or is over: a body may still be on its way out then
            self._timeout.reschedule(min(self._end, self._loop.time() + self._idle))


class Connections:
    """The connections to one server and to the hosts it names; an async context manager."""

    def __init__(self, base_url: str, key: str | None, timeouts: Timeouts, clock: Clock) -> None:
        self.base_url = base_url
        self.key = key
        self.timeouts = timeouts
        self.clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[tuple[str, str], dict[str, Any]] = {}
        self._on_this_machine = is_loopback(base_url)
        self._urls: dict[str, URL] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # How many calls are in flight is the quota's business alone.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
            # Without the key: it is for one host alone, and aiohttp shows what stands here to proxies too.
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            # With `trust_env` aiohttp would read ~/.netrc too, and refuse to call a host that stands there, or show it
            # the user's password. Proxies are looked up here instead.
            trust_env=False,
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

    def url(self, path: str) -> URL:
        """The address of a path on the server itself. A few paths make nearly all calls."""
        if path not in self._urls:
            if len(self._urls) >= _URLS_KEPT:
                self._urls.clear()
            self._urls[path] = URL(self.base_url + path)
        return self._urls[path]

    def is_own(self, url: URL) -> bool:
        """Whether the address is on the server's own origin: nowhere else may the key go."""
        return _origin(url) == _origin(URL(self.base_url))

    async def request(
        self,
        method: str,
        url: URL,
        *,
        show_key: bool,
        data: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """One request; `async with await` it, and read its body inside. Redirects are not followed."""
        if self._session is None:
            raise RuntimeError("the client is used outside its `async with`")
        said = dict(headers or {})
        if show_key and self.key:
            said["Authorization"] = f"Bearer {self.key}"
        guessed = None if "Content-Type" in said else ["Content-Type"]  # a body without a type is sent without one
        proxy = {} if self._on_this_machine else await self._proxy(url)
        return self._session.request(
            method, url, data=data, headers=said, skip_auto_headers=guessed, allow_redirects=False, **proxy
        )

    async def _proxy(self, url: URL) -> dict[str, Any]:
        """HTTPS_PROXY and its kin, asked once a host; a server on this machine, and what it names, need none."""
        place = (url.scheme, url.host or "")
        if place not in self._proxies:
            self._proxies[place] = await asyncio.to_thread(_proxy_for, *place)
        return self._proxies[place]

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        paid: bool = True,
    ) -> Reply | Broken:
        """Send one request to the server, once, and read its reply whole. Redirects are not followed."""

        async def work() -> Reply:
            began = self.clock.monotonic()
            async with (
                Alarm(timeouts or self.timeouts) as alarm,
                await self.request(method, self.url(path), show_key=True, data=body, headers=headers) as response,
            ):
                content = await whole(response, alarm)
                return Reply(response.status, response.headers, content, self.clock.monotonic() - began)

        return await self.attempt(work(), paid=paid)

    async def attempt(self, work: Coroutine[Any, Any, T], *, paid: bool = True) -> T | Broken:
        """What `work` returns, or how it broke; `paid`: work that reached the server may have cost money.

        Raises:
            StorageError: the disk failed, not the network.
        """
        began = self.clock.monotonic()

        def broken(message: str, *, sent: bool = True, garbled: bool = False) -> Broken:
            return Broken(message, paid and sent, garbled, self.clock.monotonic() - began)

        try:
            return await work
        except _NOT_SENT as error:
            return broken(f"The server cannot be reached ({_why(error)}).", sent=False)
        except TimeoutError:
            return broken("The server did not answer in time.")
        except aiohttp.ClientPayloadError as error:
            return broken(f"The reply was cut off ({_why(error)}).", garbled=True)
        except Unfit as error:
            return broken(str(error), garbled=True)
        except (aiohttp.ClientResponseError, aiohttp.ContentTypeError, ValueError) as error:
            return broken(f"The reply cannot be read ({_why(error)}).", garbled=True)
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, StorageError):  # reading the file to send failed inside aiohttp's writer
                raise error.__cause__ from error
            return broken(f"The connection broke ({_why(error)}).")


async def whole(response: aiohttp.ClientResponse, alarm: Alarm) -> bytes:
    """The body of a reply that is known to be small.

    Raises:
        ValueError: it is not.
    """
    stream = response.content
    content = bytearray(await stream.readany())
    while not stream.at_eof():  # most replies come in one piece, and need the alarm no more
        alarm.moved()
        content += await stream.readany()
        if len(content) > LARGEST_BODY:
            raise ValueError("the body is too long")
    return bytes(content)


def _proxy_for(scheme: str, host: str) -> dict[str, Any]:
    """The proxy that the environment (on some systems the machine's settings) has for a host, as aiohttp wants it."""
    found = None if proxy_bypass(host) else getproxies().get(scheme)
    if not found:
        return {}
    proxy = URL(found)
    if proxy.user is None:
        return {"proxy": proxy}
    password = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    # aiohttp renames the header, and puts it where the proxy reads it.
    return {"proxy": proxy.with_user(None), "proxy_headers": {"Authorization": f"Basic {password}"}}


def _origin(url: URL) -> tuple[str, str, int | None]:
    return url.scheme, (url.host or "").lower(), url.port


def _why(error: Exception) -> str:
    """The kind of error, in words that hold nothing of the request: messages of libraries may quote URLs or bytes."""
    # Their numbers are those of OpenSSL and of the resolver, not of the system.
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientSSLError):
        return "no secure connection"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "there is no host of that name" if error.errno in _NO_HOST else "its name cannot be looked up"
    number = getattr(getattr(error, "os_error", error), "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
