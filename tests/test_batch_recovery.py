"""A treacherous provider: lost replies, late lists, twins, restarts, storms. Every row comes home, and is paid once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.clock import RealClock
from batchrun.job import Batching, Job
from batchrun.records import ParkReason, Price, Route
from batchrun.reports import Report
from batchrun.runner import Options, Run
from batchrun.simulator import BatchFault, BatchFaultKind, Call, CreditsWord, Fault, FaultKind, Settings, Simulator

K = BatchFaultKind
DEAR = {MODEL: Price(100_000_000, 100_000_000)}  # so that a discount is worth waiting for
ROWS = 10


@asynccontextmanager
async def provider(*faults: BatchFault, **settings: Any) -> AsyncIterator[Simulator]:
    async with Simulator(Settings(**{"batch_speed": None, "latency": 0.0, "batch_faults": faults, **settings})) as sim:
        yield sim


def job_on(
    simulator: Simulator,
    folder: Path,
    make_job: MakeJob,
    *,
    rows: int = ROWS,
    route: Route = Route.BATCH,
    patience: float = 5.0,
    limits: dict[str, Any] | None = None,
    prices: dict[str, Price] | None = None,
    discounts: dict[str, float] | None = None,
    **batching: Any,
) -> Job:
    source = write_prompts(folder / "in.jsonl", range(rows))
    said = {"lines": ROWS, "poll": 0.02, "grace": 0.4, **batching}
    limits = {"overload_patience": patience, **(limits or {})}
    more = {"batching": Batching(**said), "limits": limits, "discounts": discounts or {}, "prices": prices or {}}
    return make_job(simulator.url, source, route=route, **more)


class Hasty(RealClock):
    """Throws the lowest dice, so that nobody backs off for long."""

    def random(self) -> float:
        return 0.01


async def begin(job: Job, *, key: str = "any-key", within: float = 10.0, **options: Any) -> Report:
    """One start, which has to end within so many seconds."""
    async with asyncio.timeout(within):
        return await Run(job, key, Hasty(), Options(**options)).go()


def diary(job: Job, kind: str = "batch") -> list[str]:
    connection = sqlite3.connect(f"file:{job.checkpoint}?mode=ro", uri=True)
    try:
        return [
            detail
            for (detail,) in connection.execute("select detail from event where kind = ? order by rowid", (kind,))
        ]
    finally:
        connection.close()


def surplus(job: Job) -> dict[str | None, int]:
    connection = sqlite3.connect(f"file:{job.checkpoint}?mode=ro", uri=True)
    try:
        return dict(connection.execute("select surplus, count(*) from paid group by surplus"))
    finally:
        connection.close()


def said(job: Job, words: str) -> bool:
    return any(words in line for line in diary(job))


def lanes(job: Job) -> Counter[str]:
    assert job.output is not None
    return Counter(row["lane"] for row in read_rows(job.output))


def all_home(job: Job, report: Report, rows: int = ROWS) -> None:
    assert (report.exit_code, report.answered, report.pending) == (0, rows, 0), (report.message, diary(job))
    assert job.output is not None
    found = read_rows(job.output)
    assert [row["id"] for row in found] == list(range(rows))
    assert {row["state"] for row in found} == {"answered"}


def paid_once(simulator: Simulator, rows: int = ROWS) -> None:
    assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(rows)}


def request_files(simulator: Simulator) -> list[str]:
    """Names of the request files at the provider, whether their bytes came or not."""
    files = simulator._files
    return [file.name for file in files.by_id.values() if files.get(file.file_id) is not None and not file.job]


def left_here(job: Job) -> list[str]:
    folder = Path(f"{job.checkpoint}.batches")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- creating --------------------------------------------------------------------------------------------------------

ADOPTED = {
    "the connection closes after the job was made": ((BatchFault(K.CREATE_TIMEOUT, times=1),), {}),
    "504 after the job was made": ((BatchFault(K.CREATE_TIMEOUT, times=1, http=504),), {}),
    "500 after the job was made": ((BatchFault(K.CREATE_TIMEOUT, times=1, http=500),), {}),
    "the list shows the job late": ((BatchFault(K.CREATE_TIMEOUT, times=1),), {"batch_list_lag": 0.3}),
    "the list is null": ((BatchFault(K.CREATE_TIMEOUT, times=1),), {"batch_list_lag": 0.2, "batch_null_list": True}),
}


@pytest.mark.parametrize("what", ADOPTED)
async def test_a_job_whose_create_was_not_answered_is_adopted(what: str, tmp_path: Path, make_job: MakeJob) -> None:
    faults, settings = ADOPTED[what]
    async with provider(*faults, **settings) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=1.0)
        report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert (len(simulator.batches.jobs), report.maybe_twice) == (1, 0)
        assert simulator.batches.requests[Call.BATCH_CREATE] == 1


@pytest.mark.parametrize("http", [500, 502, 504])
async def test_a_create_that_made_nothing_goes_out_again_after_the_grace_time(
    http: int, tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider(BatchFault(K.CREATE_ERROR, http=http, times=1)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert (len(simulator.batches.jobs), report.maybe_twice) == (1, ROWS)
        assert report.seconds > job.batching.grace
        assert said(job, "created again")


@pytest.mark.parametrize("status", [429, 402])
async def test_a_create_that_was_refused_is_in_no_doubt(status: int, tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.CALL_ERROR, call=Call.BATCH_CREATE, http=status, times=1)) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=30.0)
        report = await begin(job)
        if status == 402:
            assert (report.exit_code, report.pending) == (3, ROWS)
            report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert (len(simulator.batches.jobs), report.maybe_twice) == (1, 0)


async def test_creates_that_never_work_end_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.CREATE_ERROR)) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=0.5, grace=0.2)
        report = await begin(job)
        assert (report.exit_code, report.parked, report.pending) == (5, ParkReason.OVERLOAD, ROWS)
        assert simulator.account.charges == []


async def test_of_two_jobs_on_a_file_one_is_cancelled(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.DUPLICATE, times=1), batch_speed=8.0) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        all_home(job, report)
        first, second = simulator.batches.jobs
        assert sorted([first.status, second.status]) == ["CANCELLED", "COMPLETED"]
        cancelled = first if first.status == "CANCELLED" else second
        assert len(simulator.account.charges) == ROWS + cancelled.done < 2 * ROWS
        assert said(job, "another job works on the same file")


async def test_two_jobs_that_both_ended_answer_no_row_twice(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.DUPLICATE, times=1)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        all_home(job, report)
        assert len(simulator.batches.jobs) == 2
        assert set(paid_for(simulator.account.charges).values()) == {2}
        assert (report.answered_now, surplus(job)) == (ROWS, {None: ROWS, "twice": ROWS})
        assert report.spent_nano == simulator.account.summary()["spent_batch"]


# --- jobs that end strangely -----------------------------------------------------------------------------------------

RESTARTS = {
    "cancelled halfway": BatchFault(K.RESTARTED, jobs=(1,)),
    "cancelled at once": BatchFault(K.RESTARTED, jobs=(1,), share=0.0),
    "gone": BatchFault(K.RESTARTED, jobs=(1,), status="GONE", share=0.0),
    "failed halfway": BatchFault(K.RESTARTED, jobs=(1,), status="FAILED"),
    "expired halfway": BatchFault(K.RESTARTED, jobs=(1,), status="EXPIRED"),
}
SHOWN_LATE = [what for what in RESTARTS if what != "failed halfway"]  # a failure is taken for the end


@pytest.mark.parametrize(("what", "lag"), [(what, 0.0) for what in RESTARTS] + [(what, 0.3) for what in SHOWN_LATE])
async def test_a_job_begun_again_under_a_new_id_is_adopted(
    what: str, lag: float, tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider(RESTARTS[what], batch_list_lag=lag) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=1.0)
        report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert simulator.batches.requests[Call.BATCH_CREATE] == 1


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_rows_of_a_job_that_vanishes_are_sent_again(share: float, tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.VANISH, jobs=(1,), share=share)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert len(simulator.batches.jobs) == 2
        assert report.maybe_twice == ROWS


async def test_rows_whose_jobs_always_vanish_are_given_up(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.VANISH)) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=0.1)
        report = await begin(job)
        assert (report.exit_code, report.rejected) == (10, ROWS)
        assert len(simulator.batches.jobs) == 3


async def test_rows_whose_jobs_always_vanish_go_live_when_they_may(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.VANISH)) as simulator:
        job = job_on(simulator, tmp_path, make_job, route=Route.AUTO, grace=0.1, discounts={MODEL: 0.5}, prices=DEAR)
        all_home(job, await begin(job))
        paid_once(simulator)
        assert (len(simulator.batches.jobs), lanes(job)) == (3, {"live": ROWS})


# --- files -----------------------------------------------------------------------------------------------------------

UPLOADS: dict[str, tuple[tuple[BatchFault, ...], dict[str, Any]]] = {
    "the reply to the announcement is lost": ((BatchFault(K.LOST_UPLOAD_REPLY, times=1),), {}),
    "that reply is lost twice": ((BatchFault(K.LOST_UPLOAD_REPLY, times=2),), {}),
    "the put breaks": ((BatchFault(K.BROKEN_PUT, times=2),), {}),
    "the put breaks again and again": ((BatchFault(K.BROKEN_PUT, times=8),), {}),
    "the put is refused": ((BatchFault(K.CALL_ERROR, call=Call.PUT, http=503, times=5),), {}),
    "preprocess fails once": ((BatchFault(K.PREPROCESS_ERROR, times=1),), {}),
    "preprocess is refused": ((BatchFault(K.PREPROCESS_ERROR, http=404),), {}),
    "409 for an upload whose bytes never came": (
        (BatchFault(K.LOST_UPLOAD_REPLY, times=1),), {"batch_dedupe_unfinished": True},
    ),
    "409 after a broken put": ((BatchFault(K.BROKEN_PUT, times=2),), {"batch_dedupe_unfinished": True}),
}  # fmt: skip


@pytest.mark.parametrize("what", UPLOADS)
async def test_an_upload_in_trouble_leaves_one_file(what: str, tmp_path: Path, make_job: MakeJob) -> None:
    faults, settings = UPLOADS[what]
    async with provider(*faults, **settings) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=30.0)
        report = await begin(job)
        all_home(job, report)
        paid_once(simulator)
        assert len(request_files(simulator)) == len(simulator.batches.jobs) == 1
        assert left_here(job) == []


async def test_an_upload_that_is_refused_after_all_leaves_nothing_at_the_provider(
    tmp_path: Path, make_job: MakeJob
) -> None:
    lost = BatchFault(K.LOST_UPLOAD_REPLY, jobs=(1,))
    refused = BatchFault(K.CALL_ERROR, call=Call.UPLOAD_INIT, http=400, jobs=(2,))
    async with provider(lost, refused) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        assert (report.exit_code, report.parked, report.pending) == (9, ParkReason.HOPELESS, ROWS), report.message
        assert (request_files(simulator), left_here(job)) == ([], [])


async def test_storage_that_never_works_ends_the_run(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.CALL_ERROR, call=Call.PUT, http=503)) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=0.5)
        report = await begin(job)
        assert (report.exit_code, report.pending) == (5, ROWS)
        simulator.play_batches([])
        all_home(job, await begin(job))
        paid_once(simulator)
        assert len(request_files(simulator)) == 1


async def test_an_upload_refused_for_want_of_credits_is_a_pause(tmp_path: Path, make_job: MakeJob) -> None:
    live = (Fault(FaultKind.CREDITS_END, after=0),)
    async with provider(batch_credits_word=CreditsWord.UPLOAD_401, faults=live) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        assert (report.exit_code, report.pending, report.rejected) == (3, ROWS, 0), report.message
        simulator.top_up(100)
        all_home(job, await begin(job))
        paid_once(simulator)


async def test_a_bad_key_is_a_bad_key(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(refused_keys=("any-key",)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        report = await begin(job)
        assert (report.exit_code, report.pending) == (4, ROWS)


@pytest.mark.parametrize("call", [call for call in Call if call is not Call.UPLOAD])
@pytest.mark.parametrize("http", [429, 503, pytest.param(500, marks=pytest.mark.soak)])
async def test_a_storm_on_any_call_passes(call: Call, http: int, tmp_path: Path, make_job: MakeJob) -> None:
    storm = BatchFault(K.CALL_ERROR, call=call, http=http, times=3)
    async with provider(storm, BatchFault(K.DUPLICATE), batch_speed=50.0) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=30.0, grace=0.3, delete_remote=True)
        report = await begin(job)
        all_home(job, report)
        assert simulator.batches.files == []
        assert left_here(job) == []


async def test_a_download_that_is_cut_is_made_again(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.DOWNLOAD_CUT, times=3)) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=30.0)
        all_home(job, await begin(job))
        paid_once(simulator)
        assert left_here(job) == []


async def test_a_result_file_that_shows_late_is_waited_for(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.FILE_MISSING, times=2)) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=5.0)
        all_home(job, await begin(job))
        paid_once(simulator)


async def test_answers_whose_file_is_lost_are_bought_again_and_said_so(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.FILE_MISSING, jobs=(1,))) as simulator:
        job = job_on(simulator, tmp_path, make_job, grace=0.2)
        report = await begin(job)
        all_home(job, report)
        assert set(paid_for(simulator.account.charges).values()) == {2}
        assert report.maybe_twice == ROWS
        assert left_here(job) == []


async def test_a_request_file_that_is_gone_is_packed_anew(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.CALL_ERROR, call=Call.PUT, http=503)) as simulator:
        job = job_on(simulator, tmp_path, make_job, patience=0.3)
        assert (await begin(job)).exit_code == 5
        (name,) = left_here(job)
        (Path(f"{job.checkpoint}.batches") / name).unlink()
        simulator.play_batches([])
        write_prompts(tmp_path / "in.jsonl", range(ROWS + 1))
        all_home(job, await begin(job), ROWS + 1)
        paid_once(simulator, ROWS + 1)
        assert len(request_files(simulator)) == len(simulator.batches.jobs)


# --- coming and going ------------------------------------------------------------------------------------------------


async def test_a_detached_start_leaves_batches_running_and_a_later_one_collects_them(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider() as simulator:
        simulator.hold_batches()
        job = job_on(simulator, tmp_path, make_job, rows=30)
        for _ in range(2):
            report = await begin(job, detach=True)
            assert (report.exit_code, report.parked, report.submitted) == (7, ParkReason.REMOTE, 30)
            assert len(simulator.batches.jobs) == 3
        simulator.release_batches()
        await simulator.batches_ended(3)
        all_home(job, await begin(job, detach=True), 30)
        paid_once(simulator, 30)
        assert len(simulator.batches.jobs) == 3


async def test_with_a_cap_each_detached_start_takes_one_home_and_sends_the_next(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider() as simulator:
        job = job_on(simulator, tmp_path, make_job, rows=30, at_once=1)
        for number in (1, 2, 3):
            simulator.hold_batches()
            report = await begin(job, detach=True)
            assert (report.exit_code, report.submitted) == (7, 10)
            assert len(simulator.batches.jobs) == number
            assert report.answered == 10 * (number - 1)
            simulator.release_batches()
            await simulator.batches_ended(number)
        all_home(job, await begin(job, detach=True), 30)
        paid_once(simulator, 30)


async def test_interrupted_while_it_waits_the_batch_goes_on_and_is_collected(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider() as simulator:
        simulator.hold_batches()
        job = job_on(simulator, tmp_path, make_job)
        run = Run(job, "any-key")
        async with asyncio.TaskGroup() as tasks:
            going = tasks.create_task(run.go())
            await simulator.batched(1)
            run.interrupt()
        assert (going.result().exit_code, going.result().pending) == (130, ROWS)
        simulator.release_batches()
        await simulator.batches_ended(1)
        all_home(job, await begin(job))
        paid_once(simulator)
        assert len(simulator.batches.jobs) == 1


async def test_turned_to_live_a_batch_is_cancelled_and_what_it_finished_is_kept(
    tmp_path: Path, make_job: MakeJob
) -> None:
    async with provider(BatchFault(K.STUCK, progress=50)) as simulator:
        job = job_on(simulator, tmp_path, make_job)
        assert (await begin(job, detach=True)).exit_code == 7
        while simulator.batches.jobs[0].done < 5:
            await asyncio.sleep(0)
            await simulator.batches.catch_up()
        stray = Path(f"{job.checkpoint}.batches") / "batchrun-0.jsonl"
        stray.write_text("junk")
        live = msgspec.structs.replace(job, route=Route.LIVE)
        report = await begin(live)
        all_home(live, report)
        paid_once(simulator)
        assert lanes(live) == {"batch": 5, "live": 5}
        assert [made.status for made in simulator.batches.jobs] == ["CANCELLED"]
        assert left_here(job) == []


async def test_a_batch_that_will_not_be_cancelled_is_given_up_and_followed_all_the_same(
    tmp_path: Path, make_job: MakeJob
) -> None:
    refusing = BatchFault(K.CALL_ERROR, call=Call.BATCH_CANCEL, http=400)
    async with provider(refusing) as simulator:
        simulator.hold_batches()
        job = job_on(simulator, tmp_path, make_job, delete_remote=True)
        assert (await begin(job, detach=True)).exit_code == 7
        live = msgspec.structs.replace(job, route=Route.LIVE)
        report = await begin(live)
        all_home(live, report)
        assert (report.maybe_twice, lanes(live)) == (ROWS, {"live": ROWS})
        assert len(request_files(simulator)) == 1, "it still works on its file"
        simulator.release_batches()
        await simulator.batches_ended(1)
        all_home(live, await begin(live))
        assert lanes(live) == {"live": ROWS}
        assert simulator.batches.files == []
        requests = simulator.batches.requests.total()
        await begin(live)
        assert simulator.batches.requests.total() == requests, "there was nothing left to follow"


async def test_a_create_in_doubt_is_not_left_behind_by_a_turn_to_live_calls(tmp_path: Path, make_job: MakeJob) -> None:
    async with provider(BatchFault(K.CREATE_TIMEOUT, times=1), batch_list_lag=0.3) as simulator:
        simulator.hold_batches()
        job = job_on(simulator, tmp_path, make_job, grace=1.0)
        run = Run(job, "any-key", Hasty())
        async with asyncio.TaskGroup() as tasks:
            going = tasks.create_task(run.go())
            await simulator.batched(1)
            run.interrupt()
        assert going.result().exit_code == 130
        simulator.release_batches()
        live = msgspec.structs.replace(job, route=Route.LIVE)
        all_home(live, await begin(live))
        paid_once(simulator)
        assert len(simulator.batches.jobs) == 1
