"""What stops a run and was not expected: one short tree, each with its exit code and what to do next.

What *is* expected (a 402, a rejected row, a park) is a value and lives in `records`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class BatchrunError(Exception):
    """Something batchrun cannot go on from by itself.

    Attributes:
        message: what happened and what is kept, in a sentence that never holds a prompt, an answer or the key.
        next_step: what the user can do now; empty when the message says it.
        exit_code: the process's exit code (the README lists them all).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class UsageError(BatchrunError):
    """The options do not fit together, or something they need is missing."""

    exit_code = 2


class InputError(BatchrunError):
    """The input cannot be read or has bad rows; `problems` names the first of them, one line each."""

    exit_code = 2

    def __init__(self, message: str, next_step: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message, next_step)
        self.problems = tuple(problems)


class GuardError(BatchrunError):
    """A changed job would leave paid answers unused, and the user has not said so (`--new-requests`)."""

    exit_code = 2


class BusyError(BatchrunError):
    """Another run holds the checkpoint."""

    exit_code = 8


class StorageError(BatchrunError):
    """The checkpoint, the disk or the output cannot be written or trusted."""

    exit_code = 11


class Interrupted(Exception):  # noqa: N818 - not an error: the user said stop
    """The user said stop while something was read or written that can be begun again."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error in a group that the user should see: one of ours before anything else."""
    ours, others = group.split(BatchrunError)
    found: BaseException = ours or others or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
