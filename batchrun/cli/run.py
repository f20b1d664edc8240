"""`run` and `resume`: words to a job, signals to stops, and the report to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from batchrun.cli import logs, notify, signals
from batchrun.cli.logs import Log, Voice
from batchrun.cli.options import asking_options, job_options, limit_options, run_options, start_options
from batchrun.cli.question import Question, is_attended
from batchrun.cli.words import changed, confirm_above, default_checkpoint, key_in, new_job, newest_checkpoint
from batchrun.errors import UsageError, first_of
from batchrun.job import Job

if TYPE_CHECKING:
    from batchrun.reports import Report
    from batchrun.rules.route import Plan
    from batchrun.runner import Run

_GC_EVERY = 50_000


@click.command()
@job_options
@asking_options
@limit_options
@run_options
@start_options
def run(inputs: tuple[str, ...], **given: Any) -> None:
    """Do the job, or go on with it: the same command resumes.

    INPUT is a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, a folder, or a
    glob. A row is a ready batch line (custom_id and body), `messages`,
    `prompt`, or any columns with --template. Every paid answer is kept in the
    checkpoint before it counts; the output is written when all rows are done.

    With --job every option may be a key of a TOML file, INPUT too. Its paths
    start at its own folder, where checkpoints/<name of the file>.db is the
    default checkpoint; `batchrun status FILE.toml` finds it.

    Whether rows go out in batches or as live calls is chosen for each model,
    by price, time and --deadline, and said before anything is sent.

    Exit codes: 0 every row answered, 2 usage or input, 3 out of credits,
    4 key refused, 5 overloaded or unreachable, 6 budget or deadline,
    7 batches still running, 8 another run holds the checkpoint, 9 hopeless or
    no such model, 10 some rows rejected, 11 disk or checkpoint, 130/143
    interrupted. All but 0 and 10 can go on.
    """
    voice, teller = logs.choose(given["log"]), notify.begin(given["notify"])
    given["checkpoint"] = given["checkpoint"] or default_checkpoint(inputs, simulate=given["simulate"])
    teller.checkpoint = os.path.abspath(given["checkpoint"])  # noqa: PTH100 - an error in what follows names it
    _start(new_job(inputs, given, os.environ), given, voice, teller)


@click.command()
@click.argument("checkpoint", required=False)
@limit_options
@start_options
def resume(checkpoint: str | None, **given: Any) -> None:
    """Go on with the job stored in CHECKPOINT, nothing to retype.

    CHECKPOINT may be named by its job file. Without CHECKPOINT: the newest in
    checkpoints/. Options given here replace those of the stored job.
    """
    from batchrun.store.view import View

    voice, teller = logs.choose(given["log"]), notify.begin(given["notify"])
    teller.checkpoint = newest_checkpoint(checkpoint)
    with View(teller.checkpoint) as view:
        stored = view.job()
    if stored is None:
        raise UsageError("This checkpoint has no job yet: its input was never read.", "Start it with `batchrun run`.")
    _start(changed(msgspec.json.decode(stored[1], type=Job), given), given, voice, teller)


def _start(job: Job, given: dict[str, Any], voice: Voice, teller: notify.Teller) -> None:
    teller.checkpoint = job.checkpoint
    if not job.simulate and (given["credits"] is not None or given["script"] is not None):
        raise UsageError("--credits and --script are for the simulator.", "Add --simulate.")
    with _server(job, given, voice) as (reachable, key):
        report = _go(reachable, key, given, voice, teller)
    if given["progress"] == "json":
        with contextlib.suppress(OSError):
            click.echo(msgspec.json.encode({"event": "report", **report.to_dict()}))
    voice.end(report)
    raise click.exceptions.Exit(report.exit_code)


@contextlib.contextmanager
def _server(job: Job, given: dict[str, Any], voice: Voice) -> Iterator[tuple[Job, str | None]]:
    """The job with the address to call, and the key; the simulator runs for as long as it is needed."""
    if not job.simulate:
        from batchrun.api.key import key_for

        key = key_in(job, os.environ)
        sent = key_for(job, key)
        if key and not sent:
            told = f"The key in {job.key_env} is not sent to {job.provider}; name a variable for it with --key-env."
            voice.say("hint", told)
        yield job, sent
        return
    from batchrun.cli.simulated import simulator

    with simulator(job.checkpoint, given["credits"], given["script"]) as url:
        yield msgspec.structs.replace(job, base_url=url), "simulated"


def _go(job: Job, key: str | None, given: dict[str, Any], voice: Voice, teller: notify.Teller) -> Report:
    from batchrun.runner import Options, Run

    # A run makes many objects and hardly a cycle; looking for cycles as often as by default costs a sixth of the CPU.
    gc.freeze()
    gc.set_threshold(_GC_EVERY)
    limit = confirm_above(given["confirm_above"])
    question = None if limit is None or given["yes"] or not is_attended() else Question(limit, _ask)

    def announce(plan: Plan) -> None:
        if question is None or question.shown != plan:
            voice.plan(plan)

    options = Options(
        given["new_requests"], given["accept_loss"], given["retry_rejected"], given["detach"], announce,
        None if question is None else question.agreed, teller.notify,
    )  # fmt: skip
    loops: Any = asyncio
    with contextlib.suppress(ImportError):
        import uvloop

        loops = uvloop
    report: Report = loops.run(_measured(job, Run(job, key, options=options), given, question, voice))
    return report


async def _measured(job: Job, run: Run, given: dict[str, Any], question: Question | None, voice: Voice) -> Report:
    """The run, and Prometheus beside it when it is wanted."""
    from batchrun.faces.metrics import serving

    port, path = given["metrics_port"], given["metrics_file"]
    async with serving(job, run.progress, port=port, path=path, note=voice.say) as ended:
        report = await _attended(run, given["progress"], question, voice)
        ended(report.exit_code)
        return report


async def _attended(run: Run, progress: str, question: Question | None, voice: Voice) -> Report:
    """The run with its face beside it, and signals turned into stops."""
    from batchrun.faces.progress import face

    loop = asyncio.get_running_loop()
    signals.hear_in(loop, lambda code: _stop(run, code, question, voice))
    kind = _face(progress, voice)
    try:
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(face(kind, run.progress))
            try:
                with voice.listening(bar=kind == "bar"):
                    return await run.go()
            finally:
                showing.cancel()
    except BaseExceptionGroup as failed:
        raise first_of(failed) from failed
    finally:
        signals.ignore(loop)  # all is written down; impatience must not cut off the summary


def _face(progress: str, voice: Voice) -> str:
    """Which face shows the run; among JSON lines there is no room for a bar."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    kind = progress if progress != "auto" else "bar" if terminal else "none"
    return "none" if kind == "bar" and voice.log is Log.JSON else kind


def _stop(run: Run, code: int, question: Question | None, voice: Voice) -> None:
    first = not run.interrupted
    run.interrupt(code)
    if question is not None:
        question.give_up()
    if first:
        voice.say("stopping", "\nStopping: what is in flight finishes and is kept. Once more ends at once.")


def _ask(text: str) -> None:
    """To the terminal, without a new line behind it."""
    click.echo(text, err=True, nl=False)
