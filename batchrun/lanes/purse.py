"""The money of a run: what is spent, what is set aside for calls and batches, and what --max-cost leaves.

All in nano-dollars. Every call and every row of a batch reserves the most it can cost before it starts.
"""

from __future__ import annotations

from batchrun.rules.money import usd


class Purse:
    """Spent, reserved for calls, held for batches.

    Attributes:
        reserved: set aside for calls in flight.
    """

    def __init__(self, limit: int | None, spent: int, held: int, *, leaving: bool) -> None:
        """Make one.

        Args:
            limit: --max-cost, None without one.
            spent: what counts against it already.
            held: set aside for batches that run already.
            leaving: whether this start ends while batches run, so that their money does not come back in it.
        """
        self.reserved = 0
        self._limit = limit
        self._spent = spent
        self._held = held
        self._leaving = leaving
        self._marked_calls = 0
        self._marked_nano = 0

    @property
    def has_limit(self) -> bool:
        """Whether the user set one."""
        return self._limit is not None

    def fits(self, bound: int) -> bool:
        """Whether a call, or a row, that can cost so much may start."""
        return self._limit is None or self._spent + self.reserved + self._held + bound <= self._limit

    @property
    def may_come_back(self) -> bool:
        """Whether money that is set aside now may be free again in this start."""
        return self.reserved > 0 or (self._held > 0 and not self._leaving)

    def is_used_up(self, bound: int) -> bool:
        """Whether it does not fit, and no money can come back."""
        return not self.fits(bound) and not self.may_come_back

    def told(self, what: str, bound: int) -> str:
        """That the next `what` (a call, a row) does not fit, with the figures."""
        limit = self._limit or 0
        left = max(0, limit - self._spent - self._held)
        return f"The next {what} could cost ${usd(bound):.6f}; ${usd(left):.6f} of --max-cost ${usd(limit):g} is left."

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

    def unhold(self, nano: int) -> None:
        """A batch is over: what was set aside for it comes back."""
        self._held -= nano

    def spend(self, nano: int) -> None:
        """Money is gone that no call had reserved."""
        self._spent += nano

    def marks(self, calls: int, bound: int) -> tuple[int, int] | None:
        """The high-water marks to commit before a call may start as the so many-th in flight; None when those do.

        Few commits, and a bound that stays close: calls in powers of two, money in steps of a quarter.
        """
        nano = self.reserved + bound
        if calls <= self._marked_calls and nano <= self._marked_nano:
            return None
        if nano > self._marked_nano:
            nano += nano // 4
        if self._limit is not None:
            nano = min(nano, self._limit - self._spent - self._held)
        return max(self._marked_calls, 1 << (calls - 1).bit_length()), max(self._marked_nano, nano)

    def marked(self, calls: int, nano: int) -> None:
        """They are committed. Another model's lease may have raised them meanwhile; marks never sink."""
        self._marked_calls, self._marked_nano = max(self._marked_calls, calls), max(self._marked_nano, nano)
