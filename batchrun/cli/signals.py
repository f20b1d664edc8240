"""The signals that end a start: the exit code of each, and what they do while there is no run to stop softly."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable
from typing import Any, NoReturn

INTERRUPTED = 130
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143, signal.SIGHUP: 143}


class Stopped(KeyboardInterrupt):
    """One of them came, and nobody else listened to it.

    Attributes:
        exit_code: the process's.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


def hear() -> None:
    """From now on each of them raises `Stopped`, once, as Ctrl-C raises KeyboardInterrupt."""
    for number, code in _wanted().items():
        signal.signal(number, functools.partial(_stop, code))


def _stop(code: int, *_: Any) -> NoReturn:
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)  # the last line must not be cut off
    raise Stopped(code)


def hear_in(loop: asyncio.AbstractEventLoop, stop: Callable[[int], object]) -> None:
    """From now on each of them calls `stop` with its exit code, in the loop."""
    for number, code in _wanted().items():
        loop.add_signal_handler(number, stop, code)


def ignore(loop: asyncio.AbstractEventLoop) -> None:
    """From now on those that the loop listened to do nothing."""
    for number in CODES:
        if loop.remove_signal_handler(number):
            signal.signal(number, signal.SIG_IGN)


def code_of(stopped: BaseException) -> int:
    """The exit code of what one of them, or Ctrl-C, made of the command."""
    return int(getattr(stopped, "exit_code", INTERRUPTED))


def _wanted() -> dict[signal.Signals, int]:
    """All but those that whoever started us wants ignored, as nohup does."""
    return {number: code for number, code in CODES.items() if signal.getsignal(number) is not signal.SIG_IGN}
