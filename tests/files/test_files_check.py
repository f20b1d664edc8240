"""What `check` says of prompts, batch lines and training data: each bad line by its number, and never its contents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.files import check, check_batch, check_fine_tune, source
from batchrun.files.check import Kind
from batchrun.files.prompt import Prompter
from batchrun.job import Asking
from batchrun.records import BadRow

MODEL = "openai/gpt-oss-20b"
SAMPLES = Path(__file__).parent.parent.parent / "samples"
SECRET = "the heron at dawn"

Put = Callable[[str, bytes], Path]


def checked(path: Path, kind: Kind | None = None, **asking: Any) -> tuple[check.Report, list[tuple[int | None, str]]]:
    problems: list[tuple[int | None, str]] = []
    [file] = source.discover([str(path)])
    report = check.Checker(kind, Asking(**asking)).check(
        file, lambda problem: problems.append((problem.line, problem.reason))
    )
    assert report.problems == len(problems)
    assert SECRET not in str(problems) + str(report.warnings)
    return report, problems


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def ready(name: Any, model: str = MODEL, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "body": {"model": model, "messages": [said("user")], **body}}


def said(role: str, content: Any = SECRET, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# Prompts


@pytest.mark.parametrize(
    "asking",
    [{}, {"model": MODEL}, {"model": MODEL, "system": "Be brief."}, {"template": "{{ prompt }}", "model": MODEL}],
    ids=str,
)
@pytest.mark.parametrize("name", ["awkward.jsonl", "prompts.parquet", "batch.jsonl", "tickets.jsonl"])
def test_prompts_fail_exactly_where_the_first_pass_of_a_run_would_refuse_them(name: str, asking: Any) -> None:
    _, problems = checked(SAMPLES / name, Kind.PROMPTS, **asking)
    prompter = Prompter(Asking(**{"model": "any/model", **asking}))
    rows = [row for chunk in source.Reader(source.discover([str(SAMPLES / name)])).chunks() for row in chunk]
    refused = [(row.line, made.message) for row in rows if isinstance(made := prompter.request(row), BadRow)]
    assert problems == refused


def test_rows_without_a_model_pass_with_a_warning_when_no_model_was_given(put: Put) -> None:
    path = put("p.jsonl", jsonl({"prompt": SECRET}, ready("a"), {"prompt": SECRET}))
    report, problems = checked(path, Kind.PROMPTS)
    assert (report.passed, problems, report.models) == (True, [], (MODEL,))
    assert [(warned.rows, warned.line) for warned in report.warnings] == [(2, 1)]
    assert "-m" in report.warnings[0].reason
    assert not checked(path, Kind.PROMPTS, model=MODEL)[0].warnings


# Which kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (jsonl({"prompt": "x"}), Kind.PROMPTS),
        (jsonl(ready("a")), Kind.BATCH),
        (b"[1]\n{broken\n" + jsonl(ready("a")), Kind.BATCH),
        (jsonl({"custom_id": "a"}, ready("b")), Kind.PROMPTS),
        (jsonl({"messages": [said("user"), said("assistant")]}), Kind.PROMPTS),
        (b"{broken\n", Kind.PROMPTS),
        (b"", Kind.PROMPTS),
    ],
)
def test_the_first_readable_row_says_what_a_file_is(put: Put, content: bytes, kind: Kind) -> None:
    assert checked(put("x.jsonl", content))[0].kind is kind


# Batch lines


def test_ready_batch_lines_pass() -> None:
    report, problems = checked(SAMPLES / "batch.jsonl")
    assert problems == []
    assert (report.passed, report.kind, report.samples, report.warnings) == (True, Kind.BATCH, 20, ())
    assert len(report.models) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"body": {}}, "has no `custom_id`"),
        (ready(7), "`custom_id` is a number, not a string"),
        (ready(""), "`custom_id` has 0 characters; 1 to 64 are allowed"),
        (ready("x" * 65), "`custom_id` has 65 characters; 1 to 64 are allowed"),
        (ready("é" * 64), ""),
        (ready("first"), "`custom_id` is that of line 1; each must be unique"),
        ({"custom_id": "b"}, "has no `body`"),
        ({"custom_id": "b", "body": SECRET}, "`body` is a string, not an object"),
        ({"custom_id": "b", "body": {"messages": [said("user")]}}, "the body names no model"),
        (ready("b", ""), "in the body, `model` is empty"),
        (ready("b", "other/model"), "names another model than line 1; a batch file has one"),
        (ready("b", messages=[]), "in the body, `messages` is empty"),
        (ready("b", messages=[{"content": SECRET}]), "in the body, message 1 has no `role`"),
        (ready("b", stream=True), "in the body, `stream` is set; answers are always fetched whole"),
        (ready("b", stream=False), ""),
        (ready("b", max_tokens=0), "in the body, `max_tokens` is not a whole number above 0"),
        ([SECRET], "not a JSON object but a list"),
    ],
)
def test_a_batch_line_fails_for_its_own_reason(put: Put, line: Any, reason: str) -> None:
    _, problems = checked(put("b.jsonl", jsonl(ready("first"), line)), Kind.BATCH)
    assert problems == ([(2, reason)] if reason else [])


def test_a_line_that_cannot_be_read_is_told_by_its_number(put: Put) -> None:
    path = put("b.jsonl", jsonl(ready("a")) + b'{"custom_id": "caf\xe9"}\n{"custom_id":\n' + jsonl(ready("b")))
    assert checked(path)[1] == [(2, "not UTF-8 at byte 19"), (3, "not valid JSON: the line ends too soon")]


def test_openai_keys_are_a_warning_and_no_problem(put: Put) -> None:
    line = {**ready("a"), "method": "POST", "url": "/v1/chat/completions"}
    report, problems = checked(put("b.jsonl", jsonl(ready("z"), line, {**line, "custom_id": "b"})))
    assert problems == []
    assert [(warned.rows, warned.line) for warned in report.warnings] == [(2, 2)]
    assert report.warnings[0].reason.endswith("also: method, url")


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"A\n\nB\n", [(3, "a blank line stands before it")]),
        (b"\n \n\t\nA\n", [(4, "3 blank lines stand before it")]),
        (b"A\r\nB\r\n", []),
        (b"A\nB", []),
        (b"A\n\n", [(None, "ends with a blank line, after line 1")]),
        (b"A\r\n\r\n", [(None, "ends with a blank line, after line 1")]),
        (b"A\n  ", [(None, "ends with a blank line, after line 1")]),
    ],
    ids=repr,
)
def test_blank_lines_have_no_place_in_a_batch_file(put: Put, content: bytes, problems: Any) -> None:
    for name in (b"A", b"B"):
        content = content.replace(name, jsonl(ready(name.decode())).rstrip())
    assert checked(put("b.jsonl", content))[1] == problems


def test_a_byte_order_mark_has_no_place_in_a_batch_file(put: Put) -> None:
    [(line, reason)] = checked(put("b.jsonl", b"\xef\xbb\xbf" + jsonl(ready("a"))))[1]
    assert line is None
    assert "byte order mark" in reason


def test_limits_of_a_batch_file_are_told(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put("b.jsonl", jsonl(*(ready(str(number % 5)) for number in range(7))))
    monkeypatch.setattr(check_batch, "MOST_LINES", 4)
    monkeypatch.setattr(check_batch, "LARGEST_FILE", path.stat().st_size - 1)
    [(first, lines), (second, size)] = checked(path)[1]
    assert (first, second) == (None, None)
    assert lines.startswith("has 7 lines, and a batch file may have 4; ids were compared up to there.")
    assert size.startswith(f"has {path.stat().st_size:,} bytes")


def test_ids_past_the_most_lines_are_not_kept_in_memory(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put("b.jsonl", jsonl(*(ready(str(number)) for number in range(9))))
    monkeypatch.setattr(check_batch, "MOST_LINES", 3)
    [file] = source.discover([str(path)])
    lines = check_batch.BatchLines(file, lambda *_: None)
    assert [lines.problem(row) for chunk in source.Reader([file]).chunks() for row in chunk] == [""] * 9
    assert len(lines._ids) == 3


def test_a_line_longer_than_a_batch_takes_is_told(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_batch, "LARGEST_LINE", 200)
    long = ready("b", messages=[said("user", "x" * 300)])
    [(line, reason)] = checked(put("b.jsonl", jsonl(ready("a"), long)))[1]
    assert line == 2
    assert reason == f"is {len(json.dumps(long)) + 1} bytes long, and a line should have 200 at most"


def test_compressed_batch_lines_are_checked_with_a_warning_and_by_their_unpacked_size(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = jsonl(ready("a"), ready("a"))
    path = put("b.jsonl.gz", gzip.compress(lines))
    monkeypatch.setattr(check_batch, "LARGEST_FILE", len(lines) - 1)
    report, problems = checked(path)
    assert [line for line, _ in problems] == [2, None]
    assert report.size == path.stat().st_size < len(lines)
    assert "only plain .jsonl" in report.warnings[0].reason


# Training data

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}

GOOD_CHATS: list[Any] = [
    [said("user"), said("assistant")],
    [said("system"), said("user"), said("assistant"), said("user"), said("assistant")],
    [said("user", weight=0), said("assistant", weight=1)],
    [said("user"), {"role": "assistant", "tool_calls": [{}]}, said("tool"), said("tool"), said("assistant")],
    [said("user"), said("assistant", None, tool_calls=[{}])],
    [
        said("user", [{"type": "text", "text": "?"}, PICTURE]),
        said("assistant", [{"type": "text", "text": "!"}]),
    ],
]  # fmt: skip

BAD_CHATS: list[tuple[Any, str]] = [
    (None, "`messages` is missing"),
    (SECRET, "`messages` is a string, not a list"),
    ([], "`messages` is empty"),
    ([SECRET], "message 1 is a string, not an object"),
    ([{"content": SECRET}], "message 1 has no `role`"),
    ([said("user"), said(SECRET)], "message 2 has a `role` that is none of system, user, assistant, tool"),
    ([{"role": "user"}], "message 1 has no `content`"),
    ([said("user", 5)], "message 1 has a `content` that is a number"),
    ([said("user", tool_calls=[{}])], "message 1 has `tool_calls`; only an assistant's may"),
    ([said("user"), said("assistant", tool_calls="f")], "message 2 has a `tool_calls` that is a string, not a list"),
    ([said("system"), said("user")], "`messages` has no message of the assistant: there is nothing to learn"),
    ([said("user"), said("system"), said("assistant")], "message 2 is a system message; only the first may be one"),
    ([said("assistant")], "message 1 is the assistant's; the conversation must start with the system or the user"),
    ([said("user"), said("user")], "message 2 is the user's, as the one before it; user and assistant take turns"),
    ([said("user"), said("tool")], "message 2 is a tool's, but no `tool_calls` stand before it"),
    ([said("user", weight=2), said("assistant")], "message 1 has a `weight` that is neither 0 nor 1"),
    ([said("user", weight=None), said("assistant")], "message 1 has a `weight` that is neither 0 nor 1"),
    ([said("user", weight=True), said("assistant")], "message 1 has a `weight` that is neither 0 nor 1"),
    ([said("user", weight=1.0), said("assistant")], "message 1 has a `weight` that is neither 0 nor 1"),
    ([said("user", [SECRET])], "message 1 has a part 1 that is a string, not an object"),
    ([said("user", [{"type": "text"}])], "message 1 has a part 1 without a `text` that is a string"),
    ([said("user", [{"type": SECRET}])], "message 1 has a part 1 whose `type` is neither text nor image_url"),
    ([said("assistant", [{"type": "image_url"}])], "message 1 has an image; only a user's may"),
    (
        [said("user", [{"type": "image_url", "image_url": {"url": "https://a.example/heron.png"}}])],
        "message 1 has a part 1 whose image is no base64 data URL of a JPEG, PNG or WEBP",
    ),
    (
        [said("user", [PICTURE], weight=1), said("assistant")],
        "message 1 has an image and a `weight` that is not 0",
    ),
    ([said("user", [PICTURE] * 11), said("assistant")], "message 1 has 11 images; 10 are allowed"),
    (
        [said("user", [PICTURE] * 6), said("assistant", []), said("user", [PICTURE] * 5)],
        "the messages have 11 images; 10 are allowed",
    ),
    (
        [said("user", [{"type": "text", "text": "?"}]), said("assistant")],
        "some messages have text and some a list of parts; all must be of one sort",
    ),
]


@pytest.mark.parametrize("chat", GOOD_CHATS)
def test_a_conversation_that_can_be_learned_from_passes(put: Put, chat: Any) -> None:
    report, problems = checked(
        put("t.jsonl", jsonl({"messages": chat}, {"messages": chat, "tools": []})), Kind.FINE_TUNE
    )
    assert problems == []
    assert (report.form, report.samples, report.warnings) == ("conversational", 2, ())


@pytest.mark.parametrize(("chat", "reason"), BAD_CHATS, ids=[reason for _, reason in BAD_CHATS])
def test_a_conversation_that_cannot_be_learned_from_says_why(put: Put, chat: Any, reason: str) -> None:
    path = put("t.jsonl", jsonl({"messages": GOOD_CHATS[0]}, {"messages": chat}))
    assert checked(path, Kind.FINE_TUNE)[1] == [(2, reason)]


def pair(**changed: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "input": {"messages": [said("assistant"), said("user")]},
        "preferred_output": [said("assistant")],
        "non_preferred_output": [{"role": "assistant", "tool_calls": [{}]}],
    }
    return {**good, **changed}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(), ""),
        (pair(input=[]), "`input` is a list, not an object"),
        (pair(input={}), "in `input`, `messages` is missing"),
        (
            pair(input={"messages": [said("user"), said("assistant")]}),
            "in `input`, the last message is the assistant's; its turn is what the outputs are",
        ),
        (pair(preferred_output=SECRET), "`preferred_output` is a string, not a list of one message"),
        (pair(non_preferred_output=[]), "`non_preferred_output` has 0 messages; it must have one"),
        (pair(preferred_output=[said("assistant")] * 2), "`preferred_output` has 2 messages; it must have one"),
        (pair(preferred_output=[said("user")]), "`preferred_output` must be a message of the assistant"),
        (
            pair(preferred_output=[said("assistant", [SECRET])]),
            "`preferred_output` is wrong: its message has a part 1 that is a string, not an object",
        ),
        (pair(preferred_output=[{"role": "assistant"}]), "`preferred_output` is wrong: message 1 has no `content`"),
        (
            {"input": {}, "preferred_output": []},
            "has `input` and `preferred_output`, but no `non_preferred_output`",
        ),
    ],
)
def test_a_preference_pair_fails_for_its_own_reason(put: Put, row: Any, reason: str) -> None:
    report, problems = checked(put("t.jsonl", jsonl(row)), Kind.FINE_TUNE)
    assert problems == ([(1, reason)] if reason else [])
    assert report.form == ("" if "but no" in reason else "preference")


@pytest.mark.parametrize(
    ("row", "reason", "form"),
    [
        ({"prompt": "p", "completion": "c"}, "", "instruction"),
        ({"prompt": "p", "completion": 3}, "`completion` is a number, not a string", "instruction"),
        ({"prompt": "p"}, "has `prompt`, but no `completion`", ""),
        ({"text": "t"}, "", "generic text"),
        ({"text": ["t"]}, "`text` is a list, not a string", "generic text"),
        (
            {"text": "t", "messages": []},
            "fits more than one format: conversational and generic text. Take the columns of the others out",
            "",
        ),
        (
            {"question": "q"},
            f"has no known format; the columns are: question. Known: {check_fine_tune._KNOWN}",
            "",
        ),
        ("t", "not a JSON object but a string", ""),
    ],
)
def test_a_row_has_one_known_format(put: Put, row: Any, reason: str, form: str) -> None:
    report, problems = checked(put("t.jsonl", jsonl(row)), Kind.FINE_TUNE)
    assert problems == ([(1, reason)] if reason else [])
    assert report.form == form


def test_a_training_file_has_one_format(put: Put) -> None:
    rows = ({"x": 1}, {"prompt": "p", "completion": "c"}, {"text": "t"}, {"prompt": "p", "completion": "c"})
    _, problems = checked(put("t.jsonl", jsonl(*rows)), Kind.FINE_TUNE)
    assert [line for line, _ in problems] == [1, 3]
    assert problems[1][1] == "is generic text, but line 2 is instruction; a file has one format"


def test_extra_columns_and_empty_completions_are_warnings(put: Put) -> None:
    rows = ({"prompt": "", "completion": "", "id": 4}, {"prompt": "p", "completion": "c", "id": 5})
    report, problems = checked(put("t.jsonl", jsonl(*rows)), Kind.FINE_TUNE)
    assert problems == []
    assert [(warned.rows, warned.reason.split(":")[-1]) for warned in report.warnings] == [
        (2, " id"),
        (1, " there is nothing to learn from it"),
    ]


def test_blank_lines_and_a_byte_order_mark_are_let_pass_in_training_data(put: Put) -> None:
    path = put("t.jsonl", b"\xef\xbb\xbf" + jsonl({"text": "t"}) + b"\n\n" + jsonl({"text": "u"}))
    assert checked(path, Kind.FINE_TUNE)[1] == []


def test_a_picture_larger_than_training_takes_is_told(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_fine_tune, "_LONGEST_IMAGE", 20)
    path = put("t.jsonl", jsonl({"messages": [said("user", [PICTURE]), said("assistant")]}))
    assert checked(path, Kind.FINE_TUNE)[1] == [(1, "message 1 has a part 1 with an image of more than 10 MiB")]


@pytest.mark.parametrize(("name", "warned"), [("t.jsonl", False), ("t.ndjson", True), ("t.jsonl.gz", True)])
def test_training_data_that_must_be_unpacked_or_renamed_first_has_a_warning(put: Put, name: str, warned: bool) -> None:
    content = jsonl({"text": "t"})
    report, problems = checked(put(name, gzip.compress(content) if name.endswith("gz") else content), Kind.FINE_TUNE)
    assert problems == []
    assert ["only plain .jsonl" in warning.reason for warning in report.warnings] == [True] * warned


def test_more_bytes_than_can_be_uploaded_are_told(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_fine_tune, "LARGEST_FILE", 5)
    assert checked(put("t.jsonl", b'{"text":"t"}'), Kind.FINE_TUNE)[1] == [(None, "has 12 bytes; 5 can be uploaded")]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"input_ids": [[1, 2]], "labels": [[-100, 2]]}, ""),
        ({"input_ids": [[1, 2]], "labels": [[2]]}, "`labels` has 1 entries, and `input_ids` 2"),
        ({"input_ids": [[]]}, "`input_ids` is empty"),
        ({"input_ids": [["a"]]}, "`input_ids` is no list of whole numbers"),
        ({"messages": ["a"]}, "has no `input_ids`; Parquet is for tokenized data, write text as .jsonl"),
        (
            {"input_ids": [[1]], "id": [7]},
            "has columns that tokenized data may not have: id. Known: input_ids, attention_mask, labels, position_ids",
        ),
    ],
)
def test_parquet_is_for_tokenized_training_data(tmp_path: Path, columns: Any, reason: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    report, problems = checked(tmp_path / "t.parquet", Kind.FINE_TUNE)
    assert problems == ([(1, reason)] if reason else [])
    assert report.form == "tokenized"


# Files that are no files


def test_broken_empty_and_missing_files_are_problems_and_stop_no_other(put: Put, tmp_path: Path) -> None:
    whole = gzip.compress(jsonl(*({"prompt": str(number)} for number in range(5000))))
    put("cut.jsonl.gz", whole[: len(whole) // 2])
    put("bad.parquet", b"PAR1 and no more")
    put("empty.jsonl", b"")
    put("blank.jsonl", b"\n\n")
    put("good.jsonl", jsonl({"prompt": "p"}))
    put("notes.txt", b"")
    names = ["cut.jsonl.gz", "no.jsonl", "bad.parquet", "empty.jsonl", "blank.jsonl", "notes.txt", "good.jsonl"]
    said: dict[str, Any] = {}
    for file in check.found([*(str(tmp_path / name) for name in names), str(tmp_path / "good.jsonl")]):
        if isinstance(file, check.Missing):
            said[Path(file.typed).name] = file.reason
        else:
            assert Path(file.path).name not in said, "a file named twice is checked once"
            said[Path(file.path).name] = checked(Path(file.path))[1]
    assert said["no.jsonl"].startswith("does not exist.")
    assert said["notes.txt"].startswith("has an ending that is not known.")
    assert said["cut.jsonl.gz"] == [(None, "is cut short: the compressed data ends too soon. Fetch the file again.")]
    assert said["bad.parquet"] == [
        (None, "is cut short, damaged or not Parquet at all. Fetch or write the file again.")
    ]
    assert said["empty.jsonl"] == said["blank.jsonl"] == [(None, "has no rows")]
    assert said["good.jsonl"] == []


def test_a_word_that_can_be_no_file_name_is_a_problem_and_stops_no_other() -> None:
    first, second = check.found(["x" * 300, str(SAMPLES / "batch.jsonl")])
    assert first == check.Missing("x" * 300, "The input cannot be looked up: File name too long. Check the path.")
    assert isinstance(second, source.SourceFile)


def test_what_was_found_before_a_file_breaks_off_is_kept(put: Put) -> None:
    lines = [ready(str(number)) for number in range(20_000)]
    lines[1] = ready("0")
    whole = gzip.compress(jsonl(*lines))
    report, problems = checked(put("cut.jsonl.gz", whole[: len(whole) - 2000]))
    assert [line for line, _ in problems] == [2, None]
    assert 0 < report.samples < 20_000
    assert report.kind is Kind.BATCH


def test_names_and_warnings_are_bounded_however_many_there_are(put: Put) -> None:
    rows = [{**ready(str(number), f"m/{number}"), f"column {number}": 1} for number in range(100)]
    path = put("b.jsonl", jsonl(*rows))
    assert len(checked(path, Kind.PROMPTS)[0].models) == check.MOST_MODELS
    assert len(checked(path, Kind.BATCH)[0].warnings) == check.MOST_WARNINGS
