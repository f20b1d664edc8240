"""Bodies of errors as servers have sent them, and what batchrun makes of each: wire, redaction, error guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict

from batchrun.api import wire
from batchrun.records import Fault, Refusal, Reply, Trouble
from batchrun.rules import faults
from batchrun.simulator import errors

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"
ERRORS = sorted(path.stem for path in WIRE.glob("error_*.json"))
NOW = 1_767_225_600.0
BODY = b'{"messages":[{"content":"Name a river in Spain.","role":"user"}],"model":"no/such-model"}'


def fixture(name: str) -> Any:
    return msgspec.json.decode((WIRE / f"{name}.json").read_bytes())


def judged(status: int, body: Any, *, headers: dict[str, str] | None = None, asked: bytes = BODY) -> Trouble:
    """The walk a refusal takes in the live lane."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    seen = wire.read(Reply(status, CIMultiDict(headers or {}), raw, 0.5), NOW)
    assert isinstance(seen, Refusal)
    message = wire.redacted(seen.message, asked, "an-example-key")
    return faults.trouble(Refusal(seen.status, seen.kind, seen.code, message, seen.wait))


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_body_has_its_fault(name: str):
    seen = fixture(name)
    body = seen["text"].encode() if "text" in seen else seen["body"]
    got = judged(seen["status"], body, headers=seen["headers"])
    assert got.fault is Fault(seen["fault"])
    timed_out = seen["status"] in {408, 504, 524}
    assert (got.status, got.wait, got.maybe_paid) == (seen["status"], seen.get("wait"), timed_out)
    if "message" in seen:
        assert got.message == seen["message"]


def test_the_error_bodies_are_there():
    assert len(ERRORS) > 70
    assert {fixture(name)["fault"] for name in ERRORS} == {
        "credits",
        "key",
        "model_missing",
        "too_long",
        "bad_request",
        "throttled",
        "overloaded",
        "server",
    }


@pytest.mark.parametrize(
    ("name", "simulated"),
    [
        ("401_invalid_key", errors.NO_KEY),
        ("402_credit_limit", errors.NO_CREDITS),
        ("404_model_not_available", errors.no_such_model("no/such-model")),
        ("400_non_serverless", errors.not_serverless("meta/big")),
        ("400_context_length", errors.too_long(400, 4097, 80125, 4096)),
        ("403_context_length", errors.by_status(403, "m")),
        ("503_overloaded", errors.OVERLOADED),
        ("500_internal", errors.by_status(500, "m")),
        ("504_timeout", errors.by_status(504, "m")),
    ],
)
def test_the_simulator_sends_the_same_bodies(name: str, simulated: errors.Refusal):
    seen = fixture(f"error_{name}")
    real = seen["body"]["error"]
    host = "api.together.xyz"
    assert simulated.error() == real | {"message": real["message"].replace(host, "api.together.ai")}
    assert simulated.status == seen["status"]


ECHOED = {
    "credit limit exceeded": Fault.CREDITS,
    "your credit balance is too low": Fault.CREDITS,
    "maximum context length": Fault.TOO_LONG,
    "unable to access model x": Fault.MODEL_MISSING,
    "insufficient credits": Fault.CREDITS,
}


@pytest.mark.parametrize("phrase", ECHOED)
@pytest.mark.parametrize("shape", ["Explain the error '{}' to me", "{}", "A customer wrote:\n\n{}!", 'He said "{}".'])
@pytest.mark.parametrize("status", [400, 422])
def test_a_prompt_quoted_in_an_error_decides_nothing(phrase: str, shape: str, status: int):
    prompt = shape.format(phrase)
    asked = msgspec.json.encode({"messages": [{"content": prompt, "role": "user"}], "model": "m"})
    for echo in (prompt, msgspec.json.encode(prompt).decode(), " ".join(prompt.split())):
        got = judged(status, {"error": {"message": f"Input validation error near: {echo}"}}, asked=asked)
        assert got.fault is Fault.BAD_REQUEST
        assert phrase not in got.message


@pytest.mark.parametrize(("phrase", "fault"), ECHOED.items())
def test_the_same_words_from_the_server_itself_do_decide(phrase: str, fault: Fault):
    assert judged(400, {"error": {"message": f"Sorry: {phrase}."}}).fault is fault


@pytest.mark.parametrize(
    ("body", "kind", "code", "message"),
    [
        ({"error": {"message": " no ", "type": "A_Type", "code": "A_Code"}}, "a_type", "a_code", "no"),
        ({"error": {"message": "no", "error_type": "Inner"}}, "inner", "", "no"),
        ({"error": {"message": "no", "type": None}, "error_type": "Top"}, "top", "", "no"),
        ({"error": {"message": "no", "type": 5, "code": 5}}, "", "5", "no"),
        ({"message": "no", "type": "Flat", "code": "flat"}, "flat", "flat", "no"),
        ({"error": "no", "code": "beside"}, "", "beside", "no"),
        ({"error": {"message": ""}, "message": "no"}, "", "", "no"),
        ({"error": {"message": {"deep": 1}}}, "", "", "HTTP status 400"),
        ({"error": {"detail": [{"msg": "no"}]}}, "", "", "no"),
        ({"detail": [{}, 5, {"msg": "no"}]}, "", "", "no"),
        ({"detail": {"message": "no"}}, "", "", "no"),
        ({"error": True}, "", "", "HTTP status 400"),
        ({"error": []}, "", "", "HTTP status 400"),
        ({"error": {"error": {"error": {"error": {"error": {"error": "too deep"}}}}}}, "", "", "HTTP status 400"),
        ({}, "", "", "HTTP status 400"),
        ("text", "", "", "HTTP status 400"),
    ],
)
def test_the_sentence_the_type_and_the_code_are_found_where_servers_put_them(
    body: Any, kind: str, code: str, message: str
):
    seen = wire.read(Reply(400, {}, msgspec.json.encode(body), 0.5), NOW)
    assert seen == Refusal(400, kind, code, message, None)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[" * 100_000, b'{"error":' * 100_000, b"1" * 5000, b'{"error":NaN}', b'"\\ud800"']
)
def test_no_body_of_an_error_is_too_strange_to_read(body: bytes):
    assert judged(500, body) == Trouble(Fault.SERVER, 500, "HTTP status 500")
