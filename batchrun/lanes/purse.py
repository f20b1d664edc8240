"""The money of a run: what is spent, what is set aside for calls and batches, and what the limits leave.

All in nano-dollars. Every call and every row of a batch reserves the most it can cost before it starts. What batches of
earlier starts cost counts for --max-cost, and for --max-cost-run in the start that made them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from batchrun.rules.money import usd


class Lack(msgspec.Struct, frozen=True):
    """Money that is missing for the next call or row.

    Attributes:
        bound: what it could cost.
        left: what the limit leaves, when everything set aside for calls is back.
        limit: the limit.
        by_run: whether that is --max-cost-run, else --max-cost.
        held: what batches at the provider hold of it.
        later: whether a later start has it without a word of the user's, since this one leaves those batches running.
    """

    bound: int
    left: int
    limit: int
    by_run: bool
    held: int
    later: bool

    def told(self, what: str) -> str:
        """The same in a sentence; `what` is a call, or a row."""
        name = "--max-cost-run" if self.by_run else "--max-cost"
        batches = f", ${usd(self.held):.6f} set aside for batches at the provider" if self.held else ""
        return (
            f"The next {what} could cost ${usd(self.bound):.6f}; ${usd(self.left):.6f} of {name} "
            f"${usd(self.limit):g} is left{batches}."
        )


class Purse:
    """Spent, reserved for calls, held for batches.

    Attributes:
        reserved: set aside for calls in flight.
        at_work: whether batches are being made or collected: until then nobody gives up for want of money, or what is
            ready would be left where it is.
    """

    def __init__(
        self, limit: int | None, spent: int, held: Mapping[int, int], *, leaving: bool, run_limit: int | None = None
    ) -> None:
        """Make one.

        Args:
            limit: --max-cost, None without one.
            spent: what counts against it already.
            held: set aside for batches that run already, by their numbers.
            leaving: whether this start ends while batches run.
            run_limit: --max-cost-run, None without one.
        """
        self.reserved = 0
        self.at_work = False
        self._limit = limit
        self._run_limit = run_limit
        self._spent = spent
        self._held = self._earlier_held = sum(held.values())
        self._earlier = spent + self._held  # what earlier starts spent or set aside: none of this start's affair
        self._earlier_batches = frozenset(held)
        self._leaving = leaving
        self._left = False
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
    def _binds_by_run(self) -> bool:
        return self._left_of_run < self._left_of_all

    @property
    def _held_of_it(self) -> int:
        """What batches hold of the limit that binds."""
        return self._held - (self._earlier_held if self._binds_by_run else 0)

    @property
    def may_come_back(self) -> bool:
        """Whether money that is set aside now may be free again in this start."""
        return self.reserved > 0 or self.at_work or (self._held_of_it > 0 and not self._left)

    def join(self) -> None:
        """Batches are made and collected from now on; what they bring back is waited for."""
        self._left, self.at_work = False, True

    def leave(self) -> None:
        """The batches are where this start leaves them: when it is `leaving`, their money does not come back in it."""
        self._left, self.at_work = self._leaving, False

    def is_used_up(self, bound: int) -> bool:
        """Whether it does not fit, and no money can come back."""
        return not self.fits(bound) and not self.may_come_back

    def lack(self, bound: int, stuck: int = 0) -> Lack:
        """What is missing for the next call or row; of what batches hold, `stuck` does not come back by itself."""
        by_run = self._binds_by_run
        left = (self._left_of_run if by_run else self._left_of_all) + self.reserved
        limit = (self._run_limit if by_run else self._limit) or 0
        held = max(0, self._held_of_it - stuck)
        later = self._leaving and held > 0 and (by_run or bound <= left + held)
        return Lack(bound, max(0, round(left)), limit, by_run, held, later)

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

    def unhold(self, nano: int, batch: int | None = None) -> None:
        """A batch is over, or rows were not sent after all: what was set aside for them comes back."""
        self._held -= nano
        if batch in self._earlier_batches:
            self._earlier -= nano
            self._earlier_held -= nano

    def spend(self, nano: int, batch: int | None = None) -> None:
        """Money is gone that no call had reserved, for a batch."""
        self._spent += nano
        if batch in self._earlier_batches:
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
