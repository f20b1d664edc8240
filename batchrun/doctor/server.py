"""Checks that ask the server: clock, key, model list, one model, one token of it. They share three or four calls."""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import msgspec

from batchrun import terms
from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.api.wire import ModelInfo
from batchrun.doctor import probe as probing
from batchrun.doctor.findings import (
    CREDITS,
    KEY,
    MODEL,
    UNREACHABLE,
    Finding,
    State,
    bad,
    guarded,
    guarded_async,
    ok,
    skipped,
    warn,
)
from batchrun.doctor.network import network
from batchrun.job import TOGETHER, Job
from batchrun.records import Broken, Fault, Refusal, Reply
from batchrun.rules import faults

# Deadlines and waits given as dates go wrong by as much as the clocks differ.
_SKEW = 60.0
_OK = 200
_FORBIDDEN = 403
_TROUBLE = 500
_REFUSED = frozenset({401, _FORBIDDEN})
# What a server says of calls it does not have; nothing else is a good reason for an unreadable reply.
_ABSENT = frozenset({404, 405})

ASKED = ("clock", "key", "models", "model", "probe")

_NO_MODEL = "No model was named (--model)."
_NOT_ALLOWED = "No call was made: it would be paid, if only for a token."

Listing = list[ModelInfo] | Refusal | Broken


class Asked(msgspec.Struct, frozen=True):
    """What the checks of a server need to know.

    Attributes:
        job: where it is and how long to wait for it.
        source: where the key came from, as the end of a sentence.
        lacks_key: whether a key is needed and there is none.
        model: the model to look at, None for none.
        may_probe: whether a paid call of one token may be made.
    """

    job: Job
    source: str
    lacks_key: bool
    model: str | None
    may_probe: bool


async def checks(client: Client, asked: Asked) -> list[Finding]:
    """All of them, in order; what an earlier one makes pointless is skipped."""
    way = await guarded_async("network", network(asked.job.base_url))
    if way.state in {State.BAD, State.SKIPPED}:
        return [way, *(skipped(name, "The server cannot be reached.") for name in ASKED)]
    who = await client.whoami()
    clock = guarded("clock", lambda: _clock(who, client.connections.clock.now()))
    if asked.lacks_key:
        return [way, clock, *(skipped(name, "There is no key.") for name in ASKED[1:])]
    listing = await client.listing()
    key = guarded("key", lambda: _key(who, listing, asked))
    if key.state is State.BAD:
        return [way, clock, key, *(skipped(name, "The check of the key went wrong.") for name in ASKED[2:])]
    return [way, clock, key, guarded("models", lambda: _models(listing)), *await _model_checks(client, asked, listing)]


def _clock(who: Reply | Broken, now: float) -> Finding:
    """Compare this machine's clock with the `Date` of a reply."""
    if isinstance(who, Broken):
        return skipped("clock", "No reply came to compare the clock with.")
    try:
        skew = now - who.seconds / 2 - parsedate_to_datetime(who.headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return skipped("clock", "The server's replies do not tell the time.")
    if abs(skew) <= _SKEW:
        said = "This machine's clock agrees with the server's to within a minute."
        return ok("clock", said, said)
    said = f"This machine's clock is {abs(skew):,.0f} seconds {'ahead of' if skew > 0 else 'behind'} the server's."
    return warn("clock", said, "Set it (NTP): --deadline and waits that the server gives as dates depend on it.", said)


def _key(who: Reply | Broken, listing: Listing, asked: Asked) -> Finding:
    """The first of the two calls that makes it clear decides."""
    if isinstance(who, Reply) and who.status == _OK and _is_object(who.body):
        return _key_taken(asked, "takes")
    if isinstance(listing, list) and asked.job.provider != TOGETHER and _is_refused(who):
        said = "The server refuses the key for one call and not for another."
        return warn("key", said, "Not every server knows that call; a probe tells more: --model MODEL --yes.", said)
    for seen in (who, listing):
        if (found := key_trouble(seen, asked.job, asked.source)) is not None:
            return found
    if isinstance(listing, list):
        return _key_taken(asked, "does not refuse")
    return _unclear(who, listing)


def key_trouble(seen: Reply | Listing, job: Job, source: str) -> Finding | None:
    """What one reply says against the key or its account; None when it says nothing of them.

    Args:
        seen: the reply.
        job: where the server is.
        source: where the key came from, see `Asked`.
    """
    refusal = _refusal(seen)
    if refusal is None:
        return None
    if faults.trouble(refusal).fault is Fault.CREDITS:
        said = "The account is out of credits."
        return bad("key", CREDITS, said, f"Top up: {probing.BILLING}", said)
    return _key_refused(refusal.status, job, source) if refusal.status in _REFUSED else None


def _refusal(seen: Reply | Listing) -> Refusal | None:
    """What the API itself refused: something on the way that blocks a call says 403, and not in JSON."""
    if isinstance(seen, Reply) and seen.status != _OK:
        seen = wire.refusal(seen, 0.0)
    if not isinstance(seen, Refusal):
        return None
    wordless = not (seen.kind or seen.code) and seen.message == f"HTTP status {seen.status}"
    return None if wordless and seen.status == _FORBIDDEN else seen


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _is_refused(who: Reply | Broken) -> bool:
    return isinstance(who, Reply) and who.status in _REFUSED


def _key_taken(asked: Asked, verb: str) -> Finding:
    """A server may show its model list to anybody: then the key is only not refused."""
    if asked.source in {"not set", "not needed"}:
        return ok("key", "The server takes calls without a key.", "The server takes calls without a key.")
    return ok("key", f"The server {verb} the key {asked.source}.", f"The server {verb} the key.")


def is_sent(source: str) -> bool:
    """Whether a key from this source goes out with calls."""
    return source.startswith("read from") or source == "not needed"


def _key_refused(status: int, job: Job, source: str) -> Finding:
    if not is_sent(source):
        said = f"The server wants a key, and none is sent ({status})."
        return bad("key", KEY, said, "Name the variable that holds its key: --key-env NAME.", said)
    where = (
        f"Keys can be revoked, or be copied in part. Get one at {probing.KEYS} and set it anew."
        if job.provider == TOGETHER
        else "Keys can be revoked, or belong to another server. Ask for one there and set it anew."
    )
    said = f"The server refuses the key {source} ({status})."
    return bad("key", KEY, said, where, f"The server refuses the key ({status}).")


def _unclear(who: Reply | Broken, listing: Listing) -> Finding:
    """Neither call told: the server is in trouble, or it is none that speaks the protocol."""
    if isinstance(who, Broken):
        said = f"Whether the key works is not clear: {who.message}"
        return bad("key", UNREACHABLE, said, "Try again later; is this the right address?", "No readable reply came.")
    statuses = f"HTTP {who.status}" + (f" and {listing.status}" if isinstance(listing, Refusal) else "")
    troubled = who.status >= _TROUBLE or (isinstance(listing, Refusal) and listing.status >= _TROUBLE)
    why = "the server is in trouble" if troubled else "the replies are not those of such a server"
    said = f"Whether the key works is not clear: {why} ({statuses})."
    if who.status not in _ABSENT:
        later = "If it stays so, something on the way may be answering in the server's place."
        return bad("key", UNREACHABLE, said, "Try again later." if troubled else f"Try again later. {later}", said)
    return warn("key", said, "Is this the right address? A probe tells more: --model MODEL --yes.", said)


def _models(listing: Listing) -> Finding:
    if isinstance(listing, list):
        priced = sum(model.price is not None for model in listing)
        said = f"{len(listing):,} models are listed, {priced:,} of them with a price by the token."
        return ok("models", said, said) if listing else warn("models", said, "Name prices with --price.", said)
    why = f"HTTP {listing.status}" if isinstance(listing, Refusal) else listing.message.rstrip(".")
    return warn(
        "models", f"The server gives no model list ({why}).",
        "A run goes on without; prices come from --price, or from a dated table.", "No model list.",
    )  # fmt: skip


async def _model_checks(client: Client, asked: Asked, listing: Listing) -> list[Finding]:
    """The model in the list, and one token of it. A model that answers is callable, whatever the list says."""
    if asked.model is None:
        return [skipped(name, _NO_MODEL) for name in ASKED[3:]]
    model, listed = asked.model, listing if isinstance(listing, list) else []
    here = next((known for known in listed if known.id == model), None)
    if here is not None and here.kind not in probing.TEXT_TYPES:
        said = f"{model} is a model of type {here.kind}: batchrun sends prompts for text."
        found = bad("model", MODEL, said, "Name a model of type chat or language.", "Not a model for text.")
        return [found, skipped("probe", "The model is not one for text.")]
    if not asked.may_probe:
        probed = skipped("probe", _NOT_ALLOWED, "--yes sends one.")
        return [guarded("model", lambda: _model(model, here, listing, None)), probed]
    probed = await guarded_async("probe", _probed(client, model, here, listed))
    return [guarded("model", lambda: _model(model, here, listing, probed)), probed]


async def _probed(client: Client, model: str, here: ModelInfo | None, listed: Sequence[ModelInfo]) -> Finding:
    seen = await probing.probe(client, model, probing.endpoint_of(here.kind if here else ""))
    return probing.finding(seen, model, listed)


def _model(model: str, here: ModelInfo | None, listing: Listing, probed: Finding | None) -> Finding:
    """What the list says; the advice is the probe's when there was one."""
    if not isinstance(listing, list):
        return skipped("model", "There is no model list to look in.")
    answers = probed is not None and probed.state is State.OK
    advice = "" if probed is not None else terms.advice(model, listing)
    if here is None and answers:
        return warn(
            "model", f"{model} is not in the list, and answers all the same.",
            "Its price is not known: name it with --price.", "Not listed, and answers.",
        )  # fmt: skip
    if here is None:
        return bad("model", MODEL, f"{model} is not in the server's list.", advice, "Not listed.")
    if here.price is None and here.hourly is not None and not answers:
        return warn("model", f"{model} is listed without a price by the token.", advice, "No price by the token.")
    context = "" if here.context is None else f", context {here.context:,} tokens"
    price = "a price by the token" if here.price is not None else "no price (name it with --price)"
    return ok("model", f"{model} is listed, with {price}{context}.", "Listed.")
