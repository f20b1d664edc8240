"""The JSON of a good reply, and of those that are good JSON and still of no use; how they are sent is `misbehave`'s."""

import time
from typing import Any

import msgspec

from batchrun.simulator.answers import Answer, answer, fenced, misfit, not_json
from batchrun.simulator.asks import Ask, Endpoint
from batchrun.simulator.faults import Fault, FaultKind

_encoder = msgspec.json.Encoder()
_OTHER_TEXTS = {FaultKind.NOT_JSON: not_json, FaultKind.MISFIT: misfit, FaultKind.FENCED: fenced}


def usage(ask: Ask, answers: list[Answer], cached_share: float) -> dict[str, int]:
    """Tokens of one call."""
    completion = sum(choice.tokens for choice in answers)
    cached = 0 if ask.model.cached_input is None else int(ask.prompt_tokens * cached_share)
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": ask.prompt_tokens + completion,
        "cached_tokens": cached,
    }


def answers(ask: Ask, fault: Fault | None = None) -> list[Answer]:
    """The choices asked for, in another text where the fault is one of the text."""
    make = answer if fault is None else _OTHER_TEXTS.get(fault.kind, answer)
    return [make(ask, index) for index in range(ask.n)]


def payload(ask: Ask, choices: list[Answer], used: dict[str, int], request_id: str, fault: Fault | None) -> bytes:
    """The reply's body. `model` always says that it was simulated."""
    reply: dict[str, Any] = {
        "id": request_id,
        "object": "chat.completion" if ask.endpoint is Endpoint.CHAT else "text.completion",
        "created": int(time.time()),
        "model": "simulated/" + ask.model.id,
        "prompt": [],
        "choices": [_choice(ask.endpoint, index, choice) for index, choice in enumerate(choices)],
        "usage": used,
    }
    if fault is not None:
        _spoil(reply, fault)
    return _encoder.encode(reply)


def _choice(endpoint: Endpoint, index: int, choice: Answer) -> dict[str, Any]:
    shared = {"index": index, "finish_reason": choice.finish_reason, "logprobs": None, "seed": choice.seed}
    match endpoint:
        case Endpoint.CHAT:
            return shared | {"message": {"role": "assistant", "content": choice.text, "tool_calls": []}}
        case Endpoint.COMPLETIONS:
            return shared | {"text": choice.text}


def _spoil(reply: dict[str, Any], fault: Fault) -> None:
    """Change what a fault changes in the JSON itself."""
    if fault.kind is FaultKind.NO_CHOICES:
        reply["choices"] = []
    elif fault.kind is FaultKind.NO_USAGE:
        reply["usage"] = None
    elif fault.kind is FaultKind.HUGE_BODY:
        missing = fault.size - len(_encoder.encode(reply)) - len(',"warnings":[{"message":""}]')
        reply["warnings"] = [{"message": "." * max(0, missing)}]
    elif fault.kind is FaultKind.ANSWERED_BY:
        reply["model"] = f"simulated/{fault.served_by}"
    elif fault.kind is FaultKind.NULL_CONTENT:
        for choice in reply["choices"]:
            _move_to_reasoning(choice)


def _move_to_reasoning(choice: dict[str, Any]) -> None:
    if "message" in choice:
        choice["message"] |= {"content": None, "reasoning": choice["message"]["content"]}
    else:
        choice["text"] = None
