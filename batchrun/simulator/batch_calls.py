"""What the calls of both APIs share: counting, the key, the fault script, and replies that never come."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from batchrun.simulator import errors, misbehave
from batchrun.simulator.asks import Ask
from batchrun.simulator.batch_faults import BatchFault, BatchFaultKind, BatchScript, Call
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import Fault


class Calls:
    """The counters of the calls, and which of them go wrong."""

    def __init__(
        self,
        faults: Iterable[BatchFault],
        key_refusal: Callable[[web.BaseRequest], Refusal | None],
        credits_ended: Callable[[], bool],
        line_fault: Callable[[Ask], Fault | None],
    ) -> None:
        self.requests: Counter[str] = Counter()
        self.script = BatchScript(faults)
        self.credits_ended = credits_ended
        self.line_fault = line_fault
        self._key_refusal = key_refusal

    def play(self, faults: Iterable[BatchFault]) -> None:
        """Replace the faults; what was planned for a job stays."""
        self.script = BatchScript(faults)

    def arrive(self, call: Call, request: web.Request) -> Refusal | None:
        """Count the call; a bad key and a `call_error` refuse it."""
        self.requests[call.value] += 1
        refusal = self._key_refusal(request)
        if refusal is not None:
            return refusal
        fault = self.error(call)
        if fault is None:
            return None
        wait = {} if fault.seconds is None else {"Retry-After": f"{fault.seconds:g}"}
        return errors.with_headers(errors.by_status(fault.http or 500, ""), wait)

    def error(self, call: Call) -> BatchFault | None:
        """The `call_error` that strikes this call, if any."""
        return self.script.strike(BatchFaultKind.CALL_ERROR, self.requests[call.value], call)

    def strike(self, kind: BatchFaultKind, number: int) -> BatchFault | None:
        """The fault of this kind that strikes, if any."""
        return self.script.strike(kind, number)


def refused(refusal: Refusal) -> web.Response:
    """An error of the Files API: an object."""
    headers = {"Content-Type": misbehave.JSON, **refusal.headers}
    return web.Response(body=refusal.payload("sim"), status=refusal.status, headers=headers)


def batch_refused(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error of the Batch API: a plain string."""
    response = json_reply({"error": sentence}, status)
    response.headers.update(headers or {})
    return response


def json_reply(value: Any, status: int = 200) -> web.Response:
    """A JSON reply."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=misbehave.JSON)


def cut(request: web.BaseRequest, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Close the connection here and now; what is handed back is never sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response() if response is None else response
