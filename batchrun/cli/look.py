"""`preview`, `status` and `export`: looking at a job and its checkpoint without sending anything."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
import msgspec

from batchrun.cli.options import asking_options, job_options
from batchrun.cli.words import new_job, newest_checkpoint
from batchrun.errors import InputError, UsageError
from batchrun.job import Job


@click.command()
@job_options
@asking_options
@click.option("-n", "rows", type=click.IntRange(1), default=3, show_default=True, help="How many rows.")
def preview(inputs: tuple[str, ...], rows: int, **given: Any) -> None:
    """Print the exact bodies of the first rows. Sends nothing.

    Each line is one JSON object: the row, its endpoint, and the body as it
    would be sent; or what is wrong with the row (and exit code 2).
    """
    from batchrun.files.prompt import Prompter
    from batchrun.files.source import Reader, discover
    from batchrun.records import BadRow

    job = new_job(inputs, {**_NO_OPTIONS, **given, "checkpoint": "none.db"}, {})
    prompter, bad = Prompter(job.asking), 0
    for row in _first(Reader(discover(job.inputs)), rows):
        request = prompter.request(row)
        if isinstance(request, BadRow):
            bad += 1
            click.echo(msgspec.json.encode({"row": request.row, "problem": f"{request.where}: {request.message}"}))
        else:
            body = msgspec.Raw(request.body)
            click.echo(msgspec.json.encode({"row": request.row, "endpoint": request.endpoint, "body": body}))
    if bad:
        raise InputError(f"{bad} of the first {rows} rows cannot be sent.")


_NO_OPTIONS: dict[str, Any] = {"skip_bad_rows": False, "dedupe": False, "insecure_http": False}


def _first(reader: Any, rows: int) -> Any:
    left = rows
    for chunk in reader.chunks(rows):
        yield from chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--events", type=click.IntRange(0), default=5, show_default=True, help="Lines of the diary.")
def status(checkpoint: str | None, *, as_json: bool, events: int) -> None:
    """Show what is done, left, rejected and spent.

    Works at any moment, also while a run is writing. CHECKPOINT may be named by
    its job file. Without CHECKPOINT: the newest in checkpoints/.
    """
    from batchrun.faces import status as face
    from batchrun.store.view import View

    path = newest_checkpoint(checkpoint)
    with View(path) as view:
        standing = face.standing(view, path, time.time(), events)
    click.echo(msgspec.json.encode(standing) if as_json else face.text(standing))


@click.command()
@click.argument("checkpoint", required=False)
@click.option("-o", "--output", required=True, metavar="FILE", help=".parquet or .jsonl; - for JSON lines on stdout.")
def export(checkpoint: str | None, output: str) -> None:
    """Write the output as it stands now.

    Pending rows are in it as pending. Works at any moment, also while a run is
    writing. CHECKPOINT may be named by its job file. Without CHECKPOINT: the
    newest in checkpoints/.
    """
    from batchrun import output as writing
    from batchrun.files.source import SourceFile
    from batchrun.store.view import View
    from batchrun.wanted import Seen, check_place

    path = newest_checkpoint(checkpoint)
    with View(path) as view:
        stored, sources = view.job(), view.sources()
    if stored is None:
        raise UsageError("This checkpoint has no job yet: its input was never read.", "Start it with `batchrun run`.")
    job, seen = msgspec.json.decode(stored[1], type=Job), msgspec.json.decode(stored[2], type=Seen)
    files = [SourceFile(name, size, mtime) for name, size, mtime, _ in sources]
    if output == "-":
        writing.write_stream(sys.stdout.buffer, path, files, seen.columns, shared=job.dedupe)
        return
    check_place(os.path.abspath(output), job.inputs, files)  # noqa: PTH100 - links not followed
    writing.write(output, path, files, seen.columns, shared=job.dedupe)
    click.echo(f"Wrote {output}", err=True)
