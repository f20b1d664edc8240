"""What is sent in place of what was asked: a shorter prompt, another max_tokens, another model, another seed.

    what came back                  the user's word               what is sent next
    too_long                        --on-too-long truncate        the longest user message, cut to fit
                                    --on-too-long shrink-output   max_tokens lowered to what the context leaves
                                    --on-too-long fallback        a fallback with a larger context
    model_missing                   --fallback                    the next model; see `standins`
    overloaded, server, network,    --fallback                    the next model, once patience is over; and back
    throttled, garbled
    cut_short (an answer)           --on-length retry             max_tokens raised fourfold, at most to the context
    invalid_output (an answer)      --on-invalid retry            the same again; a fixed seed moves on by one
    anything else                                                 as `verdicts` says

A row's digest stays that of what was asked. A refusal costs nothing; a second reply is paid for, and the worse of the
two is surplus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import msgspec

from batchrun.job import Repairs
from batchrun.records import Completion, Cut, Fault, Request, TooLong, Usage
from batchrun.rules.canonical import written
from batchrun.rules.lengths import Figures, figures

# A row that does not fit is repaired so often.
MOST_REFUSALS = 2
# A cut-off answer is asked again with so many times the tokens.
RAISE = 4
# Tokens left free beside the server's own figures.
MARGIN = 8
# An answer of fewer tokens, or a prompt of fewer characters, is not worth its price; less only if asked for.
LEAST_OUTPUT = 64
LEAST_TEXT = 100
# The part of the context kept for an answer when nobody said how long it may be.
OUTPUT_SHARE = 4
# Tokens are not spread evenly over a text: this share of what goes, or of what stays if that is less, goes as well.
_TO_SPARE = 0.1
# Without the server's figures a token is taken to be so many bytes; English has about four.
_BYTES_A_TOKEN = 3
_GAP = " [...] "

_LIMITS = ("max_tokens", "max_completion_tokens")


class Repair(msgspec.Struct, frozen=True, omit_defaults=True):
    """How what is sent differs from what was asked.

    Attributes:
        model: sent to this one.
        max_tokens: with this limit.
        was: the limit before, 0 when there was none.
        message: place of the message that is cut (0 for a completions prompt).
        keep: characters of it that stay, of `length`.
        length: characters it had.
        cut: where they went.
        seed: asked with this seed.
        refusals: how often it was refused as too long.
    """

    model: str | None = None
    max_tokens: int | None = None
    was: int = 0
    message: int | None = None
    keep: int = 0
    length: int = 0
    cut: Cut = Cut.MIDDLE
    seed: int | None = None
    refusals: int = 0


AS_ASKED = Repair()


def limit_of(body: Mapping[str, Any]) -> int | None:
    """The most tokens an answer may have, under either of its names; None when the body does not say."""
    return max((body[name] for name in _LIMITS if body.get(name)), default=None)


# --- what comes next -------------------------------------------------------------------------------------------------


def after_refusal(
    sent: Request, repair: Repair, message: str, said: Repairs, contexts: Mapping[str, int]
) -> Repair | None:
    """What to send after a refusal as too long, None when nothing more can be done.

    Args:
        sent: what was refused.
        repair: how it differed from what was asked.
        message: the server's sentence.
        said: the user's word.
        contexts: context lengths in tokens, by model.
    """
    if repair.refusals >= MOST_REFUSALS:
        return None
    tokens = _measured(sent, repair, figures(message), contexts)
    if tokens is None:
        return None
    match said.too_long:
        case TooLong.REJECT:
            return None
        case TooLong.SHRINK:
            found = _shrunk(sent, repair, tokens)
        case TooLong.TRUNCATE:
            found = _truncated(sent, repair, tokens, said.cut)
        case TooLong.FALLBACK:
            found = _larger(sent, repair, tokens, said.fallbacks, contexts)
        case _:
            assert_never(said.too_long)
    return None if found is None else msgspec.structs.replace(found, refusals=repair.refusals + 1)


def _measured(sent: Request, repair: Repair, told: Figures | None, contexts: Mapping[str, int]) -> Figures | None:
    """The server's figures; where it tells none, or a floor, the prompt is taken to be long for its bytes."""
    if told is not None and not told.floor:
        return told
    # Of a second refusal the first guess is to blame.
    guess = len(sent.body) * (repair.refusals + 1) // _BYTES_A_TOKEN
    if told is not None:
        return msgspec.structs.replace(told, prompt=max(told.prompt, guess))
    context = contexts.get(sent.model)
    return None if context is None else Figures(context, max(context - (sent.max_tokens or 0) + 1, guess), None)


def _shrunk(sent: Request, repair: Repair, tokens: Figures) -> Repair | None:
    before = sent.max_tokens or tokens.output
    # Figures that were right would not have brought a second refusal.
    room = (tokens.context - tokens.prompt - MARGIN) // (repair.refusals + 1)
    if room < min(LEAST_OUTPUT, before or LEAST_OUTPUT) or (before is not None and room >= before):
        return None
    return msgspec.structs.replace(repair, max_tokens=room, was=_was(sent, repair))


def _was(sent: Request, repair: Repair) -> int:
    """The limit that the row asked for, 0 for none; `sent` may have been repaired before."""
    return repair.was if repair.max_tokens is not None else sent.max_tokens or 0


def _truncated(sent: Request, repair: Repair, tokens: Figures, cut: Cut) -> Repair | None:
    output = 0 if tokens.alone else sent.max_tokens or tokens.output or tokens.context // OUTPUT_SHARE
    excess = tokens.prompt - (tokens.context - output - MARGIN)
    texts = _texts(msgspec.json.decode(sent.body))
    place = _longest_of_user(texts) if repair.message is None else repair.message
    if place is None or excess <= 0:
        return None
    length = len(texts[place][0])
    too_many = excess * sum(len(text) for text, _ in texts) / tokens.prompt
    goes = math.ceil(too_many + _TO_SPARE * min(too_many, length - too_many)) + len(_GAP)
    if length - goes < LEAST_TEXT:
        return None
    first = repair.message is None
    return msgspec.structs.replace(
        repair, message=place, keep=length - goes, length=length if first else repair.length, cut=cut
    )


def _longest_of_user(texts: Sequence[tuple[str, bool]]) -> int | None:
    """The place of the user's longest text, the first of several; None when there is none."""
    places = [place for place, (_, of_user) in enumerate(texts) if of_user]
    return max(places, key=lambda place: len(texts[place][0]), default=None)


def _larger(
    sent: Request, repair: Repair, tokens: Figures, fallbacks: Sequence[str], contexts: Mapping[str, int]
) -> Repair | None:
    here = contexts.get(sent.model, tokens.context)
    needed = tokens.prompt + (sent.max_tokens or tokens.output or LEAST_OUTPUT)
    for model in fallbacks:
        if contexts.get(model, 0) >= max(needed, here + 1):
            return msgspec.structs.replace(repair, model=model)
    return None


def after_reply(
    sent: Request,
    repair: Repair,
    fault: Fault | None,
    usage: Usage | None,
    retries: int,
    said: Repairs,
    contexts: Mapping[str, int],
) -> Repair | None:
    """What to send for a better reply than this one, None when it is good enough or as good as can be.

    Args:
        sent: what brought the reply, or would be sent when that is not known any more.
        repair: how that differed from what was asked.
        fault: the mark of the reply.
        usage: its tokens.
        retries: how many replies to the row came before it.
        said: the user's word.
        contexts: context lengths in tokens, by model.
    """
    if fault is Fault.CUT_SHORT and retries < said.length_retries:
        return _raised(sent, repair, usage, contexts.get(sent.model))
    if fault is Fault.INVALID_OUTPUT and retries < said.invalid_retries:
        if sent.max_tokens is not None and usage is not None and usage.completion_tokens // sent.n > sent.max_tokens:
            # An earlier start had raised the limit: as it was asked, the next reply would be cut short.
            repair = _raised(sent, repair, usage, contexts.get(sent.model)) or repair
        seed = msgspec.json.decode(sent.body).get("seed")
        return msgspec.structs.replace(repair, seed=seed + 1) if type(seed) is int else repair
    return None


def _raised(sent: Request, repair: Repair, usage: Usage | None, context: int | None) -> Repair | None:
    came = usage.completion_tokens // sent.n if usage is not None else 0
    before = max(sent.max_tokens or 0, came)
    room = (
        math.inf
        if context is None
        else context - MARGIN - (usage.prompt_tokens if usage is not None else len(sent.body))
    )
    raised = min(before * RAISE, room)
    if not before or raised <= before:
        return None
    return msgspec.structs.replace(repair, max_tokens=int(raised), was=_was(sent, repair))


_WORSE = {None: 0, Fault.INVALID_OUTPUT: 1, Fault.CUT_SHORT: 1, Fault.FILTERED: 2}


def is_better(new: Completion, old: Fault) -> bool:
    """Whether a later reply takes the place of an answer with that mark; of two that are as bad, the later one."""
    return _WORSE.get(new.fault, 0) <= _WORSE.get(old, 0)


# --- what is sent ----------------------------------------------------------------------------------------------------


def applied(asked: Request, repair: Repair) -> Request:
    """The request as it is sent; row and digest stay those of what was asked."""
    if repair is AS_ASKED or repair == Repair(refusals=repair.refusals):
        return asked
    body: dict[str, Any] = msgspec.json.decode(asked.body)
    if repair.model is not None:
        body["model"] = repair.model
    if repair.max_tokens is not None:
        for name in [name for name in _LIMITS if body.get(name)] or _LIMITS[:1]:
            body[name] = repair.max_tokens
    if repair.seed is not None:
        body["seed"] = repair.seed
    if repair.message is not None:
        _shorten(body, repair)
    return msgspec.structs.replace(
        asked,
        model=repair.model or asked.model,
        body=written(body),
        max_tokens=asked.max_tokens if repair.max_tokens is None else repair.max_tokens,
    )


def _shorten(body: dict[str, Any], repair: Repair) -> None:
    if "messages" in body:
        message = body["messages"][repair.message]
        message["content"] = shortened(message["content"], repair.keep, repair.cut)
    else:
        body["prompt"] = shortened(body["prompt"], repair.keep, repair.cut)


def shortened(text: str, keep: int, cut: Cut) -> str:
    """The text with so many of its characters, and a mark where the others were."""
    if len(text) <= keep:
        return text
    match cut:
        case Cut.HEAD:
            return _GAP.lstrip() + text[len(text) - keep :]
        case Cut.TAIL:
            return text[:keep] + _GAP.rstrip()
        case Cut.MIDDLE:
            front = keep - keep // 2
            return text[:front] + _GAP + text[len(text) - keep // 2 :]
        case _:
            assert_never(cut)


def _texts(body: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Every text of the prompt, in order, and whether it is the user's own; anything else counts as no text."""
    if "messages" not in body:
        return [(body["prompt"], True)]
    found = []
    for message in body["messages"]:
        text = message.get("content")
        found.append((text, message.get("role") == "user") if isinstance(text, str) else ("", False))
    return found


def told(asked_model: str, sent_model: str, repair: Repair) -> str | None:
    """What was done, for the column `repair`; None when it was sent as asked. It quotes nothing."""
    parts = []
    if sent_model != asked_model:
        parts.append(f"model {asked_model} -> {sent_model}")
    if repair.message is not None:
        parts.append(
            f"{repair.cut} of message {repair.message + 1} cut, {repair.keep} of {repair.length} characters sent"
        )
    if repair.max_tokens is not None:
        parts.append(f"max_tokens {repair.was or 'unset'} -> {repair.max_tokens}")
    if repair.seed is not None:
        parts.append(f"seed {repair.seed}")
    return "; ".join(parts) or None
