"""Our nouns and Together's JSON, both ways; pure. What a reply means is read here, what to make of it is `rules`'.

Shapes: https://docs.together.ai/reference (chat completions, completions, models); bodies seen in the wild differ, so
reading is lenient: an error may be an object or a string, `usage` may be null, cached tokens stand in two places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, TypeGuard

import msgspec

from batchrun.records import Broken, Completion, Endpoint, Fault, Price, Refusal, Reply, Usage
from batchrun.rules import lengths, money

PATHS = {Endpoint.CHAT: "/v1/chat/completions", Endpoint.COMPLETIONS: "/v1/completions"}
MODELS_PATH = "/v1/models"

# Types of listed models that make text (OpenAPI file, `ModelInfo.type`); some servers name none.
TEXT_TYPES = frozenset({"", "chat", "language", "code"})

LONGEST_MESSAGE = 200
QUOTED_RUN = 16
# A key is cut out in whole at any length, and in part from this length on.
_KEY_RUN = 8
# Looking for quotations reads the prompt a few dozen times, at worst a thousand; a longer one is not searched, and
# the server's sentence not shown.
_LONGEST_SEARCHED = 4_000_000
_LONGEST_READ = 1_000
_TOO_LONG_TO_SEARCH = "(not shown: the request is too long to search the server's message for quotations)"

_FINISH_FAULTS = {"length": Fault.CUT_SHORT, "content_filter": Fault.FILTERED}
# Numbers as large as these are no waits in seconds: they are a time, in seconds or in milliseconds since the epoch.
_EPOCH = 1e9
_EPOCH_MS = 1e12
# US dollars a million tokens; a list that asks for more has another meaning.
_DEAREST = 1e6
# Where servers put their sentence, and how deep they wrap it.
_SENTENCES = ("error", "message", "msg", "detail")
_DEEPEST = 4

_decode = msgspec.json.Decoder().decode


def read(reply: Reply, now: float) -> Completion | Refusal | Broken:
    """What the reply says. `now` is seconds since the epoch, for waits given as dates.

    A refusal's message is the server's own and may quote the prompt: pass it through `redacted` before anything else.
    """
    if 200 <= reply.status < 300:  # noqa: PLR2004 - the 2xx statuses
        return _completion(reply)
    return refusal(reply, now)


def _completion(reply: Reply) -> Completion | Broken:
    parsed = _parsed(reply.body)
    if parsed is None:
        return _garbled(reply, "a reply that is not JSON")
    if not isinstance(parsed, dict) or parsed.get("error"):
        return _garbled(reply, "an error inside a reply with status 200")
    choice = _first_choice(parsed)
    if choice is None:
        return _garbled(reply, "a reply without a choice")
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    model = parsed.get("model")
    model = printable(model) if isinstance(model, str) else ""
    return Completion(reply.body, model, finish, _usage(parsed.get("usage")), _FINISH_FAULTS.get(finish))


def _garbled(reply: Reply, what: str) -> Broken:
    return Broken(f"The server sent {what}.", maybe_paid=True, garbled=True, seconds=reply.seconds)


def _parsed(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _first_choice(parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first choice, when it has a message or a text; a text may be null, as a message's content may be."""
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice: dict[str, Any] = choices[0]
    has_text = "text" in choice and (choice["text"] is None or isinstance(choice["text"], str))
    return choice if has_text or isinstance(choice.get("message"), dict) else None


def _usage(seen: Any) -> Usage | None:
    if not isinstance(seen, dict):
        return None
    prompt, completion = seen.get("prompt_tokens"), seen.get("completion_tokens")
    if not _count(prompt) or not _count(completion):
        return None
    for place in (seen, seen.get("prompt_tokens_details")):
        if isinstance(place, dict) and _count(cached := place.get("cached_tokens")):
            return Usage(prompt, completion, cached)
    return Usage(prompt, completion)


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


def refusal(reply: Reply, now: float) -> Refusal:
    """What a reply that is no answer says, whatever its status; status 0: there was none."""
    parsed = _parsed(reply.body)
    top: Mapping[str, Any] = parsed if isinstance(parsed, dict) else {}
    error = top.get("error")
    inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
    kinds = (inner.get("type"), inner.get("error_type"), top.get("error_type"), top.get("type"))
    code = str(inner.get("code") or top.get("code") or "").lower()
    return Refusal(
        status=reply.status,
        kind=next((kind for kind in kinds if kind and isinstance(kind, str)), "").lower(),
        code=code,
        message=sentence(top) or (f"HTTP status {reply.status}" if reply.status else code or "no reason given"),
        wait=wait_seconds(reply.headers, now),
    )


def sentence(value: Any, depth: int = 0) -> str:
    """The first text found where servers put one: by itself, in an object, or in a list of objects."""
    if isinstance(value, str) or depth == _DEEPEST:
        return value.strip() if isinstance(value, str) else ""
    places: list[Any] = value if isinstance(value, list) else []
    if isinstance(value, dict):
        places = [value.get(name) for name in _SENTENCES]
    return next((found for found in (sentence(place, depth + 1) for place in places) if found), "")


def wait_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, Retry-After (seconds or a date), else x-ratelimit-reset."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after")
    for value in (_number(after), _date(after, now), _number(headers.get("x-ratelimit-reset"))):
        if value is not None:
            return _from_now(value, now)
    return None


def _from_now(value: float, now: float) -> float:
    if value <= _EPOCH:
        return value
    return max(0.0, (value / 1000 if value > _EPOCH_MS else value) - now)


def _number(value: str | None) -> float | None:
    try:
        number = float((value or "").strip().removesuffix("s"))
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _date(value: str | None, now: float) -> float | None:
    try:
        at = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
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
    message = printable(message[: 2 * _LONGEST_READ])
    if len(body) > _LONGEST_SEARCHED:
        return _own_words(message, body) or _TOO_LONG_TO_SEARCH
    message = " ".join((message.replace(key, "…") if key else message)[:_LONGEST_READ].split())
    if key:
        message = "".join(_without_quotations(message, key, _KEY_RUN))
    return "".join(islice(_without_quotations(message, _said(body), QUOTED_RUN), LONGEST_MESSAGE))


def printable(text: str) -> str:
    """The text with white space as spaces, and a mark for what would command a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def _own_words(message: str, body: bytes) -> str:
    """What of it needs no search: the well-known sentence that it begins with, when the request does not hold that."""
    own = lengths.own_words(" ".join(message[:_LONGEST_READ].split()))
    return "" if own is None or own.encode() in body else own[:LONGEST_MESSAGE]


def _said(body: bytes) -> str:
    """All that may be quoted: each text as it is, as it stands in the body, and as ASCII JSON writes it."""
    plain = "\0".join(_strings(_parsed(body)))
    ascii_json = "" if body.isascii() else json.dumps(plain)
    return " ".join(f"{plain}\0{body.decode(errors='replace')}\0{ascii_json}".split())


def _without_quotations(message: str, said: str, run: int) -> Iterator[str]:
    """The message's characters, with one ellipsis for every run of so many of them that `said` has too."""
    blocks: dict[int, bool] = {}
    hidden = -1
    for at, character in enumerate(message):
        if _quoted(message, at, said, run, blocks):
            if at > hidden:
                yield "…"
            hidden = at + run
        elif at >= hidden:
            yield character


def _quoted(message: str, at: int, said: str, run: int, blocks: dict[int, bool]) -> bool:
    """Whether the run that starts here stands in `said`, which may be long: look for a block inside it first.

    Every run holds a whole block of half its length that starts at a multiple of that length, so one search of `said`
    that fails answers for as many runs as a block is long.
    """
    block = run // 2
    start = -(-at // block) * block
    if start not in blocks:
        blocks[start] = message[start : start + block] in said
    return blocks[start] and at + run <= len(message) and message[at : at + run] in said


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
    """A model as the server lists it: what it does not say is None.

    Attributes:
        id: the name to call it by.
        kind: `chat`, `language`, `image` and so on, "" when the server does not say.
        context: tokens.
        price: for calls paid by the token.
        hourly: US dollars an hour of a dedicated endpoint.
    """

    id: str
    kind: str
    context: int | None
    price: Price | None
    hourly: float | None = None


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
        hourly=_hourly(item.get("pricing")),
    )


def _hourly(pricing: Any) -> float | None:
    """Servers list zero an hour for what they do not sell by the hour."""
    hourly = pricing.get("hourly") if isinstance(pricing, dict) else None
    if not isinstance(hourly, int | float) or isinstance(hourly, bool) or not 0 < hourly <= _DEAREST:
        return None
    return float(hourly)


def _price(pricing: Any) -> Price | None:
    """A price of zero on both sides is what servers list for models they do not sell by the token: unknown."""
    if not isinstance(pricing, dict):
        return None
    usd = [pricing.get("input"), pricing.get("output"), pricing.get("cached_input")]
    numbers = [float(v) if isinstance(v, int | float) and 0 <= v <= _DEAREST else None for v in usd]
    if numbers[0] is None or numbers[1] is None or not (numbers[0] or numbers[1]):
        return None
    return money.price(numbers[0], numbers[1], numbers[2] or None)
