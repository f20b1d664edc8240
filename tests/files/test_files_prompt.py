"""What a row asks for, and what is said when it asks for nothing that can be sent."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import UsageError
from batchrun.files.prompt import Prompter
from batchrun.files.row import Row
from batchrun.job import Asking
from batchrun.records import BadRow, Endpoint, Request
from batchrun.rules.canonical import bad_digest, canonical, digest

USER = {"role": "user", "content": "hi"}


def row_of(cells, number=0):
    return Row(number, "a.jsonl:", 17, cells, json.dumps(cells).encode())


def asked(cells, **asking):
    asking.setdefault("model", "m")
    return Prompter(Asking(**asking)).request(row_of(cells))


def body(cells, **asking):
    request = asked(cells, **asking)
    assert isinstance(request, Request), request
    return json.loads(request.body)


def problem(cells, **asking):
    bad = asked(cells, **asking)
    assert isinstance(bad, BadRow), bad
    return bad.message


def test_a_prompt_becomes_one_user_message():
    request = asked({"id": 1, "prompt": "hi", "temperature": 9}, params={"max_tokens": 5})
    assert json.loads(request.body) == {"model": "m", "messages": [USER], "max_tokens": 5}
    assert (request.row, request.model, request.max_tokens, request.n) == (0, "m", 5, 1)
    assert request.body == canonical(json.loads(request.body))
    assert request.digest == digest(Endpoint.CHAT, request.body)


def test_a_completions_prompt_is_sent_as_it_is():
    request = asked({"prompt": "hi"}, endpoint=Endpoint.COMPLETIONS)
    assert json.loads(request.body) == {"model": "m", "prompt": "hi"}
    assert request.digest == digest(Endpoint.COMPLETIONS, request.body)


def test_messages_win_over_a_prompt_and_a_body_over_both():
    own = {"model": "theirs", "messages": [{"role": "user", "content": "body"}]}
    cells = {"prompt": "p", "messages": [{"role": "user", "content": "messages"}], "body": own}
    assert body(cells) == own
    del cells["body"]
    assert body(cells)["messages"][0]["content"] == "messages"
    cells["messages"] = None
    assert body(cells)["messages"][0]["content"] == "p"


def test_a_template_wins_over_everything_and_sees_every_column():
    cells = {"prompt": "p", "body": {}, "unit price": 3, "tags": ["a", "b"]}
    text = body(cells, template='{{ row["unit price"] }} {{ tags | join("+") }} <{{ prompt }}>\n')["messages"][0][
        "content"
    ]
    assert text == "3 a+b <p>"


def test_flags_fill_only_what_the_body_leaves_out_and_null_counts_as_there():
    own = {"messages": [USER], "temperature": None, "max_tokens": 7}
    assert body({"body": own}, params={"temperature": 1, "top_p": 0.5, "max_tokens": 9}) == {
        "model": "m", "messages": [USER], "temperature": None, "max_tokens": 7, "top_p": 0.5,
    }  # fmt: skip


def test_the_two_names_of_the_token_limit_are_one_setting():
    request = asked({"body": {"messages": [USER], "max_completion_tokens": 7}}, params={"max_tokens": 9})
    assert "max_tokens" not in json.loads(request.body)
    assert request.max_tokens == 7


def test_a_row_names_its_own_model_when_the_job_names_none():
    assert asked({"body": {"model": "theirs", "messages": [USER]}}, model=None).model == "theirs"
    assert asked({"body": {"model": "theirs", "messages": [USER]}}).model == "theirs"
    for cells in ({"body": {"messages": [USER]}}, {"messages": [USER], "model": "x"}, {"prompt": "hi", "model": "x"}):
        assert problem(cells, model=None) == "names no model. Give one with -m"


def test_a_system_message_goes_in_front_and_never_in_front_of_another():
    system = {"role": "system", "content": "Be brief."}
    for cells in ({"prompt": "hi"}, {"messages": [USER]}, {"body": {"messages": [USER]}}):
        assert body(cells, system="Be brief.")["messages"] == [system, USER]
    for role in ("system", "developer"):
        assert "system message already" in problem({"messages": [{"role": role, "content": "x"}, USER]}, system="y")


def test_n_and_the_token_limit_are_read_from_the_body():
    request = asked({"body": {"messages": [USER], "n": 3, "max_tokens": 40}})
    assert (request.n, request.max_tokens) == (3, 40)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "`messages` is a string, not a list"),
        ({}, "`messages` is an object, not a list"),
        ([], "`messages` is empty"),
        ([USER, "hi"], "message 2 is a string, not an object"),
        ([{"content": "hi"}], "message 1 has no `role`"),
        ([{"role": 3, "content": "hi"}], "message 1 has a `role` that is a number, not a string"),
        ([{"role": "user"}], "message 1 has no `content`"),
        ([{"role": "user", "content": None}], "message 1 has no `content`"),
        ([{"role": "user", "content": 3}], "message 1 has a `content` that is a number"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": []}],
            "message 1 has an empty `tool_calls`; leave it out",
        ),
    ],
)
def test_messages_that_are_no_chat_are_bad_rows(messages, message):
    assert problem({"messages": messages}) == message
    assert problem({"body": {"messages": messages}}) == message


@pytest.mark.parametrize("content", ["", [{"type": "text", "text": "hi"}]])
def test_content_may_be_empty_text_or_parts(content):
    assert body({"messages": [{"role": "user", "content": content}]})["messages"][0]["content"] == content


def test_content_may_be_null_beside_tool_calls():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert body({"messages": [call]})["messages"] == [call]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"prompt": None}, "`prompt` is null, not a string"),
        ({"prompt": 12}, "`prompt` is a number, not a string"),
        ({"prompt": True}, "`prompt` is true or false, not a string"),
        ({"prompt": ["a"]}, "`prompt` is a list, not a string"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"messages": None}, "`messages` is null"),
        ({"body": None}, "`body` is null"),
        ({"body": "{}"}, "`body` is a string, not an object"),
        ({"body": {}}, "`messages` is missing"),
        ({"body": {"prompt": "hi"}}, "`messages` is missing"),
        ({"body": {"messages": [USER], "stream": True}}, "`stream` is set; answers are always fetched whole"),
        ({"body": {"messages": [USER], "max_tokens": "9"}}, "`max_tokens` is not a whole number above 0"),
        ({"body": {"messages": [USER], "max_tokens": 0}}, "`max_tokens` is not a whole number above 0"),
        ({"body": {"messages": [USER], "max_tokens": True}}, "`max_tokens` is not a whole number above 0"),
        ({"body": {"messages": [USER], "max_completion_tokens": 1.5}},
         "`max_completion_tokens` is not a whole number above 0"),
        ({"body": {"messages": [USER], "n": -1}}, "`n` is not a whole number above 0"),
        ({"body": {"messages": [USER], "model": None}}, "`model` is null, not a string"),
        ({"body": {"messages": [USER], "model": ""}}, "`model` is empty"),
        ({"id": 1, "question": "q"}, ("no `prompt`, `messages` or `body`; the columns are: id, question. "
          "Use --template to build a prompt from them")),
        ({}, "no `prompt`, `messages` or `body`; the columns are: none. Use --template to build a prompt from them"),
    ],
)  # fmt: skip
def test_a_row_that_asks_for_nothing_says_why(cells, message):
    assert problem(cells) == message


def test_very_many_and_very_long_column_names_do_not_flood_the_message():
    message = problem({"x" * 100: 1} | {f"c{n}": n for n in range(50)})
    assert "x" * 40 + "…, c0, c1" in message
    assert "and 39 more" in message


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"messages": [USER]}, "has `messages`, but the completions endpoint takes a `prompt`"),
        ({"body": {"messages": [USER]}}, "has `messages`, but the completions endpoint takes a `prompt`"),
        ({"body": {"prompt": ["a", "b"]}}, "`prompt` is a list, not a string"),
        ({"body": {"prompt": ""}}, "the prompt is empty"),
        ({"body": {}}, "`prompt` is missing"),
    ],
)
def test_completions_take_one_prompt_that_is_text(cells, message):
    assert problem(cells, endpoint=Endpoint.COMPLETIONS) == message


def test_a_bad_row_is_known_by_its_bytes_and_says_where_it_is():
    row = Row(4, "a.jsonl:", 17, None, b"{oops\r\n", "not valid JSON at byte 2")
    assert Prompter(Asking(model="m")).request(row) == BadRow(
        4, bad_digest(b"{oops"), "a.jsonl:17", "not valid JSON at byte 2"
    )
    assert asked({"prompt": None}).digest == bad_digest(b'{"prompt": null}')


def test_half_of_a_surrogate_pair_makes_a_bad_row():
    row = Row(0, "a.jsonl:", 1, {"prompt": "\ud83d"}, b"...")
    assert Prompter(Asking(model="m")).request(row).message == "holds half of a surrogate pair"


def test_what_is_nested_too_deeply_to_be_sent_makes_a_bad_row():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    row = Row(0, "a.jsonl:", 1, {"messages": [{"role": "user", "content": deep}]}, b"...")
    assert Prompter(Asking(model="m")).request(row).message == "nested too deeply"
    while deep:  # taken apart by hand: a chain this long can be too much for the interpreter's own stack
        deep = deep.pop()


def test_equal_rows_have_one_digest_whatever_stands_beside_the_prompt():
    first, second = asked({"id": 1, "prompt": "hi"}), asked({"prompt": "hi", "id": 2})
    assert first.digest == second.digest != asked({"prompt": "hi "}).digest


def test_no_message_quotes_a_prompt():
    secret = "the secret ingredient"
    for cells in (
        {"prompt": [secret]}, {"body": secret}, {"messages": [secret]}, {"messages": [{"role": {"a": secret}}]},
        {"body": {"messages": [USER], "model": [secret]}}, {"body": {"messages": [USER], "n": secret}},
    ):  # fmt: skip
        assert secret not in problem(cells)
    for template in ("{{ {}[prompt] }}", "{{ prompt + 1 }}", "{{ prompt.nothing.at_all }}", "{{ prompt | round }}"):
        assert secret not in problem({"prompt": secret}, template=template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ question }}", "the template uses `question`, and the columns are: id, prompt"),
        ("\n{{ prompt.x.y }}", "the template asks for something that is not in the row (line 2 of the template)"),
        ("{{ id / 0 }}", "the template fails with ZeroDivisionError (line 1 of the template)"),
        ("{{ prompt + 1 }}", "the template fails with TypeError (line 1 of the template)"),
        ("{{ ''.__class__.__mro__ }}", "the template fails with SecurityError (line 1 of the template)"),
        ("{% if id == 2 %}x{% endif %}\n", "the prompt is empty"),
    ],
)
def test_a_template_that_fails_on_a_row_makes_it_a_bad_row(template, message):
    assert problem({"id": 1, "prompt": "hi"}, template=template) == message


def test_a_template_leaves_text_alone_and_shows_bytes_as_json_would():
    assert body({"a": "<b> & 'c'"}, template="{{ a }}")["messages"][0]["content"] == "<b> & 'c'"
    row = Row(0, "a.parquet row ", 1, {"a": b"\xff\x00"})
    request = Prompter(Asking(model="m", template="{{ a }}")).request(row)
    assert json.loads(request.body)["messages"][0]["content"] == "/wA="


def test_a_template_may_ask_whether_a_column_is_there():
    assert body({"id": 1}, template="{{ 'yes' if name is defined else 'no' }}")["messages"][0]["content"] == "no"


def test_a_template_that_does_not_compile_stops_the_job_and_names_the_line():
    with pytest.raises(UsageError, match="does not compile: line 2"):
        Prompter(Asking(model="m", template="fine\n{% if %}"))


def test_parameters_that_no_row_could_be_sent_with_stop_the_job():
    for params in ({"stream": True}, {"max_tokens": 0}, {"n": "2"}):
        with pytest.raises(UsageError, match="cannot be sent"):
            Prompter(Asking(model="m", params=params))


SCHEMA = {"title": "A count", "type": "object", "properties": {"count": {"type": "integer"}, "none": {"type": "null"}}}
WANTED = {"type": "json_schema", "json_schema": {"name": "A_count", "schema": SCHEMA}}


def test_a_schema_is_asked_for_in_every_chat_body_and_changes_every_digest():
    for cells in ({"prompt": "hi"}, {"messages": [USER]}, {"body": {"messages": [USER]}}):
        assert body(cells, schema=SCHEMA, params={"top_p": 1})["response_format"] == WANTED
        digests = {asked(cells, schema=schema).digest for schema in (None, {}, SCHEMA)}
        assert len(digests) == 3
    assert body({"id": 1}, schema=SCHEMA, template="{{ id }}")["response_format"] == WANTED
    assert "response_format" not in body({"prompt": "hi"})


def test_a_body_with_another_response_format_is_a_bad_row_and_with_the_same_a_good_one():
    told = "has a `response_format` of its own, and --schema would put another in its place"
    named = {"type": "json_schema", "json_schema": {"name": "mine", "schema": SCHEMA}}
    for own in ({"type": "text"}, named, None, 3, {**WANTED, "strict": True}):
        assert problem({"body": {"messages": [USER], "response_format": own}}, schema=SCHEMA) == told
        assert body({"body": {"messages": [USER], "response_format": own}})["response_format"] == own
    same = asked({"body": {"messages": [USER], "response_format": WANTED}}, schema=SCHEMA)
    assert same.digest == asked({"body": {"messages": [USER]}}, schema=SCHEMA).digest


def test_what_is_no_schema_stops_the_job():
    with pytest.raises(UsageError, match="no valid JSON Schema: what stands at `/type`"):
        Prompter(Asking(model="m", schema={"type": "secret"}))


def parquet_request(tmp_path, rows_of, cells):
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "a.parquet")
    prompter = Prompter(Asking(model="m"))
    return [prompter.request(row) for row in rows_of(tmp_path / "a.parquet")]


def test_a_field_that_parquet_cannot_leave_out_is_left_out_when_null(tmp_path, rows_of):
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi", "name": "Ann"}]
    first, second = parquet_request(tmp_path, rows_of, [{"messages": messages}, {"messages": [USER]}])
    assert first.digest == asked({"messages": messages}).digest
    assert second.digest == asked({"messages": [USER]}).digest


def test_the_same_prompts_ask_the_same_in_either_form(tmp_path, rows_of):
    (request,) = parquet_request(tmp_path, rows_of, [{"id": 7, "prompt": "Grüße 🙂"}])
    assert request.digest == asked({"prompt": "Grüße 🙂"}).digest


def test_a_prompt_that_is_binary_is_a_bad_row(tmp_path, rows_of):
    (bad,) = parquet_request(tmp_path, rows_of, [{"prompt": b"hi"}])
    assert bad.message == "`prompt` is bytes, not a string"
    assert bad.where == "a.parquet row 1"


def test_the_order_of_a_schemas_properties_is_kept_on_the_wire_and_is_no_part_of_identity() -> None:
    first = {"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "string"}}}
    second = {"type": "object", "properties": {"answer": {"type": "string"}, "why": {"type": "string"}}}
    sent = [asked({"prompt": "p"}, schema=schema) for schema in (first, second)]
    assert sent[0].digest == sent[1].digest
    assert [r.body.index(b'"why":{') < r.body.index(b'"answer":{') for r in sent] == [True, False]
