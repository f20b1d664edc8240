"""The Batch API over HTTP: create, get, list, cancel, in the service's shapes. What becomes of a job: `batches`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from batchrun.simulator import errors
from batchrun.simulator.asks import Endpoint
from batchrun.simulator.batch_calls import Calls, batch_refused, cut, json_reply
from batchrun.simulator.batch_faults import TERMINAL, BatchFault, BatchFaultKind, Call, Status
from batchrun.simulator.batch_lines import unbatchable
from batchrun.simulator.batch_records import Job, Kept, StoredFile
from batchrun.simulator.batches import Batches
from batchrun.simulator.file_store import FileStore
from batchrun.simulator.settings import CreditsWord, Settings

_WINDOW = 24 * 3600
_CREDITS_TOO_LOW = "Your credit balance is too low to create this batch. Please add credits at {billing}."
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A job somebody wants."""

    file: StoredFile
    model: str


class BatchApi:
    """The endpoints under /v1/batches."""

    def __init__(self, settings: Settings, batches: Batches, store: FileStore, calls: Calls) -> None:
        self._settings = settings
        self._batches = batches
        self._store = store
        self._calls = calls

    def add_routes(self, app: web.Application) -> None:
        """Put the endpoints in their places."""
        for method, path, call, handler in (
            ("POST", "/v1/batches", Call.BATCH_CREATE, self._create),
            ("GET", "/v1/batches", Call.BATCH_LIST, self._list),
            ("GET", "/v1/batches/{id}", Call.BATCH_GET, self._get),
            ("POST", "/v1/batches/{id}/cancel", Call.BATCH_CANCEL, self._cancel),
        ):
            app.router.add_route(method, path, self._guarded(call, handler))

    def described(self, job: Job) -> dict[str, Any]:
        """The job as the service tells of it: without counts, and without words that have no value."""
        stuck = self._batches.is_stuck(job) and job.status is job.plan.stuck
        told: dict[str, Any] = {
            "id": job.job_id,
            "user_id": "simulated",
            "input_file_id": job.input_file_id,
            "file_size_bytes": job.file_bytes,
            "status": job.plan.word if stuck and job.plan.word else job.status.value,
            "job_deadline": _iso(job.created + _WINDOW),
            "created_at": _iso(job.created),
            "endpoint": job.endpoint,
            "progress": 100 * job.plan.stuck_share if stuck else _progress(job),
            "model_id": job.model_id,
        }
        perhaps = {
            "output_file_id": job.output_file_id,
            "error_file_id": job.error_file_id,
            "error": job.error,
            "completed_at": _iso(job.ended) if job.status in TERMINAL else None,
        }
        return told | {word: value for word, value in perhaps.items() if value}

    def _guarded(self, call: Call, handler: _Handler) -> _Handler:
        """Count the call, let it in only with a key, and only after the lines that are due."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            refusal = self._calls.arrive(call, request)
            if refusal is not None:
                return batch_refused(refusal.status, refusal.message, refusal.headers)
            await self._batches.catch_up()
            return await handler(request)

        return guarded

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        number = len(self._batches.jobs) + 1
        failure = self._calls.strike(BatchFaultKind.CREATE_ERROR, number)
        if failure is not None:
            refusal = errors.by_status(failure.http or 500, "")
            return batch_refused(refusal.status, failure.error or refusal.message)
        wanted = self._read(body)
        if isinstance(wanted, web.Response):
            return wanted
        refused = self._calls.strike(BatchFaultKind.REFUSE_CREATE, number)
        if refused is not None:
            model = wanted.model or "of the input file"
            return batch_refused(refused.http or 400, refused.error or f"Model {model} does not support batch")
        job = self._batches.create(wanted.file, Endpoint.CHAT.value, wanted.model)
        if self._calls.strike(BatchFaultKind.DUPLICATE, number):
            self._batches.create(wanted.file, Endpoint.CHAT.value, wanted.model)
        late = self._calls.strike(BatchFaultKind.CREATE_TIMEOUT, number)
        if late is not None:
            return await _never_told(request, late)
        return json_reply({"job": self.described(job), "warning": ""}, 201)

    def _read(self, body: bytes) -> _Wanted | web.Response:
        """What is wanted, or why it cannot be."""
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return batch_refused(400, "the body must be a JSON object")
        if fields.get("endpoint") != Endpoint.CHAT.value:
            return batch_refused(400, f"endpoint must be {Endpoint.CHAT.value}, not {fields.get('endpoint')!r}")
        if fields.get("completion_window", "24h") != "24h" or type(fields.get("priority", 0)) is not int:
            return batch_refused(400, "completion_window must be 24h, and priority an integer")
        model = fields.get("model_id") or ""
        if not isinstance(model, str) or unbatchable(model):
            return batch_refused(400, unbatchable(model) or "model_id must be a string")
        file_id = fields.get("input_file_id")
        file = self._store.get(file_id) if isinstance(file_id, str) else None
        if file is None or file.kept is not Kept.STORED:
            return batch_refused(400, f"input file {file_id} not found")
        if file.purpose != "batch-api":
            return batch_refused(400, f"the purpose of input file {file_id} must be batch-api")
        return self._credits_refusal() or _Wanted(file, model)

    def _credits_refusal(self) -> web.Response | None:
        if not self._calls.credits_ended():
            return None
        if self._settings.batch_credits_word is CreditsWord.CREATE_400:
            return batch_refused(400, _CREDITS_TOO_LOW.format(billing=errors.BILLING))
        return batch_refused(errors.NO_CREDITS.status, errors.NO_CREDITS.message)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        job = self._batches.get(request.match_info["id"])
        return _unknown(request) if job is None else json_reply(self.described(job))

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        jobs = [self.described(job) for job in self._batches.listed()]
        return json_reply(jobs or (None if self._settings.batch_null_list else []))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        job = self._batches.get(request.match_info["id"])
        if job is None:
            return _unknown(request)
        if not self._batches.cancel(job):
            return batch_refused(400, f"a batch that is {job.status.value} cannot be cancelled")
        return json_reply(self.described(job))


async def _never_told(request: web.Request, fault: BatchFault) -> web.StreamResponse:
    """The job is there, and the client is not told."""
    if fault.seconds:
        await asyncio.sleep(fault.seconds)
    if fault.http is None:
        return cut(request)
    return batch_refused(fault.http, errors.by_status(fault.http, "").message)


def _progress(job: Job) -> float:
    lines = job.lines - job.first
    if job.status is Status.COMPLETED:
        return 100.0
    return round(100 * job.done / lines, 4) if lines > 0 else 0.0


def _unknown(request: web.Request) -> web.Response:
    return batch_refused(404, f"batch {request.match_info['id']} not found")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
