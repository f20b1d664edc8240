"""Files to and from the server and the addresses it names, streamed. What a refusal means is `remote`'s to say.

Redirects are followed by hand: the key is shown to the server's own origin only, and nothing goes in the clear that the
user did not mean to. Files are read and written on the event loop: a chunk takes microseconds, and a thread would go on
using a file that a cancelled transfer has closed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import BinaryIO

from aiohttp import ClientResponse
from yarl import URL

from batchrun.api.connections import Alarm, Connections, Unfit, whole
from batchrun.errors import StorageError
from batchrun.job import Timeouts, is_loopback
from batchrun.records import Broken, Reply

CHUNK = 256 * 1024
MOST_HOPS = 20  # the SDK's own limit

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200

_TOO_MANY_HOPS = f"The server redirected the call more than {MOST_HOPS} times."


class Form:
    """A multipart form written by hand, so that its length is known before a file in it is read."""

    def __init__(self, fields: Mapping[str, str], file_name: str | None = None) -> None:
        boundary = secrets.token_hex(16)
        parts = [self._part(boundary, name) + value for name, value in fields.items()]
        if file_name is not None:
            parts.append(self._part(boundary, "file", f'; filename="{_quoted(file_name)}"'))
        self.headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        self.before = "\r\n".join(parts).encode()
        self.after = f"\r\n--{boundary}--\r\n".encode()

    @staticmethod
    def _part(boundary: str, name: str, more: str = "") -> str:
        return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


class Transfer:
    """Uploads and downloads over one server's connections. A pause ends them, their whole length does not."""

    def __init__(self, over: Connections) -> None:
        self._over = over
        idle = over.timeouts.idle
        self._timeouts = Timeouts(connect=over.timeouts.connect, first_byte=idle, idle=idle, total=float("inf"))

    async def put(self, location: str, path: str) -> Reply | Broken:
        """The file to a presigned address, byte for byte as it was given, and to where that sends us.

        Raises:
            StorageError: the file cannot be read.
        """
        return await self._over.attempt(self._put(location, path), paid=False)

    async def post(self, address: str, path: str, form: Form) -> Reply | Broken:
        """The file inside a form, to a path on the server itself.

        Raises:
            StorageError: the file cannot be read.
        """
        return await self._over.attempt(self._send("POST", self._over.url(address), path, form), paid=False)

    async def get(self, address: str, path: str) -> int | Reply | Broken:
        """What is at a path on the server, written to the file `path` (0600); its bytes, or the reply that refuses.

        Raises:
            StorageError: the file cannot be written.
        """
        return await self._over.attempt(self._get(address, path), paid=False)

    async def _put(self, location: str, path: str) -> Reply:
        url = self._allowed(location, URL(self._over.base_url))
        for _ in range(MOST_HOPS + 1):
            reply = await self._send("PUT", url, path)
            if reply.status not in _REDIRECTS:
                return reply
            url = self._next(url, reply.headers)
        raise Unfit(_TOO_MANY_HOPS)

    async def _send(self, method: str, url: URL, path: str, form: Form | None = None) -> Reply:
        began = self._over.clock.monotonic()
        before, after = (form.before, form.after) if form else (b"", b"")
        file = _open(path)
        try:
            size = len(before) + os.fstat(file.fileno()).st_size + len(after)
            headers = {"Content-Length": str(size), **(form.headers if form else {})}
            async with (
                Alarm(self._timeouts) as alarm,
                await self._over.request(
                    method,
                    url,
                    show_key=form is not None,  # a presigned address is its own permission
                    data=_Body(before, file, after, alarm),
                    headers=headers,
                ) as response,
            ):
                content = await whole(response, alarm)
                return Reply(response.status, response.headers, content, self._over.clock.monotonic() - began)
        finally:
            file.close()

    async def _get(self, address: str, path: str) -> int | Reply:
        url = self._over.url(address)
        # Packed bytes would make the length that was promised useless, and a small chunk large.
        headers = {"Accept": "application/binary", "Accept-Encoding": "identity"}
        for _ in range(MOST_HOPS + 1):
            began = self._over.clock.monotonic()
            async with (
                Alarm(self._timeouts) as alarm,
                await self._over.request("GET", url, show_key=self._over.is_own(url), headers=headers) as response,
            ):
                if response.status == _OK:
                    return await _write(response, path, alarm)
                content = await whole(response, alarm)
            reply = Reply(response.status, response.headers, content, self._over.clock.monotonic() - began)
            if reply.status not in _REDIRECTS:
                return reply
            url = self._next(url, reply.headers)
        raise Unfit(_TOO_MANY_HOPS)

    def _next(self, url: URL, headers: Mapping[str, str]) -> URL:
        location = headers.get("Location")
        if not location:
            raise Unfit("The server redirected the call, but not to where.")
        return self._allowed(location, url)

    def _allowed(self, location: str, base: URL) -> URL:
        """The address in a Location header; its percent signs are left as they stand, for they are signed.

        Raises:
            Unfit: it asks for plain http, or for no protocol we speak.
            ValueError: it is no address.
        """
        url = URL(location, encoded=True)
        url = url if url.scheme else base.join(url)
        home = self._over.base_url
        meant = URL(home).scheme == "http" and (is_loopback(str(url)) or not is_loopback(home))
        if not url.host or not (url.scheme == "https" or (url.scheme == "http" and meant)):
            raise Unfit("The server named an address that is not encrypted (https).")
        return url


class _Body:
    """A body piece by piece, from its beginning each time it is read: a connection may die before it has taken it."""

    def __init__(self, before: bytes, file: BinaryIO, after: bytes, alarm: Alarm) -> None:
        self._before = before
        self._file = file
        self._after = after
        self._alarm = alarm

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._file.seek(0)
        if self._before:
            yield self._before
        while chunk := _read(self._file):
            self._alarm.moved()  # that the next piece is wanted means that the one before is on its way
            yield chunk
        if self._after:
            yield self._after
        self._alarm.moved()


async def _write(response: ClientResponse, path: str, alarm: Alarm) -> int:
    """The body to a file of our own.

    Raises:
        Unfit: it is shorter or longer than promised.
    """
    file = _create(path)
    size = 0
    try:
        async for chunk in response.content.iter_chunked(CHUNK):
            alarm.moved()
            size += len(chunk)
            _append(file, chunk)
    finally:
        file.close()
    promised = response.headers.get("Content-Length")
    if promised is not None and "Content-Encoding" not in response.headers and int(promised) != size:
        raise Unfit("The file has another length than the server promised.")
    return size


def _open(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(error) from error


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise _unreadable(error) from error


def _create(path: str) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0)
    except OSError as error:
        raise _unwritable(error) from error


def _append(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]  # unbuffered: a full disk may take a part
    except OSError as error:
        raise _unwritable(error) from error


def _unreadable(error: OSError) -> StorageError:
    return StorageError(f"A batch request file cannot be read ({error.strerror or type(error).__name__}).")


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"A batch result file cannot be written ({error.strerror or type(error).__name__}).",
        "The results are still at the provider. Make room, then run the same command again.",
    )
