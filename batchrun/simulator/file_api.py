"""The Files API over HTTP: begin an upload, take its bytes, describe, hand out, delete. Disk is `file_store`'s."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web

from batchrun.simulator import errors
from batchrun.simulator.batch_calls import Calls, cut, json_reply, refused
from batchrun.simulator.batch_faults import BatchFaultKind, Call
from batchrun.simulator.batch_records import Kept, StoredFile
from batchrun.simulator.errors import Refusal
from batchrun.simulator.file_store import FileStore, Incoming
from batchrun.simulator.settings import CreditsWord, Settings

_TYPES = ("jsonl", "parquet", "csv")
_PURPOSES = ("fine-tune", "calibration", "eval", "eval-sample", "eval-output", "eval-summary", "batch-api")
_CHUNK = 256 * 1024
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a client says of the file it is about to send."""

    purpose: str
    file_name: str
    file_type: str
    checksum: str


class FileApi:
    """The endpoints under /v1/files, and the storage that presigned addresses lead to."""

    def __init__(self, settings: Settings, store: FileStore, calls: Calls) -> None:
        self._settings = settings
        self._store = store
        self._calls = calls

    def add_routes(self, app: web.Application) -> None:
        """Put the endpoints in their places."""
        for method, path, call, handler in (
            ("POST", "/v1/files", Call.UPLOAD_INIT, self._begin),
            ("GET", "/v1/files", Call.FILES_LIST, self._list),
            ("POST", "/v1/files/upload", Call.UPLOAD, self._upload),
            ("GET", "/v1/files/{id}", Call.FILE_GET, self._get),
            ("GET", "/v1/files/{id}/content", Call.FILE_CONTENT, self._content),
            ("POST", "/v1/files/{id}/preprocess", Call.PREPROCESS, self._preprocess),
            ("DELETE", "/v1/files/{id}", Call.FILE_DELETE, self._delete),
        ):
            app.router.add_route(method, path, self._guarded(call, handler))
        app.router.add_put("/_storage/{path:.*}", self._put)

    def _guarded(self, call: Call, handler: _Handler) -> _Handler:
        """Count the call, and let it in only with a key."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            refusal = self._calls.arrive(call, request)
            return refused(refusal) if refusal else await handler(request)

        return guarded

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        fields = _fields(dict(request.query) | {k: v for k, v in (await request.post()).items() if isinstance(v, str)})
        if isinstance(fields, Refusal):
            return refused(fields)
        if self._refuses_uploads():
            return refused(errors.NO_KEY)
        unfinished = self._settings.batch_dedupe_unfinished
        same = self._store.same_content(fields.checksum, unfinished=unfinished) if fields.checksum else None
        if same is not None:
            return json_reply({"file_id": same.file_id}, 409)
        file = self._store.begin(fields.file_name, fields.purpose, fields.file_type, fields.checksum)
        if self._calls.strike(BatchFaultKind.LOST_UPLOAD_REPLY, file.number):
            return cut(request)
        location = f"{request.scheme}://{request.host}{_presigned(file.file_id, self._settings.seed)}"
        return web.Response(status=302, headers={"Location": location, "X-Together-File-Id": file.file_id})

    def _refuses_uploads(self) -> bool:
        """Whether credits are gone and an upload is refused for it, as if the key were bad."""
        return self._settings.batch_credits_word is CreditsWord.UPLOAD_401 and self._calls.credits_ended()

    async def _put(self, request: web.Request) -> web.StreamResponse:
        """The storage behind the presigned address: it wants that very address, no key, and to know the length."""
        self._calls.requests[Call.PUT.value] += 1
        file = self._store.get(Path(request.path).name)
        if file is None or not hmac.compare_digest(request.raw_path, _presigned(file.file_id, self._settings.seed)):
            return _storage_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
        fault = self._calls.error(Call.PUT)
        if fault is not None:
            return _storage_error(fault.http or 500, "InternalError", "We encountered an internal error.")
        if "Authorization" in request.headers:
            return _storage_error(403, "InvalidRequest", "Only one auth mechanism allowed.")
        if request.content_length is None:
            return _storage_error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        broken = self._calls.strike(BatchFaultKind.BROKEN_PUT, file.number)
        with self._store.incoming(file.file_id) as incoming:
            whole = await _receive(request, incoming, request.content_length // 2 if broken else None)
            if not whole:
                return cut(request)
            self._store.finish(file, incoming)
        return web.Response(headers={"ETag": f'"{file.sha256[:32]}"'})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        """The other way: fields and bytes in one multipart body, in any order."""
        if not request.content_type.startswith("multipart/"):
            return refused(errors.invalid("the body must be multipart/form-data"))
        if self._refuses_uploads():
            return refused(errors.NO_KEY)
        with self._store.incoming("upload") as incoming:
            said, came = await _read_parts(await request.multipart(), incoming)
            fields = _fields(said)
            if isinstance(fields, Refusal):
                return refused(fields)
            if not came:
                return refused(errors.invalid("`file` is missing", "file"))
            file = self._store.begin(fields.file_name, fields.purpose, fields.file_type, fields.checksum)
            self._store.finish(file, incoming)
        return json_reply(_described(file))

    async def _preprocess(self, request: web.Request) -> web.StreamResponse:
        file = self._store.get(request.match_info["id"])
        if file is None:
            return refused(_unknown(request))
        fault = self._calls.strike(BatchFaultKind.PREPROCESS_ERROR, file.number)
        if fault is not None:
            return refused(errors.by_status(fault.http or 500, ""))
        return json_reply(_described(file))

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        files = [file for file in self._store.by_id.values() if file.kept is not Kept.DELETED]
        return json_reply({"data": [_described(file) for file in files]})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        file = self._store.get(request.match_info["id"])
        return refused(_unknown(request)) if file is None else json_reply(_described(file))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        file = self._store.get(request.match_info["id"])
        if file is None:
            return refused(_unknown(request))
        self._store.delete(file)
        return json_reply({"id": file.file_id, "deleted": True})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        file = self._store.get(request.match_info["id"])
        if file is None or file.kept is not Kept.STORED:
            return refused(_unknown(request))
        if file.job and self._calls.strike(BatchFaultKind.FILE_MISSING, file.job):
            return refused(_unknown(request))
        fault = self._calls.strike(BatchFaultKind.DOWNLOAD_CUT, file.job)
        return await self._stream(request, file, file.bytes // 2 if fault else file.bytes)

    async def _stream(self, request: web.Request, file: StoredFile, upto: int) -> web.StreamResponse:
        """The bytes from disk, and a cut connection if not all of them shall go out."""
        response = web.StreamResponse()
        response.content_type = "text/plain"
        response.content_length = file.bytes
        left = upto
        with self._store.path(file.file_id).open("rb") as content:
            await response.prepare(request)
            while left and (data := content.read(min(_CHUNK, left))):
                await response.write(data)
                left -= len(data)
        if upto < file.bytes:
            return cut(request, response)
        await response.write_eof()
        return response


async def _receive(request: web.Request, incoming: Incoming, cut_at: int | None) -> bool:
    """The bytes of a PUT to disk; false if the client went away, or as soon as `cut_at` bytes are here."""
    try:
        async for data in request.content.iter_any():
            incoming.write(data)
            if cut_at is not None and incoming.size >= cut_at:
                return False
    except (ClientPayloadError, ConnectionError):
        return False
    return cut_at is None


async def _read_parts(reader: MultipartReader, incoming: Incoming) -> tuple[dict[str, str], bool]:
    """The fields, and whether there was a file, whose bytes are now on their way."""
    said: dict[str, str] = {}
    came = False
    async for part in reader:
        if not isinstance(part, BodyPartReader):
            continue
        if part.name == "file":
            came = True
            while data := await part.read_chunk(_CHUNK):
                incoming.write(data)
                await asyncio.sleep(0)
        else:
            said[part.name or ""] = await part.text()
    return said, came


def _fields(said: dict[str, Any]) -> _Fields | Refusal:
    """The fields, checked."""
    purpose, name = said.get("purpose"), said.get("file_name")
    if not purpose or not name:
        missing = "file_name" if purpose else "purpose"
        return errors.invalid(f"`{missing}` is missing", missing)
    if purpose not in _PURPOSES:
        return errors.invalid(f"`purpose` must be one of {', '.join(_PURPOSES)}", "purpose")
    suffix = Path(name).suffix.removeprefix(".")
    if suffix not in _TYPES or said.get("file_type", suffix) not in _TYPES:
        return errors.invalid("the file must be .jsonl, .parquet or .csv", "file_name")
    return _Fields(purpose, name, said.get("file_type", suffix), said.get("checksum", ""))


def _described(file: StoredFile) -> dict[str, Any]:
    stored = file.kept is Kept.STORED
    return {
        "id": file.file_id,
        "object": "file",
        "created_at": int(file.created),
        "filename": file.name,
        "bytes": file.bytes,
        "purpose": file.purpose,
        "FileType": file.file_type,
        "Processed": stored,
        "processing_status": "COMPLETED" if stored else "PENDING",
    }


def _presigned(file_id: str, seed: int) -> str:
    """The path and query of the address, which is good only byte for byte: some clients quote it anew."""
    signature = hmac.digest(f"simulated {seed}".encode(), file_id.encode(), "sha256").hex()
    words = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": "SIMULATED/20260101/us-east-1/s3/aws4_request",
        "X-Amz-Expires": "3600",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": signature,
        "response-content-disposition": "attachment; a=b+c",
    }
    query = "&".join(f"{word}={quote(value, safe='')}" for word, value in words.items())
    return f"/_storage/simulated%2Fuploads/{file_id}?{query}"


def _unknown(request: web.Request) -> Refusal:
    return Refusal(404, f"File {request.match_info['id']} not found", code="not_found")


def _storage_error(status: int, code: str, message: str) -> web.Response:
    """An error as object stores write it."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(text=xml, status=status, content_type="application/xml")
