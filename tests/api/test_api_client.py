"""The client against servers that are a few bytes on a loopback socket: what goes out, and every way to fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun import door
from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.api.connections import LARGEST_HEADER
from batchrun.clock import RealClock
from batchrun.job import Timeouts
from batchrun.records import Broken, Completion, Endpoint, Reply, Request
from batchrun.rules.canonical import canonical, digest

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"
UNTRUSTED = WIRE.parent / "tls" / "untrusted.pem"  # signed by itself, valid for a hundred years
KEY = "an-example-key-of-24-chars"
PROMPT = "a prompt nobody else may read"
BODY = canonical({"messages": [{"content": PROMPT, "role": "user"}], "model": "m"})
REQUEST = Request(0, b"d" * 16, Endpoint.CHAT, "m", BODY, None, 1)
PATIENCE = 10.0  # seconds after which a call that should have ended by itself fails the test
ANSWER = b'{"choices":[{"message":{"content":"Four."}}]}'


class Ending(Enum):
    KEEP = "keep the connection for the next request"
    CLOSE = "close it"
    RESET = "reset it"
    HANG = "say no more until the client is gone"
    RESET_UNREAD = "reset it before reading"
    SAY = "say it before reading, and close"


def reply(body: bytes = ANSWER, head: bytes = b"", status: bytes = b"200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, size, head, body)


class Server:
    """Sends the same bytes for every request, and remembers what it was sent."""

    def __init__(self, data: bytes, ending: Ending) -> None:
        self.data = data
        self.ending = ending
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.port = 0
        self.talks: list[asyncio.Task[Any] | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if self.ending is Ending.SAY:
                writer.write(self.data)
            elif self.ending is not Ending.RESET_UNREAD:
                await self._read(reader)
                writer.write(self.data)
                await writer.drain()
            if self.ending in (Ending.RESET, Ending.RESET_UNREAD):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            if self.ending is Ending.HANG:
                await reader.read()
            if self.ending is not Ending.KEEP:
                return

    async def _read(self, reader: asyncio.StreamReader) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        self.requests.append((first, headers, await reader.readexactly(int(headers.get("Content-Length", 0)))))


@contextlib.asynccontextmanager
async def serving(data: bytes = b"", ending: Ending = Ending.CLOSE) -> AsyncIterator[Server]:
    server = Server(data, ending)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await asyncio.gather(*filter(None, server.talks))


@contextlib.asynccontextmanager
async def calling(url: str, key: str | None = KEY, **timeouts: float) -> AsyncIterator[Client]:
    async with Client(url, key, Timeouts(**timeouts), RealClock()) as client:
        yield client


async def call(url: str, **timeouts: float) -> Reply | Broken:
    async with calling(url, **timeouts) as client, asyncio.timeout(PATIENCE):
        return await client.call(REQUEST)


# --- what goes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["request_chat", "request_completions"])
async def test_exactly_this_goes_over_the_wire(name: str):
    expected = msgspec.json.decode((WIRE / f"{name}.json").read_bytes())
    body, endpoint = expected["body"].encode(), Endpoint(expected["endpoint"])
    assert canonical(msgspec.json.decode(body)) == body
    assert digest(endpoint, body).hex() == expected["digest"]
    async with serving(reply()) as server, calling(server.url, expected["key"]) as client:
        await client.call(Request(0, digest(endpoint, body), endpoint, "m", body, None, 1))
        sent = [(f"{expected['method']} {expected['path']} HTTP/1.1", expected["headers"], body)]
        assert server.requests[0][1].pop("Host") == f"127.0.0.1:{server.port}"
        assert server.requests == sent


@pytest.mark.parametrize(
    ("name", "required"), [("request_chat", {"model", "messages"}), ("request_completions", {"model", "prompt"})]
)
def test_the_bodies_have_what_the_service_requires(name: str, required: set[str]):
    body = msgspec.json.decode(msgspec.json.decode((WIRE / f"{name}.json").read_bytes())["body"])
    assert required <= set(body)
    assert isinstance(body["model"], str)
    assert isinstance(body.get("prompt", ""), str)
    assert all({"role", "content"} <= set(message) for message in body.get("messages", []))


async def test_without_a_key_no_authorization_is_sent():
    async with serving(reply()) as server, calling(server.url, key=None) as client:
        await client.call(REQUEST)
        await client.models()
    assert [[name for name in headers if name.lower() == "authorization"] for _, headers, _ in server.requests] == [
        [],
        [],
    ]


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"])
async def test_a_redirect_is_not_followed(status: bytes):
    async with serving(reply()) as elsewhere:
        location = f"Location: {elsewhere.url}/v1/chat/completions\r\n".encode()
        async with serving(reply(b"", location, status)) as server:
            got = await call(server.url)
            assert isinstance(got, Reply)
            assert got.status == int(status[:3])
            assert len(server.requests) == 1
        assert elsewhere.requests == []


async def test_no_cookie_is_kept():
    """A host has to have a name for this: from bare addresses no cookie jar takes any."""
    cookie = b"Set-Cookie: session=one; Path=/\r\n"
    async with (
        serving(reply(head=cookie), Ending.KEEP) as server,
        calling(server.url.replace("127.0.0.1", "localhost")) as client,
    ):
        for _ in range(3):
            assert isinstance(await client.call(REQUEST), Reply)
        assert len(server.requests) == 3
        assert not any("Cookie" in headers for _, headers, _ in server.requests)


async def test_a_call_passes_the_door_once_and_before_it_is_sent():
    async with serving(reply()) as server, calling(server.url) as client:
        seen: list[tuple[str, int]] = []
        door.watch(lambda step: seen.append((step, len(server.requests))))
        await client.call(REQUEST)
        await client.models()
    assert seen == [("call", 0)]


async def test_a_connection_that_died_while_idle_is_never_used_to_send_twice():
    async with serving(reply(), Ending.KEEP) as server, calling(server.url) as client:
        assert isinstance(await client.call(REQUEST), Reply)
        server.data, server.ending = b"", Ending.RESET
        got = await client.call(REQUEST)
        assert isinstance(got, Broken)
        assert got.maybe_paid
        assert len(server.requests) == 2


# --- every way to fail -----------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
GZIP = b"Content-Encoding: gzip\r\n"

NETWORK = {
    "reset before anything was read": (b"", Ending.RESET_UNREAD),
    "reset before a reply": (b"", Ending.RESET),
    "closed before a reply": (b"", Ending.CLOSE),
    "reset inside the headers": (HEAD + b"Content-Le", Ending.RESET),
    "closed inside the headers": (HEAD + b"Content-Le", Ending.CLOSE),
}
GARBLED = {
    "reset inside the body": (reply(length=500), Ending.RESET),
    "closed inside the body": (reply(length=500), Ending.CLOSE),
    "a chunked body cut off": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", Ending.CLOSE),
    "a chunk of no length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", Ending.CLOSE),
    "two lengths": (reply(head=b"Content-Length: 3\r\n"), Ending.CLOSE),
    "a length below zero": (reply(length=-5), Ending.CLOSE),
    "gzip that is none": (reply(head=GZIP), Ending.CLOSE),
    "an encoding nobody asked for": (reply(head=b"Content-Encoding: br\r\n"), Ending.CLOSE),
    "not HTTP": (b"220 mail.example ESMTP\r\n\r\n", Ending.CLOSE),
    "an older habit of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Ending.CLOSE),
    "a status of two digits": (reply(status=b"99 Odd"), Ending.CLOSE),
    "a zero byte in a header": (reply(head=b"X-Odd: a\x00b\r\n"), Ending.CLOSE),
    "a header without end": (HEAD + b"X-Odd: " + b"a" * (LARGEST_HEADER + 1), Ending.CLOSE),
}


def assert_says_nothing(message: str, server: Server | None = None) -> None:
    port = [str(server.port)] if server and server.port else []
    for secret in (KEY, PROMPT, "prompt", "http:", "127.0.0.1", "/v1", "Bearer", *port):
        assert secret not in message


@pytest.mark.parametrize("how", NETWORK)
async def test_a_connection_that_breaks_may_have_been_paid(how: str):
    async with serving(*NETWORK[how]) as server:
        got = await call(server.url)
        assert isinstance(got, Broken)
        assert (got.maybe_paid, got.garbled) == (True, False)
        assert got.message.startswith("The connection broke")
        assert_says_nothing(got.message, server)


@pytest.mark.parametrize("how", GARBLED)
async def test_a_reply_that_cannot_be_read_is_garbled_and_may_have_been_paid(how: str):
    async with serving(*GARBLED[how]) as server:
        got = await call(server.url)
        assert isinstance(got, Broken)
        assert (got.maybe_paid, got.garbled) == (True, True)
        assert_says_nothing(got.message, server)


async def test_a_refused_port_was_not_paid():
    async with serving() as server:
        pass
    got = await call(server.url)
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.garbled) == (False, False)
    assert got.message == "The server cannot be reached (Connection refused)."


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (socket.EAI_NONAME, "there is no host of that name"),
        (socket.EAI_AGAIN, "its name cannot be looked up"),
    ],
)
async def test_a_name_that_leads_nowhere_says_so(monkeypatch: pytest.MonkeyPatch, number: int, why: str):
    def lookup(*_: Any, **__: Any):
        raise socket.gaierror(number, "http://nobody.invalid/v1")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    got = await call("http://nobody.invalid")
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.message) == (False, f"The server cannot be reached ({why}).")


async def test_a_certificate_that_nobody_trusts_says_so():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(UNTRUSTED)
    listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with listening:
        got = await call(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.garbled) == (False, False)
    assert got.message == "The server cannot be reached (its certificate is not trusted)."


async def test_a_server_without_a_secure_connection_says_so():
    async with serving(b"no TLS") as server:
        server.ending = Ending.SAY
        got = await call(server.url.replace("http:", "https:"))
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.garbled) == (False, False)
    assert got.message == "The server cannot be reached (no secure connection)."


async def test_a_name_nobody_has_was_not_paid():
    got = await call("http://nobody.invalid")
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.garbled) == (False, False)
    assert_says_nothing(got.message)


async def test_a_server_that_speaks_no_tls_was_not_paid():
    async with serving(b"", Ending.CLOSE) as server:
        server.ending = Ending.RESET_UNREAD
        got = await call(server.url.replace("http:", "https:"))
    assert isinstance(got, Broken)
    assert not got.garbled
    assert_says_nothing(got.message, server)


async def test_a_server_that_accepts_nobody_was_not_paid():
    """A listener whose queue is full: the kernel drops what comes next, so a connection is never made."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        got = await call(f"http://127.0.0.1:{listener.getsockname()[1]}", connect=0.05)
    assert isinstance(got, Broken)
    assert (got.maybe_paid, got.garbled) == (False, False)


@pytest.mark.parametrize(
    ("data", "timeouts"),
    [
        pytest.param(b"", {"first_byte": 0.05}, id="no byte at all"),
        pytest.param(HEAD, {"first_byte": 0.05}, id="half of the headers"),
        pytest.param(reply(b"", length=500), {"first_byte": 0.05}, id="headers and no body"),
        pytest.param(reply(length=500), {"idle": 0.05}, id="half of the body"),
        pytest.param(reply(length=500), {"total": 0.05}, id="half of the body, in all too long"),
        pytest.param(b"", {"total": 0.05}, id="no byte, in all too long"),
    ],
)
async def test_a_server_that_falls_silent_is_left_and_may_have_been_paid(data: bytes, timeouts: dict[str, float]):
    async with serving(data, Ending.HANG) as server:
        got = await call(server.url, **timeouts)
        assert isinstance(got, Broken)
        assert (got.message, got.maybe_paid, got.garbled) == ("The server did not answer in time.", True, False)
        assert 0.04 < got.seconds < 5


# --- odd, and fine ---------------------------------------------------------------------------------------------------

FINE = {
    "a header of 100 KB": reply(head=b"X-Long: " + b"a" * 100_000 + b"\r\n"),
    "a hundred headers": reply(head=b"".join(b"X-%d: a\r\n" % number for number in range(100))),
    "a header that is not ASCII": reply(head=b"X-Odd: \xff\xfe\r\n"),
    "an unknown charset": reply(head=b"Content-Type: application/json; charset=nobodys\r\n"),
    "plain text": reply(head=b"Content-Type: text/plain\r\n"),
    "no content type that can be read": reply(head=b"Content-Type: ;;;\r\n"),
    "a cookie that is none": reply(head=b"Set-Cookie: \x01=;;;=\r\n"),
    "no length": HEAD + b"\r\n" + ANSWER,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ANSWER), ANSWER),
    "early hints before it": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + reply(),
    "another 2xx": reply(status=b"203 Non-Authoritative Information"),
}


@pytest.mark.parametrize("how", FINE)
async def test_an_odd_reply_with_an_answer_is_an_answer(how: str):
    async with serving(FINE[how]) as server:
        got = await call(server.url)
    assert isinstance(got, Reply)
    assert got.body == ANSWER
    assert isinstance(wire.read(got, 0.0), Completion)


async def test_headers_are_found_in_any_case():
    head = b"RETRY-after: 7\r\nX-RateLimit-Limit-Dynamic: 2.5\r\n"
    async with serving(reply(b"", head, b"429 Too Many Requests")) as server:
        got = await call(server.url)
    assert isinstance(got, Reply)
    assert wire.wait_seconds(got.headers, 0.0) == 7.0
    assert wire.limits(got.headers) == (2.5, None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (reply(b'[{"id":"m"}]'), [wire.ModelInfo("m", "", None, None)]),
        (reply(b'{"data":[]}'), []),
        (reply(b'[{"id":"m"}]', status=b"404 Not Found"), None),
        (reply(b"<html>"), None),
        (reply(b'[{"id":"m"}]', length=500), None),
        (b"", None),
    ],
)
async def test_a_server_without_a_model_list_stops_nothing(data: bytes, expected: Any):
    async with serving(data) as server, calling(server.url) as client:
        assert await client.models() == expected
    assert server.requests[0][0] == "GET /v1/models HTTP/1.1"


async def test_the_client_knows_its_key_and_redacts_it():
    async with calling("http://127.0.0.1:9") as client:
        assert client.redacted(f"Bad key {KEY}: {PROMPT}", BODY) == "Bad key …: …"


async def test_a_client_outside_its_block_is_a_mistake_of_ours():
    with pytest.raises(RuntimeError, match="outside"):
        await Client("http://127.0.0.1:9", KEY, Timeouts(), RealClock()).call(REQUEST)
