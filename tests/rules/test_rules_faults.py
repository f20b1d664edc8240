"""The error guide, line by line: which words under which status make which fault, and which words never do."""

from __future__ import annotations

import pytest

from batchrun.records import Broken, Fault, Refusal, Trouble
from batchrun.rules.faults import says_credits, trouble

CREDITS = "Credit limit exceeded. Please add credit."
LENGTH = "This model's maximum context length is 4096 tokens."
MODEL = "Unable to access model x. Please choose another."
LIMITED = "You have been rate limited."
BUSY = "The server is overloaded or not ready yet."


def fault(status: int, message: str = "", *, kind: str = "", code: str = "") -> Fault:
    return trouble(Refusal(status, kind, code, message, None)).fault


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *[(status, Fault.BAD_REQUEST) for status in (100, 101, 300, 301, 302, 303, 304, 307, 308)],
        *[(status, Fault.BAD_REQUEST) for status in (400, 403, 404, 405, 406, 410, 412, 413, 415, 418, 422, 451)],
        (401, Fault.KEY),
        (402, Fault.CREDITS),
        *[(status, Fault.SERVER) for status in (408, 409, 425)],
        (429, Fault.THROTTLED),
        *[(status, Fault.SERVER) for status in (500, 501, 502, 504, 507, 520, 521, 522, 523, 524, 530, 599, 999)],
        (503, Fault.OVERLOADED),
        (529, Fault.OVERLOADED),
    ],
)
def test_a_status_alone_has_a_fault(status: int, expected: Fault):
    assert fault(status) is expected


@pytest.mark.parametrize(
    ("message", "where", "expected"),
    [
        (CREDITS, {400, 401, 402, 403, 422, 429}, Fault.CREDITS),
        (MODEL, {400, 404}, Fault.MODEL_MISSING),
        (LENGTH, {400, 403, 413, 422}, Fault.TOO_LONG),
        (BUSY, {500, 503, 529}, Fault.OVERLOADED),
    ],
)
def test_a_sentence_counts_only_under_the_statuses_it_comes_with(message: str, where: set[int], expected: Fault):
    for status in (*range(300, 309), *range(400, 430), *range(500, 530)):
        assert fault(status, message) is (expected if status in where else fault(status)), status


@pytest.mark.parametrize("status", [400, 401, 403, 422, 429])
@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "insufficient_credits",
        "insufficient_balance",
        "billing_hard_limit_reached",
        "budget_exceeded",
    ],
)
def test_a_code_or_a_type_says_credits_without_words(status: int, code: str):
    assert fault(status, code=code) is Fault.CREDITS
    assert fault(status, kind=code) is Fault.CREDITS


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_the_type_credit_limit_says_credits_but_for_429(status: int):
    assert fault(status, kind="credit_limit") is Fault.CREDITS
    assert fault(429, kind="credit_limit") is Fault.THROTTLED


@pytest.mark.parametrize("status", [400, 403, 422, 429])
@pytest.mark.parametrize("kind", ["", "credit_limit", "insufficient_quota"])
@pytest.mark.parametrize(
    "message",
    ["Rate limit: you exceeded your current quota.", f"{LIMITED} {CREDITS}", "insufficient credits? RATE LIMIT"],
)
def test_a_sentence_that_says_rate_limit_is_never_credits(status: int, kind: str, message: str):
    assert fault(status, message, kind=kind) is (Fault.THROTTLED if status == 429 else Fault.BAD_REQUEST)


@pytest.mark.parametrize("message", [LIMITED, LENGTH, MODEL, BUSY, "", "try later"])
def test_402_is_credits_whatever_it_says(message: str):
    assert fault(402, message) is Fault.CREDITS


def test_too_many_requests_is_throttled_whatever_else_it_says():
    for message in (LENGTH, MODEL, BUSY, LIMITED):
        assert fault(429, message) is Fault.THROTTLED


INNOCENT = [
    "could not generate",
    "Failed to generate a response for this request",
    "temperature must be between 0 and 2",
    "rate your answer from 1 to 5",
    "accurate answers need moderate temperature",
    "separate limits apply",
    "the parameter `credit` is not known",
    "credit cards are not accepted in this field",
    "your quota parameter is misspelt",
    "budget must be a number",
    "budget has been exceededly well described",
    "insufficient creditsworthiness",
    "this remodel not founded",
    "model must be a string",
    "the model does not support tools",
    "length must be positive",
    "context must be an object",
    "maximum context lengthening",
    "max_tokens must be less than 100",
    "overloaded operators are not supported",
    "the server is overloadedly busy",
    "capacity must be an integer",
    "balance the parentheses",
    "429 is not a valid seed",
    "402",
]


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
@pytest.mark.parametrize("message", INNOCENT)
def test_innocent_words_are_a_bad_request(status: int, message: str):
    assert fault(status, message) is Fault.BAD_REQUEST


@pytest.mark.parametrize("message", ["could not generate", "operator is overloaded with", "out of credit"])
def test_innocent_words_on_500_are_the_servers(message: str):
    assert fault(500, message) is Fault.SERVER


@pytest.mark.parametrize(
    ("garbled", "maybe_paid", "expected"),
    [
        (True, True, Fault.GARBLED),
        (True, False, Fault.GARBLED),
        (False, True, Fault.NETWORK),
        (False, False, Fault.NETWORK),
    ],
)
def test_a_call_that_broke_is_garbled_or_network(expected: Fault, *, garbled: bool, maybe_paid: bool):
    seen = trouble(Broken("It broke.", maybe_paid, garbled, 1.5))
    assert seen == Trouble(expected, None, "It broke.", None, maybe_paid)


def test_a_refusal_keeps_its_status_its_sentence_and_its_wait():
    seen = trouble(Refusal(429, "", "", LIMITED, 2.5))
    assert seen == Trouble(Fault.THROTTLED, 429, LIMITED, 2.5, maybe_paid=False)


# --- lines of a batch's error file, which may name no status ---------------------------------------------------------

LINES = [
    (Fault.CREDITS, [CREDITS, "Crossed budget.", "Insufficient credits"], ["insufficient_quota", "credit_limit"]),
    (Fault.MODEL_MISSING, [MODEL, "Invalid model specified"], ["invalid_model", "model_not_available"]),
    (Fault.TOO_LONG, [LENGTH], ["context_length_exceeded"]),
    (Fault.OVERLOADED, [BUSY, "Engine is overloaded"], []),
    (Fault.THROTTLED, [LIMITED, "Rate limit reached", "Too many requests"], ["rate_limit_exceeded", "rate_limit"]),
    (Fault.SERVER, ["Request timeout", "", "Input validation error"], ["timeout", "402", "429", ""]),
    (Fault.KEY, [], ["invalid_api_key"]),
    (Fault.BAD_REQUEST, [], ["invalid_request", "invalid_request_error", "bad_request", "badrequesterror"]),
]


@pytest.mark.parametrize(("expected", "message"), [(fault, word) for fault, words, _ in LINES for word in words])
def test_without_a_status_whole_phrases_decide(expected: Fault, message: str):
    assert fault(0, message) is expected
    assert fault(0, f"line 3: {message.upper()} (sorry)") is expected


@pytest.mark.parametrize(("expected", "code"), [(fault, code) for fault, _, codes in LINES for code in codes])
def test_without_a_status_the_code_or_the_type_decides(expected: Fault, code: str):
    assert fault(0, "It failed.", code=code) is expected
    assert fault(0, "It failed.", kind=code) is expected


@pytest.mark.parametrize("code", ["insufficient_quota", "credit_limit", ""])
def test_without_a_status_a_sentence_that_says_rate_limit_is_throttled_and_not_credits(code: str):
    assert fault(0, f"{LIMITED} {CREDITS}", code=code, kind=code) is Fault.THROTTLED


@pytest.mark.parametrize("message", [*INNOCENT, "rate your answer", "an accurate limit", "too many requested items"])
def test_without_a_status_innocent_words_are_the_servers_and_sent_again(message: str):
    assert fault(0, message) is Fault.SERVER
    assert not says_credits(message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (CREDITS, True),
        ("Batch failed: A POSITIVE CREDIT BALANCE IS REQUIRED to use this model.", True),
        ("job would exceed: insufficient balance", True),
        (f"{LIMITED} {CREDITS}", False),
        ("error reading input file", False),
        ("credit", False),
        ("", False),
    ],
)
def test_what_went_wrong_with_a_job_may_say_credits(message: str, expected: bool):
    assert says_credits(message) is expected


def test_a_trouble_without_a_status_has_none():
    assert trouble(Refusal(0, "", "timeout", "Request timeout", None)) == Trouble(
        Fault.SERVER, None, "Request timeout", None, maybe_paid=False
    )
