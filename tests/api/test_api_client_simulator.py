"""The client against the simulator: each of its faults, as the live lane would see it."""

from __future__ import annotations

from typing import Any

import pytest
from support import MODEL

from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.clock import RealClock
from batchrun.job import Timeouts
from batchrun.records import Broken, Completion, Endpoint, Fault, Refusal, Reply, Request
from batchrun.rules import faults
from batchrun.rules.canonical import canonical, digest
from batchrun.simulator import Settings, Simulator
from batchrun.simulator.faults import Fault as Planned
from batchrun.simulator.faults import FaultKind as Kind
from batchrun.simulator.misbehave import is_readable

CHAT = {"messages": [{"content": "Name a river.", "role": "user"}], "model": MODEL, "max_tokens": 50}
COMPLETIONS = {"prompt": "A river:", "model": MODEL, "max_tokens": 50}


async def outcome(
    *planned: Planned, endpoint: Endpoint = Endpoint.CHAT, settings: dict[str, Any] | None = None, **timeouts: float
) -> Completion | Refusal | Broken:
    """One call to a simulator with these faults, read."""
    quick = Settings(latency=0.0, refusal_latency=0.0, faults=planned, **(settings or {}))
    body = canonical(CHAT if endpoint is Endpoint.CHAT else COMPLETIONS)
    request = Request(0, digest(endpoint, body), endpoint, MODEL, body, 50, 1)
    async with (
        Simulator(quick) as simulator,
        Client(simulator.url, "any-key", Timeouts(**timeouts), RealClock()) as client,
    ):
        got = await client.call(request)
    return wire.read(got, 0.0) if isinstance(got, Reply) else got


def fault_of(seen: Completion | Refusal | Broken) -> Fault | None:
    return None if isinstance(seen, Completion) else faults.trouble(seen).fault


REFUSALS = {
    Kind.CREDITS_END: Fault.CREDITS,
    Kind.STATUS: Fault.SERVER,
    Kind.OVERLOAD: Fault.OVERLOADED,
    Kind.THROTTLE: Fault.THROTTLED,
    Kind.UNKNOWN_MODEL: Fault.MODEL_MISSING,
    Kind.REDIRECT: Fault.BAD_REQUEST,
    Kind.TOO_LONG: Fault.TOO_LONG,
}
BROKEN = {
    Kind.ERROR_OBJECT: Fault.GARBLED,
    Kind.RESET_BEFORE: Fault.NETWORK,
    Kind.RESET_DURING: Fault.NETWORK,
    Kind.RESET_AFTER: Fault.GARBLED,
    Kind.CUT_BODY: Fault.GARBLED,
    Kind.BROKEN_JSON: Fault.GARBLED,
    Kind.NO_CHOICES: Fault.GARBLED,
    Kind.BAD_UTF8: Fault.GARBLED,
    Kind.BAD_GZIP: Fault.GARBLED,
    Kind.HANG: Fault.NETWORK,
    Kind.TWO_CONTENT_LENGTHS: Fault.GARBLED,
}
# The simulator sends it to break clients with small limits; ours reads it.
READ_ALL_THE_SAME = {Kind.BIG_HEADER}


def test_no_fault_of_the_simulator_is_left_out():
    readable = {kind for kind in Kind if is_readable(kind)}
    assert set(REFUSALS) | set(BROKEN) | READ_ALL_THE_SAME | readable == set(Kind)


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_is_read_and_nothing_was_paid(kind: Kind):
    seen = await outcome(Planned(kind))
    assert isinstance(seen, Refusal)
    assert fault_of(seen) is REFUSALS[kind]


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_reply_may_have_been_paid(kind: Kind):
    seen = await outcome(Planned(kind), first_byte=0.1 if kind is Kind.HANG else 30.0)
    assert isinstance(seen, Broken)
    assert seen.maybe_paid
    assert fault_of(seen) is BROKEN[kind]


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("kind", [None, *(kind for kind in Kind if is_readable(kind) or kind in READ_ALL_THE_SAME)])
async def test_what_can_be_read_is_an_answer(kind: Kind | None, endpoint: Endpoint):
    served_by = "another/model" if kind is Kind.ANSWERED_BY else None
    planned = () if kind is None else (Planned(kind, pause=0.0, size=1_000_000, served_by=served_by),)
    seen = await outcome(*planned, endpoint=endpoint)
    assert isinstance(seen, Completion)
    assert seen.model == f"simulated/{served_by or MODEL}"
    assert (seen.usage is None) == (kind is Kind.NO_USAGE)
    assert (wire.texts(seen.body)[0] is None) == (kind is Kind.NULL_CONTENT)


async def test_a_trickle_is_cut_off_when_it_takes_too_long_in_all_and_not_for_its_pauses():
    slow = Planned(Kind.TRICKLE, pause=0.005)
    assert isinstance(await outcome(slow, idle=5.0, first_byte=5.0), Completion)
    seen = await outcome(slow, total=0.05)
    assert isinstance(seen, Broken)
    assert (seen.maybe_paid, seen.garbled) == (True, False)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Fault.BAD_REQUEST),
        (401, Fault.KEY),
        (402, Fault.CREDITS),
        (403, Fault.TOO_LONG),
        (404, Fault.MODEL_MISSING),
        (408, Fault.SERVER),
        (409, Fault.SERVER),
        (413, Fault.BAD_REQUEST),
        (422, Fault.TOO_LONG),
        (425, Fault.SERVER),
        (429, Fault.THROTTLED),
        (500, Fault.SERVER),
        (502, Fault.SERVER),
        (503, Fault.OVERLOADED),
        (504, Fault.SERVER),
        (524, Fault.SERVER),
        (529, Fault.OVERLOADED),
    ],
)
async def test_every_status_of_the_simulator_has_its_fault(status: int, expected: Fault):
    assert fault_of(await outcome(Planned(Kind.STATUS, status=status))) is expected


async def test_the_waits_of_the_simulator_are_read():
    for planned, wait in ((Planned(Kind.THROTTLE, retry_after=3), 3.0), (Planned(Kind.THROTTLE, reset=0.5), 0.5)):
        seen = await outcome(planned)
        assert isinstance(seen, Refusal)
        assert seen.wait == wait


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_prompt_that_is_too_long_is_told_apart_under_each_status(status: int):
    body = canonical(CHAT | {"max_tokens": 10_000_000})
    async with (
        Simulator(Settings(latency=0.0, refusal_latency=0.0, context_status=status)) as simulator,
        Client(simulator.url, "any-key", Timeouts(), RealClock()) as client,
    ):
        got = await client.call(Request(0, b"d" * 16, Endpoint.CHAT, MODEL, body, None, 1))
    assert isinstance(got, Reply)
    assert got.status == status
    seen = wire.read(got, 0.0)
    assert fault_of(seen) is Fault.TOO_LONG


async def test_the_model_list_of_the_simulator_has_prices_and_contexts():
    async with (
        Simulator(Settings()) as simulator,
        Client(simulator.url, "any-key", Timeouts(), RealClock()) as client,
    ):
        listed = await client.models()
    assert listed
    known = {model.id: model for model in listed}[MODEL]
    assert known.price is not None
    assert known.context is not None
