"""The two limits a server may have, how each is found and kept, and which of them refused a call.

`Rate` is starts a second, `Room` is calls at once, `Blame` tells them apart. Leaves what counts, and when, to `pace`.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

# Ramp: look for the limit.
FIRST_RATE = 1.0  # starts a second: 60 a minute is what a new account gets
LEAST_RATE = 1 / 60  # starts a second: one a minute; slower is standing still
MOST_RATE = 1e6  # starts a second: beyond any client; keeps doubling finite
DOUBLE = 2.0  # factor of a step, once the limit is out of sight
STEP_LATENCIES = 0.75  # time between two steps: by then most answers to the last one are in
STEP_S = (0.5, 4.0)  # seconds between two steps, at least (short answers) and at most (long ones)
ROUNDS = 3  # steps looked back on: an answer takes one and a third
USED = 0.7  # share of the allowed starts really made: below it something else holds us and a step proves nothing
KEPT_UP = 0.6  # share of the starts of two steps ago answered by now: below it the server queues

# Refused: step back.
TRIM = 0.985  # factor: the least that a refusal costs
SKIP_CALLS = 3.0  # starts left out after a refusal, so that the bucket holds something; doubled while that is too few
SKIP_MOST = 16.0  # and no more: a small bucket would overflow
SURE_CALLS = 20  # calls passed between two refusals, to read the limit off them to about 5 %
POOL_CALLS = 400.0  # calls whose passing is remembered in the limit: an error of 5 % when costs are lognormal
FAR_OFF = 2.5  # standard deviations: fewer calls passed than luck explains, so the limit fell
NOISE_SHARE = 0.3  # share of the newest reading in the noise
NOISE_MOST = 4.0  # variance of a call's cost, in mean costs: more is a change of the limit, not noise

# Rest and probe: see whether the limit rose. Every probe that finds nothing costs a refused call.
REST_S, REST_CALLS = 30.0, 100.0  # between two probes: 0.25 % refused at 10 a second, 0.75 % at 3
REST_READINGS = 3.0  # but no longer than this many times the calls that the limit was read off
LEAST_REST_S = 1.0  # seconds: the verdicts on calls already sent come first
FALLEN, FALLEN_REST_S, FALLEN_FOR_S = 0.7, 20.0, 900.0  # a limit that fell often comes back: look sooner, for a while
PROBE = 1.25  # factor: far enough to be refused, or believed, within seconds
PROBE_LEAST, PROBE_PER_S = 1.05, 3.0  # a high rate need not go so far: three calls a second beyond the limit will do
RISEN_CALLS = 4.0  # calls passed beyond the old limit that prove a new one
RISEN_SIGMAS = 2.0  # and beyond this many standard deviations of what the calls cost
NEAR_WORD = 0.03  # share that the limit read off and the one a header names may differ by
IDLE_CALLS = 40.0  # calls short of the limit after which its bucket may have filled: no reading then
BURST_S = 10.0  # seconds of the limit that such a bucket may hold


class Phase(Enum):
    """What the rate is doing."""

    FREE = "free"  # unlimited: the user named the calls in flight, and nothing was refused
    RAMP = "ramp"  # a step up, again and again
    REST = "rest"  # at the known limit
    PROBE = "probe"  # above it


class Trust(Enum):
    """Whether the limit that a header names is the limit."""

    UNTRIED = "untried"
    GOOD = "good"  # refused just there
    BAD = "bad"  # much more was accepted: never listened to again


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment, with the counts of it."""

    at: float
    started: int
    passed: int  # of those, not refused
    answered: int = 0
    empty: bool = False  # the server had nothing left to give


@dataclass(frozen=True, slots=True)
class Reading:
    """What passed between refusals, pooled over the latest few hundred calls."""

    calls: float = 0.0
    seconds: float = 0.0
    noise: float = 0.0  # variance of what a call costs, in mean costs: 0 when the server counts calls

    def add(self, passed: float, seconds: float) -> "Reading":
        """Pool another interval, or start anew with it when it does not fit."""
        if not self.calls or _sigmas(passed, self.rate * seconds) > FAR_OFF:
            return Reading(passed, seconds, self.noise)
        off = min(NOISE_MOST, (passed - self.rate * seconds) ** 2 / passed)
        calls = self.calls + passed
        keep = min(1.0, POOL_CALLS / calls)
        noise = self.noise + NOISE_SHARE * (off - self.noise)
        return Reading(calls * keep, (self.seconds + seconds) * keep, noise)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


class Rate:
    """Starts a second.

    A server that refuses has nothing left to give, and one with nothing left passes exactly its limit. So the
    calls that pass between two refusals, over the time between them, are the limit: two refusals find it.
    """

    def __init__(self, value: float, most: float, now: float) -> None:
        self.most = most  # the user's word
        self.value = min(value, most)  # allowed now
        self.known = self.value  # the limit, as far as we know
        self.phase = Phase.FREE if math.isinf(self.value) else Phase.RAMP
        self.started = self.passed = 0
        self.turn_at = now  # when to look at the phase again
        self.lagging = 0  # steps in a row whose answers did not keep up
        self._factor = self._stepped = DOUBLE
        self._rounds = deque([Mark(now, 0, 0)], maxlen=ROUNDS)
        self._mark: Mark | None = None  # where the current interval began
        self._reading = Reading()
        self._skip = SKIP_CALLS
        self._refusal_s = 0.0  # how long a refusal takes to arrive
        self._goal = 0.0  # the limit before it fell, or a promised one: where a ramp stops first
        self._goal_at = now
        self._word: float | None = None  # the limit a header named
        self._trust = Trust.UNTRIED

    def turn(self, now: float, latency: float | None, answered: int) -> None:
        """Look at the phase: has it lasted long enough, and what did it show?"""
        match self.phase:
            case Phase.RAMP:
                self._ramp(now, latency, answered)
            case Phase.REST:
                self._probe(now)
            case Phase.PROBE:
                self._judge(now, latency, answered)
            case Phase.FREE:
                self.turn_at = math.inf  # until a refusal

    def refused(self, now: float, here: Mark, working: float) -> float:
        """A refusal that counts, of the call that started `here`, when `working` calls a second were answered.

        Returns when the next call may start.
        """
        self._refusal_s = max(0.0, now - here.at)
        if self.phase is Phase.FREE and not working:
            self._begin_ramp(now, FIRST_RATE)
            return now + 1 / self.value
        skip = SKIP_CALLS
        if self.phase in (Phase.FREE, Phase.RAMP):
            self.known, self._mark, self._reading = self._between(working), here, replace(self._reading, calls=0.0)
        elif self._mark is None or not self._mark.empty or self._is_idle(here.at, here.started):
            self.known, self._mark = self.known * TRIM, here
        else:
            skip = self._read(here, self._mark)
        self.known = min(self.most, max(LEAST_RATE, self.known))
        self._rest(now)
        return now + skip / self.known

    def told(self, now: float, limit: float) -> None:
        """A header names the limit. It only says where to stop: a lie can slow a run for a while, never rush it."""
        if limit == self._word or self._trust is Trust.BAD:
            return
        self._word = limit
        if self.phase is Phase.PROBE:
            return
        if limit < DOUBLE * self.known and self.phase is Phase.REST:
            turn_at = self.turn_at  # a word that changes all the time is still tried
            self._settle(now, limit)
            self.turn_at = self.turn_at if self._trust is Trust.GOOD else min(self.turn_at, turn_at)
        elif limit < self.value:
            self._settle(now, limit)
        else:
            self._goal, self._goal_at = limit, now
            if self.phase is Phase.REST:
                self._begin_ramp(now, self.known)

    def answers_per_s(self, now: float, answered: int) -> float:
        """Answers a second over the last steps."""
        first = self._rounds[0]
        return (answered - first.answered) / max(1e-3, now - first.at)

    def resume(self, now: float, working: float) -> None:
        """The calls at once held us and no longer do: go on from the calls a second that were answered."""
        self._settle(now, min(self.known, working) if working else self.known)

    def _begin_ramp(self, now: float, value: float, factor: float = DOUBLE, answered: int = 0) -> None:
        self.phase, self.known, self._factor, self.turn_at = Phase.RAMP, min(self.most, value), factor, now
        self.value = self.known
        self._rounds = deque([Mark(now, self.started, self.passed, answered)], maxlen=ROUNDS)

    def _ramp(self, now: float, latency: float | None, answered: int) -> None:
        last, before = self._rounds[-1], self._rounds[0]
        used = self.passed - last.passed >= USED * self.value * (now - last.at)
        asked = self._rounds[1].passed - before.passed if len(self._rounds) == ROUNDS else 0
        keeps_up = answered - last.answered >= KEPT_UP * asked
        self.lagging = 0 if keeps_up else self.lagging + 1
        if latency is not None and used and keeps_up:
            self._step(now)
        if self.phase is Phase.RAMP:
            self._rounds.append(Mark(now, self.started, self.passed, answered))
            self.turn_at = now + _step_s(latency)

    def _step(self, now: float) -> None:
        """Go up; stop first at a limit we have a reason to expect, then ever faster."""
        value = min(self.most, MOST_RATE, self.value * self._factor)
        if self.value < self._goal <= value:
            self._settle(now, self._goal)
            return
        self.value = self.known = value
        self._stepped, self._factor = self._factor, min(DOUBLE, self._factor**2)

    def _between(self, working: float) -> float:
        """The first guess: between the step that was refused and the one before it, and no dream."""
        if self.phase is Phase.FREE:
            return working * TRIM
        return min(self.value / math.sqrt(self._stepped), DOUBLE * working if working else math.inf)

    def _read(self, here: Mark, mark: Mark) -> float:
        """Read the limit off the interval. Returns how many starts to leave out."""
        passed, seconds = here.passed - mark.passed, max(here.at - mark.at, 1e-3)
        if passed >= SURE_CALLS:
            self._mark, self._skip = here, SKIP_CALLS
            self._reading = self._reading.add(passed, seconds)
            self.known = min(self.value, self._reading.rate)
            self._weigh_word()
        elif self._reading.calls and _sigmas(passed, self.known * seconds) < FAR_OFF:
            self._skip = min(SKIP_MOST, self._skip * 2)  # the limit may well be right: the bucket was just too empty
        else:
            self._cut(here.at, passed / seconds)
        return self._skip

    def _cut(self, now: float, passing: float) -> None:
        """Refused again and again: down to what passes now, by half at most, for so few calls tell little."""
        if self._reading.calls:
            self._goal, self._goal_at = self.known, now
            self._reading = replace(self._reading, calls=0.0)
        self.known = min(self.value * TRIM, max(self.value / 2, passing))
        self._weigh_word()

    def _weigh_word(self) -> None:
        """Refused at about the limit that the header names: it is true, and needs no more probes."""
        if self._word is not None and self._trust is not Trust.BAD:
            near = abs(self.known / self._word - 1) < NEAR_WORD
            self._trust = Trust.GOOD if near else Trust.UNTRIED

    def _settle(self, now: float, limit: float) -> None:
        """Take this limit without having been refused at it."""
        self.known, self._goal, self._mark = min(self.most, limit), 0.0, None
        self._reading = replace(self._reading, calls=0.0)
        self._rest(now)

    def _rest(self, now: float) -> None:
        self.phase, self.lagging, self.value = Phase.REST, 0, self.known
        if self._trust is Trust.GOOD:
            self.turn_at = math.inf
            return
        rest_s = REST_S + REST_CALLS / self.known
        if self.known < FALLEN * self._goal and now < self._goal_at + FALLEN_FOR_S:
            rest_s = FALLEN_REST_S
        read_s = max(SURE_CALLS, REST_READINGS * self._reading.calls) / self.known
        self.turn_at = now + max(LEAST_REST_S, 2 * self._refusal_s, min(rest_s, read_s))

    def _probe(self, now: float) -> None:
        if self._is_idle(now, self.started):
            self._mark = Mark(now, self.started, self.passed)
        factor = min(PROBE, max(PROBE_LEAST, 1 + PROBE_PER_S / self.known))
        self.phase, self.value, self.turn_at = Phase.PROBE, min(self.most, self.known * factor), now

    def _judge(self, now: float, latency: float | None, answered: int) -> None:
        mark = self._mark
        if mark is None or self._is_idle(now, self.started):
            self._rest(now)
        elif self.passed - mark.passed - self.known * (now - mark.at) > self._proof(mark):
            self._trust = Trust.UNTRIED if self._word is None else Trust.BAD
            self._begin_ramp(now, self.value, PROBE, answered)
            self._step(now)
            self.turn_at = now + _step_s(latency)

    def _proof(self, mark: Mark) -> float:
        """Calls passed beyond the known limit that only a higher one explains."""
        passed = self.passed - mark.passed
        unheard = (self.value - self.known) * self._refusal_s * 1.5  # their refusals are still on the way
        saved = 0.0 if mark.empty else BURST_S * self.known
        luck = RISEN_SIGMAS * math.sqrt(self._reading.noise * passed)
        return RISEN_CALLS + luck + unheard + saved

    def _is_idle(self, now: float, started: int) -> bool:
        """So few calls were sent that the bucket may have filled meanwhile."""
        mark = self._mark
        return mark is None or started - mark.started - self.known * (now - mark.at) < -IDLE_CALLS


def _step_s(latency: float | None) -> float:
    """Seconds between two steps."""
    return min(STEP_S[1], max(STEP_S[0], STEP_LATENCIES * (latency or 0.0)))


def _sigmas(passed: float, expected: float) -> float:
    """How far off the count is, in standard deviations, if calls passed at random."""
    return abs(passed - expected) / math.sqrt(max(passed, expected, 1.0))


ROOM_REST_S, ROOM_REST_MOST_S = 20.0, 160.0  # seconds between two probes, doubled after each that failed
PROOFS = 8  # calls accepted beyond the room that prove it grew; with a slow wire each is accepted six times in ten
LOOSE = 4.0  # times the rate that the slots alone allow: wide enough not to hold, narrow enough to stop a rush
STRIKES = 2  # refusals in a row with fewer in flight than were accepted before: not a room at all


class Room:
    """Calls at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        """No limit is known."""
        self.cap = self.known = self.most
        self.turn_at = math.inf
        self._rest_s = ROOM_REST_S
        self._step, self._proofs, self._strikes = 1, 0, 0

    def refused(self, now: float, in_flight: int) -> bool:
        """Refused at so many in flight. Returns whether this still looks like a room."""
        below = in_flight <= self.known < self.most
        self._strikes = self._strikes + 1 if below else 0
        self._rest_s = ROOM_REST_S if below else min(ROOM_REST_MOST_S, self._rest_s * 2)
        self.cap = self.known = max(1, min(self.known, in_flight - 1))
        self._step, self.turn_at = 1, now + self._rest_s
        return self._strikes < STRIKES

    def passed(self, in_flight: int) -> None:
        """Accepted at so many in flight."""
        if self.known < in_flight <= self.cap:
            self._proofs += 1
            if self._proofs >= PROOFS:
                self.known, self._step, self._rest_s = self.cap, self._step * 2, ROOM_REST_S
                self.turn()

    def turn(self) -> None:
        """It is time to probe: one more, and twice as many more each time they are accepted."""
        self.turn_at, self._proofs = math.inf, 0
        self.cap = min(self.most, self.known + self._step)


WINDOW = 256  # starts looked at: several episodes of refusals
DECIDED = 5.0  # log likelihood ratio: more than one refusal, however placed, can reach
FULL_REFUSES = 0.6  # share refused when the room is full; the others find a slot that came free on the wire
ROOM_REFUSES = 0.01  # share refused below that, for whatever reason


class Blame:
    """Which limit refuses: a room only the calls that start when it is full, a rate any of them."""

    def __init__(self) -> None:
        self.is_room = False
        self._starts: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # order, in flight
        self._refused: dict[int, bool] = {}  # order to whether it counts

    def started(self, order: int, in_flight: int) -> None:
        """A call starts."""
        self._starts.append((order, in_flight))

    def refused(self, order: int, *, counts: bool) -> None:
        """A call was refused; only the first of an episode counts, for those behind it stood in the same place."""
        self._refused[order] = counts
        if counts:
            oldest = self._starts[0][0] if self._starts else order
            self._refused = {o: c for o, c in self._refused.items() if o >= oldest}
            odds = _odds_of_room(self._seen(order))
            self.is_room = odds > 0 if abs(odds) > DECIDED else self.is_room

    def full_at(self) -> int:
        """The fewest calls in flight that were refused."""
        return min(n for order, n in self._starts if order in self._refused)

    def acquit_room(self) -> None:
        """It was not the room: look afresh."""
        self.is_room = False
        self._starts.clear()
        self._refused.clear()

    def _seen(self, upto: int) -> list[tuple[int, bool]]:
        """The calls in flight at each start and whether it was refused, up to the one judged now."""
        return [(n, o in self._refused) for o, n in self._starts if o <= upto and self._refused.get(o, True)]


def _odds_of_room(seen: Sequence[tuple[int, bool]]) -> float:
    """Log likelihood of a full room over that of a rate."""
    refused = [n for n, no in seen if no]
    accepted = [n for n, no in seen if not no]
    if not refused or not accepted:
        return 0.0
    beyond = sum(n >= min(refused) for n in accepted)
    room = len(refused) * math.log(FULL_REFUSES) + beyond * math.log(1 - FULL_REFUSES)
    room += (len(accepted) - beyond) * math.log(1 - ROOM_REFUSES)
    share = len(refused) / len(seen)
    return room - len(refused) * math.log(share) - len(accepted) * math.log(1 - share)
