"""Is the job hopeless? Nearly every row rejected for one reason, or none answered: the job is wrong, not the rows.

Calls are judged in the order they started: refusals come back at once and answers take their time, so that with 500
calls in flight the first to come back are the bad rows of any job.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Sequence

from batchrun.records import Fault

# 38 of the first 40: half bad rows look like that once in a billion starts, nine bad rows in ten about once in five.
FIRST_OUTCOMES = 40
LATER_WINDOW = 200
HOPELESS_SHARE = 0.95

# What differs from row to row in sentences that say the same, quotations first: they may hold anything. A quotation
# may lack its end where the message was cut.
_QUOTED = re.compile(
    r'"[^"]*(?:"|$)|`[^`]*(?:`|$)|“[^”]*(?:”|$)|‘[^’]*(?:’(?!\w)|$)'  # noqa: RUF001 - quotation marks
    r"|(?<!\w)'.*?(?:'(?!\w)|$)"  # not the apostrophe of "the model's"
)
_VARIES = re.compile(r"(?<![\w-])(?=[\w-]*?[\d…])[\w…-]+|…[\w…-]*|\b[0-9a-fA-F]{8,}\b")  # numbers, ids, hex, redactions
_LIST = re.compile(r"#(?:[\s.,:;/|]*#)+")
_SHAPE_LENGTH = 80


def shape(fault: Fault, message: str) -> str:
    """What makes two rejections the same reason: the fault, and the sentence without numbers, ids and quotations."""
    said = _LIST.sub("#", _VARIES.sub("#", _QUOTED.sub("#", message)))
    return f"{fault.value}: {said[:_SHAPE_LENGTH]}"


class Gate:
    """Judges calls up to the newest that brought an outcome: all of them from the 40th on, and never more than 200.

    A call among them that is still out counts as answered until it comes back.
    """

    def __init__(self) -> None:
        self._begun = 0
        self._ahead: OrderedDict[int, None] = OrderedDict()  # started after the newest that brought an outcome
        self._window: OrderedDict[int, str | None] = OrderedDict()  # None: still out, "": answered, else the reason
        self._reasons: Counter[str] = Counter()  # in the window

    def started(self) -> int:
        """A call starts; returns the number it goes by from now on."""
        self._begun += 1
        self._ahead[self._begun] = None
        return self._begun

    def answered(self, call: int | None = None) -> None:
        """A row was answered; without a call it counts as asked just now."""
        self._settle(call, "")

    def rejected(self, fault: Fault, message: str, call: int | None = None) -> str | None:
        """A row was rejected; returns the reason when it makes the job hopeless, else None."""
        reason = shape(fault, message)
        self._settle(call, reason)
        return reason if self._hopeless(reason) else None

    def took_in(self, answered: int, rejected: int, refused: Sequence[tuple[Fault, str]]) -> str | None:
        """A batch came back all at once: judge it by its shares. Returns the reason if the job is hopeless now.

        Args:
            answered: its rows that were answered.
            rejected: its rows that were rejected.
            refused: fault and message of the first of those, at least 200 when there are as many.
        """
        told = min(answered + rejected, LATER_WINDOW)
        good = -(-told * answered // max(1, answered + rejected))
        for _ in range(good):
            self.answered()
        hopeless = None
        for fault, message in refused[: told - good]:
            hopeless = self.rejected(fault, message)
        return hopeless

    def ended(self, call: int) -> None:
        """The call is over. When it brought no outcome, since its row goes again, it tells nothing of the job."""
        self._ahead.pop(call, None)
        if call in self._window and self._window[call] is None:
            del self._window[call]

    def _hopeless(self, reason: str) -> bool:
        judged = len(self._window)
        if judged >= FIRST_OUTCOMES and self._reasons[reason] >= HOPELESS_SHARE * judged:
            return True
        return self._reasons.total() >= LATER_WINDOW

    def _settle(self, call: int | None, outcome: str) -> None:
        number = self.started() if call is None else call
        if number in self._ahead:
            self._advance(number)
        if number in self._window:  # else it is older than what is judged
            self._window[number] = outcome
            if outcome:
                self._reasons[outcome] += 1

    def _advance(self, newest: int) -> None:
        number = 0
        while number != newest:
            number, _ = self._ahead.popitem(last=False)
            self._window[number] = None
            if len(self._window) > LATER_WINDOW:
                self._forget(self._window.popitem(last=False)[1])

    def _forget(self, outcome: str | None) -> None:
        if outcome:
            self._reasons[outcome] -= 1
            if not self._reasons[outcome]:
                del self._reasons[outcome]
