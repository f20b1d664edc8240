"""The Files API: the upload in three calls, the other way, descriptions, content and deletion."""

import asyncio
import hashlib
import stat

import aiohttp
import pytest
import yarl
from simulator_batches import simulated, some
from simulator_client import KEY

DATA = some(3)


async def test_an_upload_takes_three_calls_and_its_bytes_come_back():
    async with simulated() as (sim, client):
        begun = await client.begin(DATA)
        file_id = begun.headers["X-Together-File-Id"]
        assert (begun.status, file_id[:5], len(file_id)) == (302, "file-", 41)
        put = await client.put(begun, DATA)
        processed = await client.ask("POST", f"/v1/files/{file_id}/preprocess")
        assert (put.status, processed.status) == (200, 200)
        assert await client.content(file_id) == DATA
        (file,) = sim.batches.files
        assert (file.file_id, file.bytes, file.sha256) == (file_id, len(DATA), hashlib.sha256(DATA).hexdigest())
    assert processed.json == {
        "id": file_id,
        "object": "file",
        "created_at": int(file.created),
        "filename": "in.jsonl",
        "bytes": len(DATA),
        "purpose": "batch-api",
        "FileType": "jsonl",
        "Processed": True,
        "processing_status": "COMPLETED",
    }


async def test_urlencoded_fields_and_a_query_string_begin_an_upload_too():
    fields = {"purpose": "batch-api", "file_name": "in.jsonl", "file_type": "jsonl"}
    async with simulated() as (_, client):
        assert (await client.ask("POST", "/v1/files", data=fields)).status == 302
        assert (await client.ask("POST", "/v1/files", params=fields)).status == 302


@pytest.mark.parametrize(
    "fields", [{"purpose": ""}, {"file_name": ""}, {"file_name": "in.txt"}, {"purpose": "fun"}, {"file_type": "txt"}]
)
async def test_wrong_fields_are_refused_with_an_error_object(fields):
    async with simulated() as (_, client):
        refused = await client.begin(**fields)
    assert refused.status == 400
    assert refused.error["type"] == "invalid_request_error"


async def test_the_presigned_address_is_good_only_byte_for_byte():
    async with simulated() as (_, client):
        begun = await client.begin(DATA)
        quoted_anew = str(yarl.URL(begun.headers["Location"]))
        assert "%2F" in begun.headers["Location"]
        async with client.session.put(quoted_anew, data=DATA) as response:
            assert response.status == 403
        assert (await client.put(begun, DATA)).status == 200


async def test_the_storage_wants_no_key_and_a_length():
    async def chunks():
        yield DATA

    async with simulated() as (sim, client):
        begun = await client.begin(DATA)
        assert (await client.put(begun, DATA, headers=KEY)).status == 403
        assert (await client.put(begun, chunks())).status == 411
        assert sim.batches.files == []


async def test_the_same_content_again_is_answered_with_the_file_there_is():
    async with simulated() as (_, client):
        unfinished = await client.begin(DATA)
        file_id = await client.upload(DATA)
        again = await client.begin(DATA)
        assert (unfinished.status, again.status, again.json) == (302, 409, {"file_id": file_id})
        await client.ask("DELETE", f"/v1/files/{file_id}")
        assert (await client.begin(DATA)).status == 302


async def test_a_409_may_point_at_an_upload_that_never_finished():
    async with simulated(batch_dedupe_unfinished=True) as (_, client):
        begun = await client.begin(DATA)
        again = await client.begin(DATA)
        file_id = begun.headers["X-Together-File-Id"]
        described = await client.ask("GET", f"/v1/files/{file_id}")
    assert (again.status, again.json) == (409, {"file_id": file_id})
    assert (described.json["bytes"], described.json["Processed"]) == (0, False)


async def test_one_multipart_call_uploads_too():
    form = aiohttp.FormData({"purpose": "batch-api", "file_name": "in.jsonl"})
    form.add_field("file", DATA, filename="x.jsonl")
    async with simulated() as (_, client):
        got = await client.ask("POST", "/v1/files/upload", data=form)
        assert (got.status, got.json["bytes"], got.json["filename"]) == (200, len(DATA), "in.jsonl")
        assert await client.content(got.json["id"]) == DATA
        nameless = await client.ask("POST", "/v1/files/upload", data=aiohttp.FormData(default_to_multipart=True))
        assert nameless.status == 400


async def test_files_are_listed_until_they_are_deleted():
    async with simulated() as (sim, client):
        file_id = await client.upload(DATA)
        assert [file["id"] for file in (await client.ask("GET", "/v1/files")).json["data"]] == [file_id]
        deleted = await client.ask("DELETE", f"/v1/files/{file_id}")
        assert deleted.json == {"id": file_id, "deleted": True}
        assert (await client.ask("GET", "/v1/files")).json == {"data": []}
        assert sim.batches.requests["file_delete"] == 1
        for path in ("", "/content"):
            assert (await client.ask("GET", f"/v1/files/{file_id}{path}")).status == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/preprocess")],
)
async def test_an_unknown_file_is_404_and_no_key_is_401(method, path):
    async with simulated() as (_, client):
        unknown = await client.ask(method, f"/v1/files/file-unknown{path}")
        keyless = await client.ask(method, f"/v1/files/file-unknown{path}", headers={})
    assert (unknown.status, unknown.error["code"]) == (404, "not_found")
    assert (keyless.status, keyless.error["code"]) == (401, "invalid_api_key")


async def test_half_an_upload_is_no_file():
    async with simulated() as (sim, client):
        begun = await client.begin(DATA)
        address = yarl.URL(begun.headers["Location"], encoded=True)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        head = f"PUT {address.raw_path_qs} HTTP/1.1\r\nHost: {address.authority}\r\nContent-Length: {len(DATA)}\r\n\r\n"
        writer.write(head.encode() + DATA[:50])
        await writer.drain()
        while not sim.batches.requests["put"]:
            await client.ask("GET", "/v1/files")
        writer.close()
        await writer.wait_closed()
        described = await client.ask("GET", f"/v1/files/{begun.headers['X-Together-File-Id']}")
        assert described.json["processing_status"] == "PENDING"
        assert sim.batches.files == []
        reader.feed_eof()


async def test_files_outlive_a_restart_in_a_private_folder_beside_the_state_file(tmp_path):
    state = tmp_path / "account"
    async with simulated(state) as (_, client):
        file_id = await client.upload(DATA)
        gone = await client.upload(some(4))
        await client.ask("DELETE", f"/v1/files/{gone}")
    folder = tmp_path / "account.files"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / file_id)]
    assert modes == [0o700, 0o600]
    async with simulated(state) as (sim, client):
        assert await client.content(file_id) == DATA
        assert [file.file_id for file in sim.batches.files] == [file_id]
    assert [path.name for path in folder.iterdir()] == [file_id]
