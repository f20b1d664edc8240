"""What to do about a fault: try again at a time, reject the row, or park the run."""

from __future__ import annotations

from typing import assert_never

import msgspec

from batchrun.records import Fault, ParkReason, Trouble

# Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015): a random share of a doubling delay.
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0

# Faults that may be the row's own are tried so often before the row is given up.
CHARGED_ATTEMPTS = 5

# Faults that time mends. A server that asks for more of it than the user's patience parks the run at once.
_MAY_PASS = frozenset({Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER})


class Retry(msgspec.Struct, frozen=True):
    """Send it again, not before `at` (monotonic seconds); `charged` counts against the row's attempts."""

    at: float
    charged: bool


class Reject(msgspec.Struct, frozen=True):
    """The row cannot succeed as it is."""


class Park(msgspec.Struct, frozen=True):
    """Stop the run with everything kept."""

    reason: ParkReason


Verdict = Retry | Reject | Park


class Situation(msgspec.Struct, frozen=True):
    """What a verdict depends on besides the fault.

    Attributes:
        tries: calls already made for this row in this run, this one included.
        charged: how many of them counted against it.
        others_answered: whether other rows are being answered, so that the fault may be this row's own.
        model_from_job: whether the model was named for the whole job.
        patience: seconds without an answer after which the run parks.
        now: monotonic seconds.
        dice: a number in [0, 1).
    """

    tries: int
    charged: int
    others_answered: bool
    model_from_job: bool
    patience: float
    now: float
    dice: float


def verdict(trouble: Trouble, here: Situation) -> Verdict:
    """The right-hand column of the error guide."""
    if is_too_long_a_wait(trouble, here.patience):
        return Park(ParkReason.OVERLOAD)
    match trouble.fault:
        case Fault.CREDITS:
            return Park(ParkReason.CREDITS)
        case Fault.KEY:
            return Park(ParkReason.KEY)
        case Fault.MODEL_MISSING:
            return Park(ParkReason.MODEL) if here.model_from_job else Reject()
        case Fault.TOO_LONG | Fault.BAD_REQUEST | Fault.BAD_ROW:
            return Reject()
        case Fault.THROTTLED:
            # It goes again as soon as the pace lets it; the pace has been told of the server's wait.
            return Retry(here.now + (trouble.wait or 0.0), charged=False)
        case Fault.OVERLOADED:
            return Retry(_later(trouble, here), charged=False)
        case Fault.SERVER | Fault.NETWORK | Fault.GARBLED:
            return _maybe_its_own(trouble, here)
        case Fault.CUT_SHORT | Fault.FILTERED | Fault.INVALID_OUTPUT:
            raise ValueError(f"{trouble.fault} marks an answer, it is no trouble")
        case _:
            assert_never(trouble.fault)


def is_too_long_a_wait(trouble: Trouble, patience: float) -> bool:
    """Whether the server asks us to stay away for longer than the user's patience (seconds)."""
    return trouble.fault in _MAY_PASS and (trouble.wait or 0.0) > patience


def _maybe_its_own(trouble: Trouble, here: Situation) -> Verdict:
    if not here.others_answered:
        return Retry(_later(trouble, here), charged=False)
    if here.charged + 1 >= CHARGED_ATTEMPTS:
        return Reject()
    return Retry(_later(trouble, here), charged=True)


def _later(trouble: Trouble, here: Situation) -> float:
    return here.now + max(trouble.wait or 0.0, backoff(here.tries, here.dice))


def backoff(tries: int, dice: float) -> float:
    """Seconds to wait after the `tries`-th call: a random share of 1, 2, 4, ... capped at 60."""
    return dice * min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(tries - 1, 16))
