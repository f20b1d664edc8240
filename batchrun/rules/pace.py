"""How many calls may be in flight and how soon the next may start, for one model whose limits nobody told us.

Owns the pace and what it learnt. Leaves clocks, waiting, retries and their backoff to the caller: every method
takes `now`, in seconds of a clock that never runs backwards.
"""

import math
from enum import Enum

import msgspec

from batchrun.rules.limits import FIRST_RATE, LOOSE, Blame, Mark, Rate, Room

CREDIT_S = 0.025  # seconds a start may be late and still count: a busy event loop loses none, and no burst builds up
CALM_S = 1.0  # seconds after a failure without growth
STORM = 10  # failures in a row: nothing works, so one probe at a time
STORM_PAUSE_S = (1.0, 5.0)  # seconds between two probes of a storm, growing
SMOOTH = 0.05  # share of the newest in a running mean: about the last twenty answers
SANE = (1e-3, 1e6)  # a second, requests or tokens, in a header; anything else is a mistake
UNDER_WORD = 0.998  # factor: just under what a header allows, for clocks differ


class Bounds(msgspec.Struct, frozen=True, gc=False):
    """The user's word: the pace starts there and never goes above."""

    concurrency: int | None = None  # calls in flight; with it alone, starts are unlimited until the first 429
    rpm: float | None = None  # requests a minute
    tpm: float | None = None  # tokens a minute
    ceiling: int = 512  # calls in flight, never more: sockets and memory are finite


class Hint(msgspec.Struct, frozen=True, gc=False):
    """What the headers of a reply say about the limits; None where they say nothing."""

    requests_per_second: float | None = None
    tokens_per_second: float | None = None


class Learned(msgspec.Struct, frozen=True, gc=False):
    """What a run may leave to the next one."""

    rate: float  # starts a second that worked


class Start(msgspec.Struct, frozen=True, gc=False):
    """One call as it started; the caller gives it back with the outcome."""

    at: float  # seconds
    in_flight: int  # calls, this one included
    epoch: int  # cuts before it
    tokens: int  # charged for it
    order: int  # calls before it, and this one


class Reason(Enum):
    """Why the next call waits."""

    NONE = "none"
    RATE = "rate"
    SLOTS = "slots"
    TOKENS = "tokens"
    HELD = "held"
    STORM = "storm"


class Pace:
    """Two limits at once, calls in flight and starts a second: the smaller wins."""

    def __init__(self, bounds: Bounds, now: float, learned: Learned | None = None) -> None:
        self._rate = Rate(_first_rate(bounds, learned), (bounds.rpm or math.inf) / 60, now)
        self._room = Room(max(1, min(bounds.ceiling, bounds.concurrency or bounds.ceiling)))
        self._blame = Blame()
        self._knee = Knee()
        self._tokens = Tokens(bounds.tpm / 60 if bounds.tpm else math.inf)
        self._next = self._held = -math.inf
        self._in_flight = self._epoch = self._answered = 0
        self._latency: float | None = None
        self._failures = 0
        self._failed_at = -math.inf
        self._probe: int | None = None  # the call that tries a storm
        self._probe_at = -math.inf
        self._reason = Reason.NONE

    @property
    def in_flight(self) -> int:
        """Calls started and not finished."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """Calls allowed in flight right now."""
        return int(min(self._room.cap, self._knee.cap))

    @property
    def rate(self) -> float:
        """Starts a second allowed right now; `math.inf` when unlimited."""
        if self._blame.is_room and self._latency:
            return min(self._rate.most, LOOSE * self._room.cap / self._latency)
        return self._rate.value

    @property
    def reason(self) -> Reason:
        """Why the next call waits, as of the last `wait`."""
        return self._reason

    @property
    def learned(self) -> Learned | None:
        """What the next run may start from, once an answer has come."""
        known = self._working() if self._blame.is_room else self._rate.known
        return Learned(known) if self._latency and math.isfinite(known) else None

    def wait(self, now: float) -> float:
        """Seconds until the next call may start; `math.inf` when a slot has to come back first."""
        if self._held > now:
            self._reason = Reason.HELD
            return self._held - now
        if self._failures >= STORM:
            self._reason = Reason.STORM
            return max(0.0, self._probe_at - now) if self._probe is None else math.inf
        if self._in_flight >= self._room.cap or self._in_flight >= self._knee.cap:
            self._reason = Reason.SLOTS
            return math.inf
        if self._next > now:
            self._reason = Reason.RATE
            return self._next - now
        if self._tokens.next > now:
            self._reason = Reason.TOKENS
            return self._tokens.next - now
        self._reason = Reason.NONE
        return 0.0

    def started(self, now: float, tokens: int = 0) -> Start:
        """A call starts; `tokens` is what it will cost, as far as known."""
        self._in_flight += 1
        self._rate.started += 1
        self._rate.passed += 1
        self._blame.started(self._rate.started, self._in_flight)
        self._space(now)
        charged = self._tokens.charge(now, tokens)
        if self._failures >= STORM:
            self._probe = self._rate.started
        self._turn(now)
        return Start(now, self._in_flight, self._epoch, charged, self._rate.started)

    def answered(self, now: float, start: Start, tokens: int = 0, hint: Hint | None = None) -> None:
        """A reply that shows the server had room: an answer, or a refusal of the row itself."""
        took = max(1e-3, now - start.at)
        self._latency = took if self._latency is None else self._latency + SMOOTH * (took - self._latency)
        self._answered += 1
        self._failures, self._probe = 0, None
        self._tokens.settle(now, start.tokens, tokens)
        self._knee.heard(start.order, took)
        if self._blame.is_room and start.epoch == self._epoch:
            self._room.passed(start.in_flight)
        if hint is not None:
            self._heed(now, hint)
        self._turn(now)

    def throttled(self, now: float, start: Start, hint: Hint | None = None) -> None:
        """A 429: one cut an episode, so calls that started before the last cut do not count."""
        self._rate.passed -= 1
        self._tokens.refund(now, start.tokens)
        self._end_probe(now, start)
        counts = start.epoch == self._epoch
        was_room = self._blame.is_room
        self._blame.refused(start.order, counts=counts)
        if counts:
            self._epoch += 1
            self._cut(now, start, was_room)
        if hint is not None:
            self._heed(now, hint)

    def failed(self, now: float, start: Start) -> None:
        """A 5xx, a broken connection or a timeout: no word about limits, so growth waits and nothing is cut."""
        self._failures += 1
        self._failed_at = now
        self._end_probe(now, start)

    def finished(self, now: float, start: Start) -> None:
        """The outcome is kept: the slot comes back."""
        self._in_flight -= 1
        if start.order == self._probe:  # given up without an outcome
            self._end_probe(now, start)

    def hold(self, until: float) -> None:
        """The server asked for silence until then."""
        if math.isfinite(until):
            self._held = max(self._held, until)

    def _space(self, now: float) -> None:
        """Evenly, and never booked ahead: a start a little late is made up for, a long pause is not."""
        rate = self.rate
        if rate != math.inf:
            self._next = max(self._next, now - CREDIT_S) + 1 / rate

    def _cut(self, now: float, start: Start, was_room: bool) -> None:
        if self._blame.is_room:
            in_flight = start.in_flight if was_room else self._blame.full_at()
            if self._room.refused(now, in_flight):
                return
            self._blame.acquit_room()
        if was_room:
            self._room.forget()
            self._rate.resume(now, self._working())
        passed = self._rate.passed - (self._rate.started - start.order)  # those sent since are not judged yet
        here = Mark(start.at, start.order, passed, empty=True)
        self._next = max(self._next, self._rate.refused(now, here, self._working()))

    def _working(self) -> float:
        """Calls a second that are being answered (Little's law); 0 when none was yet."""
        return self._in_flight / self._latency if self._latency else 0.0

    def _end_probe(self, now: float, start: Start) -> None:
        if self._failures >= STORM:
            least, most = STORM_PAUSE_S
            self._probe_at = now + min(most, least + self._failures - STORM)
            self._probe = None if start.order == self._probe else self._probe

    def _heed(self, now: float, hint: Hint) -> None:
        least, most = SANE
        requests, tokens = hint.requests_per_second, hint.tokens_per_second
        if requests is not None and least <= requests <= most:
            self._rate.told(now, requests * UNDER_WORD)
        if tokens is not None and least <= tokens <= most:
            self._tokens.told(tokens * UNDER_WORD)

    def _turn(self, now: float) -> None:
        """Grow, when it is time and nothing failed just now."""
        if now < self._rate.turn_at and now < self._room.turn_at and now < self._knee.turn_at:
            return
        if now - self._failed_at < CALM_S:
            return
        if now >= self._knee.turn_at:
            self._knee.turn(now, self._answered, self._latency or 0.0)
        if self._blame.is_room:
            if now >= self._room.turn_at:
                self._room.turn()
        elif now >= self._rate.turn_at:
            self._rate.turn(now, self._latency, self._answered)
            if self._rate.lagging >= LAGGING and self._latency and self._knee.is_queueing(self._latency):
                self._knee.found(now, self._rate.answers_per_s(now, self._answered), self._answered)


def _first_rate(bounds: Bounds, learned: Learned | None) -> float:
    if bounds.rpm:
        return bounds.rpm / 60
    if bounds.concurrency:
        return math.inf
    return max(FIRST_RATE, learned.rate / 2) if learned else FIRST_RATE


class Tokens:
    """Tokens a second: a call is charged with an estimate when it starts, and its answer puts that right."""

    def __init__(self, per_s: float) -> None:
        self.next = -math.inf  # when the next call may start
        self._most = per_s  # the user's word
        self._told = math.inf  # a header's word
        self._mean = 0.0

    def charge(self, now: float, tokens: int) -> int:
        """A call starts. Returns what it is charged: the mean so far, when the caller does not know."""
        charged = tokens or round(self._mean)
        self._move(now, charged)
        return charged

    def settle(self, now: float, charged: int, tokens: int) -> None:
        """The answer tells what it cost; 0 when it does not."""
        if tokens:
            self._mean += (SMOOTH if self._mean else 1.0) * (tokens - self._mean)
            self._move(now, tokens - charged)

    def refund(self, now: float, charged: int) -> None:
        """The call was refused and cost nothing."""
        self._move(now, -charged)

    def told(self, per_s: float) -> None:
        """A header names the limit."""
        self._told = per_s

    def _move(self, now: float, tokens: int) -> None:
        if tokens and min(self._most, self._told) != math.inf:
            told_s = min(abs(tokens) / self._told, 1 / FIRST_RATE)  # a lie must not bring a run to a standstill
            self.next = max(self.next, now - CREDIT_S) + math.copysign(max(abs(tokens) / self._most, told_s), tokens)


FIRST_CALLS = 32  # calls that find the server idle, for the ramp is still low
LAGGING = 2  # steps in a row whose answers did not keep up
SLOWER = 1.6  # times the latency of those first calls: the others wait inside
OVER_KNEE = 1.25  # factor: a little over what keeps the server busy, so that it stays busy
MORE_ANSWERS = 1.1  # factor: of a quarter more calls, half came back as answers
KNEE_REST_S, KNEE_REST_MOST_S = 60.0, 480.0  # seconds before more calls are tried, doubled each time in vain
KNEE_TRY_S, KNEE_TRY_LATENCIES = 20.0, 4.0  # how long they are tried: answers enough to count to a few per cent


class Knee:
    """For a server that queues and never refuses: the calls in flight beyond which answers only come later."""

    def __init__(self) -> None:
        self.cap = math.inf  # calls in flight
        self.turn_at = math.inf
        self._first_s, self._firsts = 0.0, 0
        self._kept = math.inf  # the cap to go back to
        self._per_s = 0.0  # answers a second with it
        self._rest_s = KNEE_REST_S
        self._mark = Mark(0.0, 0, 0)

    def heard(self, order: int, took: float) -> None:
        """An answer took so many seconds."""
        if order <= FIRST_CALLS:
            self._first_s += took
            self._firsts += 1

    def is_queueing(self, latency: float) -> bool:
        """Answers take much longer than the first ones did."""
        return self._firsts >= FIRST_CALLS / 2 and latency > SLOWER * self._first_s / self._firsts

    def found(self, now: float, answers_per_s: float, answered: int) -> None:
        """Step back to what keeps the server busy: its answers a second, for as long as an answer takes (Little)."""
        self.cap = self._kept = max(1, math.ceil(OVER_KNEE * answers_per_s * self._first_s / self._firsts))
        self._rest(now, answered)

    def turn(self, now: float, answered: int, latency: float) -> None:
        """Try more calls at once, and keep them if they brought more answers a second."""
        per_s = (answered - self._mark.answered) / (now - self._mark.at)
        if self.cap == self._kept:
            self._per_s, self.cap = per_s, math.ceil(self.cap * OVER_KNEE)
            self._mark = Mark(now, 0, 0, answered)
            self.turn_at = now + max(KNEE_TRY_S, KNEE_TRY_LATENCIES * latency)
            return
        better = per_s >= MORE_ANSWERS * self._per_s
        self._kept = self.cap = self.cap if better else self._kept
        self._rest_s = KNEE_REST_S if better else min(KNEE_REST_MOST_S, 2 * self._rest_s)
        self._rest(now, answered)

    def _rest(self, now: float, answered: int) -> None:
        self._mark, self.turn_at = Mark(now, 0, 0, answered), now + self._rest_s
