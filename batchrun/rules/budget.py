"""What people are told about budgets: what would be enough for the rest, and how long an answer should be allowed.

What may be spent is `money`'s, what will be spent `estimate`'s; nothing here decides whether a call may start.
"""

from __future__ import annotations

import math

from batchrun.rules.estimate import ENOUGH, TOKENS_A_CHOICE, Gauge
from batchrun.rules.money import nano

# Calls whose reservations shall fit beside all that will be spent, as far as they are a small part of it: with fewer
# the end of a run would be slow.
AT_ONCE = 64
_ROOM = 0.25
_CENT = nano(0.01)

# An answer is allowed so many standard deviations above the mean of those that were seen: text has a long tail.
_SIGMAS = 6.0
LEAST_TOKENS, MOST_TOKENS = 256, 65_536


def enough(spent: int, left: float, bound: int, mean: int) -> int:
    """A --max-cost that will do for what is left, in nano-dollars, rounded up to whole cents.

    Args:
        spent: what counts against it already.
        left: what the rest is expected to cost at the most.
        bound: what the call could cost that did not fit.
        mean: what a call could cost, on average.
    """
    room = max(bound, min(AT_ONCE * mean, round(_ROOM * left)))
    return math.ceil((spent + left + room) / _CENT) * _CENT


def max_tokens(seen: Gauge | None) -> int:
    """A --max-tokens that hardly any answer will meet: a power of two, well above what was seen, else guessed."""
    most = TOKENS_A_CHOICE[-1]
    if seen is not None and seen.replies >= ENOUGH:
        mean = seen.completion_tokens / seen.replies
        most = mean + _SIGMAS * math.sqrt(max(0.0, seen.completion_sq / seen.replies - mean * mean))
    return min(MOST_TOKENS, max(LEAST_TOKENS, 1 << math.ceil(math.log2(max(1.0, most)))))
