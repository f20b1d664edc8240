"""From the bytes of a request to an Ask, or to the Refusal its mistakes deserve. Credits, limits, faults: elsewhere."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from batchrun.simulator import errors
from batchrun.simulator.catalog import MODELS, Model
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import ContextWords

MESSAGE_TOKENS = 4
"""What the chat template adds to each message."""

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = {
    "max_tokens": (1, 2**31),
    "n": (1, 128),
    "logprobs": (0, 20),
    "top_k": (-(2**31), 2**31),
    "seed": (-(2**63), 2**63),
}
_FORMATS = ("text", "json_object", "json_schema")


class Endpoint(StrEnum):
    """The two endpoints that generate."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class _Overflow:
    """How a request that does not fit the context is refused."""

    status: int
    words: ContextWords


class _Named(msgspec.Struct):
    model: Any = None


_named_decoder = msgspec.json.Decoder(_Named)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that can be answered."""

    endpoint: Endpoint
    model: Model
    text: str  # all of the prompt, one message a line
    content: str  # what the ledger knows it by: the last user message, or the prompt
    prompt_tokens: int
    max_tokens: int  # room for the reply
    asked: int | None  # the max_tokens of the request
    n: int
    seed: int | None
    schema: dict[str, Any] | None  # {} asks for any JSON object


def model_named(body: bytes) -> str:
    """The model a request names, be it known or not; empty when there is none to be read."""
    try:
        model = _named_decoder.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return model if isinstance(model, str) else ""


def parse(
    endpoint: Endpoint, body: bytes, context_status: int = 400, words: ContextWords = ContextWords.TOGETHER
) -> Ask | Refusal:
    """Read and check one request body. What does not fit the context is refused with that status, in those words."""
    overflow = _Overflow(context_status, words)
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return errors.invalid("the body is not valid JSON")
    if not isinstance(fields, dict):
        return errors.invalid("the body must be a JSON object")
    model = _model(fields)
    if isinstance(model, Refusal):
        return model
    mistake = _parameter_mistake(fields)
    if mistake is not None:
        return mistake
    match endpoint:
        case Endpoint.CHAT:
            return _chat(fields, model, body, overflow)
        case Endpoint.COMPLETIONS:
            return _completion(fields, model, body, overflow)


def _model(fields: dict[str, Any]) -> Model | Refusal:
    name = fields.get("model")
    if not isinstance(name, str) or not name:
        return errors.invalid("`model` must be a string", "model")
    model = MODELS.get(name)
    if model is None:
        return errors.no_such_model(name)
    return model if model.serverless else errors.not_serverless(name)


def _parameter_mistake(fields: dict[str, Any]) -> Refusal | None:
    """The first sampling parameter that is wrong. A null is wrong everywhere: absent is the way to say nothing."""
    if fields.get("stream"):
        return errors.NO_STREAMING
    for name in fields.keys() & _INTEGERS:
        low, high = _INTEGERS[name]
        value = fields[name]
        if type(value) is not int or not low <= value <= high:
            return errors.invalid(f"`{name}` must be an integer from {low} to {high}", name)
    for name in _NUMBERS:
        if name in fields and type(fields[name]) not in (int, float):
            return errors.invalid(f"`{name}` must be a number", name)
    if "stop" in fields and not _is_stop(fields["stop"]):
        return errors.invalid("`stop` must be a list of strings", "stop")
    return None


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(word, str) for word in value))


def _chat(fields: dict[str, Any], model: Model, body: bytes, overflow: _Overflow) -> Ask | Refusal:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        return errors.invalid("`messages` must be a list with at least one message", "messages")
    for message in messages:
        mistake = _message_mistake(message)
        if mistake is not None:
            return errors.invalid(mistake, "messages")
    if model.type != "chat":
        return errors.invalid(f"{model.id} has no chat template: use {Endpoint.COMPLETIONS.value}", "model")
    schema = _schema(fields)
    if isinstance(schema, Refusal):
        return schema
    texts = [_text(message.get("content")) for message in messages]
    users = [text for text, message in zip(texts, messages, strict=True) if message["role"] == "user"]
    text = "\n".join(texts)
    tokens = len(text.encode()) // 4 + MESSAGE_TOKENS * len(messages)
    truncate = fields.get("context_length_exceeded_behavior", "error") == "truncate"
    room = _room(fields, model, min(tokens, len(body)), overflow, truncate=truncate)
    if isinstance(room, Refusal):
        return room
    content = users[-1] if users else texts[-1]
    return _ask(Endpoint.CHAT, fields, model, text, content, min(tokens, len(body)), room, schema)


def _completion(fields: dict[str, Any], model: Model, body: bytes, overflow: _Overflow) -> Ask | Refusal:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        return errors.invalid("`prompt` must be a string", "prompt")
    tokens = min(len(body), max(1, len(prompt.encode()) // 4))
    room = _room(fields, model, tokens, overflow, truncate=False)
    if isinstance(room, Refusal):
        return room
    return _ask(Endpoint.COMPLETIONS, fields, model, prompt, prompt, tokens, room, None)


def _ask(
    endpoint: Endpoint,
    fields: dict[str, Any],
    model: Model,
    text: str,
    content: str,
    tokens: int,
    room: int,
    schema: dict[str, Any] | None,
) -> Ask:
    return Ask(
        endpoint,
        model,
        text,
        content,
        tokens,
        room,
        fields.get("max_tokens"),
        fields.get("n", 1),
        fields.get("seed"),
        schema,
    )


def _message_mistake(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "a message must be an object"
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        return "the `role` of a message must be system, user, assistant or tool"
    content = message.get("content")
    if message.get("tool_calls") == []:
        return "`tool_calls` must not be empty"
    if content is None and not message.get("tool_calls"):
        return "a message needs `content`"
    if not isinstance(content, str | list | None):
        return "the `content` of a message must be a string or a list of parts"
    return None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _room(
    fields: dict[str, Any], model: Model, prompt_tokens: int, overflow: _Overflow, *, truncate: bool
) -> int | Refusal:
    """How many tokens the reply may have, or the refusal of a request that does not fit the context."""
    left = model.context_length - prompt_tokens
    asked: int | None = fields.get("max_tokens")
    if left < 1 or (asked is not None and asked > left and not truncate):
        return errors.too_long(overflow.status, model.context_length, prompt_tokens, asked or 1, overflow.words)
    return left if asked is None else min(asked, left)


def _schema(fields: dict[str, Any]) -> dict[str, Any] | Refusal | None:
    """The JSON schema the reply shall fit: {} for any object, None for plain text."""
    wanted = fields.get("response_format", {"type": "text"})
    if not isinstance(wanted, dict) or wanted.get("type") not in _FORMATS:
        return errors.invalid("`response_format` needs a type: text, json_object or json_schema", "response_format")
    if wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return {}
    named = wanted.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        return errors.invalid("`json_schema` needs a name", "response_format")
    schema = named.get("schema", {})
    return schema if isinstance(schema, dict) else {}
