"""Rate limits: how much may pass now. Plain arithmetic on the time it is given; replies are made elsewhere."""

from dataclasses import dataclass

from batchrun.simulator.settings import Settings

NOMINAL = 1_000_000
"""What the headers show for a rate that is not limited."""


_ROUNDING = 1e-9


class Bucket:
    """A token bucket: fills at `rate` a second up to `capacity`; may be overdrawn by what was only known afterwards."""

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """What is in it now."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is in it; 0 when it is."""
        return max(0.0, (amount - self.level(now)) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take so much out, even below zero."""
        self._level = self.level(now) - amount


@dataclass(frozen=True, slots=True)
class Turned:
    """A refusal by a limit: by which one, and after how many seconds another attempt can pass."""

    by_tokens: bool
    reset: float


class Limits:
    """The limits of one model. A request counts when it is admitted, tokens count when they are used."""

    def __init__(self, settings: Settings, now: float) -> None:
        requests = settings.requests_per_second
        tokens = settings.tokens_per_second
        if settings.tokens_per_minute is not None:
            tokens = settings.tokens_per_minute / 60
        self._requests = None if requests is None else Bucket(requests, max(1.0, settings.burst or requests), now)
        self._tokens = None if tokens is None else Bucket(tokens, settings.token_burst or tokens, now)
        self._max_in_flight = settings.max_in_flight

    def admit(self, generating: int, now: float) -> Turned | None:
        """Let one request pass, or say why not."""
        if self._max_in_flight is not None and generating >= self._max_in_flight:
            return Turned(by_tokens=False, reset=1.0)
        if self._tokens is not None and self._tokens.level(now) <= 0:
            return Turned(by_tokens=True, reset=self._tokens.wait(1, now))
        if self._requests is not None:
            wait = self._requests.wait(1, now)
            if wait > _ROUNDING:
                return Turned(by_tokens=False, reset=wait)
            self._requests.take(1, now)
        return None

    def use(self, tokens: int, now: float) -> None:
        """A reply used so many tokens."""
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """The full set of rate-limit headers."""
        requests, tokens = self._requests, self._tokens
        return {
            "x-ratelimit-limit": f"{requests.rate:g}" if requests else str(NOMINAL),
            "x-ratelimit-remaining": str(max(0, int(requests.level(now)))) if requests else str(NOMINAL),
            "x-ratelimit-reset": f"{requests.wait(1, now):.3f}" if requests else "0",
            "x-tokenlimit-limit": f"{tokens.rate:g}" if tokens else str(NOMINAL),
            "x-tokenlimit-remaining": str(max(0, int(tokens.level(now)))) if tokens else str(NOMINAL),
        }
