"""The diary is the log: the kinds of its lines, how grave each is, and the record of standard `logging` each becomes.

Writing lines down is `store`'s, which tells them here after the commit that holds them; showing them, `cli/logs.py`'s.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Mapping

# What a program that uses batchrun configures, as it does any other logger; without that nothing is shown.
LOGGER = logging.getLogger("batchrun")


class Kind(enum.StrEnum):
    """What a line of the diary tells of (the closed list)."""

    OPENED = "opened"
    PLAN = "plan"
    THROTTLED = "throttled"
    CREDITS = "credits"
    FALLBACK = "fallback"
    RECOVERED = "recovered"
    BATCH = "batch"
    DEADLINE = "deadline"
    WRITTEN = "written"
    FINISHED = "finished"
    PARKED = "parked"
    WHY = "why"
    NOTIFY = "notify"
    RETRY = "retry"
    PRUNED = "pruned"
    LOSS = "loss"


LEVELS: Mapping[Kind, int] = {
    Kind.OPENED: logging.INFO,
    Kind.PLAN: logging.INFO,
    Kind.THROTTLED: logging.INFO,  # the pace at work
    Kind.CREDITS: logging.WARNING,  # they are used up; that they are back is `recovered`
    Kind.FALLBACK: logging.WARNING,  # a model is gone or does not answer
    Kind.RECOVERED: logging.INFO,
    Kind.BATCH: logging.INFO,
    Kind.DEADLINE: logging.INFO,
    Kind.WRITTEN: logging.INFO,
    Kind.FINISHED: logging.INFO,
    Kind.PARKED: logging.WARNING,
    Kind.WHY: logging.INFO,
    Kind.NOTIFY: logging.WARNING,  # a notification that could not be delivered
    Kind.RETRY: logging.INFO,
    Kind.PRUNED: logging.INFO,
    Kind.LOSS: logging.WARNING,
}


def tell(at_ms: int, kind: str, detail: str, checkpoint: str) -> None:
    """Make a line of the diary a record: the detail is its message; `event`, `checkpoint` and `at_ms` are fields of it.

    What listens may do what it likes: the line is committed, and nothing that goes wrong here takes that back.
    """
    with contextlib.suppress(Exception):
        LOGGER.log(
            LEVELS.get(Kind(kind), logging.INFO),
            detail,
            extra={"event": kind, "checkpoint": checkpoint, "at_ms": at_ms},
        )
