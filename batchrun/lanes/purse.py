"""The money of a run: what is spent, what is set aside for calls and batches, and what the limits leave.

All in nano-dollars. Every call and every row of a batch reserves the most it can cost before it starts. What batches of
earlier starts cost counts for --max-cost, and for --max-cost-run in the start that made them.
"""

from __future__ import annotations

import math

from batchrun.rules.money import usd


class Purse:
    """Spent, reserved for calls, held for batches.

    Attributes:
        reserved: set aside for calls in flight.
    """

    def __init__(
        self, limit: int | None, spent: int, held: int, *, leaving: bool, run_limit: int | None = None
    ) -> None:
        """Make one.

        Args:
            limit: --max-cost, None without one.
            spent: what counts against it already.
            held: set aside for batches that run already.
            leaving: whether this start ends while batches run, so that their money does not come back in it.
            run_limit: --max-cost-run, None without one.
        """
        self.reserved = 0
        self._limit = limit
        self._run_limit = run_limit
        self._spent = spent
        self._held = held
        self._earlier = spent + held  # what earlier starts spent or set aside: none of this start's affair
        self._earlier_held = held
        self._leaving = leaving
        self._marked_calls = 0
        self._marked_nano = 0

    @property
    def has_limit(self) -> bool:
        """Whether the user set one."""
        return self._limit is not None or self._run_limit is not None

    def fits(self, bound: int) -> bool:
        """Whether a call, or a row, that can cost so much may start."""
        return bound <= min(self._left_of_all, self._left_of_run)

    @property
    def _left_of_all(self) -> float:
        return math.inf if self._limit is None else self._limit - self._spent - self.reserved - self._held

    @property
    def _left_of_run(self) -> float:
        if self._run_limit is None:
            return math.inf
        return self._run_limit - (self._spent + self.reserved + self._held - self._earlier)

    @property
    def may_come_back(self) -> bool:
        """Whether money that is set aside now may be free again in this start."""
        by_run = self._left_of_run < self._left_of_all
        held = self._held - (self._earlier_held if by_run else 0)
        return self.reserved > 0 or (held > 0 and not self._leaving)

    def is_used_up(self, bound: int) -> bool:
        """Whether it does not fit, and no money can come back."""
        return not self.fits(bound) and not self.may_come_back

    def told(self, what: str, bound: int) -> str:
        """That the next `what` (a call, a row) does not fit, with the figures."""
        by_run = self._left_of_run < self._left_of_all
        limit = (self._run_limit if by_run else self._limit) or 0
        left = max(0, round(self._left_of_run if by_run else self._left_of_all) + self.reserved)
        name = "--max-cost-run" if by_run else "--max-cost"
        return f"The next {what} could cost ${usd(bound):.6f}; ${usd(left):.6f} of {name} ${usd(limit):g} is left."

    def reserve(self, bound: int) -> None:
        """A call starts."""
        self.reserved += bound

    def settle(self, reserved: int, spent: int) -> None:
        """A call is over: what it reserved comes back, what it cost is spent."""
        self.reserved -= reserved
        self._spent += spent

    def hold(self, nano: int) -> bool:
        """Set money aside for rows of a batch, when it fits."""
        if not self.fits(nano):
            return False
        self._held += nano
        return True

    def unhold(self, nano: int, *, earlier: bool = False) -> None:
        """A batch is over: what was set aside for it, by an `earlier` start perhaps, comes back."""
        self._held -= nano
        if earlier:
            self._earlier -= nano
            self._earlier_held -= nano

    def spend(self, nano: int, *, earlier: bool = False) -> None:
        """Money is gone that no call had reserved; `earlier` when a batch of an earlier start took it."""
        self._spent += nano
        if earlier:
            self._earlier += nano

    def marks(self, calls: int, bound: int) -> tuple[int, int] | None:
        """The high-water marks to commit before a call may start as the so many-th in flight; None when those do.

        Few commits, and a bound that stays close: calls in powers of two, money in steps of a quarter.
        """
        nano = self.reserved + bound
        if calls <= self._marked_calls and nano <= self._marked_nano:
            return None
        if nano > self._marked_nano:
            nano += nano // 4
        if self.has_limit:
            nano = min(nano, round(self.reserved + min(self._left_of_all, self._left_of_run)))
        return max(self._marked_calls, 1 << (calls - 1).bit_length()), max(self._marked_nano, nano)

    def marked(self, calls: int, nano: int) -> None:
        """They are committed. Another model's lease may have raised them meanwhile; marks never sink."""
        self._marked_calls, self._marked_nano = max(self._marked_calls, calls), max(self._marked_nano, nano)
