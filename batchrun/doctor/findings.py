"""What a check found, and what all of them together mean for the exit code."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable

import msgspec

USAGE, CREDITS, KEY, UNREACHABLE, MODEL, DISK = 2, 3, 4, 5, 9, 11

# The first of these that was found is the exit code; the README's table tells what each means.
_ORDER = (DISK, CREDITS, KEY, MODEL, UNREACHABLE, USAGE)


class State(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        name: of the check.
        state: how it ended.
        sentence: what was found; it may hold paths, hosts and words of the server, never the key.
        next_step: what to do, "" when there is nothing to do.
        exit_code: of a bad finding, else 0.
        shared: what a support bundle may say of it: no path, no host, no word of the server, no name of a model.
    """

    name: str
    state: State
    sentence: str
    next_step: str = ""
    exit_code: int = 0
    shared: str = ""


def ok(name: str, sentence: str, shared: str = "") -> Finding:
    """All is well."""
    return Finding(name, State.OK, sentence, shared=shared)


def warn(name: str, sentence: str, next_step: str, shared: str = "") -> Finding:
    """Worth knowing; a run may go well all the same."""
    return Finding(name, State.WARN, sentence, next_step, shared=shared)


def bad(name: str, exit_code: int, sentence: str, next_step: str, shared: str = "") -> Finding:
    """A run would stop for this."""
    return Finding(name, State.BAD, sentence, next_step, exit_code, shared)


def skipped(name: str, why: str, next_step: str = "") -> Finding:
    """Not looked at; `why` is a fixed sentence, so that a bundle may hold it."""
    return Finding(name, State.SKIPPED, why, next_step, shared=why)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 when nothing is bad, else the code of the worst."""
    codes = {found.exit_code for found in findings if found.state is State.BAD}
    return next((code for code in _ORDER if code in codes), USAGE if codes else 0)


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """The check's finding, or that the check itself failed: one broken check must not hide the others."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - see above
        return failed(name, error)


async def guarded_async(name: str, check: Awaitable[Finding]) -> Finding:
    """The same for a check that waits."""
    try:
        return await check
    except Exception as error:  # noqa: BLE001 - see above
        return failed(name, error)


def failed(name: str, error: Exception) -> Finding:
    """A bug in a check. The error's message may hold anything, so only its kind is shown."""
    said = f"This check itself failed ({type(error).__name__})."
    return Finding(name, State.WARN, said, "Report this line; the other checks hold.", shared=said)
