"""Together's Files and Batch API, one call a method: what came back is read into our nouns, a `Refusal` or a `Broken`.

It never retries and never judges; what to do next, and what to write down before, is the batch lane's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

import msgspec

from batchrun import door
from batchrun.api import jobs, wire
from batchrun.api.client import JSON, Client
from batchrun.api.transfer import Form, Transfer
from batchrun.job import Timeouts
from batchrun.records import Broken, Refusal, RemoteFile, RemoteJob, Reply

# Calls that carry a page of JSON and make nothing that takes long may take so many seconds in all.
METADATA_TIMEOUT = 60.0

FILES = "/v1/files"
BATCHES = "/v1/batches"
WHOAMI = "/v3/whoami"

_OK = 200
_UNAUTHORIZED = frozenset({401, 403})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONFLICT = 409
_GONE = 404

T = TypeVar("T")


class Upload(msgspec.Struct, frozen=True):
    """A file the provider expects: its id, and the presigned address to PUT its bytes to."""

    file_id: str
    location: str


class Present(msgspec.Struct, frozen=True):
    """A file the provider has already, by its checksum; whether in full is for its size to show."""

    file_id: str


class Remote:
    """The Files and Batch API of the server a `Client` is connected to; every message in it is redacted of the key.

    A `Broken` of any call but `create` was not paid for: files cost nothing.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._over = client.connections
        self._transfer = Transfer(self._over)
        said = self._over.timeouts
        self._brief = Timeouts(
            connect=said.connect,
            first_byte=min(said.first_byte, METADATA_TIMEOUT),
            idle=min(said.idle, METADATA_TIMEOUT),
            total=min(said.total, METADATA_TIMEOUT),
        )

    # --- files -------------------------------------------------------------------------------------------------------

    async def begin_upload(self, name: str, sha256: str) -> Upload | Present | Refusal | Broken:
        """Announce a file (`name` ends in .jsonl, `sha256` in hex): where to put it, or that it is there already."""
        form = Form({"purpose": jobs.PURPOSE, "file_name": name, "file_type": "jsonl", "checksum": sha256})
        reply = await self._ask("upload", "POST", FILES, form.before + form.after, form.headers)
        if isinstance(reply, Broken):
            return reply
        if reply.status in _REDIRECTS:
            return self._upload(reply)
        if reply.status == _CONFLICT and (known := jobs.file_id(reply.body)):
            return Present(known)
        return self._refusal(reply) if not _good(reply) else _garbled(reply, "no address to upload to")

    def _upload(self, reply: Reply) -> Upload | Broken:
        identity, location = reply.headers.get("X-Together-File-Id"), reply.headers.get("Location")
        if not identity or not identity.strip(".") or not location:
            return _garbled(reply, "no address to upload to")
        return Upload(identity, location)

    async def put(self, location: str, path: str) -> Refusal | Broken | None:
        """Put the file's bytes where `begin_upload` said, without the key; None: they are there.

        Raises:
            StorageError: the file cannot be read.
        """
        door.passing("put")
        reply = await self._transfer.put(location, path)
        if isinstance(reply, Broken):
            return reply
        door.passing("put answered")
        return None if _good(reply) else self._refusal(reply)

    async def preprocess(self, file_id: str) -> RemoteFile | Refusal | Broken:
        """Tell the provider that the bytes are there."""
        reply = await self._ask("preprocess", "POST", f"{_at(FILES, file_id)}/preprocess")
        return self._read(reply, jobs.file, "no file")

    async def upload_whole(self, name: str, path: str) -> RemoteFile | Refusal | Broken:
        """The other way to upload: name and bytes in one form.

        Raises:
            StorageError: the file cannot be read.
        """
        form = Form({"purpose": jobs.PURPOSE, "file_name": name, "file_type": "jsonl"}, file_name=name)
        door.passing("upload")
        reply = await self._transfer.post(f"{FILES}/upload", path, form)
        if isinstance(reply, Reply):
            door.passing("upload answered")
        return self._read(reply, jobs.file, "no file")

    async def file(self, file_id: str) -> RemoteFile | Refusal | Broken:
        """What the provider knows of a file."""
        return self._read(await self._ask("get", "GET", _at(FILES, file_id)), jobs.file, "no file")

    async def files(self) -> list[RemoteFile] | Refusal | Broken:
        """All files of the account, or of the key's project."""
        return self._read(await self._ask("list", "GET", FILES), jobs.files, "no list of files")

    async def delete(self, file_id: str) -> bool | Refusal | Broken:
        """Delete a file; True: it is gone, also when it was before."""
        reply = await self._ask("delete", "DELETE", _at(FILES, file_id))
        if isinstance(reply, Reply) and reply.status == _GONE:
            return True
        return self._read(reply, jobs.deleted, "nothing")

    async def download(self, file_id: str, path: str) -> int | Refusal | Broken:
        """The file's content written to `path` (created 0600, emptied first), not synced; its bytes.

        A download that was cut is garbled, and leaves a part behind in `path`.

        Raises:
            StorageError: `path` cannot be written.
        """
        door.passing("download")
        got = await self._transfer.get(f"{_at(FILES, file_id)}/content", path)
        if isinstance(got, Broken):
            return got
        door.passing("download answered")
        if isinstance(got, int):
            return got
        return self._refusal(got) if not _good(got) else _garbled(got, "a part of a file")

    # --- batches -----------------------------------------------------------------------------------------------------

    async def create(self, file_id: str) -> RemoteJob | Refusal | Broken:
        """Make a batch of an uploaded file. Never send this again blindly: the server cannot tell two from one."""
        reply = await self._ask("create", "POST", BATCHES, jobs.request(file_id), JSON, paid=True)
        if isinstance(reply, Reply) and _good(reply) and (warning := jobs.warning(reply.body)) is not None:
            # 2xx, but nothing was made: words are all there is to judge by.
            return Refusal(0, "", "", self._client.redacted(warning, b""), None)
        return self._redacted(self._read(reply, jobs.job, "no batch", paid=True))

    async def jobs(self) -> list[RemoteJob] | Refusal | Broken:
        """All batches of the account, or of the key's project."""
        found = self._read(await self._ask("list", "GET", BATCHES), jobs.jobs, "no list of batches")
        return [self._redacted(job) for job in found] if isinstance(found, list) else found

    async def job(self, job_id: str) -> RemoteJob | Refusal | Broken:
        """How a batch stands."""
        reply = await self._ask("get", "GET", _at(BATCHES, job_id))
        return self._redacted(self._read(reply, jobs.job, "no batch"))

    async def cancel(self, job_id: str) -> RemoteJob | Refusal | Broken:
        """Ask for a batch to end; what was finished until then is paid, and in its output."""
        reply = await self._ask("cancel", "POST", f"{_at(BATCHES, job_id)}/cancel")
        return self._redacted(self._read(reply, jobs.job, "no batch"))

    # --- the key -----------------------------------------------------------------------------------------------------

    async def key_works(self) -> bool | None:
        """Whether the server takes the key for calls that cost nothing; None when it does not make that clear."""
        for path in (WHOAMI, wire.MODELS_PATH):
            reply = await self._over.exchange("GET", path, timeouts=self._brief, paid=False)
            if isinstance(reply, Reply) and (reply.status == _OK or reply.status in _UNAUTHORIZED):
                return reply.status == _OK
        return None

    # --- shared ------------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        step: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        paid: bool = False,
    ) -> Reply | Broken:
        door.passing(step)
        reply = await self._over.exchange(method, path, body, headers=headers, timeouts=self._brief, paid=paid)
        if isinstance(reply, Reply):
            door.passing(f"{step} answered")
        return reply

    def _read(
        self, reply: Reply | Broken, read: Callable[[bytes], T | None], what: str, *, paid: bool = False
    ) -> T | Refusal | Broken:
        if isinstance(reply, Broken):
            return reply
        if not _good(reply):
            return self._refusal(reply)
        found = read(reply.body)
        return _garbled(reply, what, paid=paid) if found is None else found

    def _refusal(self, reply: Reply) -> Refusal:
        seen = wire.refusal(reply, self._over.clock.now())
        return msgspec.structs.replace(seen, message=self._client.redacted(seen.message, b""))

    def _redacted(self, seen: RemoteJob | T) -> RemoteJob | T:
        if isinstance(seen, RemoteJob) and seen.error:
            return msgspec.structs.replace(seen, error=self._client.redacted(seen.error, b""))
        return seen


def _good(reply: Reply) -> bool:
    return 200 <= reply.status < 300  # noqa: PLR2004 - the 2xx statuses


def _garbled(reply: Reply, what: str, *, paid: bool = False) -> Broken:
    return Broken(f"The server sent {what}.", maybe_paid=paid, garbled=True, seconds=reply.seconds)


def _at(place: str, identity: str) -> str:
    return f"{place}/{quote(identity, safe='')}"
