"""The endpoints under /_simulator: look at the account, add credits, set faults. No key: the server is on loopback."""

from typing import Any

import msgspec
from aiohttp import web

from batchrun.simulator.batch_api import BatchApi
from batchrun.simulator.batch_calls import Calls
from batchrun.simulator.batch_faults import BatchFault
from batchrun.simulator.batches import Batches
from batchrun.simulator.faults import Fault
from batchrun.simulator.generation import Generation
from batchrun.simulator.settings import SettingsError, parse_batch_faults, parse_faults, parse_script


class Control:
    """The hand in the box."""

    def __init__(self, generation: Generation, batches: Batches, batch_api: BatchApi, calls: Calls) -> None:
        self._generation = generation
        self._account = generation.account
        self._batches = batches
        self._batch_api = batch_api
        self._calls = calls

    def add_routes(self, app: web.Application) -> None:
        """Put the endpoints in their places."""
        app.router.add_get("/_simulator/account", self._show_account)
        app.router.add_get("/_simulator/ledger", self._show_ledger)
        app.router.add_post("/_simulator/top-up", self._top_up)
        app.router.add_post("/_simulator/faults", self._set_faults)
        app.router.add_get("/_simulator/batches", self._show_batches)
        app.router.add_post("/_simulator/batch-faults", self._set_batch_faults)

    async def _show_account(self, _request: web.Request) -> web.Response:
        return _json(self._account.summary())

    async def _show_ledger(self, _request: web.Request) -> web.Response:
        """One JSON object a line, one line a charge."""
        lines = msgspec.json.Encoder().encode_lines(self._account.charges)
        return web.Response(body=lines, content_type="application/x-ndjson")

    async def _top_up(self, request: web.Request) -> web.Response:
        usd = _usd(await request.read())
        if usd is None:
            return _json({"error": 'send {"usd": 2.5}: a number above 0'}, status=400)
        self._generation.top_up(usd)
        return _json(self._account.summary())

    async def _set_faults(self, request: web.Request) -> web.Response:
        """A JSON array of faults, an object with the array as `fault`, or TOML with [[fault]] tables."""
        try:
            faults = _faults(await request.text())
        except (SettingsError, UnicodeDecodeError) as error:
            return _json({"error": str(error)}, status=400)
        self._generation.play(faults)
        return _json({"faults": len(faults)})

    async def _show_batches(self, _request: web.Request) -> web.Response:
        """All jobs with their counts, those that are gone too, the stored files, and the calls made."""
        await self._batches.catch_up()
        jobs = [
            self._batch_api.described(job)
            | {"lines": job.lines, "done": job.done, "succeeded": job.succeeded, "failed": job.failed, "gone": job.gone}
            for job in self._batches.jobs
        ]
        files = [{"id": file.file_id, "purpose": file.purpose, "bytes": file.bytes} for file in self._batches.files]
        return _json({"jobs": jobs, "files": files, "requests": dict(self._calls.requests)})

    async def _set_batch_faults(self, request: web.Request) -> web.Response:
        """A JSON array of batch faults, an object with the array as `batch_fault`, or TOML with [[batch_fault]]."""
        try:
            faults = _batch_faults(await request.text())
        except (SettingsError, UnicodeDecodeError) as error:
            return _json({"error": str(error)}, status=400)
        self._calls.play(faults)
        return _json({"batch_faults": len(faults)})


def _usd(body: bytes) -> float | None:
    try:
        usd = msgspec.json.decode(body, type=dict[str, float]).get("usd", 0.0)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return usd if usd > 0 else None


def _faults(text: str) -> tuple[Fault, ...]:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return parse_script(text).faults
    return parse_faults(value.get("fault") if isinstance(value, dict) else value)


def _batch_faults(text: str) -> tuple[BatchFault, ...]:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return parse_script(text).batch_faults
    return parse_batch_faults(value.get("batch_fault") if isinstance(value, dict) else value)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)
