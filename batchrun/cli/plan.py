"""`plan`: what `run` would do, from the checkpoint, or after reading an input that is new. Sends nothing."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from batchrun.cli.options import asking_options, job_options, limit_options, run_options
from batchrun.cli.words import key_in, new_job

if TYPE_CHECKING:
    from batchrun.job import Job
    from batchrun.rules.route import Plan
    from batchrun.store.store import Store


@click.command()
@job_options
@asking_options
@limit_options
@run_options
@click.option("--new-requests", is_flag=True, help="Plan as if answers may go unused.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(inputs: tuple[str, ...], *, new_requests: bool, as_json: bool, **given: Any) -> None:
    """Say what `run` would do, at what cost and time. Sends nothing.

    Live calls or batches, with the reasons. A new input is read first,
    into the checkpoint, as `run` would; with a key, the server tells prices.
    """
    from batchrun.faces import plan as face

    made = asyncio.run(_made(new_job(inputs, given, os.environ), new_requests=new_requests))
    click.echo(msgspec.json.encode(face.as_json(made)) if as_json else face.text(made))


async def _made(job: Job, *, new_requests: bool) -> Plan:
    from batchrun import choice, terms
    from batchrun.api.client import Client
    from batchrun.clock import RealClock
    from batchrun.errors import UsageError

    known = await _known(job, new_requests=new_requests)
    try:
        key = None if job.simulate else key_in(job, os.environ)
    except UsageError:
        key = None
    if key is None:
        return choice.plan(job, known, terms.tariff([], job, known.loads), time.time())
    async with Client(job.base_url, key, job.timeouts, RealClock()) as client:
        return choice.plan(job, known, terms.tariff(await client.models() or [], job, known.loads), time.time())


async def _known(job: Job, *, new_requests: bool) -> Any:
    """What the checkpoint knows, read without a lock when the input has not changed."""
    from batchrun import choice, wanted
    from batchrun.clock import RealClock
    from batchrun.files.source import discover
    from batchrun.store.store import Store
    from batchrun.store.view import View

    files = discover(job.inputs)
    if not wanted.is_current(job, files):
        store = await Store.open(job.checkpoint, RealClock(), provider=job.provider)
        try:
            await wanted.settle(store, job, files, new_requests=new_requests, watch=lambda _rows: False)
        finally:
            await _ended(store)
    with View(job.checkpoint) as view:
        return choice.known_of(view)


async def _ended(store: Store) -> None:
    """Planning is no run: why the job was parked before stays told, also when the plan was refused."""
    try:
        await store.withdraw()
    finally:
        await store.release()
