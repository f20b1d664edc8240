"""The whole way of a batch against the simulator: up, through, and back; and its ways to go wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fake_remote import KEY, PATIENCE, remote_at
from support import MODEL

from batchrun.api import jobs
from batchrun.api.remote import Present, Remote, Upload
from batchrun.files.lines import RequestFile, read_lines
from batchrun.records import Broken, Completion, Fault, Refusal, RemoteFile, RemoteJob, ResultLine
from batchrun.rules import faults
from batchrun.rules.canonical import canonical
from batchrun.simulator import BatchFault, BatchFaultKind, CreditsWord, Settings, Simulator

LINES = 20


def settings(*planned: BatchFault, **fields: object) -> Settings:
    return Settings(latency=0.0, refusal_latency=0.0, batch_faults=planned, **fields)  # type: ignore[arg-type]


def request_file(folder: Path, model: str = MODEL) -> tuple[RequestFile, str]:
    file = RequestFile.create(str(folder / "batches"), "b-1.jsonl")
    for number in range(LINES):
        body = {"messages": [{"content": f"Name river {number}.", "role": "user"}], "model": model, "max_tokens": 9}
        file.add(f"nonce-{number}", canonical(body))
    return file, file.close().hex()


async def uploaded(remote: Remote, file: RequestFile, sha256: str) -> str:
    begun = await remote.begin_upload("b-1.jsonl", sha256)
    assert isinstance(begun, Upload)
    assert await remote.put(begun.location, str(file.path)) is None
    assert await remote.preprocess(begun.file_id) == RemoteFile(begun.file_id, "b-1.jsonl", file.size)
    return begun.file_id


async def ended(remote: Remote, job: RemoteJob | Refusal | Broken) -> RemoteJob:
    """The job when it has come to an end; the simulator takes its time over each question."""
    while isinstance(job, RemoteJob) and job.status not in {"COMPLETED", "FAILED", "EXPIRED", "CANCELLED"}:
        job = await remote.job(job.id)
    assert isinstance(job, RemoteJob)
    return job


async def results(remote: Remote, file_id: str | None, path: Path) -> list[ResultLine | None]:
    assert file_id is not None
    assert await remote.download(file_id, str(path)) == path.stat().st_size
    return [jobs.result_line(line, 0.0) for line in itertools.chain.from_iterable(read_lines(str(path)))]


async def test_a_batch_goes_there_and_comes_back(tmp_path: Path):
    file, sha256 = request_file(tmp_path)
    async with Simulator(settings()) as simulator, remote_at(simulator.url) as remote:
        file_id = await uploaded(remote, file, sha256)
        assert await remote.begin_upload("b-1.jsonl", sha256) == Present(file_id)
        job = await ended(remote, await remote.create(file_id))
        assert (job.input_file_id, job.status, job.progress) == (file_id, "COMPLETED", 100.0)
        assert await remote.jobs() == [job]
        found = await results(remote, job.output_file_id, tmp_path / "out.jsonl.part")
        assert {line.custom_id for line in found if line} == {f"nonce-{number}" for number in range(LINES)}
        assert all(line and isinstance(line.outcome, Completion) and line.outcome.usage for line in found)
        assert job.output_file_id is not None
        for gone in (file_id, job.output_file_id):
            assert await remote.delete(gone) is True
            assert await remote.delete(gone) is True
        assert await remote.files() == []
        assert await remote.key_works() is True
        assert len(simulator.account.charges) == LINES


async def test_the_other_way_to_upload_makes_the_same_batch(tmp_path: Path):
    file, _ = request_file(tmp_path)
    async with Simulator(settings()) as simulator, remote_at(simulator.url) as remote:
        whole = await remote.upload_whole("b-1.jsonl", str(file.path))
        assert isinstance(whole, RemoteFile)
        assert whole.size == file.size
        assert (await ended(remote, await remote.create(whole.id))).status == "COMPLETED"


async def test_lines_that_fail_say_why(tmp_path: Path):
    file, sha256 = request_file(tmp_path, "no/such-model")
    async with Simulator(settings()) as simulator, remote_at(simulator.url) as remote:
        job = await ended(remote, await remote.create(await uploaded(remote, file, sha256)))
        assert job.output_file_id is None
        found = await results(remote, job.error_file_id, tmp_path / "errors.jsonl.part")
        assert len(found) == LINES
        for line in found:
            assert line
            assert isinstance(line.outcome, Refusal)
            assert faults.trouble(line.outcome).fault is Fault.MODEL_MISSING


@pytest.mark.parametrize("word", [CreditsWord.CREATE_402, CreditsWord.CREATE_400])
async def test_credits_that_are_gone_are_heard_of_at_create(word: CreditsWord, tmp_path: Path):
    file, sha256 = request_file(tmp_path)
    broke = settings(credits=0.0, batch_credits_word=word)
    async with Simulator(broke) as simulator, remote_at(simulator.url) as remote:
        got = await remote.create(await uploaded(remote, file, sha256))
        assert isinstance(got, Refusal)
        assert faults.trouble(got).fault is Fault.CREDITS


async def test_an_upload_refused_as_if_the_key_were_bad_has_a_key_that_works():
    broke = settings(credits=0.0, batch_credits_word=CreditsWord.UPLOAD_401)
    async with Simulator(broke) as simulator, remote_at(simulator.url) as remote:
        got = await remote.begin_upload("b-1.jsonl", "0" * 64)
        assert isinstance(got, Refusal)
        assert got.status == 401
        assert await remote.key_works() is True


async def test_a_key_that_is_refused_does_not_work():
    async with Simulator(settings(refused_keys=(KEY,))) as simulator, remote_at(simulator.url) as remote:
        assert await remote.key_works() is False


async def test_a_create_without_a_reply_may_have_made_what_the_list_shows(tmp_path: Path):
    file, sha256 = request_file(tmp_path)
    planned = BatchFault(BatchFaultKind.CREATE_TIMEOUT, seconds=0.0)
    async with Simulator(settings(planned)) as simulator, remote_at(simulator.url) as remote:
        file_id = await uploaded(remote, file, sha256)
        got = await remote.create(file_id)
        assert isinstance(got, Broken)
        assert got.maybe_paid
        await simulator.batched(1)
        listed = await remote.jobs()
        assert isinstance(listed, list)
        assert [job.input_file_id for job in listed] == [file_id]


async def test_a_cut_download_is_garbled_and_the_next_one_whole(tmp_path: Path):
    file, sha256 = request_file(tmp_path)
    planned = BatchFault(BatchFaultKind.DOWNLOAD_CUT, times=1)
    async with Simulator(settings(planned)) as simulator, remote_at(simulator.url) as remote:
        job = await ended(remote, await remote.create(await uploaded(remote, file, sha256)))
        path = tmp_path / "out.jsonl.part"
        got = await remote.download(job.output_file_id or "", str(path))
        assert isinstance(got, Broken)
        assert got.garbled
        assert len(await results(remote, job.output_file_id, path)) == LINES


async def test_a_batch_is_cancelled(tmp_path: Path):
    file, sha256 = request_file(tmp_path)
    async with Simulator(settings(batch_validation=PATIENCE)) as simulator, remote_at(simulator.url) as remote:
        made = await remote.create(await uploaded(remote, file, sha256))
        assert isinstance(made, RemoteJob)
        assert made.status == "VALIDATING"
        assert (await ended(remote, await remote.cancel(made.id))).status == "CANCELLED"
