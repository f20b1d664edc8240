"""What the tests of files and batches share: upload, create, wait for the end, read the results."""

import asyncio
import contextlib
import hashlib
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import yarl
from simulator_client import KEY, MODEL, Got

from batchrun.simulator import Job, Settings, Simulator

TERMINAL = {"COMPLETED", "FAILED", "EXPIRED", "CANCELLED"}
CHAT = "/v1/chat/completions"


def line(custom_id: str, content: str = "hello", model: str = MODEL, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content}]} | fields
    return {"custom_id": custom_id, "body": body}


def jsonl(lines: list[Any]) -> bytes:
    return msgspec.json.Encoder().encode_lines(lines)


def some(count: int) -> bytes:
    return jsonl([line(f"c{i}", f"question {i}") for i in range(count)])


def records(content: bytes) -> list[Any]:
    return [msgspec.json.decode(part) for part in content.splitlines()]


def ids(content: bytes) -> list[str]:
    return [record["custom_id"] for record in records(content)]


@dataclass(frozen=True)
class BatchClient:
    """Speaks the Files and Batch API with one simulator."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, **more: Any) -> Got:
        headers = more.pop("headers", KEY)
        async with self.session.request(
            method, self.url + path, headers=headers, allow_redirects=False, **more
        ) as response:
            return Got(response.status, response.headers, await response.read())

    async def begin(self, data: bytes = b"", **fields: str) -> Got:
        said = {"purpose": "batch-api", "file_name": "in.jsonl", "file_type": "jsonl"} | fields
        if data:
            said["checksum"] = hashlib.sha256(data).hexdigest()
        return await self.ask("POST", "/v1/files", data=aiohttp.FormData(said, default_to_multipart=True))

    async def put(self, begun: Got, data: Any, **more: Any) -> Got:
        address = yarl.URL(begun.headers["Location"], encoded=True)
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.session.put(address, data=body, **more) as response:
            return Got(response.status, response.headers, await response.read())

    async def upload(self, data: bytes) -> str:
        begun = await self.begin(data)
        if begun.status == 409:
            return begun.json["file_id"]
        assert (await self.put(begun, data)).status == 200
        file_id = begun.headers["X-Together-File-Id"]
        assert (await self.ask("POST", f"/v1/files/{file_id}/preprocess")).status == 200
        return file_id

    async def create(self, file_id: str, **fields: Any) -> Got:
        return await self.ask("POST", "/v1/batches", json={"endpoint": CHAT, "input_file_id": file_id} | fields)

    async def started(self, data: bytes) -> str:
        created = await self.create(await self.upload(data))
        assert created.status == 201, created.body
        return created.json["job"]["id"]

    async def job(self, job_id: str) -> Any:
        return (await self.ask("GET", f"/v1/batches/{job_id}")).json

    async def when(self, job_id: str, *statuses: str) -> Any:
        """The job once it shows one of these statuses; each request gives the server time to work."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            job = await self.job(job_id)
            if job["status"] in statuses:
                return job
        raise AssertionError(f"still {job}")

    async def ended(self, job_id: str) -> Any:
        return await self.when(job_id, *TERMINAL)

    async def run(self, data: bytes) -> Any:
        return await self.ended(await self.started(data))

    async def listed(self) -> list[Any]:
        return (await self.ask("GET", "/v1/batches")).json

    async def content(self, file_id: str) -> bytes:
        got = await self.ask("GET", f"/v1/files/{file_id}/content")
        assert got.status == 200
        return got.body

    async def output(self, job: Any) -> bytes:
        return await self.content(job["output_file_id"])

    async def errors(self, job: Any) -> bytes:
        return await self.content(job["error_file_id"])


@contextlib.asynccontextmanager
async def batch_client(simulator: Simulator) -> AsyncIterator[BatchClient]:
    async with aiohttp.ClientSession() as session:
        yield BatchClient(session, simulator.url)


@contextlib.asynccontextmanager
async def simulated(state: Any = None, **settings: Any) -> AsyncIterator[tuple[Simulator, BatchClient]]:
    async with asyncio.timeout(15):
        async with Simulator(Settings(latency=0.0, **settings), state=state) as sim, batch_client(sim) as client:
            yield sim, client


def charged(simulator: Simulator) -> list[str]:
    return [charge.custom_id for charge in simulator.account.charges]


def only_job(simulator: Simulator) -> Job:
    (job,) = simulator.batches.jobs
    return job
