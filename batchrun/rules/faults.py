"""The error guide as one table: a reply that is no answer, or a call that broke, becomes a fault of the closed list.

Decided in this order: transport, status, error code and type, whole phrases of the server's own sentence. The phrases
come from recorded replies of Together and of servers that speak the same protocol; loose words such as "rate" or
"credit" are never looked for, since an error may quote a prompt. A batch's error line may come without any status:
there code, type and phrases alone decide. What says that the request is bad is refused; what they do not name is worth
sending again.
"""

from __future__ import annotations

import re

from batchrun.records import Broken, Fault, Refusal, Trouble

_CREDIT_STATUSES = frozenset({400, 401, 403, 422, 429})
_CREDIT_CODES = frozenset(
    {
        "billing_hard_limit_reached",
        "budget_exceeded",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_quota",
    }
)
_CREDIT_TYPES = frozenset({"credit_limit", *_CREDIT_CODES})
_CREDIT_PHRASES = (
    "credit limit exceeded",
    "positive credit balance is required",
    "credit balance is too low",
    "insufficient credits",
    "insufficient balance",
    "exceeded your current quota",
    "crossed budget",
    "budget has been exceeded",
    "exceededbudget",
    "reached its maximum allowed monthly spending limit",
)

_MODEL_STATUSES = frozenset({400, 404})
_MODEL_CODES = frozenset({"model_not_available", "model_not_found"})
_MODEL_PHRASES = ("unable to access model", "unable to access non-serverless model")
# The sentence ends there: not "model not found in your drawing". The other is OpenAI's, vLLM's and Ollama's; the name
# stands in quotation marks, or was taken out as one.
_MODEL_SENTENCE = re.compile(
    r"""(?<![\w'"`])model not found(?=\s*(?:[.:,;!?)\]'"`-]|$))"""
    r"""|(?<!\w)model [`'"\u2018\u201c\u2026]\S* (?:not found|does not exist)(?!\w)"""
)

_LENGTH_STATUSES = frozenset({400, 403, 413, 422})
_LENGTH_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "exceeds_context_size"})
_LENGTH_PHRASES = (
    "max_new_tokens` must be <=",
    "maximum context length",
    "must be less than context length",
    "exceeds the context length",
    "exceeds the context window",
    "exceeds the available context size",
    "exceeds the model's context",
    "exceeds the maximum number of tokens allowed",
    "inputs` must have less than",
    "longer than the maximum model length",
    "longer than the model's context length",
    "the model's context length is only",
    "prompt is too long",
)

_OVERLOAD_STATUSES = frozenset({503, 529})
_OVERLOAD_PHRASES = ("server is overloaded", "engine is overloaded", "engine is currently overloaded")

_SERVER_STATUSES = frozenset({408, 409, 425})

# What batch error lines say in place of a status (https://docs.together.ai/docs/inference/batch/manage shows
# `invalid_model`; the others are the codes and types of live replies).
_LINE_MODEL_CODES = frozenset({"invalid_model", *_MODEL_CODES})
_LINE_MODEL_PHRASES = ("invalid model specified",)
_LINE_KEY_CODES = frozenset({"invalid_api_key"})
# The code counts before the type: Together's `invalid_request_error` stands beside an invalid key too.
_LINE_BAD_CODES = frozenset(
    {"bad_request", "bad_request_error", "badrequesterror", "invalid_request", "invalid_request_error"}
)
_THROTTLE_CODES = frozenset(
    {
        "dynamic_request_limited",
        "dynamic_token_limited",
        "model_rate_limit",
        "rate_limit",
        "rate_limit_exceeded",
        "too_many_requests",
    }
)
_RATE_PHRASES = ("rate limit", "rate limited")
_THROTTLE_PHRASES = ("rate-limited", "too many requests", *_RATE_PHRASES)

# A phrase shorter than what is searched for quotations (`api/wire.py`) may be a word of the request all the same.
_QUOTABLE = 16

# Somebody on the way stopped waiting; the answer may have been made, and paid for, all the same.
_TIMED_OUT = frozenset({408, 504, 524})

UNAUTHORIZED = 401
PAYMENT_REQUIRED = 402
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500
NO_STATUS = 0


def trouble(seen: Refusal | Broken) -> Trouble:
    """What went wrong, as an entry of the closed list."""
    if isinstance(seen, Broken):
        kind = Fault.GARBLED if seen.garbled else Fault.NETWORK
        return Trouble(kind, None, seen.message, maybe_paid=seen.maybe_paid)
    fault = _fault_of_words(seen) if seen.status == NO_STATUS else _fault(seen)
    return Trouble(fault, seen.status or None, seen.message, seen.wait, maybe_paid=seen.status in _TIMED_OUT)


def says_credits(message: str) -> bool:
    """Whether a sentence, such as a failed batch's, says that credit, balance or budget is used up."""
    return not _says(message, _RATE_PHRASES) and _says(message, _CREDIT_PHRASES)


def says_missing(message: str) -> bool:
    """Whether a sentence, such as a failed batch's, says that the model cannot be called."""
    return _says(message, _LINE_MODEL_PHRASES) or _says_model(message)


def _fault_of_words(seen: Refusal) -> Fault:
    """The table for refusals without a status; the first line that fits wins."""
    said = {seen.code, seen.kind}
    if says_credits(seen.message) or (said & _CREDIT_TYPES and not _says(seen.message, _RATE_PHRASES)):
        return Fault.CREDITS
    if said & _LINE_KEY_CODES:
        return Fault.KEY
    if said & _LINE_MODEL_CODES or says_missing(seen.message):
        return Fault.MODEL_MISSING
    if said & _LENGTH_CODES or _says(seen.message, _LENGTH_PHRASES):
        return Fault.TOO_LONG
    if _says(seen.message, _OVERLOAD_PHRASES):
        return Fault.OVERLOADED
    if said & _THROTTLE_CODES or _says(seen.message, _THROTTLE_PHRASES):
        return Fault.THROTTLED
    return Fault.BAD_REQUEST if (seen.code or seen.kind) in _LINE_BAD_CODES else Fault.SERVER


def _fault(seen: Refusal) -> Fault:
    """The table, read from the top; the first line that fits wins."""
    status = seen.status
    if status == PAYMENT_REQUIRED or _says_credits(seen):
        return Fault.CREDITS
    if status == UNAUTHORIZED:
        return Fault.KEY
    if status in _MODEL_STATUSES and (seen.code in _MODEL_CODES or _says_model(seen.message)):
        return Fault.MODEL_MISSING
    if status in _LENGTH_STATUSES and ({seen.code, seen.kind} & _LENGTH_CODES or _says(seen.message, _LENGTH_PHRASES)):
        return Fault.TOO_LONG
    if status == TOO_MANY_REQUESTS:
        return Fault.THROTTLED
    if status in _OVERLOAD_STATUSES or (status == SERVER_ERROR and _says(seen.message, _OVERLOAD_PHRASES)):
        return Fault.OVERLOADED
    if status >= SERVER_ERROR or status in _SERVER_STATUSES:
        return Fault.SERVER
    return Fault.BAD_REQUEST


def _says_credits(seen: Refusal) -> bool:
    """Low balance under another status. An old 429 of Together's has the type `credit_limit` and means requests."""
    if seen.status not in _CREDIT_STATUSES or _says(seen.message, _RATE_PHRASES):
        return False
    if seen.code in _CREDIT_CODES or _says(seen.message, _CREDIT_PHRASES):
        return True
    types = _CREDIT_CODES if seen.status == TOO_MANY_REQUESTS else _CREDIT_TYPES
    return seen.kind in types


def _says_model(message: str) -> bool:
    return _says(message, _MODEL_PHRASES) or _MODEL_SENTENCE.search(message.lower()) is not None


def _says(message: str, phrases: tuple[str, ...]) -> bool:
    sentence = message.lower()
    return any(_whole(phrase).search(sentence) for phrase in phrases)


def _whole(phrase: str) -> re.Pattern[str]:
    """The phrase between word boundaries, a short one not in quotation marks; `re` keeps the compiled pattern."""
    words = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    if len(phrase) >= _QUOTABLE:
        return re.compile(words)
    return re.compile(rf"""(?!(?<=['"`\u2018\u201c]){re.escape(phrase)}['"`\u2019\u201d]){words}""")
