"""`doctor`: words to checks, and what they found to a report, an exit code and, when asked for, a support bundle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from batchrun.cli.words import key_in, newest_checkpoint
from batchrun.errors import UsageError
from batchrun.job import Asking, Job, Timeouts, base_url, checked

if TYPE_CHECKING:
    from batchrun.doctor.findings import Finding

# Looking must not take as long as a run may wait for an answer.
_TIMEOUTS = Timeouts(connect=10.0, first_byte=60.0, idle=30.0, total=90.0)


def server_job(given: Mapping[str, Any]) -> Job:
    """A job that asks nothing: the server, the variable with the key, and short timeouts.

    Raises:
        UsageError: the address cannot be used.
    """
    url = given["base_url"] or os.environ.get("TOGETHER_BASE_URL")
    job = Job(inputs=(), checkpoint="", asking=Asking(), simulate=given["simulate"], timeouts=_TIMEOUTS)
    fields: dict[str, Any] = {"insecure_http": given["insecure_http"]}
    if url and not given["simulate"]:
        fields["base_url"] = base_url(url)
    if given["key_env"]:
        fields["key_env"] = given["key_env"]
    return checked(msgspec.structs.replace(job, **fields))


@contextlib.contextmanager
def reachable(job: Job) -> Iterator[Job]:
    """The job with an address to call; the simulator runs for as long as it is needed, and leaves nothing behind."""
    if not job.simulate:
        yield job
        return
    from batchrun.cli.simulated import simulator

    with tempfile.TemporaryDirectory() as folder, simulator(str(Path(folder) / "look.db"), None, None) as url:
        yield msgspec.structs.replace(job, base_url=url)


def may_pay(question: str, *, yes: bool) -> bool:
    """Whether a paid call may be made: the user said so, or says so now."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    return click.confirm(question, err=True)


@click.command()
@click.option("-m", "--model", metavar="MODEL", help="Look at this model too; with --yes, ask it for one token.")
@click.option("--checkpoint", metavar="PATH", help="Look at it and its folder; default: the newest in checkpoints/.")
@click.option("--base-url", metavar="URL", help="Another server; or TOGETHER_BASE_URL.")
@click.option("--key-env", metavar="NAME", help="Variable with the key (TOGETHER_API_KEY).")
@click.option("--insecure-http", is_flag=True, help="Allow plain http to another machine.")
@click.option("--simulate", is_flag=True, help="Look at the built-in simulator, without a key.")
@click.option("--yes", is_flag=True, help="Send the one paid call without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--bundle", metavar="FILE.zip", help="Write a support bundle: no prompt, answer, key or name in it.")
def doctor(*, model: str | None, as_json: bool, yes: bool, bundle: str | None, **given: Any) -> None:
    """Find out what is wrong with this machine, key, network or model.

    Each check says ok, warn, bad or skipped, and what to do. Nothing paid is
    sent unless --model is named and you agree (or --yes): then one token.

    Exit codes: 0 nothing is bad, 2 usage or no key, 3 out of credits, 4 key
    refused, 5 server unreachable, 9 no such model, 11 disk.
    """
    from batchrun.doctor import bundle as bundling
    from batchrun.doctor.findings import exit_code
    from batchrun.faces import doctor as face

    if bundle is not None:
        bundling.check_path(bundle)
    place = _place(given["checkpoint"])
    findings = _findings(place, given, model, yes=yes)
    code = exit_code(findings)
    click.echo(msgspec.json.encode(face.as_json(findings, code)) if as_json else face.text(findings, code))
    if bundle is not None:
        bundling.write(bundle, findings, code, face.shared(findings, code), lambda: _about(place))
        click.echo(f"Wrote {bundle}: versions, checks, counts and options, and no text of yours.", err=True)
    raise click.exceptions.Exit(code)


def _place(typed: str | None) -> str:
    """The checkpoint to look at: named, or the newest, or where the first one would be."""
    try:
        place = newest_checkpoint(typed)
    except (UsageError, OSError):  # none yet; or this folder is gone
        return os.path.join(os.environ.get("PWD", "."), "checkpoints", "new.db")  # noqa: PTH118 - it may not be there
    return str(Path(place) / "new.db") if Path(place).is_dir() else place


def _findings(place: str, given: Mapping[str, Any], model: str | None, *, yes: bool) -> list[Finding]:
    from batchrun.doctor import machine
    from batchrun.doctor.findings import USAGE, bad, guarded, skipped
    from batchrun.doctor.server import ASKED

    typed = given["checkpoint"]
    named = typed is not None and not Path(typed).expanduser().is_dir()
    here = [
        guarded("versions", machine.versions),
        guarded("folder", lambda: machine.folder(place)),
        guarded("checkpoint", lambda: machine.checkpoint(place, named=named)),
        guarded("space", lambda: machine.space(place)),
        guarded("open files", machine.open_files),
    ]
    try:
        job = server_job(given)
    except UsageError as error:
        wrong = bad("environment", USAGE, error.message, error.next_step, "The server's address cannot be used.")
        return [*here, wrong, *(skipped(name, "There is no server to ask.") for name in ("network", *ASKED))]
    return here + _server_findings(job, model, yes=yes)


def _server_findings(job: Job, model: str | None, *, yes: bool) -> list[Finding]:
    from batchrun.api.key import key_for
    from batchrun.doctor import machine
    from batchrun.doctor.findings import failed, guarded
    from batchrun.doctor.server import Asked

    key, problem = _key(job)
    sent = "simulated" if job.simulate else key_for(job, key)
    found = guarded(
        "environment", lambda: machine.environment(job, os.environ, problem, sent=bool(sent) and not job.simulate)
    )
    question = f"Send {model} one call of one token (paid)?"
    pay = model is not None and problem is None and may_pay(question, yes=yes or job.simulate)
    source = machine.key_source(job, os.environ, sent=bool(sent))
    try:
        with reachable(job) as there:
            return [found, *asyncio.run(_asked(Asked(there, source, problem is not None, model, pay), sent))]
    except Exception as error:  # noqa: BLE001 - whatever it is, what was found so far is shown
        return [found, failed("server", error)]


def _key(job: Job) -> tuple[str | None, UsageError | None]:
    if job.simulate:
        return None, None
    try:
        return key_in(job, os.environ), None
    except UsageError as error:
        return None, error


async def _asked(asked: Any, key: str | None) -> list[Finding]:
    from batchrun.api.client import Client
    from batchrun.clock import RealClock
    from batchrun.doctor import server

    async with Client(asked.job.base_url, key, asked.job.timeouts, RealClock()) as client:
        return await server.checks(client, asked)


def _about(place: str) -> dict[str, Any]:
    """What the bundle tells of the checkpoint."""
    from batchrun.doctor import bundle as bundling
    from batchrun.faces import status
    from batchrun.store.view import View

    if not Path(place).is_file():
        return {"there": False}
    with View(place) as view:
        standing = status.standing(view, place, time.time(), 0)
        return bundling.checkpoint(view, msgspec.to_builtins(standing))
