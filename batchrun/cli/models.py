"""`models`: what the server lists, filtered and priced, and asked for one token each when the user wants to be sure."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from batchrun.cli.doctor import may_pay, reachable, server_job
from batchrun.cli.words import key_in
from batchrun.errors import UsageError
from batchrun.job import SIMULATED, TOGETHER, Job

if TYPE_CHECKING:
    from batchrun.api.client import Client
    from batchrun.api.wire import ModelInfo
    from batchrun.faces.models import Entry
    from batchrun.records import Broken, Price, Refusal

_PROBES_AT_ONCE = 4


@click.command()
@click.argument("pattern", required=False, metavar="[FILTER]")
@click.option("--type", "kind", metavar="TYPE", help="Only models of this type, such as chat.")
@click.option("--all", "every", is_flag=True, help="Also models that are not for text, such as image models.")
@click.option("--probe", is_flag=True, help="Ask each for one token, to learn whether it can be called (paid).")
@click.option("--yes", is_flag=True, help="Probe without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--base-url", metavar="URL", help="Another server; or TOGETHER_BASE_URL.")
@click.option("--key-env", metavar="NAME", help="Variable with the key (TOGETHER_API_KEY).")
@click.option("--insecure-http", is_flag=True, help="Allow plain http to another machine.")
@click.option("--simulate", is_flag=True, help="The built-in simulator's models, without a key.")
def models(
    pattern: str | None, kind: str | None, *, every: bool, probe: bool, yes: bool, as_json: bool, **given: Any
) -> None:
    """List models with context, prices and batch discount.

    FILTER is a part of the name. A price nobody knows is shown as unknown.
    Being listed does not mean that a model can be called: --probe tells.

    Exit codes: 0, 2 usage, no key or a server without a model list, 3 out of
    credits while probing, 4 key refused, 5 server unreachable.
    """
    job = server_job(given)
    from batchrun.api.key import key_for
    from batchrun.doctor.findings import CREDITS
    from batchrun.doctor.machine import key_source
    from batchrun.doctor.server import is_sent

    key = "simulated" if job.simulate else key_for(job, key_in(job, os.environ))
    source = key_source(job, os.environ, sent=bool(key))
    with reachable(job) as there:
        entries, code = asyncio.run(_listed(there, key, source, (pattern, kind, every), probe=probe, yes=yes))
    from batchrun.faces import models as face

    if as_json:
        click.echo(msgspec.json.encode(face.as_json(entries)))
    else:
        click.echo(face.table(entries) if entries else "No model fits.")
    if code:
        refused = "the server refuses the key" if is_sent(source) else "the server wants a key, and none is sent"
        click.echo(f"Probing stopped: {'the account is out of credits' if code == CREDITS else refused}.", err=True)
    raise click.exceptions.Exit(code)


async def _listed(
    job: Job, key: str | None, source: str, wanted: tuple[str | None, str | None, bool], *, probe: bool, yes: bool
) -> tuple[list[Entry], int]:
    from batchrun.api.client import Client
    from batchrun.clock import RealClock

    async with Client(job.base_url, key, job.timeouts, RealClock()) as client:
        listing = await client.listing()
        if not isinstance(listing, list):
            _leave(listing, job, source)
        chosen = _chosen(listing, *wanted)
        if not probe or not chosen or not _agreed(job, chosen, yes=yes):
            return [_entry(job, one) for one in chosen], 0
        return await _probed(client, job, chosen, listing)


def _leave(listing: Refusal | Broken, job: Job, source: str) -> NoReturn:
    """A server without a list: lines, and the exit code that fits, since trying again helps only some of them."""
    from batchrun.doctor.findings import UNREACHABLE, USAGE
    from batchrun.doctor.server import key_trouble
    from batchrun.records import Broken, Fault
    from batchrun.rules import faults

    known = "A run goes on without a list; prices come from --price."
    fault = faults.trouble(listing).fault
    found = key_trouble(listing, job, source)
    if found is not None:
        said, code = f"{found.sentence}\n{found.next_step}", found.exit_code
    elif isinstance(listing, Broken):
        said, code = listing.message, USAGE if listing.garbled else UNREACHABLE
        said = f"This server has no model list that can be read. {known}" if listing.garbled else said
    elif listing.status == 403:  # noqa: PLR2004 - and not in the API's words, or it would be about the key
        said = "The reply (HTTP 403) is not one of such a server.\nSomething on the way may be answering in its place."
        code = UNREACHABLE
    elif fault in {Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER}:
        said, code = f"The server gives no model list just now (HTTP {listing.status}). Try again later.", UNREACHABLE
    else:
        said, code = f"This server has no model list (HTTP {listing.status}). {known}", USAGE
    click.echo(f"Error: {said}", err=True)
    raise click.exceptions.Exit(code)


def _chosen(listing: Sequence[ModelInfo], pattern: str | None, kind: str | None, every: bool) -> list[ModelInfo]:
    from batchrun.doctor.probe import TEXT_TYPES

    def fits(model: ModelInfo) -> bool:
        if pattern is not None and pattern.lower() not in model.id.lower():
            return False
        return model.kind == kind if kind is not None else every or model.kind in TEXT_TYPES

    return sorted(filter(fits, listing), key=lambda model: model.id.lower())


def _entry(job: Job, model: ModelInfo, callable_: bool | None = None, reason: str = "") -> Entry:
    from batchrun import data
    from batchrun.faces.models import Entry

    dated = data.tariff() if job.provider in {TOGETHER, SIMULATED} else None
    price = model.price or (dated.prices.get(model.id) if dated else None)
    context = model.context or (dated.contexts.get(model.id) if dated else None)
    source = None if price is None else "server" if model.price else "table"
    batches = None if dated is None else _batchable(model) and model.id not in data.not_batchable()
    discount = data.discounts().get(model.id, 1.0) if batches else None
    return Entry(
        model.id, model.kind, context, *_dollars(price), source, model.hourly, batches, discount, callable_, reason
    )


def _batchable(model: ModelInfo) -> bool:
    """The Batch API takes chat requests, to models that are not sold by the hour alone."""
    return model.kind in {"", "chat"} and (model.price is not None or model.hourly is None)


def _dollars(price: Price | None) -> tuple[float | None, float | None, float | None]:
    """Nano-dollars a token as US dollars per million tokens."""
    if price is None:
        return None, None, None
    return price.input / 1000, price.output / 1000, None if price.cached is None else price.cached / 1000


def _agreed(job: Job, chosen: Sequence[ModelInfo], *, yes: bool) -> bool:
    """Whether the probes may be sent, having said how many and what they cost at most.

    Raises:
        UsageError: there is nobody to ask.
    """
    from batchrun.doctor.probe import TEXT_TYPES, endpoint_of
    from batchrun.faces.words import dollars
    from batchrun.rules.money import upper_bound
    from batchrun.rules.probing import probe_request

    asked = [one for one in chosen if one.kind in TEXT_TYPES]
    priced = [
        upper_bound(probe_request(one.id, endpoint_of(one.kind)), one.price, None) or 0 for one in asked if one.price
    ]
    told = [f"at most {dollars(sum(priced))}"] if priced else []
    told += [f"{len(asked) - len(priced)} of unknown price"] if len(priced) < len(asked) else []
    calls = f"{len(asked)} call{'' if len(asked) == 1 else 's'} of one token ({', '.join(told)})"
    if yes or job.simulate:
        click.echo(f"Sending {calls}.", err=True)
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"--probe would send {calls}, and there is nobody to ask.", "Say --yes to send them.")
    return may_pay(f"Send {calls}?", yes=False)


async def _probed(
    client: Client, job: Job, chosen: Sequence[ModelInfo], listing: Sequence[ModelInfo]
) -> tuple[list[Entry], int]:
    """Ask a few at a time; when the account is out of credits or the key is refused, the rest are left alone."""
    from batchrun.doctor import probe as probing
    from batchrun.doctor.findings import CREDITS, KEY
    from batchrun.records import Completion, Fault

    slots, ends = asyncio.Semaphore(_PROBES_AT_ONCE), {Fault.CREDITS: CREDITS, Fault.KEY: KEY}
    stopped: list[Fault] = []

    async def one(model: ModelInfo) -> Entry:
        if model.kind not in probing.TEXT_TYPES:
            return _entry(job, model, reason="it is not for text")
        async with slots:
            if stopped:
                return _entry(job, model)
            seen = await probing.probe(client, model.id, probing.endpoint_of(model.kind))
        if isinstance(seen, Completion):
            return _entry(job, model, True, _redirected(seen.model, model.id))
        if seen.fault in ends:
            stopped.append(seen.fault)
        told = False if seen.fault in {Fault.MODEL_MISSING, Fault.BAD_REQUEST, Fault.TOO_LONG} else None
        return _entry(job, model, told, probing.reason(seen, model.id, listing).rstrip("."))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(model)) for model in chosen]
    return [task.result() for task in tasks], ends[stopped[0]] if stopped else 0


def _redirected(by: str, model: str) -> str:
    by = by.removeprefix("simulated/")
    return f"answered by {by}" if by and by != model else ""
