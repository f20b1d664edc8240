"""The quota of one process: the only mutable holder of pace, money and the stop flag.

What to decide stands in `rules` (pace, money, credits, gate); here it is put together and waited for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import itemgetter

from batchrun.clock import Clock
from batchrun.job import Limits
from batchrun.lanes.lane import Lease, Parked
from batchrun.lanes.patience import Patience
from batchrun.lanes.purse import Lack, Purse
from batchrun.lanes.standins import StandIns
from batchrun.records import Completion, Fault, ParkReason, Request, Trouble
from batchrun.rules import credit
from batchrun.rules.gate import FIRST_OUTCOMES, Gate
from batchrun.rules.money import Tariff
from batchrun.rules.pace import Bounds, Hint, Learned, Pace, Reason
from batchrun.rules.probing import PROBE_ROW

# A failing row is charged with its failure only while others are being answered.
OTHERS_WINDOW = 300.0
# Calls waiting to go again and calls in flight, as a multiple of the limit, and at least.
ROOM_FACTOR = 4
LEAST_ROOM = 64

_SERVER_HAD_ROOM = frozenset({Fault.BAD_REQUEST, Fault.TOO_LONG, Fault.MODEL_MISSING})
_REFUSALS = frozenset({Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER, Fault.NETWORK, Fault.GARBLED})

_WAITING_FOR = {
    Reason.NONE: "",
    Reason.RATE: "finding the pace",
    Reason.SLOTS: "calls in flight",
    Reason.HELD: "rate limit",
    Reason.STORM: "the server fails, one call at a time tries it",
    Reason.TOKENS: "tokens a minute",
}

_SECONDS = itemgetter(0)

RaiseMarks = Callable[[int, int], Awaitable[None]]
Note = Callable[[str, str], None]

# 429s with less than so many seconds between them are one episode in the diary.
EPISODE = 60.0
# Calls in flight when the user does not say how many: sockets and memory are finite.
CEILING = 512


class LocalQuota:
    """Pace for each model, one purse, one patience, one stop flag.

    Attributes:
        purse: what may be spent.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        tariff: Tariff,
        *,
        spent: int,
        raise_marks: RaiseMarks,
        note: Note,
        learned: Mapping[str, Learned] | None = None,
        rejected: int = 0,
        allowed: int = 0,
        ceiling: int = CEILING,
        held: Mapping[int, int] | None = None,
        leaving: bool = False,
        proven: bool = True,
        standins: StandIns | None = None,
    ) -> None:
        """Make one.

        Args:
            limits: the user's word.
            clock: time and dice.
            tariff: prices and contexts.
            spent: nano-dollars that count against --max-cost already.
            raise_marks: commits high-water marks of calls and nano-dollars.
            note: writes a line in the diary.
            learned: what the pace of an earlier start found out, by model.
            rejected: rows rejected before this start.
            allowed: rejections the user allows.
            ceiling: calls in flight at most when the user does not say.
            held: nano-dollars set aside for batches that run already, by their numbers.
            leaving: whether this start ends while batches run, so that their money does not come back in it.
            proven: whether any row of this checkpoint was ever answered; before that few calls go out at once.
            standins: who stands in for a model that does not answer.
        """
        self._limits = limits
        self._clock = clock
        self._tariff = tariff
        self.purse = Purse(limits.max_cost_nano, spent, held or {}, leaving=leaving, run_limit=limits.max_cost_run_nano)
        self._listeners: list[Callable[[], None]] = []
        self._raise_marks = raise_marks
        self._note = note
        self._learned = learned or {}
        self._paces: dict[str, Pace] = {}
        self._in_flight = 0
        self._gate = Gate()
        self._rejected = rejected
        self._allowed = allowed
        self._ceiling = ceiling
        self._shut: credit.Shut | None = None
        self._parked: Parked | None = None
        self._event = asyncio.Event()
        self._last_answer = -math.inf
        self._proven = proven
        self._standins = standins or StandIns((), clock, note)
        self._patience = Patience(limits.overload_patience, self._standins)
        self._last_throttle = -math.inf
        self.throttled = 0
        self.waiting = ""
        self.waiting_until = 0.0

    # --- what faces and the report read ------------------------------------------------------------------------------

    @property
    def parked(self) -> Parked | None:
        """Why the run has to stop, None while it goes on."""
        return self._parked

    @property
    def in_flight(self) -> int:
        """Calls sent whose outcome is not committed yet."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """Calls the pace allows in flight right now, over all models."""
        return sum(pace.limit for pace in self._paces.values())

    @property
    def reserved(self) -> int:
        """Nano-dollars set aside for calls in flight."""
        return self.purse.reserved

    def rate(self, model: str) -> float | None:
        """Answers a second that the model was found to take, None when nothing is known yet."""
        pace = self._paces.get(model)
        known = pace.learned if pace is not None and pace.learned is not None else self._learned.get(model)
        return None if known is None else known.rate

    def learned(self) -> dict[str, Learned]:
        """What each model's pace found out, for the next start."""
        return {model: pace.learned for model, pace in self._paces.items() if pace.learned is not None}

    # --- leave to send -----------------------------------------------------------------------------------------------

    async def lease(self, request: Request, still: Callable[[], bool] = lambda: True) -> Lease | None:
        """Wait for a slot, the pace, the money and the credits; None when the run is parked, or `still` says no."""
        pace = self._pace(request.model)
        bound = self.bound(request)
        while self._parked is None:
            now = self._clock.monotonic()
            seconds = self._seconds_to_wait(pace, bound, now)
            if seconds <= 0:
                if not await self._raised_marks(bound):
                    return self._grant(pace, request, bound, now)
            elif self.purse.is_used_up(bound):
                self.out_of_budget("call", bound)
            else:
                await self.wait(seconds)
            if not still():
                break
        return None

    def pause(self, model: str) -> float:
        """Seconds until the pace of this model would let a call start; math.inf when that cannot be told."""
        return self._pace(model).wait(self._clock.monotonic())

    def bound(self, request: Request) -> int:
        """Nano-dollars to set aside; a call without an upper bound does not start under a budget."""
        bound = self._tariff.upper_bound(request)
        if bound is None and self.purse.has_limit:
            self.park(
                ParkReason.BUDGET,
                f"Row {request.row} has no upper bound of cost: the context length of {request.model} is not known.",
            )
        return bound or 0

    def _pace(self, model: str) -> Pace:
        if model not in self._paces:
            bounds = Bounds(self._limits.concurrency, self._limits.rpm, self._limits.tpm, self._ceiling)
            self._paces[model] = Pace(bounds, self._clock.monotonic(), self._learned.get(model))
        return self._paces[model]

    def _seconds_to_wait(self, pace: Pace, bound: int, now: float) -> float:
        """0 when the next call may start; math.inf when something has to change first."""
        waits = (
            (self._wait_for_credits(now), "out of credits"),
            (0.0 if self.purse.fits(bound) else math.inf, "budget: calls in flight"),
            (self._wait_for_slot(), "calls in flight"),
            (pace.wait(now), _WAITING_FOR[pace.reason]),
        )
        seconds, self.waiting = max(waits, key=_SECONDS)
        self.waiting_until = now + seconds
        return seconds

    def _wait_for_credits(self, now: float) -> float:
        if self._shut is None:
            return 0.0
        return math.inf if self._shut.probing else max(0.0, self._shut.until - now)

    def _wait_for_slot(self) -> float:
        """`--concurrency`, or the ceiling, holds for all models together.

        Until a first row is answered nobody knows that any call can succeed: a wrong parameter must not cost hundreds.
        """
        most = self._limits.concurrency or self._ceiling
        return math.inf if self.in_flight >= (most if self._proven else min(most, FIRST_OUTCOMES)) else 0.0

    def out_of_budget(self, what: str, bound: int, stuck: int = 0) -> None:
        """Park: the next `what` (a call, a row) could cost `bound` nano-dollars, and none comes back in this start."""
        lack = self.purse.lack(bound, stuck)
        self.park(ParkReason.REMOTE if lack.later else ParkReason.BUDGET, lack.told(what), lack=lack)

    async def _raised_marks(self, bound: int) -> bool:
        """Commit higher high-water marks if this call needs them; True: look again at everything else."""
        marks = self.purse.marks(self.in_flight + 1, bound)
        if marks is not None:
            await self._raise_marks(*marks)
            self.purse.marked(*marks)
        return marks is not None

    def _grant(self, pace: Pace, request: Request, bound: int, now: float) -> Lease:
        probe = self._shut is not None
        if self._shut is not None:
            self._shut = credit.probing(self._shut)
        self.purse.reserve(bound)
        self._in_flight += 1
        self.waiting = ""
        return Lease(request, pace.started(now, _tokens(request)), bound, probe, self._gate.started())

    # --- how it went -------------------------------------------------------------------------------------------------

    def report(self, lease: Lease, outcome: Completion | Trouble, hint: Hint) -> None:
        """Tell the pace, and find out whether patience is over."""
        now, pace = self._clock.monotonic(), self._pace(lease.request.model)
        if isinstance(outcome, Completion):
            usage = outcome.usage
            pace.answered(now, lease.start, usage.prompt_tokens + usage.completion_tokens if usage else 0, hint)
            self._last_answer = now
            self._standins.answered(lease.request.model)
            if lease.request.row != PROBE_ROW:
                self._proven = True
                self._gate.answered(lease.call)
        elif outcome.fault in _SERVER_HAD_ROOM:
            pace.answered(now, lease.start, 0, hint)
        elif outcome.fault is Fault.THROTTLED:
            self._throttle(pace, lease, outcome, now, hint)
        else:
            pace.failed(now, lease.start)
        self._watch_patience(lease.request.model, outcome, now)
        if lease.probe:
            self._probe_came_back(outcome, now)

    def _throttle(self, pace: Pace, lease: Lease, trouble: Trouble, now: float, hint: Hint) -> None:
        self.throttled += 1
        if now - self._last_throttle > EPISODE:
            self._note("throttled", f"{lease.request.model}: 429 with {pace.in_flight} calls in flight")
        self._last_throttle = now
        pace.throttled(now, lease.start, hint)
        if trouble.wait:
            pace.hold(now + trouble.wait)

    def _watch_patience(self, model: str, outcome: Completion | Trouble, now: float) -> None:
        """Refusals of any kind without an answer for so long: another model stands in, or the run parks and ends."""
        look = self._standins.looked(model)
        if isinstance(outcome, Completion) or outcome.fault not in _REFUSALS:
            self._patience.restored(model)
        elif not look and self._patience.is_over(model, outcome, now):  # one that rests was known not to answer
            seconds = self._limits.overload_patience
            self.park(ParkReason.OVERLOAD, f"No answer for {seconds:.0f} seconds. The last reply: {outcome.message}")
        else:
            self.changed()  # another model may stand in by now

    def rest(self, model: str, asked: str, trouble: Trouble) -> bool:
        """Let a model rest when another one can take its rows."""
        rests = self._patience.rest(model, asked, trouble)
        self.changed()
        return rests

    def _probe_came_back(self, outcome: Completion | Trouble, now: float) -> None:
        """An answer opens the gate. A refused row says nothing of credits, a failing server nothing at all."""
        if isinstance(outcome, Completion):
            self._shut = None
            self._note("recovered", "The account has credits again.")
        elif outcome.fault is not Fault.CREDITS and self._shut is not None:
            wait = 0.0 if outcome.fault in _SERVER_HAD_ROOM else credit.FIRST_PROBE
            self._shut = credit.Shut(now + wait, self._shut.probes)

    def out_of_credits(self, lease: Lease, trouble: Trouble) -> bool:
        """Shut the gate or park; True when the row may wait for the next probe."""
        now = self._clock.monotonic()
        if self._parked is not None:
            return False
        before = self._shut
        self._shut = credit.refused(before, now, trouble.wait, patient=self._limits.wait_for_credits, probe=lease.probe)
        if self._shut is None:
            self.park(ParkReason.CREDITS, f"Out of credits: {trouble.message}")
        elif before is None:
            self._note("credits", "Out of credits; one call at a time looks whether there are any again.")
        self.changed()
        return self._shut is not None

    def rejected(self, fault: Fault, message: str, lease: Lease | None = None) -> None:
        """Nearly every row rejected for one reason: the job is wrong, not the rows, unless the user allows so many."""
        self._rejected += 1
        if self._gate.rejected(fault, message, None if lease is None else lease.call) is not None:
            self._give_up(fault, message)

    def _give_up(self, fault: Fault, message: str) -> None:
        if self._rejected > self._allowed:
            self.park(ParkReason.HOPELESS, f"Nearly every row is refused. The last one: {message}", fault)

    def settle(self, lease: Lease, spent: int) -> None:
        """The outcome is committed: slot and reservation come back."""
        self._pace(lease.request.model).finished(self._clock.monotonic(), lease.start)
        self._gate.ended(lease.call)
        self._in_flight -= 1
        self.purse.settle(lease.reserved, spent)
        self.changed()

    def park(self, reason: ParkReason, message: str, fault: Fault | None = None, lack: Lack | None = None) -> None:
        """Let nothing new start. Of several reasons the one that weighs most stays, as the exit codes are ranked."""
        parked = Parked(reason, message, fault, lack)
        if parked.outweighs(self._parked):
            self._parked = parked
            self.changed()
            for listener in self._listeners:
                listener()

    def others_answered(self) -> bool:
        """Whether a row was answered in the last five minutes."""
        return self._clock.monotonic() - self._last_answer < OTHERS_WINDOW

    def room(self, model: str) -> int:
        """Four times the limit, and at least 64."""
        return max(LEAST_ROOM, ROOM_FACTOR * self._pace(model).limit)

    # --- batches -----------------------------------------------------------------------------------------------------

    def unhold(self, nano: int, doubt: int, batch: int | None = None) -> None:
        """A batch is over: what it cost is counted, what was set aside comes back but for what stays in doubt."""
        self.purse.unhold(nano, batch)
        self.purse.spend(doubt, batch)
        self.changed()

    def leave(self) -> None:
        """The batches are where this start leaves them, or over."""
        self.purse.leave()
        self.changed()

    def took_in(self, answered: int, rejected: int, refused: Sequence[tuple[Fault, str]]) -> None:
        """A batch came back; what was refused (the first of it) may tell of the job."""
        self._rejected += rejected
        self._proven = self._proven or answered > 0
        if self._gate.took_in(answered, rejected, refused) is not None:
            self._give_up(*refused[-1])

    def when_parked(self, listener: Callable[[], None]) -> None:
        """Call it when the run has to stop."""
        self._listeners.append(listener)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def wait(self, seconds: float) -> None:
        """Wait until something changed, at most so many seconds. What is waited for is looked at again afterwards."""
        self._event.clear()
        await self._clock.wait(self._event, seconds)

    def changed(self) -> None:
        """Wake whoever waits."""
        self._event.set()


def _tokens(request: Request) -> int:
    """An estimate for the pace in tokens: a token is about four bytes, and answers use a part of what they may."""
    return len(request.body) // 4 + (request.max_tokens or 0) * request.n
