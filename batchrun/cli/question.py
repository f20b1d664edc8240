"""Asking on the terminal before much is spent; the run's event loop goes on meanwhile, so that Ctrl-C is heard."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchrun.rules.route import Plan

Say = Callable[[str], None]


def is_attended() -> bool:
    """Whether there is a terminal to ask on, and to hear the answer from: not so in the background of a shell."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal, but not the one whose shell started us: it can be read from
        return True


class Question:
    """Asks once whether a plan may be carried out that could cost more than `limit` nano-dollars.

    Attributes:
        shown: the plan that was shown with the question.
    """

    def __init__(self, limit: int, say: Say) -> None:
        self._limit = limit
        self._say = say
        self.shown: Plan | None = None
        self._answer: asyncio.Future[bool] | None = None

    async def agreed(self, plan: Plan) -> bool:
        """Whether it may go on; an unknown price is asked about too."""
        if not (plan.left or plan.again) or (plan.may_cost is not None and plan.may_cost <= self._limit):
            return True
        from batchrun.faces import plan as face

        self.shown = plan
        self._say(f"{face.text(plan)}\n\n{face.question(plan)} [y/N] ")
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        loop.add_reader(sys.stdin.fileno(), self._heard)
        try:
            return await self._answer
        finally:
            loop.remove_reader(sys.stdin.fileno())

    def _heard(self) -> None:
        self._end(yes=sys.stdin.readline().strip().lower() in {"y", "yes"})

    def give_up(self) -> None:
        """The user said stop in another way."""
        self._end(yes=False)

    def _end(self, *, yes: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(yes)
