"""A row's cells -> the request it asks for, or why there is none. Messages name columns and types, never contents.

Reading rows is `source`'s; what a digest is, `rules.canonical`'s. In a template every column is a variable, and `row`
holds them all, for names that are no identifiers: `{{ row["unit price"] }}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchrun.errors import UsageError
from batchrun.files import template
from batchrun.files.row import Row
from batchrun.files.wording import kind_of, names_of
from batchrun.job import Asking
from batchrun.records import BadRow, Endpoint, Request
from batchrun.rules.canonical import bad_digest, canonical, digest, written
from batchrun.rules.fit import Fit, response_format

_SYSTEM_ROLES = frozenset({"system", "developer"})
_LIMITS = ("max_tokens", "max_completion_tokens")
_FORMAT = "response_format"
# What holds schemas: the order of their properties is kept.
_IN_ORDER = frozenset({_FORMAT, "tools", "functions"})
_NO_MODEL = "names no model. Give one with -m"

_Body = dict[str, Any]


class Prompter:
    """Turns rows into requests as one job asks for them.

    Raises:
        UsageError: the template does not compile, the schema is none, or the job's parameters cannot be sent.
    """

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._params = dict(asking.params)
        if asking.schema is not None:
            Fit(asking.schema)  # before a row is sent with it, not when the first answer is judged
            self._params[_FORMAT] = response_format(asking.schema)
        self._system = None if asking.system is None else {"role": "system", "content": asking.system}
        self._render = template.compiled(asking.template) if asking.template is not None else None
        if problem := settings_problem(self._params):
            raise UsageError(f"The parameters of the job cannot be sent: {problem}.")

    def request(self, row: Row) -> Request | BadRow:
        """What the row asks for; a row's own body or messages win, the job fills what is missing."""
        if row.cells is None:
            return BadRow(row.number, bad_digest(row.raw), row.where, row.problem)
        body = self._body(row, row.cells)
        if isinstance(body, str):
            return BadRow(row.number, bad_digest(row.raw), row.where, body)
        try:
            text = canonical(body)
        except UnicodeEncodeError:
            return BadRow(row.number, bad_digest(row.raw), row.where, "holds half of a surrogate pair")
        except RecursionError:
            return BadRow(row.number, bad_digest(row.raw), row.where, "nested too deeply")
        sent = text if _IN_ORDER.isdisjoint(body) else written(body)
        endpoint = self._asking.endpoint
        most = max(filter(None, map(body.get, _LIMITS)), default=None)
        return Request(row.number, digest(endpoint, text), endpoint, body["model"], sent, most, body.get("n") or 1)

    def _body(self, row: Row, cells: _Body) -> _Body | str:
        """The body, or what is wrong with the row."""
        if self._render is not None:
            rendered, problem = self._render(cells)
            return problem or self._from_prompt(rendered)
        own = cells.get("body")
        if isinstance(own, dict):
            return self._from_body(_without_nulls(own) if row.text is None else own)
        messages = cells.get("messages")
        if messages is not None:
            return self._from_messages(_without_nulls(messages) if row.text is None else messages)
        prompt = cells.get("prompt")
        if isinstance(prompt, str):
            return self._from_prompt(prompt)
        return nothing_to_ask(cells)

    def _from_prompt(self, prompt: str) -> _Body | str:
        if not prompt:
            return "the prompt is empty"
        if self._asking.model is None:
            return _NO_MODEL
        if self._asking.endpoint is Endpoint.COMPLETIONS:
            return {"model": self._asking.model, "prompt": prompt, **self._params}
        messages: list[Any] = [{"role": "user", "content": prompt}]
        if self._system is not None:
            messages.insert(0, self._system)
        return {"model": self._asking.model, "messages": messages, **self._params}

    def _from_messages(self, messages: Any) -> _Body | str:
        if self._asking.endpoint is Endpoint.COMPLETIONS:
            return "has `messages`, but the completions endpoint takes a `prompt`"
        if self._asking.model is None:
            return _NO_MODEL
        return self._checked({"model": self._asking.model, "messages": messages, **self._params})

    def _from_body(self, own: _Body) -> _Body | str:
        body = filled(own, self._params)
        if self._asking.schema is not None and body[_FORMAT] != self._params[_FORMAT]:
            return "has a `response_format` of its own, and --schema would put another in its place"
        if "model" not in body and self._asking.model is not None:
            body["model"] = self._asking.model
        if problem := model_problem(body) or settings_problem(body):
            return problem
        return self._checked(body)

    def _checked(self, body: _Body) -> _Body | str:
        if self._asking.endpoint is Endpoint.COMPLETIONS:
            return completions_problem(body) or body
        if problem := messages_problem(body.get("messages")):
            return problem
        if self._system is None:
            return body
        messages = body["messages"]
        if any(message["role"] in _SYSTEM_ROLES for message in messages):
            return "has a system message already, and --system would put another in front of it"
        return {**body, "messages": [self._system, *messages]}


def filled(own: Mapping[str, Any], params: Mapping[str, Any]) -> _Body:
    """The row's own body with the job's parameters where it has none; the two names of the token limit are one."""
    body = {**params, **own}
    if any(name in own for name in _LIMITS):
        for name in _LIMITS:
            if name not in own:
                body.pop(name, None)
    return body


def nothing_to_ask(cells: Mapping[str, Any]) -> str:
    """Why a row without a body, messages or a prompt that is text cannot be asked."""
    for name, wanted in (("prompt", "a string"), ("messages", "a list of messages"), ("body", "an object")):
        if name in cells and (cells[name] is not None or name == "prompt"):
            return f"`{name}` is {kind_of(cells[name])}, not {wanted}"
    for name in ("messages", "body"):
        if name in cells:
            return f"`{name}` is null"
    return (
        f"no `prompt`, `messages` or `body`; the columns are: {names_of(cells)}. "
        "Use --template to build a prompt from them"
    )


def messages_problem(messages: Any) -> str:
    """What is wrong with a chat's messages; empty when nothing is."""
    if not isinstance(messages, list):
        return "`messages` is missing" if messages is None else f"`messages` is {kind_of(messages)}, not a list"
    if not messages:
        return "`messages` is empty"
    for place, message in enumerate(messages, 1):
        if problem := _message_problem(message):
            return f"message {place} {problem}"
    return ""


def _message_problem(message: Any) -> str:
    if not isinstance(message, dict):
        return f"is {kind_of(message)}, not an object"
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if not isinstance(role, str) or not role:
        return "has no `role`" if role in (None, "") else f"has a `role` that is {kind_of(role)}, not a string"
    if calls == []:
        return "has an empty `tool_calls`; leave it out"
    if content is None:
        return "" if calls else "has no `content`"
    return "" if isinstance(content, str | list) else f"has a `content` that is {kind_of(content)}"


def completions_problem(body: Mapping[str, Any]) -> str:
    """What is wrong with the prompt of a completions body; empty when nothing is."""
    if "messages" in body:
        return "has `messages`, but the completions endpoint takes a `prompt`"
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        return "`prompt` is missing" if prompt is None else f"`prompt` is {kind_of(prompt)}, not a string"
    return "" if prompt else "the prompt is empty"


def model_problem(body: Mapping[str, Any]) -> str:
    """What is wrong with the model a body names; empty when nothing is."""
    model = body.get("model")
    if model is None and "model" not in body:
        return _NO_MODEL
    if not isinstance(model, str):
        return f"`model` is {kind_of(model)}, not a string"
    return "" if model else "`model` is empty"


def settings_problem(body: Mapping[str, Any]) -> str:
    """What is wrong with the parameters batchrun itself must understand; empty when nothing is."""
    if body.get("stream"):
        return "`stream` is set; answers are always fetched whole"
    for name in (*_LIMITS, "n"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1):
            return f"`{name}` is not a whole number above 0"
    return ""


def _without_nulls(value: Any) -> Any:
    """Parquet's structs cannot leave a field out, so there null means absent; a message's `content` may be null."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_nulls(item)
        for name, item in value.items()
        if item is not None or (name == "content" and "role" in value)
    }
