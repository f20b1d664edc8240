"""Good replies, each with what is read out of it, and those that are no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun.api import wire
from batchrun.records import Broken, Completion, Fault, Reply, Usage

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"
GOOD = sorted(path.stem for path in WIRE.glob("good_*.json"))
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Four."}}


def read(body: bytes, status: int = 200) -> Any:
    return wire.read(Reply(status, {}, body, 1.5), 0.0)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_reply_is_read(name: str):
    expected = msgspec.json.decode((WIRE / f"{name}.json").read_bytes())
    body = msgspec.json.encode(expected["body"])
    fault = expected["fault"] and Fault(expected["fault"])
    usage = expected["usage"] and Usage(*expected["usage"])
    assert read(body) == Completion(body, expected["model"], expected["finish_reason"], usage, fault)
    assert wire.texts(body) == (expected["answer"], expected["reasoning"])


def test_the_good_replies_are_there():
    assert len(GOOD) >= 26


@pytest.mark.parametrize("status", [200, 201, 202, 206, 299])
def test_every_2xx_with_a_choice_is_an_answer(status: int):
    assert isinstance(read(msgspec.json.encode({"choices": [CHOICE]}), status), Completion)


def test_the_body_is_kept_as_it_came():
    body = b' {"choices" : [ {"text":"\\u0046our."} ],"x":1.50}\n'
    assert read(body).body == body


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Internal Server Error", "type": None}},
        {"error": "overloaded"},
        {"error": {"message": "late"}, "choices": [CHOICE]},
        {"id": "x", "choices": []},
        {"choices": None},
        {"choices": {"0": CHOICE}},
        {"choices": [None]},
        {"choices": ["Four."]},
        {"choices": [[]]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "Four."}]},
        {"choices": [{"message": None, "text": 4}]},
        {"choices": [{"delta": {"content": "Four."}}]},
        {"choices": [{}, CHOICE]},
        {"choice": [CHOICE]},
        {"object": "error", "message": "no"},
        {"detail": "no"},
        {},
        [],
        [CHOICE],
        [{"choices": [CHOICE]}],
        None,
        True,
        0,
        4.5,
        "Four.",
    ],
)
def test_a_reply_without_an_answer_is_garbled_and_may_have_been_paid(body: Any):
    broken = read(msgspec.json.encode(body))
    assert isinstance(broken, Broken)
    assert (broken.maybe_paid, broken.garbled, broken.seconds) == (True, True, 1.5)
    assert "Four" not in broken.message
    assert wire.texts(msgspec.json.encode(body)) == (None, None) or "error" in body


WHOLE = msgspec.json.encode({"choices": [CHOICE]})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html>502</html>",
        b"Four.",
        b"data: " + WHOLE + b"\n\ndata: [DONE]\n\n",
        WHOLE[:-1],
        WHOLE + WHOLE,
        WHOLE + b",",
        b"\xef\xbb\xbf" + WHOLE,
        WHOLE.replace(b"Four.", b"Fo\xff\xfer."),
        WHOLE.replace(b"Four.", b"\\ud83d"),
        WHOLE.replace(b'"index":0', b'"index":NaN'),
        WHOLE.replace(b'"index":0', b'"index":1e999'),
        b"[" * 100_000,
        b'{"choices":[' * 100_000,
    ],
)
def test_a_reply_that_is_not_json_is_garbled(body: bytes):
    broken = read(body)
    assert isinstance(broken, Broken)
    assert (broken.maybe_paid, broken.garbled) == (True, True)
    assert wire.texts(body) == (None, None)


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_no_beginning_of_a_reply_is_an_answer(cut: int):
    assert isinstance(read(WHOLE[:cut]), Broken)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 0}, Usage(1, 0)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": -1}, Usage(1, 2)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": "1"}, Usage(1, 2)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": True}, Usage(1, 2)),
        ({"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": [1]}, Usage(1, 2)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "cached_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 5},
            },
            Usage(9, 2, 0),
        ),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": 1.0, "completion_tokens": 2}, None),
        ({"prompt_tokens": 2**62, "completion_tokens": 2}, None),
        ({"prompt_tokens": 1}, None),
        ({"total_tokens": 3}, None),
        ({}, None),
        ([], None),
        (5, None),
    ],
)
def test_tokens_are_counted_or_unknown(usage: Any, expected: Usage | None):
    assert read(msgspec.json.encode({"choices": [CHOICE], "usage": usage})).usage == expected


@pytest.mark.parametrize("odd", [5, None, ["m"], {"a": 1}, True])
def test_a_model_or_a_finish_reason_that_is_no_text_is_not_shown(odd: Any):
    seen = read(msgspec.json.encode({"model": odd, "choices": [CHOICE | {"finish_reason": odd}]}))
    assert (seen.model, seen.finish_reason, seen.fault) == ("", "", None)
