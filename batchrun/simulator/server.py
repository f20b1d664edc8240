"""The server: routes, start and stop, and the Simulator that tests hold in their hands. It listens on loopback only."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from batchrun.simulator import errors, misbehave
from batchrun.simulator.account import Account
from batchrun.simulator.catalog import MODELS, listed
from batchrun.simulator.control import Control
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import Fault
from batchrun.simulator.generation import Generation
from batchrun.simulator.settings import Settings

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
        self.account.open(self.settings.credits, self._state)
        self._generation = Generation(self.settings, self.account)
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

    async def _stop(self) -> None:
        await self._runner.cleanup()
        self.account.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_post("/v1/chat/completions", self._generation.chat)
        app.router.add_post("/v1/completions", self._generation.completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v3/whoami", self._whoami)
        Control(self._generation).add_routes(app)
        app.router.add_route("*", "/{path:.*}", self._nowhere)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        refusal = self._generation.key_refusal(request)
        return _refused(refusal) if refusal else _json([listed(model) for model in MODELS.values()])

    async def _whoami(self, request: web.Request) -> web.Response:
        refusal = self._generation.key_refusal(request)
        owner = {"organization_id": "simulated", "project_id": "simulated", "user_id": "simulated"}
        return _refused(refusal) if refusal else _json(owner)

    async def _nowhere(self, _request: web.Request) -> web.Response:
        return _refused(errors.NO_SUCH_PATH)


def _refused(refusal: Refusal) -> web.Response:
    return web.Response(body=refusal.payload("sim"), status=refusal.status, content_type=misbehave.JSON)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=misbehave.JSON)
