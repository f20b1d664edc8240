"""The smallest request there is: one token asked of a model, to learn whether it can be called.

Being listed does not mean callable (https://docs.together.ai/docs/error-codes: `model_not_available`), and only a call
tells. A probe costs a few tokens and is no row's: its row number is `PROBE_ROW`.
"""

from __future__ import annotations

from batchrun.records import Endpoint, Request
from batchrun.rules.canonical import canonical, digest

PROBE_ROW = -1
_TEXT = "Hi"


def probe_request(model: str, endpoint: Endpoint) -> Request:
    """A request for one token."""
    asked = {"messages": [{"role": "user", "content": _TEXT}]} if endpoint is Endpoint.CHAT else {"prompt": _TEXT}
    body = canonical({"model": model, "max_tokens": 1, **asked})
    return Request(PROBE_ROW, digest(endpoint, body), endpoint, model, body, 1, 1)
