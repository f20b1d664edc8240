"""Batches that go wrong as they are told to."""

import itertools

import aiohttp
import msgspec
import pytest
from simulator_batches import charged, ids, only_job, records, simulated, some

from batchrun.simulator import BatchFault, BatchFaultKind, Call, Files, SettingsError
from batchrun.simulator.settings import parse_script

K = BatchFaultKind
STATUSES = ("COMPLETED", "FAILED", "EXPIRED", "CANCELLED")


def told(*faults: BatchFault, **settings: object):
    return simulated(batch_faults=faults, **settings)


def shown(job: dict[str, object]) -> set[str]:
    return {"output_file_id", "error_file_id"} & job.keys()


SHOWN = {
    Files.NONE: set(),
    Files.OUTPUT: {"output_file_id"},
    Files.ERROR: {"error_file_id"},
    Files.BOTH: {"output_file_id", "error_file_id"},
}


@pytest.mark.parametrize(("status", "files"), list(itertools.product(STATUSES, Files)))
async def test_every_terminal_status_comes_with_every_choice_of_files(status, files):
    async with told(BatchFault(K.BOTH, status=status, files=files)) as (sim, client):
        job = await client.run(some(8))
        output = ids(await client.output(job)) if "output_file_id" in job else []
        assert (job["status"], shown(job)) == (status, SHOWN[files])
        assert charged(sim) == output


@pytest.mark.parametrize(
    ("kind", "status", "done"),
    [(K.FAIL_HALFWAY, "FAILED", 5), (K.EXPIRE, "EXPIRED", 5), (K.CANCELLED_BY_SERVER, "CANCELLED", 5)],
)
async def test_a_job_may_end_halfway_with_what_was_done(kind, status, done):
    async with told(BatchFault(kind)) as (sim, client):
        job = await client.run(some(10))
        output = ids(await client.output(job))
        assert (job["status"], shown(job), len(output), charged(sim)) == (status, {"output_file_id"}, done, output)
        assert ("error" in job) == (status == "FAILED")


@pytest.mark.parametrize(
    ("kind", "status", "files"),
    [
        (K.FAIL_VALIDATION, "FAILED", Files.NONE),
        (K.END_WITH_NOTHING, "COMPLETED", Files.NONE),
        (K.OUTPUT_ONLY, "COMPLETED", Files.OUTPUT),
        (K.ERROR_ONLY, "COMPLETED", Files.ERROR),
        (K.BOTH, "COMPLETED", Files.BOTH),
    ],
)
async def test_each_kind_of_end_has_its_own_files(kind, status, files):
    async with told(BatchFault(kind)) as (sim, client):
        job = await client.run(some(4))
        assert (job["status"], shown(job)) == (status, SHOWN[files])
        assert len(sim.account.charges) == {Files.OUTPUT: 4, Files.BOTH: 2}.get(files, 0)
        if files in (Files.ERROR, Files.BOTH):
            assert records(await client.errors(job))[0]["error"] == {"message": "Request timeout", "code": "timeout"}


async def test_only_the_jobs_named_are_struck_and_only_so_often():
    named, thrice = BatchFault(K.EXPIRE, jobs=(2,)), BatchFault(K.FAIL_HALFWAY, times=1)
    async with told(named, thrice) as (_, client):
        ends = [(await client.run(some(i + 2)))["status"] for i in range(4)]
    assert ends == ["FAILED", "EXPIRED", "COMPLETED", "COMPLETED"]


async def test_lost_lines_are_in_neither_file_and_free():
    async with told(BatchFault(K.LOSE_LINES, share=0.25)) as (sim, client):
        job = await client.run(some(8))
        assert len(ids(await client.output(job))) == len(sim.account.charges) == 6
        assert shown(job) == {"output_file_id"}


async def test_repeated_lines_are_charged_once():
    async with told(BatchFault(K.REPEAT_LINES, share=0.5)) as (sim, client):
        output = ids(await client.output(await client.run(some(8))))
        assert (len(output), len(set(output)), len(sim.account.charges)) == (12, 8, 8)


async def test_a_garbage_line_stands_between_good_ones():
    async with told(BatchFault(K.GARBAGE_LINE)) as (_, client):
        lines = (await client.output(await client.run(some(3)))).splitlines()
    with pytest.raises(UnicodeDecodeError):
        lines[1].decode()
    assert [msgspec.json.decode(good)["response"]["status_code"] for good in (lines[0], *lines[2:])] == [200] * 3


async def test_a_stuck_job_stays_at_its_progress_and_can_be_cancelled():
    async with told(BatchFault(K.STUCK, progress=50)) as (sim, client):
        job_id = await client.started(some(10))
        job = await client.when(job_id, "IN_PROGRESS")
        while only_job(sim).done < 5:
            job = await client.job(job_id)
        assert (job["progress"], len(sim.account.charges)) == (50, 5)
        assert (await client.job(job_id))["status"] == "IN_PROGRESS"
        await client.ask("POST", f"/v1/batches/{job_id}/cancel")
        assert len(ids(await client.output(await client.ended(job_id)))) == 5


async def test_a_job_may_be_stuck_in_validation():
    async with told(BatchFault(K.STUCK, status="VALIDATING")) as (sim, client):
        job_id = await client.started(some(2))
        assert [(await client.job(job_id))["status"] for _ in range(3)] == ["VALIDATING"] * 3
        assert sim.account.charges == []


async def test_an_unknown_status_may_pass():
    async with told(BatchFault(K.UNKNOWN_STATUS, status="THINKING", seconds=0.5)) as (_, client):
        job_id = await client.started(some(2))
        assert (await client.job(job_id))["status"] == "THINKING"
        assert (await client.when(job_id, "COMPLETED"))["progress"] == 100


@pytest.mark.parametrize("first_end", ["CANCELLED", "EXPIRED"])
async def test_a_restarted_job_is_continued_under_another_id(first_end):
    async with told(BatchFault(K.RESTARTED, jobs=(1,), status=first_end)) as (sim, client):
        first = await client.run(some(10))
        await sim.batches_ended(2)
        second = next(job for job in await client.listed() if job["id"] != first["id"])
        done = [ids(await client.output(job)) for job in (first, second)]
        assert (first["status"], second["status"]) == (first_end, "COMPLETED")
        assert first["input_file_id"] == second["input_file_id"]
        assert [len(part) for part in done] == [5, 5]
        assert len(set(done[0] + done[1])) == len(sim.account.charges) == 10


async def test_a_restarted_job_may_be_gone():
    async with told(BatchFault(K.RESTARTED, status="GONE", share=0.0)) as (sim, client):
        first = await client.started(some(4))
        await sim.batched(2)
        await sim.batches_ended(1)
        assert (await client.ask("GET", f"/v1/batches/{first}")).status == 404
        (second,) = await client.listed()
        assert len(ids(await client.output(await client.ended(second["id"])))) == 4


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_job_may_vanish_uncharged(share):
    async with told(BatchFault(K.VANISH, share=share)) as (sim, client):
        created = await client.create(await client.upload(some(4)))
        while not only_job(sim).gone:
            await client.listed()
        assert created.status == 201
        assert (await client.ask("GET", f"/v1/batches/{created.json['job']['id']}")).status == 404
        assert await client.listed() == []
        assert sim.account.charges == []


async def test_one_creation_may_make_two_jobs():
    async with told(BatchFault(K.DUPLICATE, times=1)) as (sim, client):
        file_id = await client.upload(some(2))
        created = await client.create(file_id)
        assert created.json["job"]["id"] == sim.batches.jobs[0].id
        assert [job["input_file_id"] for job in await client.listed()] == [file_id] * 2


async def test_a_job_may_be_created_without_a_reply():
    faults = BatchFault(K.CREATE_TIMEOUT, jobs=(1,)), BatchFault(K.CREATE_TIMEOUT, jobs=(2,), http=504, seconds=0.01)
    async with told(*faults) as (sim, client):
        file_id = await client.upload(some(1))
        with pytest.raises(aiohttp.ClientError):
            await client.create(file_id)
        assert (await client.create(file_id)).status == 504
        assert (await client.create(file_id)).status == 201
        assert len(sim.batches.jobs) == 3


async def test_a_creation_may_fail_or_be_refused_and_nothing_is_created():
    faults = BatchFault(K.CREATE_ERROR, times=1), BatchFault(K.REFUSE_CREATE, times=1)
    async with told(*faults) as (sim, client):
        file_id = await client.upload(some(1))
        failed = await client.create(file_id)
        refused = await client.create(file_id, model_id="openai/gpt-oss-20b")
        assert sim.batches.jobs == []
        assert (await client.create(file_id)).status == 201
    assert (failed.status, failed.error) == (500, "Internal Server Error")
    assert (refused.status, refused.error) == (400, "Model openai/gpt-oss-20b does not support batch")


async def test_the_reply_to_an_upload_may_be_lost_though_the_file_exists():
    async with told(BatchFault(K.LOST_UPLOAD_REPLY, times=1)) as (_, client):
        with pytest.raises(aiohttp.ClientError):
            await client.begin(some(1))
        (file,) = (await client.ask("GET", "/v1/files")).json["data"]
        assert (file["bytes"], file["processing_status"]) == (0, "PENDING")
        await client.upload(some(1))


async def test_a_put_may_break_in_the_middle():
    async with told(BatchFault(K.BROKEN_PUT, times=2)) as (sim, client):  # aiohttp tries a PUT a second time by itself
        data = some(50_000)
        begun = await client.begin(data)
        with pytest.raises(aiohttp.ClientError):
            await client.put(begun, data)
        assert sim.batches.files == []
        assert (await client.put(begun, data)).status == 200


async def test_preprocessing_may_fail():
    async with told(BatchFault(K.PREPROCESS_ERROR, times=1)) as (_, client):
        begun = await client.begin(some(1))
        await client.put(begun, some(1))
        path = f"/v1/files/{begun.headers['X-Together-File-Id']}/preprocess"
        assert [(await client.ask("POST", path)).status for _ in range(2)] == [500, 200]


async def test_a_download_may_be_cut_or_its_file_missing():
    async with told(BatchFault(K.DOWNLOAD_CUT, times=1), BatchFault(K.FILE_MISSING, jobs=(2,))) as (_, client):
        first, second = await client.run(some(3)), await client.run(some(4))
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.output(first)
        assert len(ids(await client.output(first))) == 3
        assert (await client.ask("GET", f"/v1/files/{second['output_file_id']}/content")).status == 404


async def test_any_call_may_answer_with_an_error():
    faults = [BatchFault(K.CALL_ERROR, call=call, http=503, times=1) for call in Call]
    async with told(*faults) as (_, client):
        assert (await client.begin(some(1))).status == 503
        begun = await client.begin(some(1))
        assert [(await client.put(begun, some(1))).status for _ in range(2)] == [503, 200]
        listed = await client.ask("GET", "/v1/batches")
        assert (listed.status, type(listed.error)) == (503, str)
        files = await client.ask("GET", "/v1/files")
        assert (files.status, type(files.error)) == (503, dict)


async def test_a_poll_may_be_told_to_wait():
    async with told(BatchFault(K.CALL_ERROR, call=Call.BATCH_GET, http=429, seconds=2.5, jobs=(2,))) as (_, client):
        polls = [await client.ask("GET", "/v1/batches/unknown") for _ in range(3)]
    assert [poll.status for poll in polls] == [404, 429, 404]
    assert polls[1].headers["Retry-After"] == "2.5"


async def test_faults_can_be_set_while_it_runs():
    async with simulated() as (sim, client):
        toml = '[[batch_fault]]\nkind = "expire"\nshare = 1.0\n'
        assert (await client.ask("POST", "/_simulator/batch-faults", data=toml)).json == {"batch_faults": 1}
        assert (await client.run(some(2)))["status"] == "EXPIRED"
        sim.play_batches([BatchFault(K.FAIL_VALIDATION)])
        assert (await client.run(some(3)))["status"] == "FAILED"
        assert (await client.ask("POST", "/_simulator/batch-faults", json=[])).status == 200
        assert (await client.run(some(4)))["status"] == "COMPLETED"
        wrong = await client.ask("POST", "/_simulator/batch-faults", json=[{"kind": "expires"}])
    assert (wrong.status, wrong.error) == (400, "unknown kind of fault: 'expires'; the nearest known is 'expire'")


async def test_what_is_planned_for_a_job_outlives_a_restart(tmp_path):
    state = tmp_path / "state"
    async with told(BatchFault(K.EXPIRE, times=1), state=state) as (sim, client):
        sim.hold_batches()
        job_id = await client.started(some(4))
    async with simulated(state) as (_, client):
        job = await client.ended(job_id)
        assert (job["status"], len(ids(await client.output(job)))) == ("EXPIRED", 2)


def test_a_script_may_hold_batch_settings_and_faults():
    settings = parse_script(
        """
        [batch]
        speed = 10
        out_of_credits = "error_lines"
        [batch.discounts]
        "openai/gpt-oss-20b" = 0.5
        [[batch_fault]]
        kind = "restarted"
        jobs = [1, 3]
        status = "GONE"
        files = "none"
        """
    )
    assert (settings.batch_speed, settings.batch_out_of_credits) == (10, "error_lines")
    assert settings.batch_discounts == {"openai/gpt-oss-20b": 0.5}
    assert settings.batch_faults == (BatchFault(K.RESTARTED, jobs=(1, 3), status="GONE", files=Files.NONE),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[batch]\nspede = 1", r"unknown setting in \[batch\]: 'spede'; the nearest known is 'speed'"),
        ("[batch]\nspeed = 0", "batch_speed must be more than 0"),
        ('[batch.discounts]\n"m" = 2.0', "the discount of m must be above 0"),
        ('[[batch_fault]]\nkind = "expire"\nshare = 2.0', "share must be between 0 and 1"),
        ('[[batch_fault]]\nkind = "expire"\nstatus = "GONE"', "status of expire must be one of COMPLETED"),
        ('[[batch_fault]]\nkind = "call_error"', "call is the word of call_error"),
        (
            '[[batch_fault]]\nkind = "stuck"\nstatus = "FAILED"',
            "status of stuck must be one of VALIDATING, IN_PROGRESS",
        ),
    ],
)
def test_a_wrong_batch_script_says_what_is_wrong(text, words):
    with pytest.raises(SettingsError, match=words):
        parse_script(text)
