"""How long a run goes on without an answer: then another model stands in, or it parks. So every run ends."""

from __future__ import annotations

from batchrun.lanes.standins import StandIns
from batchrun.records import Trouble


class Patience:
    """Refusals without an answer in between, for each model and over all of them; times in monotonic seconds."""

    def __init__(self, seconds: float, standins: StandIns) -> None:
        self._seconds = seconds
        self._standins = standins
        self._since: float | None = None
        self._refused: dict[str, float] = {}

    def restored(self, model: str) -> None:
        """The server did its work for this model."""
        self._since = None
        self._refused.pop(model, None)

    def is_over(self, model: str, trouble: Trouble, now: float) -> bool:
        """Take note of a refusal; True when the run has to park. A model rests when another one can take its rows.

        A model rests once: rows that no other one takes would begin its patience anew for ever.
        """
        since = self._refused.setdefault(model, now)
        self._since = now if self._since is None else self._since
        over, rests = now - self._since >= self._seconds, self._standins.rests
        if not over and now - since < self._seconds:
            return False
        if not rests(model) and self.rest(model, model, trouble):
            return False
        tried = any(not rests(other) and now - at < self._seconds for other, at in self._refused.items())
        return over and not (rests(model) and tried)

    def rest(self, model: str, asked: str, trouble: Trouble) -> bool:
        """Let a model rest when another one can take its rows; patience with that one begins anew."""
        if not self._standins.rest(model, asked, trouble.wait or 0.0, trouble.message):
            return False
        self._since = None
        stands_in = self._standins.pick(asked)
        for anew in (model, model if stands_in is None else stands_in.model):
            self._refused.pop(anew, None)
        return True
