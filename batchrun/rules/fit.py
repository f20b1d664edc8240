"""Does an answer fit the user's JSON Schema? Also: how a request asks for one, and where in an answer the JSON is.

The only owner of jsonschema-rs, which is loaded when a job has a schema and not before. What happens to an answer that
does not fit is the lanes' business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from batchrun.errors import UsageError

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

# An answer nested deeper than this is nobody's data. It stays far below what the JSON reader (its limit is the
# interpreter's, 1,000 frames by default) and the validator (255 levels of a schema) can take.
DEEPEST = 200

# How much of a path a message shows.
_PARTS_SHOWN = 8
_NAME_SHOWN = 40

_REFERRING = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "$schema", "$id"})
_TYPES = {
    "array": "an array", "boolean": "true or false", "integer": "a whole number", "null": "null",
    "number": "a number", "object": "an object", "string": "a string",
}  # fmt: skip


class Fit:
    """A schema, ready to judge answers; one may be used for any number of them.

    The draft is the one that `$schema` names, else 2020-12. Whether `format` is checked is as the draft has it: it is
    in drafts 4, 6 and 7, and is a mere note since 2019-09
    (https://json-schema.org/draft/2020-12/json-schema-validation, section 7.2.1).

    Raises:
        UsageError: jsonschema-rs is not installed, or this is no valid JSON Schema, or it refers to another file or
            address. Nothing is ever fetched.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = _compiled(dict(schema))
        self._names = frozenset(_names(schema))

    def problem(self, text: str | None) -> str:
        """Why an answer does not fit, empty when it does.

        The reason holds the place and the schema's keyword, never a value of the answer; names that only the answer
        knows are shown as an ellipsis.
        """
        if text is None or not text.strip():
            return "empty"
        found = parsed_text(text)
        if found is None:
            return "not JSON"
        try:
            value = msgspec.json.decode(found)
        except msgspec.ValidationError:  # well-formed, but beyond what a float or an integer of 4,300 digits holds
            return "holds a number that is too large"
        if _is_deep(found, value):
            return "nested too deeply"
        try:
            self._validator.validate(value)
        except ValueError as error:
            return self._reason(error)
        return ""

    def _reason(self, error: Any) -> str:
        if not hasattr(error, "kind"):  # not a verdict, but something the validator cannot take
            return "cannot be checked against the schema"
        return f"{self._place(error.instance_path)}{_broken(error.kind)}"

    def _place(self, path: list[str | int]) -> str:
        """The place in front of a reason; nothing for the whole answer."""
        if not path:
            return ""
        parts = [
            str(part) if isinstance(part, int) else _escaped(part)[:_NAME_SHOWN] if part in self._names else "…"
            for part in path[:_PARTS_SHOWN]
        ]
        more = "/…" if len(path) > _PARTS_SHOWN else ""
        return f"`/{'/'.join(parts)}{more}`: "


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter that asks for answers of this schema; its name comes from the schema's title.

    The OpenAPI file of Together (`ResponseFormat`) wants a `name` of letters, digits, `_` and `-`, 64 at most.
    """
    title = schema.get("title")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", title).strip("_")[:64] if isinstance(title, str) else ""
    return {"type": "json_schema", "json_schema": {"name": name or "answer", "schema": dict(schema)}}


def parsed_text(text: str | None) -> str | None:
    """The JSON inside an answer, without needless spaces and with every digit as it was; None when there is none.

    It is the whole answer, or what follows its `<think>...</think>`, or what the only Markdown fence holds. Some chat
    templates open the thoughts themselves, so that only their end stands in the answer (DeepSeek-R1 under vLLM).
    """
    if text is None:
        return None
    whole = text.strip()
    bare = _after_thoughts(whole)
    for candidate in (whole, bare, _fenced(bare)):
        if candidate and (found := _compact(candidate)) is not None:
            return found
    return None


def _after_thoughts(text: str) -> str:
    thoughts, end, rest = text.partition("</think>")
    return rest.strip() if end and "<think>" not in thoughts.removeprefix("<think>") else text


def _fenced(text: str) -> str | None:
    """What stands between the only two fence lines, if they say JSON or nothing."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    if len(fences) != 2:  # noqa: PLR2004 - one opens, one closes
        return None
    first, last = fences
    if lines[first].strip().lower() not in {"```", "```json"} or lines[last].strip() != "```":
        return None
    return "\n".join(lines[first + 1 : last])


def _compact(text: str) -> str | None:
    """The text without spaces when it is JSON. Numbers stay as they are written: they are never read as numbers."""
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _is_deep(text: str, value: Any) -> bool:
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    level = [value]
    for _ in range(DEEPEST):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return False
    return True


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _broken(kind: Any) -> str:
    """The keyword that is not met, in words where there are short ones; all of them from the schema."""
    match kind.name:
        case "type":
            return f"{' or '.join(_TYPES.get(name, name) for name in kind.types)} is wanted"
        case "required":
            return f"`{kind.property[:_NAME_SHOWN]}` is missing"
        case "additionalProperties" | "unevaluatedProperties":
            return "has a property that the schema does not allow"
        case "enum" | "const":
            return "is not one of the allowed values"
        case keyword:
            return f"does not meet `{keyword}`"


def _compiled(schema: dict[str, Any]) -> Validator:
    try:
        import jsonschema_rs
    except ImportError:
        raise UsageError("--schema needs the extra: pip install 'batchrun[schema]'") from None
    try:
        return jsonschema_rs.validator_for(schema, retriever=_never)
    except jsonschema_rs.ValidationError as error:
        raise _refused(schema, error) from None
    except (ValueError, RecursionError):  # its own limit is 255 levels
        raise UsageError("The schema is nested too deeply, or holds what JSON cannot.") from None


def _never(_address: str, /) -> NoReturn:
    raise LookupError


def _refused(schema: dict[str, Any], error: ValidationError) -> UsageError:
    """What is wrong with the schema: the place, not what stands there."""
    if error.kind.name != "$ref":
        place = _pointer(error.instance_path)
        return UsageError(f"The schema is no valid JSON Schema: what stands at `{place}` is not allowed there.")
    place = next((at for at, value in _references(schema, "") if _is_named(value, error.message)), "/")
    if place == "/$schema":
        return UsageError(
            "The `$schema` of the schema names no draft that is known here.",
            "Known are 4, 6, 7, 2019-09 and 2020-12; without it, 2020-12 counts.",
        )
    return UsageError(
        f"The schema refers at `{place}` to something that is not in the file.",
        "References are never fetched: put what it names under `$defs`.",
    )


def _is_named(reference: str, message: str) -> bool:
    """Whether the validator's message quotes this reference: whole, by its address, or by its fragment."""
    address, _, fragment = reference.partition("#")
    ends = [f"{part}'" for part in (reference, address) if part]
    return any(end in message for end in ends) or bool(fragment and f"'{fragment}'" in message)


def _references(value: Any, place: str) -> Iterator[tuple[str, str]]:
    for name, part in _named_parts(value):
        at = f"{place}/{_escaped(name)}"
        if name in _REFERRING and isinstance(part, str):
            yield at, part
        yield from _references(part, at)


def _names(schema: Any) -> Iterator[str]:
    """Every name of a property anywhere in the schema."""
    for name, part in _named_parts(schema):
        if name == "properties" and isinstance(part, Mapping):
            yield from part
        yield from _names(part)


def _named_parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return [(str(index), part) for index, part in enumerate(value)] if isinstance(value, list) else []


def _pointer(path: list[str | int]) -> str:
    """A JSON pointer (RFC 6901); `/` for the whole document, which is easier to see than nothing."""
    return "/" + "/".join(_escaped(str(part)) for part in path)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
