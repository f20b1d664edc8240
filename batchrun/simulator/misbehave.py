"""Sending a reply: properly, or as a fault wants it, down to the bytes on the socket. Who is struck: `faults`."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from aiohttp import web

from batchrun.simulator.faults import Fault, FaultKind

JSON = "application/json"
NO_STATUS = 0
"""What is counted for a request that got no status line."""

_GONE_CHECK = 0.05
_TRICKLE_BYTES = 16


class Ending(Enum):
    """How a connection is closed after raw bytes."""

    RESET = "reset"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a reply: what to hand back to aiohttp, the status sent, and whether all of it was written."""

    response: web.StreamResponse
    status: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that aiohttp would not send, and how the connection ends after them."""

    data: bytes
    ending: Ending
    status: int = 200


def is_charged(fault: Fault) -> bool:
    """Whether the call is charged. Of the kinds that are not refusals only two can be free."""
    if fault.kind is FaultKind.HANG:
        return fault.charged is not False
    return fault.kind is not FaultKind.RESET_BEFORE


def is_readable(kind: FaultKind) -> bool:
    """Whether a client can read an answer out of what is sent."""
    match kind:
        case (
            FaultKind.WRONG_CONTENT_TYPE
            | FaultKind.TRICKLE
            | FaultKind.HUGE_BODY
            | FaultKind.NO_USAGE
            | FaultKind.NULL_CONTENT
            | FaultKind.ANSWERED_BY
            | FaultKind.NOT_JSON
            | FaultKind.MISFIT
            | FaultKind.FENCED
        ):
            return True
        case (
            FaultKind.CREDITS_END
            | FaultKind.STATUS
            | FaultKind.OVERLOAD
            | FaultKind.THROTTLE
            | FaultKind.TOO_LONG
            | FaultKind.UNKNOWN_MODEL
            | FaultKind.REDIRECT
            | FaultKind.ERROR_OBJECT
            | FaultKind.RESET_BEFORE
            | FaultKind.RESET_DURING
            | FaultKind.RESET_AFTER
            | FaultKind.CUT_BODY
            | FaultKind.BROKEN_JSON
            | FaultKind.NO_CHOICES
            | FaultKind.BAD_UTF8
            | FaultKind.BAD_GZIP
            | FaultKind.HANG
            | FaultKind.TWO_CONTENT_LENGTHS
            | FaultKind.BIG_HEADER
        ):
            return False
        case _:
            assert_never(kind)


async def send(request: web.BaseRequest, response: web.StreamResponse) -> Sent:
    """Write a whole response now, so that it is known here whether it could be written."""
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        return Sent(response, response.status, whole=False)
    return Sent(response, response.status, whole=True)


async def reply(request: web.BaseRequest, fault: Fault, body: bytes, headers: Mapping[str, str]) -> Sent:
    """Send the reply as the fault wants it."""
    raw = raw_bytes(fault.kind, body)
    if raw is not None:
        return await _send_raw(request, raw)
    if fault.kind is FaultKind.HANG:
        await _until_gone(request)
        return Sent(web.Response(), NO_STATUS, whole=False)
    if fault.kind is FaultKind.TRICKLE:
        return await _trickle(request, body, headers, fault.pause)
    return await send(request, spoiled(fault.kind, body, headers))


def raw_bytes(kind: FaultKind, body: bytes) -> Raw | None:
    """The bytes of those faults that no well-behaved server library would send."""
    half = body[: len(body) // 2]
    if kind in (FaultKind.RESET_BEFORE, FaultKind.RESET_DURING):
        return Raw(b"", Ending.RESET, NO_STATUS)
    if kind is FaultKind.RESET_AFTER:
        return Raw(_head(len(body)) + half, Ending.RESET)
    if kind is FaultKind.CUT_BODY:
        return Raw(_head(len(body)) + half, Ending.CLEAN)
    if kind is FaultKind.TWO_CONTENT_LENGTHS:
        return Raw(_head(len(body), f"Content-Length: {len(body) + 1}\r\n") + body, Ending.CLEAN)
    return None


def spoiled(kind: FaultKind, body: bytes, headers: Mapping[str, str]) -> web.Response:
    """The response of those faults that are valid HTTP. What is wrong inside the JSON was done by `replies`."""
    if kind is FaultKind.BROKEN_JSON:
        body = body[: len(body) // 2]
    elif kind is FaultKind.BAD_UTF8:
        body = _with_bad_bytes(body)
    elif kind is FaultKind.BAD_GZIP:
        headers = {**headers, "Content-Encoding": "gzip"}
    elif kind is FaultKind.BIG_HEADER:
        headers = {**headers, "x-simulator-note": "big " * 2_500}
    content_type = "text/plain" if kind is FaultKind.WRONG_CONTENT_TYPE else JSON
    return web.Response(body=body, headers=headers, content_type=content_type)


async def _trickle(request: web.BaseRequest, body: bytes, headers: Mapping[str, str], pause: float) -> Sent:
    response = web.StreamResponse(headers=headers)
    response.content_type = JSON
    response.content_length = len(body)
    try:
        await response.prepare(request)
        for start in range(0, len(body), _TRICKLE_BYTES):
            await response.write(body[start : start + _TRICKLE_BYTES])
            await asyncio.sleep(pause)
        await response.write_eof()
    except ConnectionError:
        return Sent(response, response.status, whole=False)
    return Sent(response, response.status, whole=True)


async def _send_raw(request: web.BaseRequest, raw: Raw) -> Sent:
    """Write bytes past aiohttp and close. The response handed back is never sent: the connection is closed by then."""
    transport = request.transport
    if transport is not None:
        transport.write(raw.data)
        match raw.ending:
            case Ending.CLEAN:
                transport.close()
            case Ending.RESET:
                _reset(transport)
    return Sent(web.Response(), raw.status, whole=False)


def _reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset: that is what closing with a linger time of zero means."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # the client may have closed first
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _until_gone(request: web.BaseRequest) -> None:
    """Wait until the client hangs up. A server that stops cancels this as any call that is not answered yet."""
    while request.transport is not None:  # noqa: ASYNC110  # aiohttp has no event for it
        await asyncio.sleep(_GONE_CHECK)


def _head(length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def _with_bad_bytes(body: bytes) -> bytes:
    """Two bytes that are never UTF-8, inside the answer's text, where every answer but a JSON one begins so."""
    at = body.find(b"About ")
    at = len(body) // 2 if at < 0 else at
    return body[:at] + b"\xff\xfe" + body[at:]
