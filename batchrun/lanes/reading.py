"""The walk from what came back to what it means: read, redacted, judged. A quotation of the prompt decides nothing."""

from __future__ import annotations

from batchrun.api import wire
from batchrun.api.client import Client
from batchrun.records import Broken, Completion, Refusal, Reply, Request, Trouble
from batchrun.rules import faults


def read(client: Client, reply: Reply | Broken, request: Request) -> Completion | Trouble:
    """The answer, or what went wrong, in words that are safe to show."""
    seen = wire.read(reply, client.connections.clock.now()) if isinstance(reply, Reply) else reply
    if isinstance(seen, Completion):
        return seen
    if isinstance(seen, Refusal):
        message = client.redacted(seen.message, request.body)
        seen = Refusal(seen.status, seen.kind, seen.code, message, seen.wait)
    return faults.trouble(seen)
