"""Who stands in for whom in this start; all lanes share it. The rule is `rules/standins.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from batchrun.clock import Clock
from batchrun.rules import standins
from batchrun.rules.standins import LOOK_EVERY, Pick, Standing

Note = Callable[[str, str], None]


class StandIns:
    """The standing of models, and the fallbacks in the user's order."""

    def __init__(self, fallbacks: Iterable[str], clock: Clock, note: Note) -> None:
        self.fallbacks = tuple(fallbacks)
        self._clock = clock
        self._note = note
        self._standings: dict[str, Standing] = {}
        self._came: set[str] = set()  # answered in this start, and never said to be missing since
        self._listeners: list[Callable[[], None]] = []

    def when_missing(self, listener: Callable[[], None]) -> None:
        """Call it when a model turns out not to be callable."""
        self._listeners.append(listener)

    def order(self, model: str) -> tuple[str, ...]:
        """The models for a request that asks for this one."""
        return standins.order(model, self.fallbacks)

    def pick(self, model: str, *, looks: bool = True) -> Pick | None:
        """The model that takes a request for this one now; None when none of them can be called."""
        if not self._standings:
            return Pick(model)
        return standins.pick(self.order(model), self._standings, self._clock.monotonic() if looks else -math.inf)

    def lasting(self, model: str) -> str:
        """The model that takes all requests for this one, whatever rests just now; itself when none can be called."""
        missing = {name: standing for name, standing in self._standings.items() if standing.missing}
        found = standins.pick(self.order(model), missing, 0.0)
        return model if found is None else found.model

    def frozen(self) -> StandIns:
        """The same as it stands, with no ear for what comes."""
        copy = StandIns(self.fallbacks, self._clock, lambda _kind, _detail: None)
        copy._standings = dict(self._standings)
        return copy

    def looking(self, model: str) -> None:
        """A request goes out to see whether a resting model answers again."""
        if (standing := self._standings.get(model)) is not None and not standing.missing:
            self._standings[model] = Standing(until=standing.until, looking=True)

    def answered(self, model: str) -> None:
        """It answers: if it rested, it takes its requests again."""
        self._came.add(model)
        standing = self._standings.get(model)
        if standing is not None and not standing.missing:
            del self._standings[model]
            self._note("recovered", f"{model} answers again and takes its rows back.")

    def looked(self, model: str) -> bool:
        """A call has come back without an answer; if it was a look, the next one is later.

        Returns:
            Whether it was a look, while another model takes the rows.
        """
        standing = self._standings.get(model)
        if standing is None or not standing.looking:
            return False
        self._standings[model] = Standing(until=self._clock.monotonic() + LOOK_EVERY)
        return standins.has_other(model, self.order(model), self._standings)

    def missing(self, model: str, asked: str, message: str) -> bool:
        """It cannot be called; whether another model can take the requests that ask for `asked`.

        One that has answered in this start is not gone at a single word: it rests, and is looked at.
        """
        if model in self._came and standins.has_other(model, self.order(asked), self._standings):
            self._came.discard(model)
            return self.rest(model, asked, LOOK_EVERY, message)
        standing = self._standings.get(model)
        self._standings[model] = Standing(missing=True)
        if standing is None or not standing.missing:
            for listener in self._listeners:
                listener()
        found = self.pick(asked)
        if found is not None and (standing is None or not standing.missing):
            stands_in = "" if found.model == asked else f"; {found.model} stands in"
            self._note("fallback", f"{model} cannot be called ({message}){stands_in}.")
        return found is not None

    def gone(self, models: Iterable[str]) -> list[str]:
        """Those of the models, and of the fallbacks, that cannot be called; all the models when none is known to be."""
        asked = list(models)
        return [model for model in dict.fromkeys([*asked, *self.fallbacks]) if self.is_missing(model)] or asked

    def rests(self, model: str) -> bool:
        """Whether another model takes its rows for the time being."""
        return model in self._standings and not self._standings[model].missing

    def is_missing(self, model: str) -> bool:
        """Whether it cannot be called in this start."""
        return model in self._standings and self._standings[model].missing

    def rest(self, model: str, asked: str, seconds: float, message: str) -> bool:
        """It has not answered for too long: let it rest, if another model can take the requests for `asked`."""
        if self.is_missing(model):
            return self.pick(asked) is not None
        if not standins.has_other(model, self.order(asked), self._standings):
            return False
        rested = model in self._standings
        self._standings[model] = Standing(until=self._clock.monotonic() + max(seconds, LOOK_EVERY))
        found = self.pick(asked)
        if found is not None and not rested:
            self._note("fallback", f"{model} does not answer ({message}); {found.model} stands in.")
        return True
