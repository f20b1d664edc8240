"""`check`: line by line, what is wrong with prompts, batch lines or training data. Sends nothing."""

from __future__ import annotations

from typing import Any

import click

from batchrun.cli.options import asking_options
from batchrun.cli.words import new_job
from batchrun.errors import InputError, UsageError

_AUTO = "auto"
_FOR_RUN = "Batch lines were checked for being uploaded as they are; `batchrun run` asks for less: --as prompts."
_NO_OPTIONS: dict[str, Any] = {"skip_bad_rows": False, "dedupe": False, "insecure_http": False}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--as",
    "kind",
    type=click.Choice([_AUTO, "prompts", "batch", "fine-tune"]),
    default=_AUTO,
    show_default=True,
    help="What the files are for; auto tells prompts from batch lines.",
)
@asking_options
@click.option("--all", "show_all", is_flag=True, help="Every problem, not the first 20 of each file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(files: tuple[str, ...], kind: str, *, show_all: bool, as_json: bool, **given: Any) -> None:
    """Find what is wrong with files, line by line. Sends nothing.

    Prompts are checked as `run` would with the same options. Batch lines
    (`custom_id` and `body`) are checked for being uploaded as they are,
    training data (--as fine-tune) for the formats that can be trained on.
    Exit code 0: all is well; 2: not.
    """
    from batchrun.faces import check as face
    from batchrun.files.check import Checker, Kind, Missing, Problem, Report, found

    asked = any(value not in (None, ()) for value in given.values())
    if asked and kind not in {_AUTO, Kind.PROMPTS}:
        raise UsageError(
            "-m and the other options of a request belong to prompts.", f"Leave them out with --as {kind}."
        )
    asking = new_job(files, {**_NO_OPTIONS, **given, "checkpoint": "none.db"}, {}).asking
    if kind == _AUTO and asked:
        kind = Kind.PROMPTS  # options that fill in a request say that the rows are for `run`, batch lines too
    checker = Checker(None if kind == _AUTO else Kind(kind), asking)
    most, reports = None if show_all else face.SHOWN, []
    shown = face.Json(_piece, most) if as_json else face.Text(click.echo, most)
    for file in found(files):
        if isinstance(file, Missing):
            shown.begin(file.typed)
            shown.problem(Problem(None, file.reason))
            report = Report(file.typed, problems=1)
        else:
            shown.begin(file.path)
            report = checker.check(file, shown.problem)
        shown.end(report)
        reports.append(report)
    shown.close(reports)
    if any(report.problems for report in reports):
        guessed = kind == _AUTO and any(report.kind is Kind.BATCH and report.problems for report in reports)
        raise InputError(face.verdict(reports), _FOR_RUN if guessed else "")


def _piece(text: str) -> None:
    click.echo(text, nl=False)
