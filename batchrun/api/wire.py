"""Our nouns and Together's JSON, both ways; pure. What a reply means is read here, what to make of it is `rules`'.

Shapes: https://docs.together.ai/reference (chat completions, completions, models); bodies seen in the wild differ, so
reading is lenient: an error may be an object or a string, `usage` may be null, cached tokens stand in two places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard

import msgspec

from batchrun.records import Broken, Completion, Endpoint, Fault, Price, Refusal, Reply, Usage
from batchrun.rules import money

PATHS = {Endpoint.CHAT: "/v1/chat/completions", Endpoint.COMPLETIONS: "/v1/completions"}
MODELS_PATH = "/v1/models"

LONGEST_MESSAGE = 200
QUOTED_RUN = 16
# Looking for quotations costs the length of the prompt a few hundred times; a longer one is not searched, and the
# server's sentence not shown.
_LONGEST_SEARCHED = 1_000_000
_LONGEST_READ = 1_000

_FINISH_FAULTS = {"length": Fault.CUT_SHORT, "content_filter": Fault.FILTERED}
_EPOCH = 1e9

_decode = msgspec.json.Decoder().decode


def read(reply: Reply, now: float) -> Completion | Refusal | Broken:
    """What the reply says. `now` is seconds since the epoch, for waits given as dates.

    A refusal's message is the server's own and may quote the prompt: pass it through `redacted` before anything else.
    """
    if 200 <= reply.status < 300:  # noqa: PLR2004 - the 2xx statuses
        return _completion(reply)
    return _refusal(reply, now)


def _completion(reply: Reply) -> Completion | Broken:
    parsed = _parsed(reply.body)
    if parsed is None:
        return _garbled(reply, "a reply that is not JSON")
    if not isinstance(parsed, dict) or "error" in parsed:
        return _garbled(reply, "an error inside a reply with status 200")
    choice = _first_choice(parsed)
    if choice is None:
        return _garbled(reply, "a reply without a choice")
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    model = parsed.get("model")
    model = model if isinstance(model, str) else ""
    return Completion(reply.body, model, finish, _usage(parsed.get("usage")), _FINISH_FAULTS.get(finish))


def _garbled(reply: Reply, what: str) -> Broken:
    return Broken(f"The server sent {what}.", maybe_paid=True, garbled=True, seconds=reply.seconds)


def _parsed(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _first_choice(parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first choice, when it has a message or a text."""
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice: dict[str, Any] = choices[0]
    return choice if isinstance(choice.get("message"), dict) or isinstance(choice.get("text"), str) else None


def _usage(seen: Any) -> Usage | None:
    if not isinstance(seen, dict):
        return None
    details = seen.get("prompt_tokens_details")
    cached = seen.get("cached_tokens", details.get("cached_tokens") if isinstance(details, dict) else None)
    prompt, completion = seen.get("prompt_tokens"), seen.get("completion_tokens")
    if not _count(prompt) or not _count(completion):
        return None
    return Usage(prompt, completion, cached if _count(cached) else 0)


def _count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def texts(body: bytes) -> tuple[str | None, str | None]:
    """(answer, reasoning) of a kept reply: the first choice's."""
    parsed = _parsed(body)
    choice = _first_choice(parsed) if isinstance(parsed, dict) else None
    if choice is None:
        return None, None
    message = choice.get("message")
    if not isinstance(message, dict):
        return _text(choice.get("text")), None
    return _text(message.get("content")), _text(message.get("reasoning")) or _text(message.get("reasoning_content"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _refusal(reply: Reply, now: float) -> Refusal:
    parsed = _parsed(reply.body)
    error = parsed.get("error") if isinstance(parsed, dict) else None
    top: Mapping[str, Any] = parsed if isinstance(parsed, dict) else {}
    inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
    kind = next((k for k in (inner.get("type"), inner.get("error_type"), top.get("error_type")) if _text(k)), "")
    message = _first_text(inner.get("message"), error, top.get("message"), top.get("detail"))
    return Refusal(
        status=reply.status,
        kind=str(kind).lower(),
        code=str(inner.get("code") or "").lower(),
        message=message or f"HTTP status {reply.status}",
        wait=wait_seconds(reply.headers, now),
    )


def _first_text(*values: Any) -> str:
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def wait_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, Retry-After (seconds or a date), else x-ratelimit-reset."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after")
    for value in (_number(after), _date(after, now), _number(headers.get("x-ratelimit-reset"))):
        if value is not None:
            return max(0.0, value - now) if value > _EPOCH else value
    return None


def _number(value: str | None) -> float | None:
    try:
        number = float((value or "").strip().removesuffix("s"))
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(value: str | None, now: float) -> float | None:
    try:
        at = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)


def limits(headers: Mapping[str, str]) -> tuple[float | None, float | None]:
    """(requests, tokens) a second that the headers promise; the dynamic limit counts before the fixed one."""
    return _limit(headers, "x-ratelimit-limit"), _limit(headers, "x-tokenlimit-limit")


def _limit(headers: Mapping[str, str], name: str) -> float | None:
    said = headers.get(f"{name}-dynamic") or headers.get(name)
    return None if said is None else _number(said) or None


def redacted(message: str, body: bytes, key: str | None) -> str:
    """The server's sentence with every quotation of the request (16 characters or more) and the key taken out, cut.

    Promise: neither prompt nor key is ever shown; the result has at most 200 characters.
    """
    if len(body) > _LONGEST_SEARCHED:
        return "(not shown: the request is too long to search the server's message for quotations)"
    if key:
        message = message.replace(key, "…")
    said = "\0".join(_strings(_parsed(body))) + "\0" + body.decode(errors="replace")
    return _without_quotations(" ".join(message[:_LONGEST_READ].split()), said)[:LONGEST_MESSAGE]


def _without_quotations(message: str, said: str) -> str:
    flat = " ".join(said.split())
    kept: list[str] = []
    at = 0
    while at < len(message):
        length = _quoted_length(message, at, flat)
        kept.append("…" if length else message[at])
        at += length or 1
    return "".join(kept)


def _quoted_length(message: str, at: int, said: str) -> int:
    """How long the run is that starts here and also stands in the request; 0 when it is too short to matter."""
    length = QUOTED_RUN
    if at + length > len(message) or message[at : at + length] not in said:
        return 0
    while at + length < len(message) and message[at : at + length + 1] in said:
        length += 1
    return length


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


class ModelInfo(msgspec.Struct, frozen=True):
    """A model as the server lists it; price and context (tokens) are None when it does not say."""

    id: str
    kind: str
    context: int | None
    price: Price | None


def models(body: bytes) -> list[ModelInfo] | None:
    """The model list: Together's bare array, or the `data` of others; None when it is neither."""
    parsed = _parsed(body)
    listed = parsed.get("data") if isinstance(parsed, dict) else parsed
    if not isinstance(listed, list):
        return None
    return [_model(item) for item in listed if isinstance(item, dict) and isinstance(item.get("id"), str)]


def _model(item: Mapping[str, Any]) -> ModelInfo:
    context = item.get("context_length")
    return ModelInfo(
        id=item["id"],
        kind=_text(item.get("type")) or "",
        context=context if _count(context) and context > 0 else None,
        price=_price(item.get("pricing")),
    )


def _price(pricing: Any) -> Price | None:
    """A price of zero on both sides is what servers list for models they do not sell by the token: unknown."""
    if not isinstance(pricing, dict):
        return None
    usd = [pricing.get("input"), pricing.get("output"), pricing.get("cached_input")]
    numbers = [float(v) if isinstance(v, int | float) and math.isfinite(v) and v >= 0 else None for v in usd]
    if numbers[0] is None or numbers[1] is None or not (numbers[0] or numbers[1]):
        return None
    return money.price(numbers[0], numbers[1], numbers[2] or None)
