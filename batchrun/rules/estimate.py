"""What the rows left will take, as estimates over many rows: tokens, and what they cost.

Counts and sums come from outside; what may be spent at most is `money`'s, and how to send it `route`'s.
"""

from __future__ import annotations

import enum
import math

import msgspec

from batchrun.records import Price

ENOUGH = 20  # replies: fewer say little, and the first ones back are the shortest

# A prompt nobody has counted yet. English is some four bytes a token, other scripts and code fewer, and a body is
# partly names and quotes that become no tokens at all.
BYTES_A_TOKEN = (6.0, 4.0, 2.0)  # low, likely, high estimate
ROW_NOISE = 0.2  # share of a prompt's tokens that its bytes do not explain: words are of different lengths
REAL_SPREAD = 0.05  # share of the mean that sizes must differ by (one sigma) for a slope to mean anything
BEST = 0.01  # share: even a sum over many rows is no better known than that

# An answer nobody has seen yet. With max_tokens, a share of it: most people leave room.
SHARE_OF_MAX = (0.1, 0.5, 1.0)
# Without, tokens a choice: a sentence or two, a few paragraphs, a model that thinks at length first. Nobody's figures
# but ours, and marked as a guess until replies are seen.
TOKENS_A_CHOICE = (100.0, 400.0, 4000.0)

SIGMAS = 2.0  # low and high are so many standard errors from likely: 95 % of the time inside


class Basis(enum.StrEnum):
    """Where an estimate comes from."""

    OBSERVED = "observed"
    GUESSED = "guessed"


class Load(msgspec.Struct, frozen=True):
    """What one model is asked for, as pass 1 counted it.

    Attributes:
        rows: input rows.
        bytes: sum of the sizes of their bodies.
        max_tokens: sum of max_tokens times n over the rows that name max_tokens.
        open_ended: choices asked for without max_tokens (such a row counts n times).
        oversized: rows whose line in a batch file would be longer than 10 MB.
        largest: size of the largest body.
        longest: max_tokens times n of the row that names the most.
    """

    rows: int = 0
    bytes: int = 0
    max_tokens: int = 0
    open_ended: int = 0
    oversized: int = 0
    largest: int = 0
    longest: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.rows + other.rows,
            self.bytes + other.bytes,
            self.max_tokens + other.max_tokens,
            self.open_ended + other.open_ended,
            self.oversized + other.oversized,
            max(self.largest, other.largest),
            max(self.longest, other.longest),
        )

    def scaled(self, rows: int) -> Load:
        """The load of so many rows like these: what is left, when only its count is known."""
        if not self.rows or not rows:
            return Load()
        share = rows / self.rows
        return Load(
            rows,
            round(self.bytes * share),
            round(self.max_tokens * share),
            round(self.open_ended * share),
            min(rows, round(self.oversized * share)),
            self.largest,
            self.longest,
        )


class Gauge(msgspec.Struct, frozen=True):
    """The observed usage of one model, as sums over its replies.

    Attributes:
        replies: replies that told their usage.
        bytes: body sizes.
        prompt_tokens: tokens in.
        bytes_sq: squares of the body sizes.
        bytes_tokens: body size times tokens in.
        completion_tokens: tokens out, all choices of a reply together.
        completion_sq: squares of the tokens out.
    """

    replies: float = 0
    bytes: float = 0
    prompt_tokens: float = 0
    bytes_sq: float = 0
    bytes_tokens: float = 0
    completion_tokens: float = 0
    completion_sq: float = 0

    def __add__(self, other: Gauge) -> Gauge:
        return Gauge(
            self.replies + other.replies,
            self.bytes + other.bytes,
            self.prompt_tokens + other.prompt_tokens,
            self.bytes_sq + other.bytes_sq,
            self.bytes_tokens + other.bytes_tokens,
            self.completion_tokens + other.completion_tokens,
            self.completion_sq + other.completion_sq,
        )


def one_reply(size: int, prompt: int, completion: int) -> tuple[int, ...]:
    """What a reply adds to a `Gauge`, in its order: `size` is the body's in bytes, the rest tokens."""
    return 1, size, prompt, size * size, size * prompt, completion, completion * completion


class Spread(msgspec.Struct, frozen=True):
    """A number that is not known exactly: it is hardly below `low` or above `high`."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.low * factor, self.likely * factor, self.high * factor)


class Estimate(msgspec.Struct, frozen=True):
    """Tokens that a load will take, in and out; `basis` says whether both were seen or something was guessed."""

    prompt: Spread
    completion: Spread
    basis: Basis


def tokens(load: Load, gauge: Gauge | None = None) -> Estimate:
    """The tokens of a whole load.

    A sum over many rows is good to a percent or so, a single row is not: never use this to decide what to truncate.
    The first replies back are the short ones, so an estimate early in a run is a little low.
    """
    seen = gauge if gauge is not None and gauge.replies >= ENOUGH else None
    return Estimate(
        _prompt(load, gauge or Gauge()),
        _guessed_completion(load) if seen is None else _observed_completion(load, seen),
        Basis.GUESSED if seen is None else Basis.OBSERVED,
    )


def cost(estimate: Estimate, price: Price | None, factor: float = 1.0) -> Spread | None:
    """What the tokens cost in nano-dollars at `factor` of the price, None when the price is unknown.

    Cached input counts in full: how much of it there will be nobody can promise.
    """
    if price is None:
        return None
    return (estimate.prompt * price.input + estimate.completion * price.output) * factor


def _prompt(load: Load, gauge: Gauge) -> Spread:
    if not load.rows:
        return Spread(0.0, 0.0, 0.0)
    if gauge.replies < 1 or gauge.bytes <= 0:
        low, likely, high = BYTES_A_TOKEN
        return Spread(load.bytes / low, load.bytes / likely, load.bytes / high)
    line = _line(gauge)
    if line is None:
        return _around(load.bytes * gauge.prompt_tokens / gauge.bytes, 1 / gauge.replies + 1 / load.rows)
    a, b = line
    # The textbook's error of a predicted mean: it grows away from the sizes that were seen.
    away = (load.bytes / load.rows - gauge.bytes / gauge.replies) ** 2 / (gauge.replies * _variance_of_bytes(gauge))
    return _around(a * load.rows + b * load.bytes, 1 / gauge.replies + 1 / load.rows + away)


def _around(likely: float, variance: float) -> Spread:
    """Prompt tokens with the error of a sum whose relative variance is so many times that of one row."""
    off = likely * (BEST + SIGMAS * ROW_NOISE * math.sqrt(variance))
    return Spread(max(0.0, likely - off), likely, likely + off)


def _variance_of_bytes(gauge: Gauge) -> float:
    return gauge.bytes_sq / gauge.replies - (gauge.bytes / gauge.replies) ** 2


def _line(gauge: Gauge) -> tuple[float, float] | None:
    """Tokens a row and tokens a byte by least squares, None when what was seen does not carry a line.

    A chat template adds a few tokens to every row, so the constant is never negative; and no tokenizer makes more
    tokens than bytes.
    """
    if gauge.replies < ENOUGH:
        return None
    size, tokens_in = gauge.bytes / gauge.replies, gauge.prompt_tokens / gauge.replies
    variance = _variance_of_bytes(gauge)
    if variance < (REAL_SPREAD * size) ** 2:
        return None
    b = (gauge.bytes_tokens / gauge.replies - size * tokens_in) / variance
    a = tokens_in - b * size
    return (a, b) if a >= 0 and 0 <= b <= 1 else None


def _observed_completion(load: Load, gauge: Gauge) -> Spread:
    mean = gauge.completion_tokens / gauge.replies
    variance = max(0.0, gauge.completion_sq / gauge.replies - mean * mean)
    # The mean is known to one part, the rows left scatter around it by the other.
    error = load.rows * math.sqrt(variance / gauge.replies + variance / load.rows) if load.rows else 0.0
    off = SIGMAS * error + BEST * mean * load.rows
    likely = mean * load.rows
    most = math.inf if load.open_ended else load.max_tokens
    return Spread(min(max(0.0, likely - off), most), min(likely, most), min(likely + off, most))


def _guessed_completion(load: Load) -> Spread:
    low, likely, high = (
        load.max_tokens * share + load.open_ended * each
        for share, each in zip(SHARE_OF_MAX, TOKENS_A_CHOICE, strict=True)
    )
    return Spread(low, likely, high)
