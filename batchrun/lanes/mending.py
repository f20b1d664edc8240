"""What the user allows to be mended, put to one reply: is it good enough, and what is sent if not.

The rules are `rules/repair.py` and `rules/fit.py`; both lanes ask here.
"""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from batchrun.api import wire
from batchrun.job import Repairs
from batchrun.lanes.standins import StandIns
from batchrun.lanes.waiting import Asked
from batchrun.records import Before, Completion, Fault, Request, Trouble
from batchrun.rules import repair
from batchrun.rules.money import Tariff
from batchrun.rules.repair import Repair


class Fits(Protocol):
    """Whether an answer fits the user's schema."""

    def problem(self, text: str | None) -> str:
        """Why it does not; "" when it does."""
        ...


class Mender:
    """The user's word on repairs, with what it takes to follow it.

    Attributes:
        standins: who stands in for whom.
    """

    def __init__(self, said: Repairs, standins: StandIns, tariff: Tariff, fit: Fits | None = None) -> None:
        self.standins = standins
        self._said = said
        self._tariff = tariff
        self._fit = fit

    def sent(self, asked: Asked) -> Request:
        """What goes into a batch for a row: repaired, and for the model that takes its requests for good."""
        request, mended = asked.request, self.usable(asked.repair)
        model = mended.model or self.standins.lasting(request.model)
        return repair.applied(request, mended if model == request.model else replace(mended, model=model))

    def frozen(self) -> Mender:
        """The same, with models standing in as they do now, whatever comes."""
        return Mender(self._said, self.standins.frozen(), self._tariff, self._fit)

    def usable(self, mended: Repair) -> Repair:
        """The same without a model that turned out not to be callable."""
        gone = mended.model is not None and self.standins.is_missing(mended.model)
        return replace(mended, model=None) if gone else mended

    def usable_now(self, mended: Repair) -> Repair:
        """The same, and with another fallback of at least that context for one that rests."""
        mended = self.usable(mended)
        if mended.model is None or not self.standins.rests(mended.model):
            return mended
        contexts = self._tariff.contexts
        needed = contexts.get(mended.model, 0)
        for other in self._said.fallbacks:
            able = not (self.standins.rests(other) or self.standins.is_missing(other))
            if able and contexts.get(other, 0) >= needed:
                return replace(mended, model=other)
        return mended

    def marked(self, completion: Completion) -> Completion:
        """The reply, marked when its answer does not fit the schema; one that was cut off or filtered is so already."""
        if self._fit is None or completion.fault is not None or not self._fit.problem(wire.texts(completion.body)[0]):
            return completion
        return replace(completion, fault=Fault.INVALID_OUTPUT)

    def after_refusal(self, sent: Request, mended: Repair, trouble: Trouble) -> Repair | None:
        """What to send after a refusal; None when the verdict on it stands."""
        if trouble.fault is not Fault.TOO_LONG:
            return None
        there = tuple(model for model in self._said.fallbacks if not self.standins.is_missing(model))
        said = replace(self._said, fallbacks=there)
        return repair.after_refusal(sent, mended, trouble.message, said, self._tariff.contexts)

    def after_reply(self, sent: Request, mended: Repair, completion: Completion, retries: int) -> Repair | None:
        """What to send for a better reply; None when this one will do."""
        return repair.after_reply(
            sent, mended, completion.fault, completion.usage, retries, self._said, self._tariff.contexts
        )

    def would_ask_again(self, fault: Fault | None, retries: int) -> bool:
        """Whether the user wants a reply with this mark asked for again, after so many that came before it."""
        most = {Fault.CUT_SHORT: self._said.length_retries, Fault.INVALID_OUTPUT: self._said.invalid_retries}
        return fault is not None and retries < most.get(fault, 0)

    def instead_of(self, sent: Request, mended: Repair, before: Before) -> Repair | None:
        """What to send for a better answer than the row holds; None when there is nothing better to be had."""
        better = repair.after_reply(
            sent, mended, before.fault, before.usage, before.retries, self._said, self._tariff.contexts
        )
        if better is None or better.seed is None or mended.seed is not None:
            return better
        return replace(better, seed=better.seed + before.retries)  # earlier retries had the seeds before it
