"""The error bodies of the service, as data. Which one a request gets is decided elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import msgspec

from batchrun.simulator.faults import ContextWords, Fault


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error reply. `body` overrides the JSON made of the other fields."""

    status: int
    message: str
    type: str | None = "invalid_request_error"
    param: str | None = None
    code: str | int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    def payload(self, request_id: str) -> bytes:
        """The body as it goes out."""
        if self.body is not None:
            return self.body.encode()
        return msgspec.json.encode({"id": request_id, "error": self.error()})

    def error(self) -> dict[str, Any]:
        """The error object by itself."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


BILLING = "https://api.together.ai/settings/billing"
_MODELS = "https://api.together.ai/models"

NO_KEY = Refusal(
    401,
    "Invalid API key provided. You can find your API key at https://api.together.ai/settings/api-keys.",
    code="invalid_api_key",
)
NO_CREDITS = Refusal(
    402,
    f"Credit limit exceeded. Please navigate to {BILLING} to add credit or upgrade your plan.",
    type="credit_limit",
)
NO_SUCH_PATH = Refusal(404, "The simulator has no such endpoint.", code="not_found")
OVERLOADED = Refusal(503, "The server is overloaded or not ready yet.", type="service_unavailable")
NO_STREAMING = Refusal(400, "This simulator does not stream: leave `stream` out.", param="stream")


def invalid(message: str, param: str | None = None) -> Refusal:
    """A request that does not fit the specification."""
    return Refusal(400, f"Input validation error: {message}", param=param)


def no_such_model(model: str) -> Refusal:
    """The model is unknown or was removed."""
    message = f"Unable to access model {model}. Please visit {_MODELS} to view the list of supported models."
    return Refusal(404, message, code="model_not_available")


def not_serverless(model: str) -> Refusal:
    """The model is listed and cannot be called."""
    message = (
        f"Unable to access non-serverless model {model}. Please visit {_MODELS}/{model} "
        "to create and start a new dedicated endpoint for the model."
    )
    return Refusal(400, message, code="model_not_available")


def too_long(
    status: int, context: int, prompt_tokens: int, max_tokens: int, words: ContextWords = ContextWords.TOGETHER
) -> Refusal:
    """Prompt and reply do not fit the model's context; the service has said so with 400, 403 and 422.

    The sentence of 403 is that of its error guide (docs.together.ai/docs/error-codes), those of vLLM are the two that
    its serving_engine.py raises.
    """
    match words:
        case ContextWords.TOGETHER:
            message = (
                f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {context}. "
                f"Given: {prompt_tokens} `inputs` tokens and {max_tokens} `max_new_tokens`"
            )
            return Refusal(status, message, param="max_tokens")
        case ContextWords.TOGETHER_DOCUMENTED:
            return Refusal(status, "Bad request: input tokens + max_tokens must be less than context length")
        case ContextWords.OPENAI:
            message = (
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, {max_tokens} in the "
                "completion). Please reduce the length of the messages or completion."
            )
            return Refusal(status, message, param="messages", code="context_length_exceeded")
        case ContextWords.VLLM:
            return Refusal(status, _vllm_too_long(context, prompt_tokens, max_tokens), type="BadRequestError", code=400)
        case ContextWords.BARE:
            return Refusal(status, "The request exceeds the model's context length.")
        case _:
            assert_never(words)


def _vllm_too_long(context: int, prompt_tokens: int, max_tokens: int) -> str:
    if prompt_tokens >= context:
        return (
            f"This model's maximum context length is {context} tokens. However, your request has {prompt_tokens} input "
            "tokens. Please reduce the length of the input messages."
        )
    return (
        f"'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context length is "
        f"{context} tokens and your request has {prompt_tokens} input tokens "
        f"({max_tokens} > {context} - {prompt_tokens})."
    )


def throttled(model: str, *, by_tokens: bool = False) -> Refusal:
    """Too many requests, or too many tokens, for this model just now."""
    what, kind = ("token", "dynamic_token_limited") if by_tokens else ("request", "dynamic_request_limited")
    message = f"You have been rate limited for model {model}: your {what} rate is above the current dynamic limit."
    return Refusal(429, message, type=kind)


def by_status(status: int, model: str) -> Refusal:
    """The body that usually comes with this status."""
    known = {
        400: invalid("the request could not be understood"),
        401: NO_KEY,
        402: NO_CREDITS,
        403: too_long(403, 4097, 80125, 4096),
        404: no_such_model(model),
        422: Refusal(422, too_long(422, 32769, 40000, 512).message, type=None),
        429: throttled(model),
        500: Refusal(500, "Internal Server Error", type=None),
        503: OVERLOADED,
        504: Refusal(504, "Timeout", type=None),
    }
    return known.get(status) or Refusal(status, f"Simulated status {status}", type=None)


def with_headers(refusal: Refusal, headers: Mapping[str, str]) -> Refusal:
    """The same refusal with more headers."""
    return replace(refusal, headers={**refusal.headers, **headers}) if headers else refusal


def of_fault(refusal: Refusal, fault: Fault) -> Refusal:
    """The refusal with the headers and the body that the fault asks for."""
    headers = {**refusal.headers, **fault.headers}
    if fault.retry_after is not None:
        headers["Retry-After"] = f"{fault.retry_after:g}"
    if fault.reset is not None:
        headers["x-ratelimit-reset"] = f"{fault.reset:g}"
    return replace(refusal, headers=headers, body=fault.body)
