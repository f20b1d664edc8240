"""Is the job hopeless? Nearly every row rejected for one reason means that the job is wrong, not the rows."""

from __future__ import annotations

import re
from collections import deque

from batchrun.records import Fault

FIRST_OUTCOMES = 40
LATER_WINDOW = 200
HOPELESS_SHARE = 0.95

_VARIES = re.compile(r"\d+|…")
_SHAPE_LENGTH = 80


def shape(fault: Fault, message: str) -> str:
    """What makes two rejections the same reason: the fault and the sentence without its numbers and quotations."""
    return f"{fault.value}: {_VARIES.sub('#', message)[:_SHAPE_LENGTH]}"


class Gate:
    """Counts outcomes: all of them from the 40th on, and never more than the last 200."""

    def __init__(self) -> None:
        self._window: deque[str] = deque(maxlen=LATER_WINDOW)

    def answered(self) -> None:
        """A row was answered."""
        self._window.append("")

    def rejected(self, fault: Fault, message: str) -> str | None:
        """A row was rejected; returns the reason when it makes the job hopeless, else None."""
        reason = shape(fault, message)
        self._window.append(reason)
        return reason if self._hopeless(reason) else None

    def _hopeless(self, reason: str) -> bool:
        if len(self._window) < FIRST_OUTCOMES:
            return False
        return self._window.count(reason) >= HOPELESS_SHARE * len(self._window)
