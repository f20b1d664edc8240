"""`run` and `resume`: words to a job, signals to stops, and the report to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from batchrun.cli.options import asking_options, limit_options, run_options, start_options
from batchrun.cli.words import changed, key_in, new_job, newest_checkpoint
from batchrun.errors import UsageError, first_of
from batchrun.job import Job

if TYPE_CHECKING:
    from batchrun.reports import Report
    from batchrun.rules.route import Plan
    from batchrun.run import Run

_GC_EVERY = 50_000
_SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
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

    Whether rows go out in batches or as live calls is chosen for each model,
    by price, time and --deadline, and said before anything is sent.

    Exit codes: 0 every row answered, 2 usage or input, 3 out of credits,
    4 key refused, 5 overloaded or unreachable, 6 budget or deadline,
    7 batches still running, 8 another run holds the checkpoint, 9 hopeless or
    no such model, 10 some rows rejected, 11 disk or checkpoint, 130/143
    interrupted. All but 0 and 10 can go on.
    """
    _start(new_job(inputs, given, os.environ), given)


@click.command()
@click.argument("checkpoint", required=False)
@limit_options
@start_options
def resume(checkpoint: str | None, **given: Any) -> None:
    """Go on with the job stored in CHECKPOINT, nothing to retype.

    Without CHECKPOINT: the newest in checkpoints/. Options given here replace
    those of the stored job.
    """
    from batchrun.store.view import View

    with View(newest_checkpoint(checkpoint)) as view:
        stored = view.job()
    if stored is None:
        raise UsageError("This checkpoint has no job yet: its input was never read.", "Start it with `batchrun run`.")
    _start(changed(msgspec.json.decode(stored[1], type=Job), given), given)


def _start(job: Job, given: dict[str, Any]) -> None:
    if not job.simulate and (given["credits"] is not None or given["script"] is not None):
        raise UsageError("--credits and --script are for the simulator.", "Add --simulate.")
    with _server(job, given) as (reachable, key):
        report = _go(reachable, key, given)
    from batchrun.faces import closing

    if given["progress"] == "json":
        with contextlib.suppress(OSError):
            click.echo(msgspec.json.encode({"event": "report", **report.to_dict()}))
    _say(closing.summary(report))
    raise click.exceptions.Exit(report.exit_code)


@contextlib.contextmanager
def _server(job: Job, given: dict[str, Any]) -> Iterator[tuple[Job, str | None]]:
    """The job with the address to call, and the key; the simulator runs for as long as it is needed."""
    if not job.simulate:
        from batchrun.api.key import key_for

        key = key_in(job, os.environ)
        sent = key_for(job, key)
        if key and not sent:
            _say(f"The key in {job.key_env} is not sent to {job.provider}; name a variable for it with --key-env.")
        yield job, sent
        return
    from batchrun.cli.simulated import simulator

    with simulator(job.checkpoint, given["credits"], given["script"]) as url:
        yield msgspec.structs.replace(job, base_url=url), "simulated"


def _go(job: Job, key: str | None, given: dict[str, Any]) -> Report:
    from batchrun.run import Options, Run

    # A run makes many objects and hardly a cycle; looking for cycles as often as by default costs a sixth of the CPU.
    gc.freeze()
    gc.set_threshold(_GC_EVERY)
    options = Options(given["new_requests"], given["accept_loss"], given["retry_rejected"], given["detach"], _announced)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_attended(Run(job, key, options=options), given["progress"]))
    report: Report = uvloop.run(_attended(Run(job, key, options=options), given["progress"]))
    return report


def _announced(plan: Plan) -> None:
    from batchrun.faces.plan import text

    _say(text(plan))


async def _attended(run: Run, progress: str) -> Report:
    """The run with its face beside it, and signals turned into stops."""
    from batchrun.faces.progress import face

    loop = asyncio.get_running_loop()
    for number, code in _SIGNALS.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, _stop, run, code)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    kind = progress if progress != "auto" else "bar" if terminal else "none"
    try:
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(face(kind, run.progress))
            try:
                return await run.go()
            finally:
                showing.cancel()
    except BaseExceptionGroup as failed:
        raise first_of(failed) from failed
    finally:
        _ignore_signals(loop)


def _ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """All is written down; what is left is the summary, and impatience must not cut that off."""
    for number in _SIGNALS:
        if loop.remove_signal_handler(number):
            signal.signal(number, signal.SIG_IGN)


def _stop(run: Run, code: int) -> None:
    first = not run.interrupted
    run.interrupt(code)
    if first:
        _say("\nStopping: what is in flight finishes and is kept. Once more ends at once.")


def _say(text: str) -> None:
    """To standard error, if there is still anybody: a run outlives its terminal."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)
