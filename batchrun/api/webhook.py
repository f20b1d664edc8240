"""One webhook: a JSON document is posted to an address of the user's, a few times if need be, then given up.

The address is a secret, for who knows it can post to it: of all that is said here only its host may be repeated.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from batchrun.api.connections import Connections
from batchrun.clock import Clock
from batchrun.errors import UsageError
from batchrun.job import Timeouts, is_loopback
from batchrun.records import Broken

# Seconds that one try may take, and those before the second, third and fourth one.
PATIENCE = 10.0
PAUSES = (1.0, 2.0, 4.0)

_AGAIN = frozenset({408, 429})
_SUCCESS, _SERVER_ERROR = range(200, 300), range(500, 600)


class Webhook:
    """Posts to one address; with connections of its own, that know no key and keep no cookies."""

    def __init__(self, url: str, clock: Clock, *, patience: float = PATIENCE) -> None:
        """Make one.

        Args:
            url: https, or http on this machine.
            clock: time and dice for the pauses.
            patience: seconds that one try may take.

        Raises:
            UsageError: no such address. The message does not repeat it.
        """
        self._url = _checked(url)
        self._clock = clock
        self._timeouts = Timeouts(connect=patience, first_byte=patience, idle=patience, total=patience)
        self.host = urlsplit(url).hostname or ""

    async def post(self, body: bytes) -> str | None:
        """Deliver a JSON document; at most four tries, each the same bytes.

        Returns:
            None, or in a sentence why it could not be delivered.
        """
        headers = {"Content-Type": "application/json"}
        async with Connections(self._url, None, self._timeouts, self._clock) as connections:
            for pause in (*PAUSES, None):
                reply = await connections.exchange("POST", "", body, headers=headers, paid=False)
                if not isinstance(reply, Broken) and reply.status in _SUCCESS:
                    return None
                if pause is None or not _may_pass(reply.status if not isinstance(reply, Broken) else None):
                    break
                await self._clock.sleep(pause * (0.5 + self._clock.random() / 2))
        why = reply.message if isinstance(reply, Broken) else f"It answered {reply.status}."
        return f"{self.host}: {why}"


def _may_pass(status: int | None) -> bool:
    """Whether the same post may be taken a little later; None: no status came back."""
    return status is None or status in _AGAIN or status in _SERVER_ERROR


def _checked(url: str) -> str:
    """The address; nothing of it is repeated in an error, for it may be known to nobody else."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or any(sign.isspace() for sign in url):
        raise UsageError("--notify takes an address such as https://example.com/hook.", "Look at how it is written.")
    if parts.username is not None or parts.password is not None:
        raise UsageError("--notify takes no user or password in its address.", "Put what is secret into its path.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url)):
        raise UsageError("--notify takes https, or http on this machine only.", "Name an https address.")
    return url
