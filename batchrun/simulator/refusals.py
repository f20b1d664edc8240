"""From a fault that is simply an error reply to that reply. Its sentences are in `errors`; who is struck: `faults`."""

from typing import assert_never

from batchrun.simulator import errors
from batchrun.simulator.asks import Ask
from batchrun.simulator.errors import Refusal
from batchrun.simulator.faults import Fault, FaultKind

_STATUS = 500
_TOO_LONG_STATUS = 400


def refusal_of(fault: Fault, ask: Ask) -> Refusal | None:
    """What a fault that is simply an error reply answers; None for those that spoil a reply or the connection."""
    model = ask.model.id
    match fault.kind:
        case FaultKind.CREDITS_END:
            refusal = errors.NO_CREDITS
        case FaultKind.STATUS:
            refusal = errors.by_status(fault.status or _STATUS, model)
        case FaultKind.OVERLOAD:
            refusal = errors.OVERLOADED
        case FaultKind.THROTTLE:
            refusal = errors.throttled(model)
        case FaultKind.TOO_LONG:
            refusal = _too_long(fault, ask)
        case FaultKind.UNKNOWN_MODEL:
            refusal = errors.no_such_model(model)
        case FaultKind.REDIRECT:
            refusal = Refusal(307, "Moved", headers={"Location": fault.location})
        case FaultKind.ERROR_OBJECT:
            refusal = Refusal(200, "Internal Server Error", type=None)
        case (
            FaultKind.RESET_BEFORE
            | FaultKind.RESET_DURING
            | FaultKind.RESET_AFTER
            | FaultKind.CUT_BODY
            | FaultKind.BROKEN_JSON
            | FaultKind.NO_CHOICES
            | FaultKind.WRONG_CONTENT_TYPE
            | FaultKind.BAD_UTF8
            | FaultKind.BAD_GZIP
            | FaultKind.HANG
            | FaultKind.TRICKLE
            | FaultKind.HUGE_BODY
            | FaultKind.TWO_CONTENT_LENGTHS
            | FaultKind.BIG_HEADER
            | FaultKind.NO_USAGE
            | FaultKind.NULL_CONTENT
            | FaultKind.ANSWERED_BY
            | FaultKind.NOT_JSON
            | FaultKind.MISFIT
            | FaultKind.FENCED
        ):
            return None
        case _:
            assert_never(fault.kind)
    return errors.of_fault(refusal, fault)


def _too_long(fault: Fault, ask: Ask) -> Refusal:
    """Refused as too long for a context that is smaller than the model's: by itself half of what the prompt needs."""
    context = fault.context or max(1, ask.prompt_tokens // 2)
    status = fault.status or _TOO_LONG_STATUS
    return errors.too_long(status, context, ask.prompt_tokens, ask.asked or 1, fault.words)
