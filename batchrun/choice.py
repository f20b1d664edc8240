"""The choice of the lane for each model, put together from the job, the checkpoint and what is known of prices.

What decides stands in `rules/route.py`; this only collects what it decides on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from batchrun import data, terms
from batchrun.errors import UsageError
from batchrun.job import TOGETHER, Job, Limits, is_loopback
from batchrun.records import Lane, Route
from batchrun.rules import budget, estimate, route
from batchrun.rules.estimate import Gauge, Load, Spread
from batchrun.rules.money import Tariff, usd
from batchrun.rules.pace import Learned
from batchrun.rules.route import Part, Plan
from batchrun.rules.ways import Situation
from batchrun.store.store import Kept
from batchrun.store.view import View
from batchrun.wanted import Seen


class Known(msgspec.Struct, frozen=True):
    """What the checkpoint knows.

    Attributes:
        kept: rows by state.
        loads: what each model is asked for, over all rows.
        gauges: observed usage by model.
        learned: what the pace found out, by model.
        spent: nano-dollars that count against --max-cost, None when nobody knows the prices.
    """

    kept: Kept
    loads: Mapping[str, Load]
    gauges: Mapping[str, Gauge]
    learned: Mapping[str, Learned]
    spent: int | None

    def with_stand_ins(self, takes: Callable[[str], str]) -> Known:
        """The same with each load under the model that takes its requests."""
        loads: dict[str, Load] = {}
        for model, load in self.loads.items():
            loads[takes(model)] = loads.get(takes(model), Load()) + load
        return msgspec.structs.replace(self, loads=loads)


def known_of(view: View) -> Known:
    """What a checkpoint knows, from a reader of it whose job is stored."""
    kept, stored = view.kept(), view.job()
    loads = {} if stored is None else msgspec.json.decode(stored[2], type=Seen).loads
    spent = kept.cost_nano + view.hidden().nano + view.reserved_by_batches()
    return Known(kept, loads, view.gauges(), terms.learned(view.learned()), spent)


def plan(job: Job, known: Known, tariff: Tariff, now: float) -> Plan:
    """What a start would do now.

    Args:
        job: what is asked for.
        known: what the checkpoint knows.
        tariff: prices and contexts.
        now: seconds since the epoch.
    """
    kept = known.kept
    # Under --route live what is in batches is taken back, and all but what they have finished goes live.
    left = kept.pending if job.route is Route.LIVE else kept.pending - kept.submitted
    total = kept.pending + kept.answered + kept.rejected
    rests = {
        model: load.scaled(left if len(known.loads) == 1 else round(load.rows * left / max(1, total)))
        for model, load in sorted(known.loads.items())
    }
    here = [_situation(job, known, tariff, model, rest, now) for model, rest in rests.items() if rest.rows]
    budget_left = _budget_left(job.limits, known.spent or 0)
    parts = tuple(Part(each, route.choose(each)) for each in _sharing(here, budget_left))
    return Plan(
        parts, total, kept.answered, kept.rejected, _notes(job, known, tariff, parts, left, total), kept.again,
        _again_cost(job, known), budget_left,
    )  # fmt: skip


def _sharing(here: Sequence[Situation], budget_left: int | None) -> list[Situation]:
    """Each with the part of the budget that its rows take of all that may be taken at the most."""
    most = [each.most_nano for each in here]
    known = [each for each in most if each is not None]
    if budget_left is None or len(known) < len(most) or not sum(known):
        return [msgspec.structs.replace(each, budget_left=budget_left) for each in here]
    return [
        msgspec.structs.replace(each, budget_left=budget_left * own // sum(known))
        for each, own in zip(here, known, strict=True)
    ]


def _notes(job: Job, known: Known, tariff: Tariff, parts: Sequence[Part], left: int, total: int) -> tuple[str, ...]:
    """Sentences about the whole job."""
    notes = []
    if known.kept.submitted:
        taken_back = ", which are cancelled: what they finished is kept, the rest goes live"
        notes.append(
            f"{known.kept.submitted:,} rows are in batches already{taken_back if job.route is Route.LIVE else ''}."
        )
    if len(known.loads) > 1 and left < total:
        notes.append("What is left of each model is taken to be its share of all rows.")
    notes += [_open_ended(part.situation, known, tariff) for part in parts if part.situation.load.open_ended]
    return tuple(filter(None, notes))


# A better answer costs as much as a mean one or more: cut off, it is asked for with four times the tokens.
_BETTER = Spread(1.0, 2.0, 4.0)


def _again_cost(job: Job, known: Known) -> Spread | None:
    """What better answers may cost in nano-dollars, None when none so far came at a known price."""
    kept, said = known.kept, job.repairs
    if not kept.again:
        return Spread(0.0, 0.0, 0.0)
    if kept.replies <= kept.unpriced:
        return None
    each = _BETTER * (kept.cost_nano / (kept.replies - kept.unpriced) * kept.again)
    return Spread(each.low, each.likely, each.high * max(1, said.length_retries, said.invalid_retries))


def _open_ended(here: Situation, known: Known, tariff: Tariff) -> str:
    """What rows without max_tokens set aside, and what would do; "" where that cannot be told in money."""
    price, context = tariff.prices.get(here.model), tariff.contexts.get(here.model)
    if price is None or context is None:
        return ""
    said = (
        f"Rows for {here.model} name no max_tokens, so a call sets aside the model's whole context: {context:,} tokens "
        f"out, ${usd(context * price.output):.4f}, until its reply."
    )
    fits = budget.max_tokens(known.gauges.get(here.model))
    if known.kept.answered or fits >= context:
        return said  # another max_tokens would be another request, and ask the answered rows anew
    return f"{said} --max-tokens {fits} would set aside ${usd(fits * price.output):.4f}."


def _situation(job: Job, known: Known, tariff: Tariff, model: str, load: Load, now: float) -> Situation:
    limits, found = job.limits, known.learned.get(model)
    most = _most(tariff, model, load)
    return Situation(
        model=model,
        endpoint=job.asking.endpoint,
        wish=job.route,
        load=load,
        estimate=estimate.tokens(load, known.gauges.get(model)),
        price=tariff.prices.get(model),
        discount=discount(job, model),
        batchable=model not in data.not_batchable() or model in job.discounts,
        has_batches=job.route is Route.BATCH or has_batches(job),
        batch_lines=job.batching.lines,
        live_rate=None if found is None else found.rate,
        rate_cap=None if limits.rpm is None else limits.rpm / 60,
        seconds_left=None if limits.deadline is None else limits.deadline - now,
        dearest_nano=_dearest(tariff, model, load),
        most_nano=most,
    )


def _budget_left(limits: Limits, spent: int) -> int | None:
    """What this start may spend, None when the user sets no limit."""
    of_all = None if limits.max_cost_nano is None else limits.max_cost_nano - spent
    return min((left for left in (of_all, limits.max_cost_run_nano) if left is not None), default=None)


def discount(job: Job, model: str) -> float:
    """What a batch is billed at, as a factor of the price: the user's word, else the dated list, else the price."""
    return job.discounts.get(model, data.discounts().get(model, 1.0))


def has_batches(job: Job) -> bool:
    """Whether the server is known to have a Batch API like Together's; one on this machine is taken to be like it."""
    return job.simulate or job.provider == TOGETHER or is_loopback(job.base_url)


def _most(tariff: Tariff, model: str, load: Load) -> int | None:
    """The most these rows can cost at the full price; see `money.upper_bound`."""
    price, context = tariff.prices.get(model), tariff.contexts.get(model)
    if price is None or (load.open_ended and context is None):
        return None
    completion = load.max_tokens + load.open_ended * (context or 0)
    return load.bytes * max(price.input, price.cached or 0) + completion * price.output


def _dearest(tariff: Tariff, model: str, load: Load) -> int:
    """The most that one of these rows can cost, 0 when that is unknown."""
    price, context = tariff.prices.get(model), tariff.contexts.get(model)
    if price is None or (load.open_ended and context is None):
        return 0
    longest = max(load.longest, (context or 0) if load.open_ended else 0)
    return load.largest * max(price.input, price.cached or 0) + longest * price.output


def batch_models(chosen: Plan) -> frozenset[str]:
    """The models whose rows go into batches.

    Raises:
        UsageError: the user asks for batches where there can be none.
    """
    models = set()
    for part in chosen.models:
        here, way = part.situation, part.choice.batch
        if part.choice.lane is not Lane.BATCH:
            continue
        if not way.possible and here.load.oversized < here.load.rows:
            raise UsageError(f"--route batch: {here.model}: {way.why_not}.", "Use --route auto or live.")
        models.add(here.model)
    return frozenset(models)


def may_return(job: Job, known: Known, tariff: Tariff, chosen: Plan, now: float) -> frozenset[str]:
    """The models without a row to send now whose rows go into batches again when batches bring them back."""
    planned = {part.situation.model for part in chosen.models}
    models = set()
    for model, load in known.loads.items():
        choice = route.choose(_situation(job, known, tariff, model, load, now)) if model not in planned else None
        if choice is not None and choice.lane is Lane.BATCH and choice.batch.possible:
            models.add(model)
    return frozenset(models)
