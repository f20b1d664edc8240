"""What a quota is to a lane, and what it hands out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from batchrun.lanes.purse import Lack
from batchrun.records import Completion, Fault, ParkReason, Request, Trouble
from batchrun.rules import standins
from batchrun.rules.pace import Hint, Start

# Some gateways put a number of the call into the model's name; so many names are told apart.
_MOST_REDIRECTS = 20


# What is told of when a start has several reasons to stop, first to last.
_RANK = (
    ParkReason.INTERRUPTED,
    ParkReason.CREDITS,
    ParkReason.KEY,
    ParkReason.MODEL,
    ParkReason.HOPELESS,
    ParkReason.OVERLOAD,
    ParkReason.BUDGET,
    ParkReason.DEADLINE,
    ParkReason.REMOTE,
)


class Lease(msgspec.Struct, frozen=True, gc=False):
    """Leave to send one request: a slot, a place in the pace, and its money set aside (nano-dollars)."""

    request: Request
    start: Start
    reserved: int
    probe: bool
    call: int  # its number at the gate


class Parked(msgspec.Struct, frozen=True):
    """Why nothing more is sent, the sentence for the user, the fault behind a hopeless job, and what money lacks."""

    reason: ParkReason
    message: str
    fault: Fault | None = None
    lack: Lack | None = None

    def outweighs(self, other: Parked | None) -> bool:
        """Whether it is the one to tell of, as the exit codes are ranked."""
        return other is None or _RANK.index(self.reason) < _RANK.index(other.reason)


class Counts:
    """What a start has brought so far, by all lanes together; money in nano-dollars."""

    def __init__(self) -> None:
        self.answered = 0
        self.better = 0
        self.rejected = 0
        self.tokens = 0
        self.spent_nano = 0
        self.requests = 0  # live calls made, and lines sent in batches
        self.faults: Counter[Fault] = Counter()  # calls and lines that brought no answer
        self.redirects: Counter[tuple[str, str]] = Counter()
        self.stood_in: Counter[tuple[str, str]] = Counter()

    def made(self, outcome: Completion | Trouble) -> None:
        """A call was made."""
        self.requests += 1
        if isinstance(outcome, Trouble):
            self.faults[outcome.fault] += 1

    def came_from(self, wanted: str, asked: str, answered: str, replies: int = 1) -> None:
        """So many replies came for rows that want one model, asked of another perhaps, and name who made them."""
        if wanted != asked:
            self.stood_in[wanted, asked] += replies
        if asked != answered and standins.is_another(asked, answered):
            kind = (asked, answered) if len(self.redirects) < _MOST_REDIRECTS else (asked, "others")
            self.redirects[kind] += replies


class Quota(Protocol):
    """What all lanes share: how fast, how much money, and whether to go on at all."""

    @property
    def parked(self) -> Parked | None:
        """Set once the run has to stop; no lease is given after that."""
        ...

    async def lease(self, request: Request, still: Callable[[], bool]) -> Lease | None:
        """Wait for leave to send; None when the run is parked, or it is not `still` to be sent so."""
        ...

    def pause(self, model: str) -> float:
        """Seconds until a call to this model could start."""
        ...

    def rest(self, model: str, asked: str, trouble: Trouble) -> bool:
        """Let a model rest whose rows another one can take."""
        ...

    def report(self, lease: Lease, outcome: Completion | Trouble, hint: Hint) -> None:
        """Tell, at the reply, how the call went."""
        ...

    def settle(self, lease: Lease, spent: int) -> None:
        """Give the slot and the money back, after the outcome is committed; `spent` nano-dollars stay spent."""
        ...

    def park(self, reason: ParkReason, message: str, fault: Fault | None = None) -> None:
        """Let nothing new start."""
        ...

    def out_of_credits(self, lease: Lease, trouble: Trouble) -> bool:
        """A 402 came back: whether the row may wait here until there are credits (else the run is parked)."""
        ...

    def rejected(self, fault: Fault, message: str, lease: Lease | None = None) -> None:
        """Tell that a row was given up; nearly all for one reason park the run."""
        ...

    def others_answered(self) -> bool:
        """Whether rows are being answered, so that a failing one may be failing by itself."""
        ...

    def room(self, model: str) -> int:
        """How many calls, in flight or waiting to go again, the lane may hold for this model."""
        ...

    async def wait(self, seconds: float) -> None:
        """Wait until something changed, at most so many seconds."""
        ...

    def changed(self) -> None:
        """Wake whoever waits."""
        ...
