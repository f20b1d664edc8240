"""Money in integer nano-dollars: what a reply cost, what a request can cost at most, and whether that still fits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from batchrun.records import Price, Request, Usage

NANO = 1_000_000_000
_PER_MILLION = 1_000_000

# Parts of a message that are no text, as they stand in a body.
_NOT_TEXT = (b'_url":', b'"input_audio"')


class Tariff(msgspec.Struct, frozen=True):
    """What is known about models: their prices, and how many tokens fit into their context."""

    prices: Mapping[str, Price] = {}
    contexts: Mapping[str, int] = {}

    def cost(self, model: str, usage: Usage | None) -> int | None:
        """What a reply cost in nano-dollars, None when the server did not count or nobody knows the price."""
        return cost(usage, self.prices.get(model))

    def upper_bound(self, request: Request) -> int | None:
        """The most a request can cost in nano-dollars, None when that is unknown."""
        known = self.prices.get(request.model)
        return None if known is None else upper_bound(request, known, self.contexts.get(request.model))


def price(input_usd: float, output_usd: float, cached_usd: float | None = None) -> Price:
    """A price list's US dollars per million tokens as nano-dollars a token, rounded up: a bound stays a bound."""
    cached = None if cached_usd is None else _nano_a_token(cached_usd)
    return Price(_nano_a_token(input_usd), _nano_a_token(output_usd), cached)


def _nano_a_token(usd_per_million: float) -> int:
    # 0.88 * 1000 is 880.0000000000001 in binary; a millionth of a nano-dollar is not rounded up to a whole one.
    return math.ceil(round(usd_per_million * NANO / _PER_MILLION, 6))


def nano(usd: float) -> int:
    """US dollars as nano-dollars."""
    return round(usd * NANO)


def usd(nano_dollars: int) -> float:
    """Nano-dollars as US dollars."""
    return nano_dollars / NANO


def cost(usage: Usage | None, model_price: Price | None) -> int | None:
    """What a reply cost, None when the server did not count or nobody knows the price."""
    if usage is None or model_price is None:
        return None
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    cached_price = model_price.input if model_price.cached is None else model_price.cached
    return (
        (usage.prompt_tokens - cached) * model_price.input
        + cached * cached_price
        + usage.completion_tokens * model_price.output
    )


def upper_bound(request: Request, model_price: Price, context: int | None) -> int | None:
    """The most a request can cost: a byte of its body is at least a token, and every choice runs to its end.

    A tokenizer never makes more tokens than bytes, and the body's own punctuation (some 30 bytes a message) covers
    what a chat template adds. A picture or sound is more tokens than its address has bytes, but no more than the
    model's `context`; without max_tokens a choice may fill that too. None when it would be needed and is unknown.
    """
    prompt: int | None = len(request.body)
    if any(mark in request.body for mark in _NOT_TEXT):
        prompt = None if context is None else max(len(request.body), context)
    most = request.max_tokens if request.max_tokens is not None else context
    if prompt is None or most is None:
        return None
    dearest_input = max(model_price.input, model_price.cached or 0)
    return prompt * dearest_input + most * request.n * model_price.output
