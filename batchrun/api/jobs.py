"""The JSON of Together's Files and Batch API, read into our nouns; pure. What an answer in it means is `wire`'s.

Reading is lenient, for every field is optional to the provider's own SDKs and few real bodies have been seen.
Shapes: https://docs.together.ai/reference (files, batches) and https://docs.together.ai/docs/inference/batch/manage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from batchrun.api import wire
from batchrun.records import Broken, Completion, Refusal, RemoteFile, RemoteJob, Reply, ResultLine

ENDPOINT = "/v1/chat/completions"
PURPOSE = "batch-api"

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BOM = b"\xef\xbb\xbf"
_OK = 200
_STATUSES = range(100, 600)
_ERROR_STATUSES = range(400, 600)
_EPOCH_MS = 1e12  # a time as large as this is in milliseconds

_decode = msgspec.json.Decoder().decode

T = TypeVar("T")


class _Line(msgspec.Struct):
    custom_id: Any = None
    response: msgspec.Raw = msgspec.Raw()
    error: Any = None


class _Response(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = msgspec.Raw()


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def job(body: bytes) -> RemoteJob | None:
    """The job in a reply, by itself or inside `{"job": ...}`; None when there is none that has an id."""
    parsed = _object(body)
    return _job(parsed.get("job", parsed))


def jobs(body: bytes) -> list[RemoteJob] | None:
    """All jobs of a list, which is null when empty; None when it is no list."""
    return _listed(body, _job)


def warning(body: bytes) -> str | None:
    """Why no job was made, when the reply says so with `"job": null`; else None."""
    parsed = _object(body)
    if "job" not in parsed or parsed["job"] is not None:
        return None
    return wire.sentence(parsed.get("warning")) or wire.sentence(parsed) or "the batch was not created"


def file(body: bytes) -> RemoteFile | None:
    """The file in a reply; None when there is none that has an id."""
    return _file(_object(body))


def files(body: bytes) -> list[RemoteFile] | None:
    """All files of a list; None when it is no list."""
    return _listed(body, _file)


def file_id(body: bytes) -> str | None:
    """The id of the same file, uploaded before."""
    return _id(_object(body).get("file_id"))


def deleted(body: bytes) -> bool:
    """Whether a file is gone now; a reply that does not say otherwise means yes."""
    return _object(body).get("deleted") is not False


def request(input_file_id: str) -> bytes:
    """The body that makes a batch of an uploaded file."""
    return msgspec.json.encode({"endpoint": ENDPOINT, "input_file_id": input_file_id})


def result_line(line: bytes, now: float) -> ResultLine | None:
    """One line of an output or an error file; None when it cannot be read or does not say whose it is.

    A completion's body is what stands in the line, byte for byte. A refusal's message may quote the prompt: pass it
    through `wire.redacted` before anything else. `now` is seconds since the epoch.
    """
    try:
        parsed = _decode_line(line.removeprefix(_BOM))
    except _UNREADABLE:
        return None
    if not isinstance(parsed.custom_id, str) or not parsed.custom_id:
        return None
    return ResultLine(parsed.custom_id, _outcome(line, parsed, now))


def _outcome(line: bytes, parsed: _Line, now: float) -> Completion | Refusal | Broken:
    """An answer, if there is one; else the error of the line; else the error of the response in it."""
    status, body = _response(parsed.response)
    answer = wire.read(Reply(status or _OK, {}, body, 0.0), now) if body else None
    if isinstance(answer, Completion):
        return answer
    if parsed.error:
        return wire.refusal(Reply(_refused(status, parsed.error), {}, line.removeprefix(_BOM), 0.0), now)
    error = _object(body).get("error")
    if error or status not in (None, _OK):
        return wire.refusal(Reply(_refused(status, error), {}, body, 0.0), now)
    return answer or Broken("The line has neither a response nor an error.", maybe_paid=True, garbled=True, seconds=0.0)


def _response(raw: bytes) -> tuple[int | None, bytes]:
    """(status, body) of a line's response; no bytes when it has no body. The body is a copy: the line may go."""
    try:
        response = _decode_response(raw)
    except _UNREADABLE:
        return None, b""
    status = _number(response.status_code)
    body = bytes(response.body)
    known = int(status) if status is not None and status in _STATUSES else None
    return known, b"" if body == b"null" else body


def _refused(status: int | None, error: Any) -> int:
    """The status of a refusal: the response's, else one that stands in the error, else none (0); 2xx is none either."""
    if status is not None and not 200 <= status < 300:  # noqa: PLR2004 - the 2xx statuses
        return status
    inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
    said = (_number(inner.get(name)) for name in ("status_code", "status", "code"))
    return next((int(number) for number in said if number is not None and number in _ERROR_STATUSES), 0)


def _listed(body: bytes, read: Callable[[Any], T | None]) -> list[T] | None:
    """A bare list, null, or either of them as `data`."""
    try:
        parsed = _decode(body)
    except _UNREADABLE:
        return None
    if isinstance(parsed, dict) and "data" in parsed:
        parsed = parsed["data"]
    if parsed is None:
        return []
    return [found for found in map(read, parsed) if found is not None] if isinstance(parsed, list) else None


def _job(seen: Any) -> RemoteJob | None:
    if not isinstance(seen, dict) or not (identity := _id(seen.get("id"))):
        return None
    return RemoteJob(
        id=identity,
        input_file_id=_id(seen.get("input_file_id")) or "",
        status=_text(seen.get("status")).upper(),
        progress=_percent(seen.get("progress")),
        output_file_id=_id(seen.get("output_file_id")),
        error_file_id=_id(seen.get("error_file_id")),
        error=wire.sentence(seen.get("error")),
        created=_time(seen.get("created_at")),
    )


def _file(seen: Any) -> RemoteFile | None:
    if not isinstance(seen, dict) or not (identity := _id(seen.get("id"))):
        return None
    size = next((size for size in (seen.get("bytes"), seen.get("size")) if _is_size(size)), None)
    return RemoteFile(identity, _text(seen.get("filename")) or _text(seen.get("file_name")), size)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = _decode(body)
    except _UNREADABLE:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _id(value: Any) -> str | None:
    """An id; one of dots alone would climb in the path it is put into."""
    return value if isinstance(value, str) and value.strip(".") else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _percent(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 100 else None  # noqa: PLR2004 - per cent


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _time(value: Any) -> float | None:
    """Seconds since the epoch, from such a number or an ISO time; without a zone it is UTC. Year 1 means never."""
    number = _number(value)
    if number is None and isinstance(value, str):
        number = _iso(value)
    if number is None or not 0 < number < float("inf"):
        return None
    return number / 1000 if number > _EPOCH_MS else number


def _iso(value: str) -> float | None:
    # Not every Python we run on reads small letters, or takes more than six digits of a fraction.
    text = re.sub(r"(\.\d{6})\d+", r"\1", value.strip().upper().removesuffix(" UTC"))
    try:
        at = datetime.fromisoformat(re.sub(r" (?=[+-]\d\d)", "", text))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
