"""Which answers fit a schema, where the JSON in an answer is, and that no reason tells what an answer says."""

from __future__ import annotations

import json
import re
import socket

import msgspec
import pytest

from batchrun.errors import UsageError
from batchrun.rules.fit import DEEPEST, Fit, parsed_text, response_format

SECRET = "the-secret-of-the-answer"

ORDER = {
    "title": "An order",
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["a", "b"]},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"price": {"type": "number"}, "note": {"type": ["string", "null"], "pattern": "^x"}},
                "required": ["price"],
                "additionalProperties": False,
            },
        },
        "more": {"type": "object", "additionalProperties": {"type": "integer"}},
        "rest": {"$ref": "#"},
    },
    "required": ["count"],
}


def problem(value: object, schema: dict[str, object] | None = None) -> str:
    return Fit(schema or ORDER).problem(json.dumps(value))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', '{"a":1}'),
        (' \n{"a":\t[1, 2]}\r\n ', '{"a":[1,2]}'),
        ("null", "null"),
        ('<think>It has {"a": 2} in it.</think>\n\n{"a": 1}', '{"a":1}'),
        ('\n<think></think>{"a": 1}', '{"a":1}'),
        ('It has {"a": 2} in it.\n</think>\n{"a": 1}', '{"a":1}'),
        ('```json\n{"a": 1}\n```', '{"a":1}'),
        ('```\n[1]\n```\n', "[1]"),
        ('```JSON\r\n[1]\r\n```', "[1]"),
        ('Here it is:\n\n  ```json\n  {"a": 1}\n  ```\n\nAnything else?', '{"a":1}'),
        ('<think>Fences: ```json</think>\n```json\n{"a": 1}\n```', '{"a":1}'),
        ('```json\n{"a": "\\n```\\nx", "b": "```"}\n```', '{"a":"\\n```\\nx","b":"```"}'),
        ('"<think>1</think>2"', '"<think>1</think>2"'),
    ],
)  # fmt: skip
def test_the_json_in_an_answer_is_found(text: str, found: str) -> None:
    assert parsed_text(text) == found


@pytest.mark.parametrize(
    "text",
    [
        None, "", "  \n", "Sure.", '{"a": 1', '{"a": 1} and more', "{'a': 1}", '{"a": 1,}', "NaN", '{"a": Infinity}',
        "[-Infinity]", "01", '{"a": 1}{"a": 2}', "\ud800", '{"a": 1}\nas I said',
        'Well, <think>1</think>{"a": 1}', '<think>{"a": 1}', '```json\n{"a": 1}',
        '```json\n{"a": 1}\n```\n```json\n2\n```', '```python\n{"a": 1}\n```', '```json\nnot it\n```',
        "```json\n```", '"\t"',
    ],
)  # fmt: skip
def test_what_is_no_json_is_not_made_into_it(text: str | None) -> None:
    assert parsed_text(text) is None


@pytest.mark.parametrize(
    "number", ["12345678901234567890", "1" * 5000, "0.12345678901234567890123456789", "1e400", "-0", "1.0", "1E+2"]
)
def test_numbers_stay_as_they_are_written(number: str) -> None:
    assert parsed_text(f'{{ "a" : {number} }}') == f'{{"a":{number}}}'


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', '{"b":1,"a":2}', '"\\u00e9\\u0000é\\/"', '"a  b"'])
def test_order_doubles_escapes_and_spaces_in_strings_stay_as_they_are(text: str) -> None:
    assert parsed_text(text) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"count": 1}, ""),
        ({"count": 10**30}, ""),
        ({"count": 1.0, "items": [{"price": 1e300, "note": "x"}, {"price": 2, "note": None}]}, ""),
        ([], "an object is wanted"),
        ({}, "`count` is missing"),
        ({"count": "1"}, "`/count`: a whole number is wanted"),
        ({"count": 0}, "`/count`: does not meet `minimum`"),
        ({"count": 1, "kind": SECRET}, "`/kind`: is not one of the allowed values"),
        ({"count": 1, "items": [{"price": 1}, {"price": SECRET}]}, "`/items/1/price`: a number is wanted"),
        ({"count": 1, "items": [{"price": 1, "note": 1}]}, "`/items/0/note`: null or a string is wanted"),
        ({"count": 1, "items": [{"price": 1, "note": SECRET}]}, "`/items/0/note`: does not meet `pattern`"),
        ({"count": 1, "items": [{}]}, "`/items/0`: `price` is missing"),
        ({"count": 1, "items": [{"price": 1, SECRET: 1}]}, "`/items/0`: has a property that the schema does not allow"),
        ({"count": 1, "more": {SECRET: SECRET}}, "`/more/…`: a whole number is wanted"),
        ({"count": 1, "more": {"price": SECRET}}, "`/more/price`: a whole number is wanted"),
    ],
)
def test_an_answer_fits_or_there_is_a_reason_with_its_place(value: object, reason: str) -> None:
    told = problem(value)
    assert set(re.split(r"(\w+)", told)) == set(re.split(r"(\w+)", reason))  # whichever type is named first
    assert told.partition(" ")[0] in {reason.partition(" ")[0], "null", "a"}
    assert SECRET not in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "empty"),
        (" \n", "empty"),
        (f"Sorry, {SECRET}", "not JSON"),
        ('{"count": 1', "not JSON"),
        ('{"count": 1e999}', "holds a number that is too large"),
        (f'{{"count": {"9" * 5000}}}', "holds a number that is too large"),
        ('<think>hm</think>```', "not JSON"),
        ('<think>hm</think>\n```json\n{"count": 1}\n```', ""),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_json_says_so(text: str | None, reason: str) -> None:
    assert Fit(ORDER).problem(text) == reason


def test_no_keyword_lets_a_value_into_its_reason() -> None:
    for schema in (
        {"const": 1}, {"enum": [1]}, {"type": "null"}, {"pattern": "^q"}, {"minLength": 99}, {"maxLength": 1},
        {"not": {}}, {"anyOf": [{"type": "null"}]}, {"oneOf": [{}, {}]}, {"oneOf": [{"type": "null"}]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "format": "email"}, False, {"$ref": "#/$defs/a"},
    ):  # fmt: skip
        whole = {"properties": {"a": schema}, "$defs": {"a": {"type": "null"}}}
        if isinstance(schema, dict) and "$schema" in schema:
            whole["$schema"] = schema["$schema"]
        told = problem({"a": SECRET}, whole)
        assert told.startswith("`/a`: ")
        assert SECRET not in told
    for whole in (
        {"propertyNames": {"maxLength": 3}}, {"additionalProperties": False}, {"unevaluatedProperties": False},
        {"additionalProperties": {"type": "null"}}, {"maxProperties": 0}, {"patternProperties": {"secret": False}},
        {"type": "array"}, {"items": {"type": "null"}, "type": ["array"]}, {"dependentRequired": {SECRET: ["b"]}},
        {"additionalProperties": {"additionalProperties": {"required": ["x"]}}}, {"minProperties": 9},
    ):  # fmt: skip
        told = problem({SECRET: {SECRET: {SECRET: SECRET}}}, whole)
        assert told
        assert SECRET not in told


def test_a_long_place_is_cut_and_a_name_with_a_slash_is_escaped() -> None:
    value: object = {"count": "x"}
    for _ in range(20):
        value = {"count": 1, "rest": value}
    assert problem(value) == f"`{'/rest' * 8}/…`: a whole number is wanted"
    name = "a/b~c" + "d" * 100
    assert problem({name: 1}, {"properties": {name: {"type": "null"}}}).startswith("`/a~1b~0cddd")
    assert len(problem({name: 1}, {"properties": {name: {"type": "null"}}})) < 70


@pytest.mark.parametrize("levels", [DEEPEST + 1, 800, 1000, 5000, 100_000])
@pytest.mark.parametrize("schema", [{}, {"items": {"$ref": "#"}}, {"type": "object"}])
def test_an_answer_nested_ever_so_deep_is_refused_and_breaks_nothing(levels: int, schema: dict[str, object]) -> None:
    assert Fit(schema).problem("[" * levels + "]" * levels) in {"nested too deeply", "not JSON"}
    assert Fit(schema).problem("[" * levels) == "not JSON"


def test_an_answer_may_be_nested_as_deeply_as_people_nest_them() -> None:
    assert Fit({"type": "array", "items": {"$ref": "#"}}).problem("[" * DEEPEST + "]" * DEEPEST) == ""
    assert Fit({}).problem(json.dumps([[] for _ in range(DEEPEST * 2)])) == ""


def test_an_answer_of_a_megabyte_is_judged() -> None:
    items = [{"price": number + 0.5, "note": None} for number in range(40_000)]
    text = json.dumps({"count": 1, "items": items})
    assert len(text) > 1_000_000
    assert Fit(ORDER).problem(text) == ""
    assert json.loads(parsed_text(text) or "")["items"] == items
    for item in items:
        item["price"] = None
    assert Fit(ORDER).problem(json.dumps({"count": 1, "items": items})) == "`/items/0/price`: a number is wanted"
    assert Fit(ORDER).problem("x" * 1_000_000) == "not JSON"
    assert Fit(ORDER).problem("```\n" * 250_000) == "not JSON"


def test_the_draft_is_the_schemas_own_and_2020_12_when_it_names_none() -> None:
    tuples = {"prefixItems": [{"type": "null"}]}
    assert problem([1], tuples) == "`/0`: null is wanted"
    assert problem([1], {"$schema": "http://json-schema.org/draft-07/schema#", **tuples}) == ""
    mail = {"type": "string", "format": "email"}
    assert problem("nobody", mail) == ""  # a note, no rule, since 2019-09
    assert problem("nobody", {"$schema": "http://json-schema.org/draft-07/schema#", **mail}) == "does not meet `format`"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "nonsense"}, "/type"),
        ({"properties": {"a/b": {"minimum": SECRET}}}, "/properties/a~1b/minimum"),
        ({"required": SECRET}, "/required"),
        ({"items": {"pattern": "("}}, "/items/pattern"),
        ({"anyOf": [{}, 3]}, "/anyOf/1"),
        ({"$ref": 7}, "/$ref"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place_and_not_its_contents(
    schema: dict[str, object], place: str
) -> None:
    with pytest.raises(UsageError) as refused:
        Fit(schema)
    assert f"what stands at `{place}` is not allowed there" in refused.value.message
    assert SECRET not in refused.value.message + refused.value.next_step
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "http://127.0.0.1:{port}/x"}, "/$ref"),
        ({"properties": {"a": {"$ref": "https://localhost:{port}/x#/a"}}}, "/properties/a/$ref"),
        ({"items": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "file:///etc/hostname"}}}, "/$defs/a/$ref"),
        ({"$ref": "other.json"}, "/$ref"),
        ({"$id": "http://127.0.0.1:{port}/a", "items": {"$ref": "b.json"}}, "/items/$ref"),
        ({"$dynamicRef": "http://127.0.0.1:{port}/x"}, "/$dynamicRef"),
        ({"$ref": "#/$defs/nothing"}, "/$ref"),
        ({"$defs": {"a": {"$anchor": "b"}}, "$ref": "#b", "items": {"$ref": "#c"}}, "/items/$ref"),
    ],
)
def test_a_reference_out_of_the_schema_is_refused_and_never_fetched(schema: dict[str, object], place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        filled = msgspec.json.decode(json.dumps(schema).replace("{port}", str(port)))
        if place == "/$defs/a/$ref":
            filled["items"] = filled["items"][0]
        with pytest.raises(UsageError, match="not in the file") as refused:
            Fit(filled)
        assert f"`{place}`" in refused.value.message
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_references_within_the_schema_and_to_the_drafts_themselves_are_followed() -> None:
    inner = {"$id": "http://nowhere.invalid/a", "$defs": {"b": {"$id": "b.json", "type": "null"}}, "$ref": "b.json"}
    assert problem(1, inner) == "null is wanted"
    assert problem({"type": "nonsense"}, {"$ref": "https://json-schema.org/draft/2020-12/schema"})
    assert problem({"a": 1}, {"anyOf": [{"$ref": "#"}, {"type": "string"}]}) == ""  # round and round


def test_a_draft_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="names no draft"):
        Fit({"$schema": "http://json-schema.org/draft-03/schema#"})


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(UsageError, match="nested too deeply"):
        Fit(schema)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({}, "answer"),
        ({"title": "An order (v2)"}, "An_order_v2"),
        ({"title": "ok-Name_1"}, "ok-Name_1"),
        ({"title": "日本"}, "answer"),
        ({"title": "x" * 100}, "x" * 64),
        ({"title": 3}, "answer"),
    ],
)
def test_a_request_names_the_schema_by_its_title(schema: dict[str, object], name: str) -> None:
    wanted = response_format(schema)
    assert wanted == {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
