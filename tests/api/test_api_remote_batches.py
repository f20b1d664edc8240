"""Batches at the provider: what is asked, what is made of each reply, and that the key is in no message."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fake_remote import KEY, answer, remote_at, reset, serving, talking

import batchrun.api.connections as connections
from batchrun import door
from batchrun.api.client import Client
from batchrun.api.remote import Remote
from batchrun.clock import RealClock
from batchrun.job import Timeouts
from batchrun.records import Broken, Fault, Refusal, RemoteJob
from batchrun.rules import faults

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"
CREATED = json.loads((WIRE / "batch_created.json").read_bytes())
COMPLETED = json.loads((WIRE / "batch_completed.json").read_bytes())
FIRST = RemoteJob(
    id="1ea94710-592e-4a59-8a5b-1d9d2b3c0f11",
    input_file_id="file-0f1e",
    status="VALIDATING",
    progress=0.0,
    created=1749556800.123456,
)
DONE = RemoteJob(
    id="1ea94710-592e-4a59-8a5b-1d9d2b3c0f11",
    input_file_id="file-0f1e",
    status="COMPLETED",
    progress=100.0,
    output_file_id="file-0a1b",
    error_file_id="file-0c1d",
    created=1749556800.123456,
)


# --- create ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "body"), [(201, CREATED), (200, CREATED), (200, CREATED["job"])])
async def test_a_batch_is_made_whether_its_reply_is_wrapped_or_not(status: int, body: Any):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/batches"] = answer(status, body)
        assert await remote.create("file-0f1e") == FIRST
        sent = fake.sent[0]
        assert json.loads(sent.body) == {"endpoint": "/v1/chat/completions", "input_file_id": "file-0f1e"}
        assert sent.headers["Content-Type"] == "application/json"
        assert sent.headers["Authorization"] == f"Bearer {KEY}"


async def test_a_null_job_is_a_refusal_with_the_warning_and_is_judged_by_its_words():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/batches"] = [
            answer(201, {"job": None, "warning": "Credit limit exceeded."}),
            answer(201, {"job": None, "warning": f"Not today, {KEY}."}),
            answer(201, {"job": None}),
        ]
        got = [await remote.create("f") for _ in range(3)]
        assert got == [
            Refusal(0, "", "", "Credit limit exceeded.", None),
            Refusal(0, "", "", "Not today, ….", None),
            Refusal(0, "", "", "the batch was not created", None),
        ]
        assert [faults.trouble(seen).fault for seen in got if isinstance(seen, Refusal)] == [
            Fault.CREDITS,
            Fault.SERVER,
            Fault.SERVER,
        ]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", {}, {"job": {}}, {"job": {"id": ""}}, {"id": 7}], ids=str)
async def test_a_batch_without_an_id_may_have_been_made(body: Any):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/batches"] = answer(201, body)
        got = await remote.create("f")
        assert got == Broken("The server sent no batch.", True, True, got.seconds)


async def test_a_create_that_is_reset_or_gets_no_answer_may_have_been_made():
    async with serving() as fake, remote_at(fake.url, first_byte=0.05) as remote:
        fake.answers["POST /v1/batches"] = [reset, fake.silent]
        for _ in range(2):
            got = await remote.create("f")
            assert isinstance(got, Broken)
            assert (got.maybe_paid, got.garbled) == (True, False)
        assert len(fake.sent) == 2  # never again by itself


async def test_a_create_that_reached_nobody_was_not_made():
    async with serving() as fake:
        url = fake.url
    async with remote_at(url) as remote:
        got = await remote.create("f")
        assert isinstance(got, Broken)
        assert not got.maybe_paid


async def test_calls_that_make_no_batch_are_never_paid():
    async with serving() as fake, remote_at(fake.url, first_byte=0.05) as remote:
        fake.answers["GET /v1/batches"] = reset
        fake.answers["GET /v1/batches/b"] = fake.silent
        fake.answers["POST /v1/batches/b/cancel"] = answer(200, b"<html>")
        for got in (await remote.jobs(), await remote.job("b"), await remote.cancel("b")):
            assert isinstance(got, Broken)
            assert not got.maybe_paid


def test_metadata_calls_have_a_minute_at_most_however_long_an_answer_may_take():
    brief = Remote(Client("http://127.0.0.1:9", None, Timeouts(), RealClock()))._brief
    assert (brief.first_byte, brief.idle, brief.total) == (60.0, 60.0, 60.0)


# --- list, get, cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"null", []),
        (b"[]", []),
        ({"data": None}, []),
        ([COMPLETED, {"no": "id"}, None], [DONE]),
        ({"data": [COMPLETED]}, [DONE]),
    ],
)
async def test_batches_are_listed_bare_wrapped_or_null(body: Any, expected: list[RemoteJob]):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/batches"] = answer(200, body)
        assert await remote.jobs() == expected


@pytest.mark.parametrize("body", [b"", b"{}", b'"none"', b"7", b'{"data":7}', b"<html>"])
async def test_what_is_no_list_is_not_an_empty_one(body: bytes):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/batches"] = fake.answers["GET /v1/files"] = answer(200, body)
        for got in (await remote.jobs(), await remote.files()):
            assert isinstance(got, Broken)
            assert got.garbled


async def test_a_batch_is_told_of_and_cancelled():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/batches/b-1"] = answer(200, COMPLETED)
        fake.answers["POST /v1/batches/b-1/cancel"] = answer(200, {**COMPLETED, "status": "in_progress"})
        assert await remote.job("b-1") == DONE
        got = await remote.cancel("b-1")
        assert isinstance(got, RemoteJob)
        assert got.status == "IN_PROGRESS"
        assert (fake.sent[1].body, fake.sent[1].headers["Content-Length"]) == (b"", "0")


async def test_every_batch_call_passes_the_door_before_and_after():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/batches"] = fake.answers["POST /v1/batches/b/cancel"] = answer(500)
        fake.answers["GET /v1/batches"] = fake.answers["GET /v1/batches/b"] = answer(500)
        seen: list[tuple[str, int]] = []
        door.watch(lambda step: seen.append((step, len(fake.sent))))
        await remote.create("f")
        await remote.jobs()
        await remote.job("b")
        await remote.cancel("b")
    steps = ["create", "list", "get", "cancel"]
    assert seen == [
        entry for number, step in enumerate(steps) for entry in ((step, number), (f"{step} answered", number + 1))
    ]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "fault", "message"),
    [
        (400, {"error": "input file not found"}, Fault.BAD_REQUEST, "input file not found"),
        (401, {"error": {"message": "Invalid API key", "code": "invalid_api_key"}}, Fault.KEY, "Invalid API key"),
        (402, {"error": "Credit limit exceeded."}, Fault.CREDITS, "Credit limit exceeded."),
        (400, {"error": "Credit limit exceeded."}, Fault.CREDITS, "Credit limit exceeded."),
        (404, b"", Fault.BAD_REQUEST, "HTTP status 404"),
        (429, {"error": "slow down"}, Fault.THROTTLED, "slow down"),
        (503, b"<html>busy</html>", Fault.OVERLOADED, "HTTP status 503"),
        (307, b"", Fault.BAD_REQUEST, "HTTP status 307"),
    ],
)
async def test_a_refusal_is_read_and_not_judged(status: int, body: Any, fault: Fault, message: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/batches"] = fake.answers["GET /v1/batches"] = answer(status, body, Location="/v1/files")
        for got in (await remote.create("f"), await remote.jobs()):
            assert isinstance(got, Refusal)
            assert (got.status, got.message) == (status, message)
            assert faults.trouble(got).fault is fault
        assert len(fake.sent) == 2


async def test_a_refusal_says_how_long_to_stay_away():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/batches"] = answer(429, b"", Retry_After="7")
        got = await remote.jobs()
        assert isinstance(got, Refusal)
        assert got.wait == 7.0


async def test_the_key_is_in_no_message(tmp_path: Path):
    """Whoever quotes it, whole or in part, in a refusal or in what went wrong with a job."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"{}\n")
    quoting = {"error": {"message": f"Bad key {KEY} ({KEY[4:16]}) " + "x" * 500}}
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers = {
            name: answer(400, quoting)
            for name in (
                "POST /v1/files",
                "PUT /x",
                "POST /v1/files/f/preprocess",
                "POST /v1/files/upload",
                "GET /v1/files/f",
                "GET /v1/files",
                "DELETE /v1/files/f",
                "GET /v1/files/f/content",
                "POST /v1/batches",
                "GET /v1/batches",
                "GET /v1/batches/b",
                "POST /v1/batches/b/cancel",
            )
        }
        refused: list[Any] = [
            await remote.begin_upload("in.jsonl", "00"),
            await remote.put(f"{fake.url}/x", str(file)),
            await remote.preprocess("f"),
            await remote.upload_whole("in.jsonl", str(file)),
            await remote.file("f"),
            await remote.files(),
            await remote.delete("f"),
            await remote.download("f", str(tmp_path / "out")),
            await remote.create("f"),
            await remote.jobs(),
            await remote.job("b"),
            await remote.cancel("b"),
        ]
        for got in refused:
            assert isinstance(got, Refusal)
            assert got.message.startswith("Bad key … (…) xxx")
            assert len(got.message) <= 200
        failed = {"id": "b", "status": "FAILED", "error": f"cannot read with {KEY}"}
        fake.answers["GET /v1/batches"] = answer(200, [failed])
        fake.answers["GET /v1/batches/b"] = fake.answers["POST /v1/batches/b/cancel"] = answer(200, failed)
        fake.answers["POST /v1/batches"] = answer(201, {"job": failed})
        told: list[Any] = [await remote.create("f"), await remote.job("b"), await remote.cancel("b")]
        told += await remote.jobs()  # type: ignore[operator]
        assert [job.error for job in told] == ["cannot read with …"] * 4


# --- the key ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whoami", "models", "expected", "calls"),
    [
        (200, 500, True, 1),
        (401, 200, False, 1),
        (403, 200, False, 1),
        (404, 200, True, 2),
        (404, 401, False, 2),
        (500, 403, False, 2),
        (402, 402, None, 2),
        (302, 503, None, 2),
    ],
)
async def test_the_key_works_when_a_call_that_costs_nothing_says_so(
    whoami: int, models: int, expected: bool | None, calls: int
):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v3/whoami"] = answer(whoami)
        fake.answers["GET /v1/models"] = answer(models)
        assert await remote.key_works() is expected
        assert fake.calls == ["GET /v3/whoami", "GET /v1/models"][:calls]


async def test_a_server_that_is_not_there_says_nothing_of_the_key():
    async with serving() as fake:
        url = fake.url
    async with remote_at(url) as remote:
        assert await remote.key_works() is None


# --- what the machine adds -------------------------------------------------------------------------------------------


async def test_passwords_kept_for_other_programs_are_never_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    netrc, file = tmp_path / "netrc", tmp_path / "in.jsonl"
    netrc.write_text("default login somebody password hush\n")
    netrc.chmod(0o600)
    file.write_bytes(b"{}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(connections, "is_loopback", lambda _: False)  # as for any server in the world
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/batches"] = answer(200, b"null")
        fake.answers["PUT /x"] = answer()
        assert await remote.jobs() == []
        assert await remote.put(f"{fake.named}/x", str(file)) is None
        assert [sent.headers.get("Authorization") for sent in fake.sent] == [f"Bearer {KEY}", None]


async def test_a_proxy_is_used_for_servers_elsewhere_and_gets_its_own_password(monkeypatch: pytest.MonkeyPatch):
    async with serving() as fake:
        for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", fake.url.replace("//", "//me:hush@"))
        async with remote_at("http://inside.example") as remote:
            fake.answers["GET http://inside.example/v1/batches"] = answer(200, b"null")
            assert await remote.jobs() == []
            assert fake.sent[0].headers.getall("Proxy-Authorization") == ["Basic bWU6aHVzaA=="]
            assert fake.sent[0].headers["Host"] == "inside.example"
        async with remote_at(fake.url) as remote:
            fake.answers["GET /v1/batches"] = answer(200, b"null")
            assert await remote.jobs() == []
            assert "Proxy-Authorization" not in fake.sent[1].headers


async def test_a_proxy_on_the_way_to_an_encrypted_server_never_sees_the_key(monkeypatch: pytest.MonkeyPatch):
    heard: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with talking(refuse) as url, remote_at("https://inside.example") as remote:
        monkeypatch.setenv("https_proxy", url.replace("//", "//me:hush@"))
        got = await remote.create("f")
    assert isinstance(got, Broken)
    assert "hush" not in got.message
    assert heard[0].startswith(b"CONNECT inside.example:443 ")
    assert b"Proxy-Authorization: Basic bWU6aHVzaA==\r\n" in heard[0]
    assert KEY.encode() not in heard[0]
