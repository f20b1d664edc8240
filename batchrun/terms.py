"""The terms on which a run may send: prices, what is spent already, what the pace has learned, how many sockets."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from batchrun import data
from batchrun.api import wire
from batchrun.api.wire import ModelInfo
from batchrun.errors import UsageError
from batchrun.job import Job
from batchrun.lanes.lane import Parked
from batchrun.lanes.quota import CEILING
from batchrun.records import ParkReason, Usage
from batchrun.rules import naming
from batchrun.rules.estimate import Load
from batchrun.rules.fit import Fit
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Learned
from batchrun.store.store import Store

# Models that a park for a missing model gives advice about, at most.
_MOST_ADVICE = 3

# Open files besides the calls' sockets: the input, the checkpoint, the libraries.
OTHER_FILES = 64


def tariff(listed: Sequence[ModelInfo], job: Job, loads: Mapping[str, Load]) -> Tariff:
    """Prices and contexts: the user's word, else the server's list, else the dated table.

    Checked for --max-cost and --max-cost-run.

    Raises:
        UsageError: with one of these, a price or a context that is needed is not known.
    """
    table = data.tariff()
    known = Tariff(
        {**table.prices, **{m.id: m.price for m in listed if m.price is not None}, **job.prices},
        {**table.contexts, **{m.id: m.context for m in listed if m.context is not None}},
    )
    if job.limits.max_cost_nano is not None or job.limits.max_cost_run_nano is not None:
        any_row = sum(loads.values(), Load())
        _check_bounds(known, {**dict.fromkeys(job.repairs.fallbacks, any_row), **loads}, listed)
    return known


def _check_bounds(tariff: Tariff, loads: Mapping[str, Load], listed: Sequence[ModelInfo]) -> None:
    for model, load in loads.items():
        if model not in tariff.prices:
            lists_prices = any(info.price is not None for info in listed)
            told = f" {advice(model, listed)}" if lists_prices else ""
            raise UsageError(
                f"The price of {model} is not known, so no limit on money could be kept.{told}",
                f"Name it: --price {model}=INPUT/OUTPUT in US dollars per million tokens.",
            )
        if load.open_ended and model not in tariff.contexts:
            raise UsageError(
                f"Rows for {model} name no max_tokens and its context length is not known: a call has no upper bound.",
                "Name the most tokens an answer may have: --max-tokens N.",
            )


async def spent(store: Store, job: Job, tariff: Tariff) -> int:
    """Nano-dollars that count against --max-cost: all that was ever paid or may have been, batches at work apart.

    Raises:
        UsageError: earlier answers came without a price, and none is known now.
    """
    total = (await store.kept()).cost_nano + (await store.hidden()).nano
    if job.limits.max_cost_nano is None:
        return total
    for model, prompt, completion in await store.unpriced():
        cost = tariff.cost(model.removeprefix("simulated/"), Usage(prompt, completion))
        if cost is None:
            raise UsageError(
                f"Earlier answers of {model} were paid at a price nobody knows, so --max-cost could not be kept.",
                f"Name it: --price {model}=INPUT/OUTPUT in US dollars per million tokens.",
            )
        total += cost
    return total


def fit(schema: Mapping[str, Any] | None) -> Fit | None:
    """What answers have to fit, None when the job has no schema.

    Raises:
        UsageError: the schema cannot be used, or the extra that reads it is missing.
    """
    return None if schema is None else Fit(schema)


def advised(parked: Parked | None, models: Iterable[str], listed: Sequence[ModelInfo]) -> Parked | None:
    """A park for a model that cannot be called, with the names that may have been meant."""
    if parked is None or parked.reason is not ParkReason.MODEL:
        return parked
    advices = {model: advice(model, listed) for model in islice(models, _MOST_ADVICE)}
    # The server's sentence shows no name: it is taken out with all that quotes the request.
    said = f"{', '.join(advices)} cannot be called: {parked.message.rstrip('.')}."
    told = advices.values() if len(advices) == 1 else (f"{model}: {words}" for model, words in advices.items())
    return Parked(parked.reason, " ".join([said, *told]), parked.fault)


def advice(model: str, listed: Sequence[ModelInfo]) -> str:
    """What to do about a model that cannot be called."""
    known = [naming.Known(m.id, m.hourly, m.price is not None) for m in listed if m.kind in wire.TEXT_TYPES]
    return naming.advice(model, known, data.successors())


def learned(stored: str | None) -> dict[str, Learned]:
    """What the pace of an earlier start found out, by model, from how it was written down."""
    try:
        return msgspec.json.decode(stored, type=dict[str, Learned]) if stored else {}
    except msgspec.DecodeError:
        return {}


def ceiling(concurrency: int | None) -> int:
    """How many calls may be in flight: as many as the user says or 512, below the limit of open files.

    Raises:
        UsageError: the user's word needs more open files than this process may have.
    """
    most = concurrency or CEILING
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < most + OTHER_FILES:
        soft = most + OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, most + OTHER_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= most + OTHER_FILES:
        return most
    if concurrency is not None:
        raise UsageError(
            f"--concurrency {concurrency} needs more open files than this system allows ({hard}).",
            f"Use at most --concurrency {max(1, hard - OTHER_FILES)}, or raise the limit (ulimit -n).",
        )
    return max(1, soft - OTHER_FILES)
