"""The account: credits, charges and counters, and waiting for them. Prices are the catalog's, the file the ledger's."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

from batchrun.simulator.batch_records import BatchDelivered, Job, StoredFile
from batchrun.simulator.catalog import NANO
from batchrun.simulator.ledger import BatchRecord, Charge, Delivered, Ledger, Purchase

__all__ = ["Account", "Charge", "Milestones"]


class Milestones:
    """Waiting until a count has been reached, by event and not by looking again and again."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def wait(self, count: int) -> None:
        """Return once the count is reached; at once if it has been."""
        if self._count >= count:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        await future

    def reach(self, count: int) -> None:
        """Tell the new count."""
        self._count = count
        if not self._waiting:
            return
        for wanted, future in self._waiting:
            if wanted <= count and not future.done():
                future.set_result(None)
        self._waiting = [(wanted, future) for wanted, future in self._waiting if not future.done()]


class Account:
    """Credits bought and spent, in nano-dollars, the charges, and counters.

    Charges and purchases survive a restart with a state file; the other counters are of this life of the server.
    """

    def __init__(self, metering_delay: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.bought: int | None = None
        self.spent = 0
        self.charges: list[Charge] = []
        self.batch_charges = 0
        self.batch_spent = 0
        self.requests = 0  # generation requests that have arrived
        self.requests_by_model: Counter[str] = Counter()  # those, by the model they name, be it known or not
        self.statuses: Counter[int] = Counter()  # of generation requests; 0 is a request that got no status
        self.after_first_402 = 0  # requests that arrived after a 402 was sent and before credits were added
        self.in_flight = 0
        self.peak_in_flight = 0
        self.answers_at_top_up: int | None = None
        self.answers_reached = Milestones()
        self.requests_reached = Milestones()
        self._refused_402 = False
        self._metering_delay = metering_delay
        self._clock = clock
        self._metered = 0
        self._unmetered: deque[tuple[float, int]] = deque()
        self._ledger = Ledger(None)

    @property
    def answers(self) -> int:
        """Generations charged over the account's life."""
        return len(self.charges)

    @property
    def balance(self) -> int | None:
        """What is left as the service sees it now, in nano-dollars; None is unlimited."""
        now = self._clock()
        while self._unmetered and self._unmetered[0][0] <= now:
            self._metered += self._unmetered.popleft()[1]
        return None if self.bought is None else self.bought - self._metered

    @property
    def exhausted(self) -> bool:
        """Whether a new call is refused."""
        balance = self.balance
        return balance is not None and balance <= 0

    def open(self, credits_usd: float | None, state: Path | None, keep: Callable[[BatchRecord], None]) -> None:
        """Take up the state file, if any. A larger total than before is a top-up, a smaller one changes nothing.

        What it says of files and jobs is handed to `keep`.
        """
        self._ledger = Ledger(state)
        known = False
        for record in self._ledger.open():
            known = known or isinstance(record, Purchase)
            if isinstance(record, Job | StoredFile):
                keep(record)
            else:
                self._replay(record)
        self._metered = self.spent
        self.answers_reached.reach(self.answers)
        total = None if credits_usd is None else _nano(credits_usd)
        if not known:
            self._buy(total, top_up=False)
        elif total is None:
            self.bought = None
        elif self.bought is None or total > self.bought:
            self._buy(total, top_up=True)

    def close(self) -> None:
        """Close the state file."""
        self._ledger.close()

    def top_up(self, usd: float) -> None:
        """Add credits. An unlimited account stays unlimited."""
        self._buy(None if self.bought is None else self.bought + _nano(usd), top_up=True)
        self._refused_402 = False

    def arrive(self, model: str = "") -> None:
        """A generation request is here."""
        self.requests += 1
        self.requests_by_model[model] += 1
        self.after_first_402 += self._refused_402
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self.requests_reached.reach(self.requests)

    def leave(self, status: int) -> None:
        """The request of an earlier `arrive` has been dealt with."""
        self.in_flight -= 1
        self.statuses[status] += 1

    def refused_credits(self) -> None:
        """A 402 goes out now."""
        self._refused_402 = True

    def charge(self, charge: Charge) -> None:
        """Book a charge: first in the file, then here."""
        self._ledger.append(charge)
        self._book(charge)
        if self._metering_delay:
            self._unmetered.append((self._clock() + self._metering_delay, charge.nano))
        else:
            self._metered += charge.nano
        self.answers_reached.reach(self.answers)

    def delivered(self, charge: Charge) -> None:
        """The reply of this charge was written whole and readable."""
        charge.delivered = True
        self._ledger.append(Delivered(charge.number))

    def delivered_batch(self, job_id: str) -> None:
        """The output file of that job exists, with every line that was charged."""
        record = BatchDelivered(job_id)
        self._ledger.append(record)
        self._replay(record)

    def record(self, record: BatchRecord) -> None:
        """Keep the state of a file or a job."""
        self._ledger.append(record)

    def summary(self) -> dict[str, Any]:
        """The account as the control endpoint shows it; `_usd` beside each sum for people."""
        balance = self.balance
        return {
            "bought": self.bought,
            "spent": self.spent,
            "balance": balance,
            "bought_usd": _usd(self.bought),
            "spent_usd": _usd(self.spent),
            "balance_usd": _usd(balance),
            "answers": self.answers,
            "charges": len(self.charges),
            "charges_live": len(self.charges) - self.batch_charges,
            "charges_batch": self.batch_charges,
            "spent_live": self.spent - self.batch_spent,
            "spent_batch": self.batch_spent,
            "delivered": sum(charge.delivered for charge in self.charges),
            "requests": self.requests,
            "requests_by_model": dict(sorted(self.requests_by_model.items())),
            "requests_by_status": {str(status): count for status, count in sorted(self.statuses.items())},
            "after_first_402": self.after_first_402,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }

    def _buy(self, total: int | None, *, top_up: bool) -> None:
        purchase = Purchase(total, self.answers, top_up)
        self._ledger.append(purchase)
        self._replay(purchase)

    def _replay(self, record: Charge | Delivered | Purchase | BatchDelivered) -> None:
        match record:
            case Charge():
                self._book(record)
            case Delivered():
                self.charges[record.delivered - 1].delivered = True
            case BatchDelivered():
                for charge in self.charges:
                    charge.delivered = charge.delivered or charge.batch == record.batch_delivered
            case Purchase():
                self.bought = record.bought
                if record.top_up:
                    self.answers_at_top_up = record.answers
            case _:
                assert_never(record)

    def _book(self, charge: Charge) -> None:
        self.charges.append(charge)
        self.spent += charge.nano
        if charge.batch:
            self.batch_charges += 1
            self.batch_spent += charge.nano


def _nano(usd: float) -> int:
    return round(usd * NANO)


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / NANO
