"""The server: routes, start and stop, and the Simulator that tests hold in their hands. It listens on loopback only."""

import time
from collections.abc import Iterable
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from batchrun.simulator import errors, misbehave
from batchrun.simulator.account import Account
from batchrun.simulator.batch_api import BatchApi
from batchrun.simulator.batch_calls import Calls
from batchrun.simulator.batch_faults import BatchFault
from batchrun.simulator.batch_records import Job, StoredFile
from batchrun.simulator.batches import Batches
from batchrun.simulator.catalog import MODELS, listed
from batchrun.simulator.control import Control
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import Fault
from batchrun.simulator.file_api import FileApi
from batchrun.simulator.file_store import FileStore
from batchrun.simulator.generation import Generation
from batchrun.simulator.ledger import BatchRecord
from batchrun.simulator.settings import Settings, SettingsError

HOST = "127.0.0.1"
_BACKLOG = 2_048  # connections may come all at once; a dropped one would wait a second
_LARGEST_BODY = 256 * 1024 * 1024
_PATIENCE = 0.1  # seconds a call gets when the server stops; then it is cancelled, uncharged


class Simulator:
    """Together in a box. Use it with `async with`; `url` is valid inside."""

    def __init__(self, settings: Settings | None = None, state: Path | str | None = None, port: int = 0) -> None:
        self.settings = settings or Settings()
        self.account = Account(self.settings.metering_delay)
        self.url = ""
        self._state = None if state is None else Path(state)
        self._port = port

    async def __aenter__(self) -> Self:
        self._open()
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=_PATIENCE)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, HOST, self._port, backlog=_BACKLOG).start()
        except OSError:
            await self._stop()
            raise
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def top_up(self, usd: float) -> None:
        """Add credits; a `credits_end` that had begun is over."""
        self._generation.top_up(usd)

    def play(self, faults: Iterable[Fault]) -> None:
        """Replace the faults; their numbers and times count from now."""
        self._generation.play(faults)

    def hold(self) -> None:
        """Let calls that are let in wait, in flight and uncharged, until `release`."""
        self._generation.gate.clear()

    def release(self) -> None:
        """Let the held calls go on."""
        self._generation.gate.set()

    async def reached(self, answers: int) -> None:
        """Return once so many answers have been charged over the account's life."""
        await self.account.answers_reached.wait(answers)

    async def requested(self, count: int) -> None:
        """Return once so many generation requests have arrived, and each has been let in or refused."""
        await self.account.requests_reached.wait(count)

    def play_batches(self, faults: Iterable[BatchFault]) -> None:
        """Replace the batch faults; what was planned for the jobs there are stays."""
        self._calls.play(faults)

    def hold_batches(self) -> None:
        """Leave every job where it is until `release_batches`."""
        self.batches.hold()

    def release_batches(self) -> None:
        """Let the jobs go on."""
        self.batches.release()

    async def batched(self, count: int) -> None:
        """Return once so many jobs have been created."""
        await self.batches.created.wait(count)

    async def batches_ended(self, count: int) -> None:
        """Return once so many jobs have come to an end."""
        await self.batches.ended.wait(count)

    async def _stop(self) -> None:
        await self._runner.cleanup()
        try:
            await self.batches.close()
        finally:
            self._files.close()
            self.account.close()

    def _open(self) -> None:
        """Take up the state file, if any, and put everything together."""
        jobs: dict[str, Job] = {}
        files: dict[str, StoredFile] = {}

        def keep(record: BatchRecord) -> None:
            if isinstance(record, Job):
                jobs[record.job_id] = record
            else:
                files[record.file_id] = record

        settings, account = self.settings, self.account
        account.open(settings.credits, self._state, keep)
        self._generation = Generation(settings, account)
        self._calls = Calls(
            settings.batch_faults,
            self._generation.key_refusal,
            self._generation.credits_ended,
            self._generation.line_fault,
        )
        folder = None if self._state is None else self._state.with_name(f"{self._state.name}.files")
        self._files = FileStore(folder, account.record)
        try:
            self._files.open(files.values())
        except SettingsError:
            account.close()
            raise
        self.batches = Batches(settings, account, self._files, self._calls)
        self.batches.open(jobs.values())

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_post("/v1/chat/completions", self._generation.chat)
        app.router.add_post("/v1/completions", self._generation.completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v3/whoami", self._whoami)
        FileApi(self.settings, self._files, self._calls).add_routes(app)
        batch_api = BatchApi(self.settings, self.batches, self._files, self._calls)
        batch_api.add_routes(app)
        Control(self._generation, self.batches, batch_api, self._calls).add_routes(app)
        app.router.add_route("*", "/{path:.*}", self._nowhere)
        if self.settings.clock_skew:
            app.on_response_prepare.append(self._shift_date)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        refusal = self._generation.key_refusal(request) or self._models_refusal()
        return _refused(refusal) if refusal else _json([listed(model) for model in MODELS.values()])

    def _models_refusal(self) -> Refusal | None:
        status = self.settings.models_status
        if status is None:
            return None
        return errors.NO_SUCH_PATH if status == errors.NO_SUCH_PATH.status else errors.by_status(status, "")

    async def _whoami(self, request: web.Request) -> web.Response:
        refusal = self._generation.key_refusal(request)
        owner = {"organization_id": "simulated", "project_id": "simulated", "user_id": "simulated"}
        return _refused(refusal) if refusal else _json(owner)

    async def _shift_date(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = formatdate(time.time() + self.settings.clock_skew, usegmt=True)

    async def _nowhere(self, _request: web.Request) -> web.Response:
        return _refused(errors.NO_SUCH_PATH)


def _refused(refusal: Refusal) -> web.Response:
    return web.Response(body=refusal.payload("sim"), status=refusal.status, content_type=misbehave.JSON)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=misbehave.JSON)
