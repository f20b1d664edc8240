"""The JSON of files, batches and result lines, in every shape that documents, SDKs and real files have shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun.api import jobs, wire
from batchrun.records import Broken, Completion, Fault, Refusal, RemoteFile, RemoteJob, ResultLine, Usage
from batchrun.rules import faults

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"
NOW = 1_767_225_600.0
GOOD = b'{"id": "x",  "choices":[{"message":{"content":"Ebro\\u00e9 \xc3\xa9"},"finish_reason":"stop"}], "model":"m",\
"usage":{"prompt_tokens":3,"completion_tokens":2},"n":1.50}'
CREDITS = "Credit limit exceeded. Please navigate to billing to add credit or upgrade your plan."


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


# --- jobs ------------------------------------------------------------------------------------------------------------


def job(**fields: Any) -> RemoteJob:
    found = jobs.job(encoded({"id": "b", **fields}))
    assert found is not None
    return found


def test_a_job_may_lack_everything_but_its_id():
    assert job() == RemoteJob("b", "", "")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b"{}", b'{"id":null}', b'{"id":"."}', b'{"job":null}'])
def test_without_an_id_there_is_no_job(body: bytes):
    assert jobs.job(body) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("COMPLETED", "COMPLETED"),
        ("in_progress", "IN_PROGRESS"),
        (" Canceling ", "CANCELING"),
        ("PAUSED_FOR_REVIEW", "PAUSED_FOR_REVIEW"),
        (None, ""),
        (7, ""),
    ],
)
def test_a_status_is_the_providers_word_in_capitals(said: Any, expected: str):
    assert job(status=said).status == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        *[(0, 0.0), (100, 100.0), (12.5, 12.5), ("12.5", 12.5)],
        *[(said, None) for said in (None, -1, 101, "half", "nan", True, {})],
    ],
)
def test_progress_is_percent_or_unknown(said: Any, expected: float | None):
    assert job(progress=said).progress == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2025-06-10T12:00:00Z", 1749556800.0),
        ("2025-06-10T12:00:00.5Z", 1749556800.5),
        ("2025-06-10T12:00:00.123456789Z", 1749556800.123456),
        ("2025-06-10T14:00:00.25+02:00", 1749556800.25),
        ("2025-06-10T05:00:00-0700", 1749556800.0),
        ("2025-06-10 12:00:00.123 +0000 UTC", 1749556800.123),
        ("2025-06-10t12:00:00z", 1749556800.0),
        ("2025-06-10T12:00:00", 1749556800.0),
        (1749556800, 1749556800.0),
        (1749556800.5, 1749556800.5),
        (1749556800500, 1749556800.5),
        ("1749556800", 1749556800.0),
        ("0001-01-01T00:00:00Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (0, None),
        (True, None),
    ],
)
def test_a_time_is_seconds_since_the_epoch(said: Any, expected: float | None):
    assert job(created_at=said).created == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("It failed.", "It failed."),
        ({"message": "It failed.", "code": "x"}, "It failed."),
        ([{"error": {"message": "It failed."}}], "It failed."),
        (None, ""),
        ("", ""),
        ({}, ""),
    ],
)
def test_what_went_wrong_may_be_a_sentence_or_an_object(said: Any, expected: str):
    assert job(error=said).error == expected


@pytest.mark.parametrize("said", ["", None, 7, ".."])
def test_a_file_id_that_is_none_is_none(said: Any):
    assert job(output_file_id=said, error_file_id=said, input_file_id=said) == RemoteJob("b", "", "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"id": "f", "filename": "a.jsonl", "bytes": 7}, RemoteFile("f", "a.jsonl", 7)),
        ({"id": "f", "file_name": "a.jsonl", "size": 0}, RemoteFile("f", "a.jsonl", 0)),
        ({"id": "f", "bytes": True, "filename": None}, RemoteFile("f", "", None)),
        ({"id": "f", "bytes": -1}, RemoteFile("f", "", None)),
        ({"filename": "a.jsonl"}, None),
        (b"<html>", None),
    ],
)
def test_a_file_may_lack_everything_but_its_id(body: Any, expected: RemoteFile | None):
    assert jobs.file(encoded(body)) == expected


# --- result lines ----------------------------------------------------------------------------------------------------


def outcome(line: Any) -> Completion | Refusal | Broken:
    found = jobs.result_line(encoded(line), NOW)
    assert found is not None
    assert found.custom_id == "a-1"
    return found.outcome


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id":"a-1","response":{"status_code":200,"body":%b}}',
        b'{"id":"br_1","custom_id":"a-1","response":{"status_code":200,"body":%b,"request_id":"r"},"error":null}\r',
        b'{"response" : { "body" :   %b , "status_code":"200"} , "custom_id" : "a-1", "error":{}}',
        b'{"custom_id":"a-1","response":{"body":%b}}',
        b'{"custom_id":"a-1","error":"left over","response":{"body":%b}}',
        b'\xef\xbb\xbf{"custom_id":"a-1","response":{"status_code":null,"body":%b}}',
    ],
)
def test_an_answer_is_the_body_of_the_line_byte_for_byte(line: bytes):
    assert outcome(line % GOOD) == Completion(GOOD, "m", "stop", Usage(3, 2), None)


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("good_*.json")))
def test_every_good_reply_is_an_answer_in_a_line_too(name: str):
    seen = msgspec.json.decode((WIRE / f"{name}.json").read_bytes())
    body = json.dumps(seen["body"]).encode() if "body" in seen else seen["text"].encode()
    got = outcome(b'{"custom_id":"a-1","response":{"status_code":200,"body":%b}}' % body)
    assert isinstance(got, Completion)
    assert got.body == body


ERRORS: list[tuple[Any, tuple[int, str, str], Fault]] = [
    (
        {"error": {"message": "Invalid model specified", "code": "invalid_model"}},
        (0, "invalid_model", "Invalid model specified"),
        Fault.MODEL_MISSING,
    ),
    ({"error": {"message": "Request timeout", "code": "timeout"}}, (0, "timeout", "Request timeout"), Fault.SERVER),
    ({"error": "Request timeout", "response": None}, (0, "", "Request timeout"), Fault.SERVER),
    ({"error": {"message": CREDITS}}, (0, "", CREDITS), Fault.CREDITS),
    ({"error": {"code": "invalid_model"}}, (0, "invalid_model", "invalid_model"), Fault.MODEL_MISSING),
    ({"error": {"odd": 1}}, (0, "", "no reason given"), Fault.SERVER),
    ({"error": {"message": "Pay", "code": 402}}, (402, "402", "Pay"), Fault.CREDITS),
    ({"error": {"message": "Slow", "status": 429}}, (429, "", "Slow"), Fault.THROTTLED),
    ({"error": {"message": "No", "code": True}}, (0, "true", "No"), Fault.SERVER),
    ({"response": {"status_code": 500}}, (500, "", "HTTP status 500"), Fault.SERVER),
    ({"response": {"status_code": 500, "body": None}, "error": "It broke."}, (500, "", "It broke."), Fault.SERVER),
    ({"response": {"status_code": 400, "body": {"error": {"message": "No."}}}}, (400, "", "No."), Fault.BAD_REQUEST),
    ({"response": {"body": {"error": {"message": "No."}}}}, (0, "", "No."), Fault.SERVER),
    ({"response": {"status_code": 200, "body": {"error": CREDITS}}}, (0, "", CREDITS), Fault.CREDITS),
    ({"response": {"status_code": 402, "body": "text"}}, (402, "", "HTTP status 402"), Fault.CREDITS),
    ({"response": {"status_code": 7, "body": {"error": "No."}}}, (0, "", "No."), Fault.SERVER),
]


@pytest.mark.parametrize(("line", "read", "fault"), ERRORS)
def test_an_error_is_found_wherever_it_stands(line: Any, read: tuple[int, str, str], fault: Fault):
    got = outcome({"custom_id": "a-1", **line})
    assert isinstance(got, Refusal)
    assert (got.status, got.code, got.message) == read
    assert faults.trouble(got).fault is fault


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"response": None, "error": None},
        {"response": {}},
        {"response": "text"},
        {"response": {"body": {}}},
        {"response": {"body": {"choices": []}}},
        {"response": {"body": "text", "status_code": 200}},
        {"response": {"body": GOOD.decode()}},
    ],
    ids=str,
)
def test_a_line_with_neither_answer_nor_error_is_garbled(line: Any):
    got = outcome({"custom_id": "a-1", **line})
    assert isinstance(got, Broken)
    assert (got.garbled, got.maybe_paid) == (True, True)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"not JSON",
        b"\xff\xfe",
        b"{}",
        b'{"custom_id":""}',
        b'{"custom_id":7,"response":{}}',
        b'{"custom_id":"a","x":' + b"[" * 100_000,
        b'{"custom_id":"a","response":{"status_code":200,"body":{"cho',
    ],
    ids=lambda line: line[:30],
)
def test_a_line_that_is_nobodys_is_none(line: bytes):
    assert jobs.result_line(line, NOW) is None


def test_a_mark_before_the_first_line_hides_no_error():
    got = outcome(b'\xef\xbb\xbf{"custom_id":"a-1","error":{"message":"Slow","code":"rate_limit"}}')
    assert got == Refusal(0, "", "rate_limit", "Slow", None)


def test_a_refusal_in_a_line_is_to_be_redacted_like_any_other():
    found = jobs.result_line(encoded({"custom_id": "a", "error": {"message": "Bad: Name a river in Spain."}}), NOW)
    assert isinstance(found, ResultLine)
    assert isinstance(found.outcome, Refusal)
    body = b'{"messages":[{"content":"Name a river in Spain.","role":"user"}]}'
    assert wire.redacted(found.outcome.message, body, "key") == "Bad: …"
