"""The Batch API: a job from creation to its files, validation, money, cancelling, lists and restarts."""

import asyncio
import collections
import datetime as dt
import json
import os
import signal
import sys
import time

import aiohttp
import pytest
from simulator_batches import BatchClient, charged, ids, jsonl, line, only_job, records, simulated, some

from batchrun.simulator import CreditsEnd, CreditsWord, Fault, FaultKind

LLAMA = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


async def test_creating_wraps_the_job_and_getting_does_not():
    async with simulated() as (sim, client):
        file_id = await client.upload(some(5))
        sim.hold_batches()
        created = await client.create(file_id)
        job = created.json["job"]
        assert (created.status, created.json["warning"]) == (201, "")
        assert await client.job(job["id"]) == job
        sim.release_batches()
        await sim.batches_ended(1)
        ended = await client.job(job["id"])
    made, deadline = (dt.datetime.fromisoformat(job[word]) for word in ("created_at", "job_deadline"))
    assert deadline - made == dt.timedelta(hours=24)
    assert "." in job["created_at"]
    assert (job["status"], job["progress"], job["endpoint"]) == ("VALIDATING", 0, "/v1/chat/completions")
    assert not {"output_file_id", "error_file_id", "error", "completed_at"} & job.keys()
    assert (ended["status"], ended["progress"], ended["model_id"]) == ("COMPLETED", 100, "openai/gpt-oss-20b")
    assert {"output_file_id", "completed_at"} <= ended.keys()
    assert "error_file_id" not in ended


async def test_the_output_has_every_answer_once_in_another_order_and_as_live():
    async with simulated() as (sim, client):
        output = await client.output(await client.run(some(40)))
        body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "question 7"}]}
        live = (await client.ask("POST", "/v1/chat/completions", json=body)).json
        assert len(sim.account.charges) == 41
    asked = [f"c{i}" for i in range(40)]
    assert ids(output) != asked
    assert sorted(ids(output)) == sorted(asked)
    seventh = next(record for record in records(output) if record["custom_id"] == "c7")
    assert seventh["id"].startswith("br_")
    assert seventh["response"]["status_code"] == 200
    assert seventh["response"]["body"]["choices"] == live["choices"]
    assert seventh["response"]["body"]["model"] == "simulated/openai/gpt-oss-20b"


async def test_each_answer_is_one_charge_at_the_discount_of_its_model():
    async with simulated() as (sim, client):
        job = await client.run(jsonl([line("a", model=LLAMA), line("b")]))
        charges = {charge.custom_id: charge for charge in sim.account.charges}
        summary = sim.account.summary()
    a, b = charges["a"], charges["b"]
    assert a.nano == 1_040 * (a.prompt_tokens + a.completion_tokens) // 2
    assert b.nano == 50 * b.prompt_tokens + 200 * b.completion_tokens
    assert {a.batch, b.batch} == {job["id"]}
    assert {a.path, b.path} == {"/v1/batches"}
    assert a.delivered
    assert (summary["charges_batch"], summary["charges_live"]) == (2, 0)
    assert summary["spent_batch"] == summary["spent"] == a.nano + b.nano


async def test_lines_that_cannot_be_answered_are_in_the_error_file_and_free():
    lines = [
        line("good"),
        line("model", model="nobody/knows"),
        line("dedicated", model="simulator/dedicated-only-70b"),
        line("hot", temperature="hot"),
        line("long", "x" * 2_000),
    ]
    async with simulated(batch_max_line_bytes=1_500) as (sim, client):
        job = await client.run(jsonl(lines))
        errors = {record["custom_id"]: record["error"] for record in records(await client.errors(job))}
        assert (job["status"], charged(sim)) == ("COMPLETED", ["good"])
    assert errors["model"] == {"message": "Invalid model specified", "code": "invalid_model"}
    assert errors["dedicated"]["code"] == "model_not_available"
    assert errors["long"]["message"] == "error reading input file"
    assert "temperature" in errors["hot"]["message"]


async def test_a_job_whose_every_line_fails_has_no_output_file():
    async with simulated() as (_, client):
        job = await client.run(jsonl([line("a", model="nobody/knows")]))
    assert job["status"] == "COMPLETED"
    assert "output_file_id" not in job
    assert "error_file_id" in job


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the input file is empty"),
        (jsonl([line("a"), line("a")]), "line 2: custom_id 'a' is not unique"),
        (jsonl([line("x" * 65)]), "1 to 64 characters"),
        (jsonl([line("a")]) + b"\n", "line 2: not a JSON object"),
        (b"[]\n", "line 1: not a JSON object"),
        (b'{"custom_id":"a","body":[]}\n', "line 1: not a JSON object"),
        (b'{"custom_id":1,"body":{}}\n', "line 1: not a JSON object"),
        (b'{"custom_id":"\xff","body":{}}\n', "line 1: not a JSON object"),
        (some(6), "more than 5 lines"),
        (jsonl([line("a", "x" * 5_000)]), "larger than 5000 bytes"),
        (jsonl([line("a", model="deepseek-ai/DeepSeek-V4-Pro")]), "does not support batch"),
    ],
)
async def test_a_file_that_is_not_valid_fails_the_job_before_any_line(data, words):
    async with simulated(batch_max_lines=5, batch_max_bytes=5_000) as (sim, client):
        job = await client.run(data)
        assert sim.account.charges == []
    assert job["status"] == "FAILED"
    assert words in job["error"]
    assert not {"output_file_id", "error_file_id"} & job.keys()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"endpoint": "/v1/completions"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"input_file_id": "file-unknown"}, "not found"),
        ({"input_file_id": 5}, "not found"),
        ({"model_id": "deepseek-ai/DeepSeek-V4-Pro"}, "does not support batch"),
        ({"completion_window": "48h"}, "24h"),
    ],
)
async def test_a_wrong_creation_is_refused_with_a_sentence_and_no_object(fields, words):
    async with simulated() as (sim, client):
        refused = await client.create(await client.upload(some(1)), **fields)
        assert sim.batches.jobs == []
    assert refused.status == 400
    assert words in refused.error


async def test_an_unfinished_upload_cannot_be_used():
    async with simulated() as (_, client):
        begun = await client.begin(some(1))
        assert (await client.create(begun.headers["X-Together-File-Id"])).status == 400


async def test_batch_errors_are_strings():
    async with simulated() as (_, client):
        keyless = await client.ask("GET", "/v1/batches", headers={})
        unknown = await client.ask("GET", "/v1/batches/unknown")
        cancel = await client.ask("POST", "/v1/batches/unknown/cancel")
    assert (keyless.status, unknown.status, cancel.status) == (401, 404, 404)
    assert all(isinstance(got.error, str) for got in (keyless, unknown, cancel))


async def test_the_list_is_a_bare_array_or_null_and_may_lag():
    async with simulated() as (_, client):
        assert (await client.ask("GET", "/v1/batches")).body == b"[]"
        first, second = await client.started(some(1)), await client.started(some(2))
        assert {job["id"] for job in await client.listed()} == {first, second}
    async with simulated(batch_null_list=True, batch_list_lag=3600.0) as (_, client):
        job_id = await client.started(some(1))
        assert (await client.ask("GET", "/v1/batches")).body == b"null"
        assert (await client.job(job_id))["id"] == job_id


async def test_a_speed_is_kept_to_and_progress_tells_of_it():
    async with simulated(batch_speed=200.0) as (_, client):
        began = time.monotonic()
        job_id = await client.started(some(60))
        seen = [await client.when(job_id, "IN_PROGRESS")]
        while seen[-1]["status"] == "IN_PROGRESS":
            seen.append(await client.job(job_id))
        assert time.monotonic() - began >= 0.3
    progress = [job["progress"] for job in seen]
    assert progress == sorted(progress)
    assert len(set(progress)) > 2
    assert progress[-1] == 100


async def test_a_cancelled_job_keeps_what_was_finished_and_is_billed_for_it():
    async with simulated(batch_speed=100.0) as (sim, client):
        job_id = await client.started(some(1_000))
        while (await client.job(job_id))["progress"] == 0:
            pass
        canceling = (await client.ask("POST", f"/v1/batches/{job_id}/cancel")).json
        assert canceling["status"] == "CANCELING"
        job = await client.ended(job_id)
        output = await client.output(job)
        again = await client.ask("POST", f"/v1/batches/{job_id}/cancel")
        assert job["status"] == "CANCELLED"
        assert 0 < len(ids(output)) < 1_000
        assert ids(output) == charged(sim)
        assert all(charge.delivered for charge in sim.account.charges)
    assert (again.status, again.error) == (400, "a batch that is CANCELLED cannot be cancelled")


async def test_a_job_cancelled_while_validating_has_no_files():
    async with simulated(batch_validation=3600.0, batch_cancel_seconds=0.0) as (_, client):
        job_id = await client.started(some(2))
        await client.ask("POST", f"/v1/batches/{job_id}/cancel")
        job = await client.ended(job_id)
    assert job["status"] == "CANCELLED"
    assert not {"output_file_id", "error_file_id"} & job.keys()


@pytest.mark.parametrize(
    ("word", "upload", "create", "sentence"),
    [
        (CreditsWord.CREATE_402, 302, 402, "Credit limit exceeded"),
        (CreditsWord.CREATE_400, 302, 400, "credit balance is too low"),
        (CreditsWord.UPLOAD_401, 401, 402, "Credit limit exceeded"),
    ],
)
async def test_without_credits_no_job_is_created(word, upload, create, sentence):
    async with simulated(credits=1.0, batch_credits_word=word) as (sim, client):
        file_id = await client.upload(some(2))
        sim.play([Fault(FaultKind.CREDITS_END)])
        assert (await client.begin(some(3))).status == upload
        refused = await client.create(file_id)
        assert (refused.status, sim.batches.jobs) == (create, [])
        assert sentence in refused.error
        sim.top_up(1.0)
        assert (await client.create(file_id)).status == 201


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        (CreditsEnd.JOB_ERROR, "FAILED", "Credit limit exceeded"),
        (CreditsEnd.ERROR_LINES, "COMPLETED", ""),
        (CreditsEnd.CANCEL, "CANCELLED", ""),
    ],
)
async def test_credits_that_end_in_the_middle_leave_what_was_finished(how, status, error):
    async with simulated(faults=(Fault(FaultKind.CREDITS_END, after=7),), batch_out_of_credits=how) as (sim, client):
        job = await client.run(some(20))
        output = await client.output(job)
        assert (job["status"], len(ids(output)), charged(sim)) == (status, 7, ids(output))
        assert job.get("error", "").startswith(error)
        failed = records(await client.errors(job)) if "error_file_id" in job else []
    assert len(failed) == (13 if how is CreditsEnd.ERROR_LINES else 0)
    assert all("Credit limit exceeded" in record["error"]["message"] for record in failed)


async def test_held_jobs_stay_where_they_are_until_released():
    async with simulated() as (sim, client):
        sim.hold_batches()
        job_id = await client.started(some(3))
        await sim.batched(1)
        assert (await client.job(job_id))["status"] == "VALIDATING"
        sim.release_batches()
        await sim.batches_ended(1)
        assert only_job(sim).succeeded == 3


async def test_the_control_endpoint_shows_jobs_files_and_calls():
    async with simulated() as (sim, client):
        await client.run(some(3))
        shown = (await client.ask("GET", "/_simulator/batches")).json
    (job,) = shown["jobs"]
    assert (job["status"], job["lines"], job["succeeded"], job["gone"]) == ("COMPLETED", 3, 3, False)
    assert [file["purpose"] for file in shown["files"]] == ["batch-api", "batch-generated"]
    assert shown["requests"]["batch_create"] == 1
    assert shown["requests"] == dict(sim.batches.requests)


async def test_a_job_whose_input_is_deleted_before_it_begins_fails():
    async with simulated() as (sim, client):
        sim.hold_batches()
        job_id = await client.started(some(3))
        await client.ask("DELETE", f"/v1/files/{only_job(sim).input_file_id}")
        sim.release_batches()
        job = await client.ended(job_id)
    assert (job["status"], job["error"]) == ("FAILED", "error reading input file")


async def test_a_job_goes_on_while_the_server_is_down(tmp_path):
    state = tmp_path / "state"
    async with simulated(state, batch_speed=100.0) as (sim, client):
        job_id = await client.started(some(50))
        while not only_job(sim).done:
            await client.job(job_id)
    entries = [json.loads(text) for text in state.read_text().splitlines()]
    begun = [entry | {"started": entry["started"] - 3600} if "started" in entry else entry for entry in entries]
    state.write_text("".join(json.dumps(entry) + "\n" for entry in begun))  # it was down for an hour
    async with simulated(state, batch_speed=100.0) as (sim, client):
        job = await client.job(job_id)
        assert job["status"] == "COMPLETED"
        assert sorted(charged(sim)) == sorted(f"c{i}" for i in range(50))
        assert sorted(ids(await client.output(job))) == sorted(charged(sim))
        assert all(charge.delivered for charge in sim.account.charges)


async def serving(state: str, speed: float) -> tuple[asyncio.subprocess.Process, str]:
    program = "from batchrun.cli.simulate import simulate; simulate()"
    words = ["--port", "0", "--json", "--with-parent", "--state", state, "--batch-speed", str(speed)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "."},
    )
    return process, json.loads(await process.stdout.readline())["url"]


async def test_killed_in_the_middle_it_charges_no_line_twice_and_forgets_none(tmp_path):
    lines = 3_000
    job_id = ""
    for round_of in range(4):
        process, url = await serving(str(tmp_path / "state"), 4_000.0)
        async with aiohttp.ClientSession() as session:
            client = BatchClient(session, url)
            job_id = job_id or await client.started(some(lines))
            while (job := await client.job(job_id))["progress"] < 20 * (round_of + 1):
                pass
            assert job["status"] in ("IN_PROGRESS", "COMPLETED")
        process.send_signal(signal.SIGKILL)
        await process.wait()
        process.stdin.close()
    async with simulated(tmp_path / "state") as (sim, client):
        output = ids(await client.output(await client.ended(job_id)))
        assert max(collections.Counter(charged(sim)).values()) == 1
        assert sorted(output) == sorted(charged(sim)) == sorted(f"c{i}" for i in range(lines))


async def test_lines_charged_just_before_a_kill_are_answered_again_and_not_charged_again(tmp_path):
    state = tmp_path / "state"
    async with simulated(state, batch_speed=100.0) as (sim, client):
        job_id = await client.started(some(20))
        while only_job(sim).done < 3:
            await client.job(job_id)
        sim.hold_batches()
        job, spent = only_job(sim), sim.account.spent
        unwritten = job.done
    kept = [text for text in state.read_text().splitlines() if '"done":0' in text or '"job_id"' not in text]
    state.write_text("\n".join(kept) + "\n")  # as if no record had been written after the charges
    async with simulated(state, batch_speed=0.001) as (sim, client):
        assert (only_job(sim).done, sim.account.spent) == (unwritten, spent)
        await client.ask("POST", f"/v1/batches/{job_id}/cancel")
        output = ids(await client.output(await client.ended(job_id)))
        assert output == charged(sim)


async def test_an_old_state_file_still_loads(tmp_path):
    state = tmp_path / "state"
    charge = {"number": 1, "time": 1.0, "path": "/v1/chat/completions", "model": "m", "content": "", "body": ""}
    charge |= {"prompt_tokens": 1, "completion_tokens": 1, "nano": 5, "delivered": False}
    purchase = {"bought": 100, "answers": 0, "top_up": False}
    state.write_text("".join(json.dumps(record) + "\n" for record in (purchase, charge, {"delivered": 1})))
    async with simulated(state) as (sim, _):
        assert (sim.account.spent, sim.account.charges[0].delivered, sim.account.charges[0].batch) == (5, True, "")


async def test_while_a_large_job_is_worked_on_live_calls_are_answered_at_once():
    body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "q"}]}
    async with simulated() as (sim, client):
        await client.started(some(20_000))
        times = []
        while only_job(sim).status in ("VALIDATING", "IN_PROGRESS"):
            began = time.monotonic()
            await client.ask("POST", "/v1/chat/completions", json=body)
            times.append(time.monotonic() - began)
    assert sorted(times)[len(times) // 2] < 0.1
