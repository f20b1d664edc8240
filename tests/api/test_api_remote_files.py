"""Files at the provider: how they get there and back, what is shown to whom, and every way to fail."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from fake_remote import KEY, FakeRemote, answer, remote_at, reset, running, serving, talking

from batchrun import door
from batchrun.api import transfer
from batchrun.api.remote import Present, Upload
from batchrun.errors import StorageError
from batchrun.job import Timeouts
from batchrun.records import Broken, Refusal, RemoteFile

CONTENT = b'{"custom_id":"a","body":{}}\n' * 40_000  # more than four chunks
SHA = hashlib.sha256(CONTENT).hexdigest()
SIGNED = "/bucket/a%2Fb%20c?X-Signature=a%2Fb%3D%3d+%7e~&X-Expires=1&x=%25"
FILE = {"id": "file-1", "object": "file", "filename": "in.jsonl", "bytes": 7, "FileType": "jsonl", "Processed": True}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    return str(path)


def assert_quiet(seen: Any, *secrets: str) -> None:
    assert isinstance(seen, Refusal | Broken)
    for secret in (KEY, "127.0.0.1", "localhost", "http:", "X-Signature", *secrets):
        assert secret not in seen.message


def authorization(fake: FakeRemote) -> list[str | None]:
    return [sent.headers.get("Authorization") for sent in fake.sent]


# --- the three steps of an upload ------------------------------------------------------------------------------------


async def test_an_upload_begins_with_a_multipart_form_and_the_redirect_is_not_followed():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files"] = answer(302, Location=fake.named + SIGNED, X_Together_File_Id="file-1")
        got = await remote.begin_upload("in.jsonl", SHA)
        assert got == Upload("file-1", fake.named + SIGNED)
        assert fake.calls == ["POST /v1/files"]
        assert authorization(fake) == [f"Bearer {KEY}"]
        expected = {"purpose": "batch-api", "file_name": "in.jsonl", "file_type": "jsonl", "checksum": SHA}
        assert fake.sent[0].form == {name: (None, value.encode()) for name, value in expected.items()}
        assert "Content-Length" in fake.sent[0].headers


async def test_a_file_that_is_there_already_is_present():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files"] = answer(409, {"file_id": "file-9"})
        assert await remote.begin_upload("in.jsonl", SHA) == Present("file-9")


@pytest.mark.parametrize("body", [{}, {"file_id": None}, {"file_id": 5}, {"file_id": ".."}, b"", b"<html>"])
async def test_a_conflict_that_names_no_file_is_a_refusal(body: Any):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files"] = answer(409, body)
        got = await remote.begin_upload("in.jsonl", SHA)
        assert isinstance(got, Refusal)
        assert got.status == 409


@pytest.mark.parametrize(
    "headers", [{}, {"Location": "https://store.example/x"}, {"X_Together_File_Id": "file-1"}], ids=str
)
async def test_a_redirect_that_says_half_is_garbled(headers: dict[str, str]):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files"] = answer(302, **headers)
        got = await remote.begin_upload("in.jsonl", SHA)
        assert isinstance(got, Broken)
        assert (got.garbled, got.maybe_paid) == (True, False)


async def test_the_file_is_put_byte_for_byte_to_exactly_the_signed_address_without_the_key(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /bucket/a%2Fb%20c"] = answer()
        assert await remote.put(fake.named + SIGNED, path) is None
        sent = fake.sent[0]
        assert sent.target == SIGNED
        assert sent.body == CONTENT
        assert sent.headers["Content-Length"] == str(len(CONTENT))
        for name in ("Authorization", "Content-Type", "Transfer-Encoding"):
            assert name not in sent.headers


async def test_not_even_a_signed_address_on_the_servers_own_origin_is_shown_the_key(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /bucket/a%2Fb%20c"] = answer()
        assert await remote.put(SIGNED, path) is None  # a path alone is one on the server
        assert authorization(fake) == [None]
        assert fake.sent[0].target == SIGNED


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_put_that_is_redirected_is_put_again_whole(status: int, path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /first"] = answer(status, Location=SIGNED)
        fake.answers["PUT /bucket/a%2Fb%20c"] = answer()
        assert await remote.put(f"{fake.named}/first", path) is None
        assert [(sent.method, sent.body == CONTENT) for sent in fake.sent] == [("PUT", True)] * 2
        assert fake.sent[1].target == SIGNED
        assert authorization(fake) == [None, None]


async def test_a_put_is_redirected_twenty_times_and_no_more(tmp_path: Path):
    small = tmp_path / "small.jsonl"
    small.write_bytes(b"{}\n")
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /round"] = answer(307, Location="/round")
        got = await remote.put(f"{fake.url}/round", str(small))
        assert_quiet(got)
        assert got == Broken("The server redirected the call more than 20 times.", False, True, got.seconds)
        assert len(fake.sent) == 21


@pytest.mark.parametrize(
    ("base", "location", "allowed"),
    [
        ("https://api.together.ai", "https://store.example/x", True),
        ("https://api.together.ai", "http://store.example/x", False),
        ("https://api.together.ai", "http://127.0.0.1/x", False),
        ("https://api.together.ai", "//store.example/x", True),
        ("https://api.together.ai", "ftp://store.example/x", False),
        ("https://api.together.ai", "mailto:x", False),
        ("http://127.0.0.1:1", "http://localhost/x", True),
        ("http://127.0.0.1:1", "https://store.example/x", True),
        ("http://127.0.0.1:1", "http://store.example/x", False),
        ("http://inside.example", "http://store.example/x", True),  # only with --insecure-http
    ],
)
async def test_plain_http_is_taken_only_where_the_user_has_it_already(base: str, location: str, allowed: bool):
    async with remote_at(base) as remote:
        try:
            remote._transfer._allowed(location, transfer.URL(base))
        except transfer.Unfit:
            assert not allowed
        else:
            assert allowed


@pytest.mark.parametrize("location", ["http://store.example/x", "", "http://[::1", "https://h:99999/x", "https://"])
async def test_an_address_that_will_not_do_is_garbled_and_nothing_is_sent(location: str, path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /"] = answer(400)
        got = await remote.put(location, path)
        assert_quiet(got, "store.example", "99999")
        assert isinstance(got, Broken) or location == ""
        assert len(fake.sent) == (location == "")


@pytest.mark.parametrize("status", [403, 411, 500, 503])
async def test_a_store_that_refuses_is_a_refusal_that_quotes_nothing(status: int, path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /x"] = answer(status, b"<Error><Code>SignatureDoesNotMatch</Code>" + SIGNED.encode())
        got = await remote.put(f"{fake.named}/x", path)
        assert got == Refusal(status, "", "", f"HTTP status {status}", None)


async def test_a_store_that_breaks_off_is_broken_and_not_paid(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /x"] = reset
        got = await remote.put(f"{fake.named}/x", path)
        assert_quiet(got)
        assert isinstance(got, Broken)
        assert (got.maybe_paid, got.garbled) == (False, False)
        assert len(fake.sent) == 1


async def test_a_put_is_never_sent_again_by_itself_over_a_connection_that_has_died(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /x"] = [answer(), reset, answer()]
        assert await remote.put(f"{fake.url}/x", path) is None
        assert isinstance(await remote.put(f"{fake.url}/x", path), Broken)
        assert len(fake.sent) == 2


async def test_a_store_that_refuses_before_it_has_read_the_file_is_heard(tmp_path: Path):
    big = tmp_path / "big.jsonl"
    with big.open("wb") as file:
        file.truncate(64 << 20)  # more than sockets buffer

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        while await reader.read(1 << 20):
            pass

    async with talking(refuse) as url, remote_at(url) as remote:
        got = await remote.put(f"{url}/x", str(big))
    assert got == Refusal(403, "", "", "HTTP status 403", None)


async def test_a_store_that_takes_no_more_bytes_is_left_after_the_idle_time(tmp_path: Path):
    big = tmp_path / "big.jsonl"
    with big.open("wb") as file:
        file.truncate(64 << 20)  # more than sockets buffer
    done = asyncio.Event()

    async def read_nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await done.wait()

    async with talking(read_nothing) as url:
        async with remote_at(url, idle=0.2) as remote:
            got = await remote.put(f"{url}/x", str(big))
        done.set()
    assert isinstance(got, Broken)
    assert got.message == "The server did not answer in time."


async def test_an_upload_that_goes_on_is_not_ended_by_the_total_time(path: str):
    async with serving() as fake, remote_at(fake.url, total=0.001, first_byte=0.001) as remote:
        fake.answers["PUT /x"] = answer()
        assert await remote.put(f"{fake.url}/x", path) is None


async def test_a_file_that_is_missing_here_is_a_storage_error(tmp_path: Path):
    async with serving() as fake, remote_at(fake.url) as remote:
        with pytest.raises(StorageError, match="cannot be read"):
            await remote.put(f"{fake.url}/x", str(tmp_path / "none.jsonl"))
        assert fake.sent == []


async def test_a_disk_that_fails_while_sending_is_a_storage_error(path: str, monkeypatch: pytest.MonkeyPatch):
    pieces = iter([b"x" * 1000])

    def read(_: Any) -> bytes:
        for piece in pieces:
            return piece
        raise StorageError("The disk failed.")

    monkeypatch.setattr(transfer, "_read", read)
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["PUT /x"] = answer()
        with pytest.raises(StorageError, match=r"The disk failed\."):
            await remote.put(f"{fake.url}/x", path)


async def test_preprocess_has_an_empty_body_and_brings_the_file():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files/file-1/preprocess"] = answer(200, FILE)
        assert await remote.preprocess("file-1") == RemoteFile("file-1", "in.jsonl", 7)
        sent = fake.sent[0]
        assert (sent.body, sent.headers["Content-Length"], sent.headers["Authorization"]) == (b"", "0", f"Bearer {KEY}")
        assert "Content-Type" not in sent.headers


async def test_the_other_way_to_upload_is_one_form_with_a_known_length(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["POST /v1/files/upload"] = answer(200, FILE)
        assert await remote.upload_whole('in".jsonl', path) == RemoteFile("file-1", "in.jsonl", 7)
        form = fake.sent[0].form
        assert form.pop("file") == ("in%22.jsonl", CONTENT)  # as browsers write a quotation mark
        assert set(form) == {"purpose", "file_name", "file_type"}
        assert authorization(fake) == [f"Bearer {KEY}"]
        assert int(fake.sent[0].headers["Content-Length"]) > len(CONTENT)
        assert "Transfer-Encoding" not in fake.sent[0].headers


# --- what is there ---------------------------------------------------------------------------------------------------


async def test_files_are_listed_told_of_and_deleted():
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files"] = answer(200, {"data": [FILE, {"id": "file-2"}, {"no": "id"}, 7]})
        fake.answers["GET /v1/files/file-1"] = answer(200, FILE)
        fake.answers["DELETE /v1/files/file-1"] = [answer(200, {"id": "file-1", "deleted": True}), answer(404)]
        assert await remote.files() == [RemoteFile("file-1", "in.jsonl", 7), RemoteFile("file-2", "", None)]
        assert await remote.file("file-1") == RemoteFile("file-1", "in.jsonl", 7)
        assert await remote.delete("file-1") is True
        assert await remote.delete("file-1") is True


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(200, {"deleted": False}, False), (204, b"", True), (200, b"", True), (200, {"id": "file-1"}, True)],
)
async def test_a_file_is_gone_unless_the_reply_says_it_is_not(status: int, body: Any, expected: bool):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["DELETE /v1/files/file-1"] = answer(status, body)
        assert await remote.delete("file-1") is expected


@pytest.mark.parametrize("identity", ["a/b", "a?b", "a#b", "a b", "../batches", "é"])
async def test_an_id_stays_inside_its_place_in_the_path(identity: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers.setdefault("GET /nowhere", answer(404))
        fake.answers = Everything(answer(404))
        assert isinstance(await remote.file(identity), Refusal)
        assert fake.sent[0].target.startswith("/v1/files/")
        assert fake.sent[0].target.count("/") == 3
        assert "?" not in fake.sent[0].target


class Everything(dict[str, Any]):
    """The same answer for every call."""

    def __init__(self, same: Any) -> None:
        super().__init__()
        self.same = same

    def __missing__(self, key: str) -> Any:
        return self.same


# --- downloads -------------------------------------------------------------------------------------------------------


async def test_a_download_is_written_byte_for_byte_to_a_file_of_ours_alone(tmp_path: Path):
    target = tmp_path / "out.jsonl.part"
    target.write_bytes(b"what a killed download left" * 100_000)
    target.unlink()
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = answer(200, CONTENT)
        assert await remote.download("file-1", str(target)) == len(CONTENT)
        assert target.read_bytes() == CONTENT
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert fake.sent[0].headers["Authorization"] == f"Bearer {KEY}"
        assert fake.sent[0].headers["Accept-Encoding"] == "identity"


async def test_what_an_earlier_download_left_is_written_over(tmp_path: Path):
    target = tmp_path / "out.jsonl.part"
    target.write_bytes(b"long" * len(CONTENT))
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = answer(200, b"")
        assert await remote.download("file-1", str(target)) == 0
        assert target.read_bytes() == b""


async def test_a_download_that_leads_elsewhere_is_followed_without_the_key(tmp_path: Path):
    target = str(tmp_path / "out")
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = answer(302, Location="/v1/again")
        fake.answers["GET /v1/again"] = answer(307, Location=fake.named + SIGNED)
        fake.answers["GET /bucket/a%2Fb%20c"] = answer(200, CONTENT)
        assert await remote.download("file-1", target) == len(CONTENT)
        assert authorization(fake) == [f"Bearer {KEY}", f"Bearer {KEY}", None]
        assert fake.sent[2].target == SIGNED


async def cut_reset(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000000"})
    await response.prepare(request)
    await response.write(b"x" * 1000)
    return await reset(request)


async def cut_chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"x" * 1000)
    return await reset(request)


@pytest.mark.parametrize("how", [cut_reset, cut_chunked])
async def test_a_cut_download_is_garbled(how: Any, tmp_path: Path):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = how
        got = await remote.download("file-1", str(tmp_path / "out"))
        assert_quiet(got)
        assert isinstance(got, Broken)
        assert (got.garbled, got.maybe_paid) == (True, False)


async def test_a_download_that_falls_silent_is_left(tmp_path: Path):
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(b"x" * 1000)
        return await fake.silent(request)

    async with serving() as fake, remote_at(fake.url, idle=0.1) as remote:
        fake.answers["GET /v1/files/file-1/content"] = half
        got = await remote.download("file-1", str(tmp_path / "out"))
        assert isinstance(got, Broken)
        assert got.message == "The server did not answer in time."


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answer(404, {"error": {"message": "File not found"}}), Refusal),
        (answer(302), Broken),
        (answer(302, Location="http://store.example/x"), Broken),
        (answer(206, b"a part"), Broken),
        (answer(204), Broken),
    ],
)
async def test_a_download_that_is_refused_leaves_the_file_alone(handler: Any, kind: type, tmp_path: Path):
    target = tmp_path / "out"
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = handler
        got = await remote.download("file-1", str(target))
        assert isinstance(got, kind)
        assert_quiet(got, "store.example")
        assert not target.exists()


async def test_a_download_that_cannot_be_written_is_a_storage_error(tmp_path: Path):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers["GET /v1/files/file-1/content"] = answer(200, CONTENT)
        with pytest.raises(StorageError, match="cannot be written"):
            await remote.download("file-1", str(tmp_path / "no" / "such"))
        if os.path.exists("/dev/full"):
            with pytest.raises(StorageError, match="No space left"):
                await remote.download("file-1", "/dev/full")


# --- the door --------------------------------------------------------------------------------------------------------


async def test_every_step_passes_the_door_before_it_is_taken_and_after_it_is_answered(path: str, tmp_path: Path):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers = Everything(answer(404))
        seen: list[tuple[str, int]] = []
        door.watch(lambda step: seen.append((step, len(fake.sent))))
        await remote.begin_upload("in.jsonl", SHA)
        await remote.put(f"{fake.url}/x", path)
        await remote.preprocess("f")
        await remote.upload_whole("in.jsonl", path)
        await remote.file("f")
        await remote.files()
        await remote.delete("f")
        await remote.download("f", str(tmp_path / "out"))
    steps = ["upload", "put", "preprocess", "upload", "get", "list", "delete", "download"]
    assert seen == [
        entry for number, step in enumerate(steps) for entry in ((step, number), (f"{step} answered", number + 1))
    ]


async def test_a_step_that_brought_no_reply_is_not_answered(path: str):
    async with serving() as fake, remote_at(fake.url) as remote:
        fake.answers = Everything(reset)
        seen: list[str] = []
        door.watch(seen.append)
        await remote.put(f"{fake.url}/x", path)
        await remote.preprocess("f")
    assert seen == ["put", "preprocess"]


# --- memory ----------------------------------------------------------------------------------------------------------

PIECE = b"x" * 99_999 + b"\n"
PIECES = 900


async def test_memory_stays_flat_for_files_of_90_mb_both_ways(tmp_path: Path):
    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(PIECE) * PIECES)})
        await response.prepare(request)
        for _ in range(PIECES):
            await response.write(PIECE)
        return response

    taken = 0

    async def take(request: web.Request) -> web.StreamResponse:
        nonlocal taken
        async for chunk in request.content.iter_any():
            taken += len(chunk)
        return web.Response()

    app = web.Application()
    app.router.add_get("/{tail:.*}", give)
    app.router.add_put("/{tail:.*}", take)
    target = str(tmp_path / "out.jsonl.part")
    async with running(app) as url, remote_at(url) as remote:
        tracemalloc.start()
        try:
            assert await remote.download("f", target) == len(PIECE) * PIECES
            assert await remote.put(f"{url}/x", target) is None
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert taken == len(PIECE) * PIECES
    assert peak < 12_000_000


async def test_a_file_of_another_length_than_promised_is_unfit(tmp_path: Path):
    """A server's own library would not let it out, and ours would not let it in: so said to our own part alone."""

    class Short:
        headers: ClassVar[dict[str, str]] = {"Content-Length": "7"}

        @property
        def content(self) -> Short:
            return self

        async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
            yield b"five!"

    with pytest.raises(transfer.Unfit, match="another length"):
        await transfer._write(Short(), str(tmp_path / "out"), transfer.Alarm(Timeouts()))  # type: ignore[arg-type]
