"""One token asked of a model, and what its reply, or its refusal, means in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from batchrun import terms
from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.api.wire import ModelInfo
from batchrun.doctor.findings import CREDITS, KEY, MODEL, UNREACHABLE, USAGE, Finding, bad, ok, warn
from batchrun.records import Broken, Completion, Endpoint, Fault, Trouble
from batchrun.rules import faults
from batchrun.rules.probing import probe_request

# A model of these types is asked for text by the other endpoint.
_PLAIN = frozenset({"language", "code"})
# What batchrun can ask anything of; "" is a server that does not say.
TEXT_TYPES = wire.TEXT_TYPES

BILLING = "https://api.together.ai/settings/billing"
KEYS = "https://api.together.ai/settings/api-keys"


def endpoint_of(kind: str) -> Endpoint:
    """Which endpoint a model of this type is called by."""
    return Endpoint.COMPLETIONS if kind in _PLAIN else Endpoint.CHAT


async def probe(client: Client, model: str, endpoint: Endpoint) -> Completion | Trouble:
    """Send the smallest request there is, once; paid, if it is answered. The message is redacted."""
    request = probe_request(model, endpoint)
    reply = await client.call(request)
    seen = reply if isinstance(reply, Broken) else wire.read(reply, client.connections.clock.now())
    if isinstance(seen, Completion):
        return seen
    said = faults.trouble(seen)
    return msgspec.structs.replace(said, message=client.redacted(said.message, request.body))


def reason(seen: Trouble, model: str, listed: Sequence[ModelInfo]) -> str:
    """Why a model cannot be called just now, in plain words; for a missing model, what to do about it."""
    match seen.fault:
        case Fault.CREDITS:
            return "the account is out of credits"
        case Fault.KEY:
            return "the server refuses the key"
        case Fault.MODEL_MISSING:
            return terms.advice(model, listed)
        case Fault.THROTTLED:
            return "too many requests just now (429), which does not tell whether it can be called"
        case Fault.OVERLOADED:
            return "it is overloaded just now"
        case Fault.SERVER:
            return f"the server failed ({seen.status})"
        case Fault.NETWORK | Fault.GARBLED:
            return f"no readable reply came: {seen.message}"
        case Fault.TOO_LONG | Fault.BAD_REQUEST:
            return f"it refuses the smallest request ({seen.status}): {seen.message}"
        case Fault.BAD_ROW | Fault.CUT_SHORT | Fault.FILTERED | Fault.INVALID_OUTPUT:
            return seen.message
        case _:
            assert_never(seen.fault)


_CODES = {Fault.CREDITS: CREDITS, Fault.KEY: KEY}
_PASSING = frozenset({Fault.OVERLOADED, Fault.SERVER, Fault.NETWORK, Fault.GARBLED})
_STEPS = {
    Fault.CREDITS: f"Top up: {BILLING}",
    Fault.KEY: f"Set a key that works: {KEYS}",
}


def finding(seen: Completion | Trouble, model: str, listed: Sequence[ModelInfo]) -> Finding:
    """The probe as a finding."""
    if isinstance(seen, Completion):
        return _answered(seen, model)
    shared = f"The probe ended as {seen.fault.value}, {seen.status}."
    if seen.fault is Fault.MODEL_MISSING:
        return bad("probe", MODEL, f"{model} cannot be called ({seen.status}).", terms.advice(model, listed), shared)
    said = f"{model}: {reason(seen, model, listed)}"
    sentence = said if said.endswith((".", "?", "…")) else f"{said}."
    if seen.fault is Fault.THROTTLED:
        return warn("probe", sentence, "Try again in a minute.", shared)
    code = _CODES.get(seen.fault, UNREACHABLE if seen.fault in _PASSING else USAGE)
    later = "Try again later." if seen.fault in _PASSING else "Read what the server says; is this model for text?"
    return bad("probe", code, sentence, _STEPS.get(seen.fault, later), shared)


def _answered(seen: Completion, model: str) -> Finding:
    """A redirect is silent: only the reply's own name tells of it."""
    by = seen.model.removeprefix("simulated/")
    if by and by != model:
        return warn(
            "probe", f"{model} was answered by {by}: the server sends its calls on to another model.",
            f"Name the model you mean: -m {by}, or one that is not sent on.", "Answered by another model.",
        )  # fmt: skip
    return ok("probe", f"{model} answers.", "The model answers.")
