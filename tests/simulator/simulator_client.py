"""A plain client for the simulator's own tests: aiohttp and nothing of batchrun."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from batchrun.simulator import Simulator

MODEL = "openai/gpt-oss-20b"
KEY = {"Authorization": "Bearer any"}


@dataclass(frozen=True)
class Got:
    """One reply, read whole."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def text(self) -> str:
        return self.json["choices"][0]["message"]["content"]


@dataclass(frozen=True)
class Client:
    """Asks one simulator."""

    session: aiohttp.ClientSession
    url: str

    async def chat(self, content: Any = "hello", **fields: Any) -> Got:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields
        return await self.post("/v1/chat/completions", msgspec.json.encode(body))

    async def post(self, path: str, body: bytes | dict[str, Any]) -> Got:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.post(self.url + path, data=data, allow_redirects=False) as response:
            return Got(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Got:
        async with self.session.get(self.url + path) as response:
            return Got(response.status, response.headers, await response.read())


@contextlib.asynccontextmanager
async def client_of(simulator: Simulator, headers: dict[str, str] | None = None) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=KEY if headers is None else headers) as session:
        yield Client(session, simulator.url)
