"""The endpoints under /_simulator: look at the account, add credits, set faults. No key: the server is on loopback."""

from typing import Any

import msgspec
from aiohttp import web

from batchrun.simulator.faults import Fault
from batchrun.simulator.generation import Generation
from batchrun.simulator.settings import SettingsError, parse_faults, parse_script


class Control:
    """The hand in the box."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._account = generation.account

    def add_routes(self, app: web.Application) -> None:
        """Put the endpoints in their places."""
        app.router.add_get("/_simulator/account", self._show_account)
        app.router.add_get("/_simulator/ledger", self._show_ledger)
        app.router.add_post("/_simulator/top-up", self._top_up)
        app.router.add_post("/_simulator/faults", self._set_faults)

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


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)
