"""Models of servers with limits nobody told us, and an event-heap client that sends to them in virtual time."""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from batchrun.rules.pace import Bounds, Hint, Pace, Start

REFUSAL_S = 0.15  # how fast a 429 comes back
MEDIAN_S, SIGMA = 4.0, 0.6
MEAN_S = MEDIAN_S * math.exp(SIGMA**2 / 2)

Latency = Callable[[random.Random], float]


def lognormal(median: float = MEDIAN_S, sigma: float = SIGMA) -> Latency:
    return lambda dice: dice.lognormvariate(math.log(median), sigma)


@dataclass(slots=True)
class Reply:
    status: int
    seconds: float  # inside the server
    hint: Hint | None = None
    tokens: int = 0


@dataclass(slots=True)
class Server:
    """Answers everything; the others refuse, queue or fail some of it."""

    latency: Latency = field(default_factory=lognormal)

    def take(self, at: float, tokens: int, dice: random.Random) -> Reply:  # noqa: ARG002  (for those that refuse)
        return Reply(200, self.latency(dice), tokens=tokens)


@dataclass(slots=True)
class Bucket(Server):
    """A token bucket; `rate` is requests a second as a function of time (or tokens a second, if `costs`)."""

    rate: Callable[[float], float] = lambda _: 10.0
    burst: float = 10.0
    costs: bool = False
    header: Callable[[float], float] | None = None
    level: float = field(init=False)
    seen: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def take(self, at: float, tokens: int, dice: random.Random) -> Reply:
        self.level = min(self.burst, self.level + self.rate(at) * (at - self.seen))
        self.seen = at
        hint = Hint(requests_per_second=self.header(at)) if self.header else None
        cost = tokens if self.costs else 1.0
        if self.level < min(cost, self.burst):
            return Reply(429, REFUSAL_S, hint)
        self.level -= cost
        return Reply(200, self.latency(dice), hint, tokens)


@dataclass(slots=True)
class Slots(Server):
    """At most `slots` calls at once; the rest is refused, or queued inside when `queues`."""

    slots: Callable[[float], int] = lambda _: 40
    queues: bool = False
    ends: list[float] = field(default_factory=list)

    def take(self, at: float, tokens: int, dice: random.Random) -> Reply:
        while self.ends and self.ends[0] <= at:
            heapq.heappop(self.ends)
        begin, room = at, self.slots(at)
        if len(self.ends) >= room:
            if not self.queues:
                return Reply(429, REFUSAL_S)
            begin = heapq.nsmallest(len(self.ends) - room + 1, self.ends)[-1]
        end = begin + self.latency(dice)
        heapq.heappush(self.ends, end)
        return Reply(200, end - at, tokens=tokens)


@dataclass(slots=True)
class Queue(Server):
    """Works on `slots` calls at once, first come first served, and never refuses."""

    slots: int = 64
    free: list[float] = field(default_factory=list)

    def take(self, at: float, tokens: int, dice: random.Random) -> Reply:
        if not self.free:
            self.free = [0.0] * self.slots
        end = max(at, self.free[0]) + self.latency(dice)
        heapq.heapreplace(self.free, end)
        return Reply(200, end - at, tokens=tokens)


@dataclass(slots=True)
class Flaky(Server):
    """Another server behind a gateway: a share of 503, and an outage from `down` to `up`."""

    inner: Server = field(default_factory=Server)
    share: float = 0.02
    down: float = math.inf
    up: float = math.inf

    def take(self, at: float, tokens: int, dice: random.Random) -> Reply:
        if self.down <= at < self.up or dice.random() < self.share:
            return Reply(503, REFUSAL_S)
        return self.inner.take(at, tokens, dice)


@dataclass(slots=True)
class Client:
    """Sends rows as fast as its pace allows; a refused row goes straight back to the queue."""

    pace: Pace
    rows: float = math.inf
    good: int = 0
    refused: int = 0
    errors: int = 0
    seconds: float = 0.0
    again: deque[int] = field(default_factory=deque)  # tokens of the rows to send again
    last_good: float = 0.0
    peak: int = 0
    wakes: float = math.inf
    tokens: int = 0
    starts: list[float] = field(default_factory=list)
    accepts: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)

    @property
    def started(self) -> int:
        return len(self.starts)

    @property
    def share_429(self) -> float:
        return self.refused / max(1, self.started)

    @property
    def latency(self) -> float:
        return self.seconds / max(1, self.good)

    def accepted(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.accepts)

    def refused_between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.refusals)

    def time_to(self, rate: float, window: float = 10.0) -> float:
        """When the accepted calls of the next ten seconds first reach this rate."""
        recent: deque[float] = deque()
        for at in self.accepts:
            recent.append(at)
            while recent[0] < at - window:
                recent.popleft()
            if len(recent) >= rate * window:
                return recent[0]
        return math.inf


@dataclass(slots=True)
class Run:
    """Clients and one server on a heap of events."""

    server: Server
    clients: list[Client]
    dice: random.Random
    wire: float
    tokens: Callable[[random.Random], int]
    estimate: int
    now: float = 0.0
    events: list[Any] = field(default_factory=list)
    order: int = 0

    def push(self, at: float, happens: Callable[..., None], *what: object) -> None:
        self.order += 1
        heapq.heappush(self.events, (at, self.order, happens, what))

    def pump(self, client: Client) -> None:
        """Start all that may start now."""
        pace = client.pace
        while client.rows > 0:
            delay = pace.wait(self.now)
            if delay > 0.0:
                if self.now + delay < client.wakes:
                    client.wakes = self.now + delay
                    self.push(client.wakes, self.wake, client)
                return
            start = pace.started(self.now, self.estimate)
            client.rows -= 1
            client.starts.append(self.now)
            client.peak = max(client.peak, pace.in_flight)
            cost = client.again.popleft() if client.again else self.tokens(self.dice)
            reply = self.server.take(self.now + self.wire, cost, self.dice)
            reply.tokens = cost
            self.push(self.now + 2 * self.wire + reply.seconds, self.reply, client, start, reply)

    def wake(self, client: Client) -> None:
        client.wakes = math.inf

    def reply(self, client: Client, start: Start, reply: Reply) -> None:
        _tell(client, self.now, start, reply)
        self.push(self.now + self.dice.uniform(0.005, 0.025), self.commit, client, start)

    def commit(self, client: Client, start: Start) -> None:
        client.pace.finished(self.now, start)

    def sleep(self, seconds: float) -> None:
        """The clock jumps: everything that was to happen happens later."""
        self.events = [(at + seconds, *rest) for at, *rest in self.events]  # still a heap
        for client in self.clients:
            client.wakes += seconds


def run(
    server: Server,
    clients: list[Client],
    *,
    until: float = 1800.0,
    seed: int = 0,
    wire: float = 0.0,
    tokens: Callable[[random.Random], int] = lambda _: 0,
    estimate: int = 0,
    sleeps: tuple[float, float] | None = None,  # when, and for how long
) -> None:
    """Run every client against one server until the time is over or all rows are answered."""
    world = Run(server, clients, random.Random(seed), wire, tokens, estimate)
    for client in clients:
        world.pump(client)
    while world.events:
        at = world.events[0][0]
        if sleeps and at >= sleeps[0]:
            world.sleep(sleeps[1])
            until, sleeps = until + sleeps[1], None
            continue
        if at > until:
            return
        world.now, _, happens, what = heapq.heappop(world.events)
        happens(*what)
        world.pump(what[0])


def _tell(client: Client, now: float, start: Start, reply: Reply) -> None:
    if reply.status == 200:
        client.pace.answered(now, start, reply.tokens, reply.hint)
        client.good += 1
        client.tokens += reply.tokens
        client.seconds += now - start.at
        client.last_good = now
        client.accepts.append(start.at)
    elif reply.status == 429:
        client.pace.throttled(now, start, reply.hint)
        client.refused += 1
        client.refusals.append(start.at)
        client.again.append(reply.tokens)
        client.rows += 1
    else:
        client.pace.failed(now, start)
        client.errors += 1
        client.again.append(reply.tokens)
        client.rows += 1


def client(bounds: Bounds | None = None, rows: float = math.inf) -> Client:
    return Client(Pace(bounds or Bounds(), 0.0), rows)
