"""The error guide as one table: a reply that is no answer, or a call that broke, becomes a fault of the closed list.

Decided in this order: transport, status, error code and type, whole phrases of the server's own sentence. The phrases
come from recorded replies of Together and of servers that speak the same protocol; loose words such as "rate" or
"credit" are never looked for, since an error may quote a prompt. A batch's error line may come without any status:
there code, type and phrases alone decide, and what they do not name is worth sending again.
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
_MODEL_PHRASES = ("model not found", "unable to access model", "unable to access non-serverless model")

_LENGTH_STATUSES = frozenset({400, 403, 413, 422})
_LENGTH_CODES = frozenset({"context_length_exceeded"})
_LENGTH_PHRASES = (
    "max_new_tokens` must be <=",
    "maximum context length",
    "must be less than context length",
    "exceeds the context length",
    "exceeds the model's context",
)

_OVERLOAD_STATUSES = frozenset({503, 529})
_OVERLOAD_PHRASES = ("server is overloaded", "engine is overloaded", "engine is currently overloaded")

_SERVER_STATUSES = frozenset({408, 409, 425})

# What batch error lines say in place of a status (https://docs.together.ai/docs/inference/batch/manage shows
# `invalid_model`; the others are the codes and types of live replies).
_LINE_MODEL_CODES = frozenset({"invalid_model", *_MODEL_CODES})
_LINE_MODEL_PHRASES = ("invalid model specified", *_MODEL_PHRASES)
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


def _fault_of_words(seen: Refusal) -> Fault:
    """The table for refusals without a status; the first line that fits wins."""
    said = {seen.code, seen.kind}
    if says_credits(seen.message) or (said & _CREDIT_TYPES and not _says(seen.message, _RATE_PHRASES)):
        return Fault.CREDITS
    if said & _LINE_MODEL_CODES or _says(seen.message, _LINE_MODEL_PHRASES):
        return Fault.MODEL_MISSING
    if said & _LENGTH_CODES or _says(seen.message, _LENGTH_PHRASES):
        return Fault.TOO_LONG
    if _says(seen.message, _OVERLOAD_PHRASES):
        return Fault.OVERLOADED
    if said & _THROTTLE_CODES or _says(seen.message, _THROTTLE_PHRASES):
        return Fault.THROTTLED
    return Fault.SERVER


def _fault(seen: Refusal) -> Fault:
    """The table, read from the top; the first line that fits wins."""
    status = seen.status
    if status == PAYMENT_REQUIRED or _says_credits(seen):
        return Fault.CREDITS
    if status == UNAUTHORIZED:
        return Fault.KEY
    if status in _MODEL_STATUSES and (seen.code in _MODEL_CODES or _says(seen.message, _MODEL_PHRASES)):
        return Fault.MODEL_MISSING
    if status in _LENGTH_STATUSES and (seen.code in _LENGTH_CODES or _says(seen.message, _LENGTH_PHRASES)):
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


def _says(message: str, phrases: tuple[str, ...]) -> bool:
    sentence = message.lower()
    return any(_whole(phrase).search(sentence) for phrase in phrases)


def _whole(phrase: str) -> re.Pattern[str]:
    """The phrase between word boundaries; `re` keeps the compiled pattern."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
