"""The way to the server, step by step, so that the step that fails has a name: name, connection, certificate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from urllib.parse import urlsplit

from batchrun.doctor.findings import UNREACHABLE, Finding, bad, ok, skipped
from batchrun.doctor.machine import proxy_for

# A machine that is there answers each step well within this many seconds.
PATIENCE = 10.0

_PORTS = {"http": 80, "https": 443}


async def network(url: str) -> Finding:
    """Look the server's name up, connect, and check its certificate; of a proxy, only that it can be reached."""
    proxy = proxy_for(url)
    if proxy == "":
        return skipped("network", "The proxy in the environment is no address.")
    if proxy:
        host, _, port = proxy.rpartition(":")
        return await _reach(host, int(port), "the proxy", secure=False)
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return await _reach(parts.hostname or "", parts.port or _PORTS[parts.scheme], "the server", secure=secure)


async def _reach(host: str, port: int, what: str, *, secure: bool) -> Finding:
    place = f"{host}:{port}"
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return bad(
            "network", UNREACHABLE, f"The name {host} cannot be looked up (DNS).",
            "Look at the network and its name server; behind a proxy, set HTTPS_PROXY.",
            f"The name of {what} cannot be looked up.",
        )  # fmt: skip
    try:
        await _touch(host, port, None)
    except (OSError, TimeoutError) as error:
        return bad(
            "network", UNREACHABLE, f"No connection to {place} ({_why(error)}).",
            "A firewall may be in the way, or the server is down; behind a proxy, set HTTPS_PROXY.",
            f"No connection to {what} ({_why(error)}).",
        )  # fmt: skip
    if not secure:
        return ok("network", f"{place} can be reached.", f"{what.capitalize()} can be reached.")
    return await _greet(host, port, what)


async def _greet(host: str, port: int, what: str) -> Finding:
    try:
        await _touch(host, port, ssl.create_default_context())
    except ssl.SSLCertVerificationError as error:
        said = f"The certificate of {host} is not trusted ({error.verify_message or 'no reason given'})."
        return bad(
            "network", UNREACHABLE, said,
            "Something may be reading the traffic (a company's proxy: name its certificates with SSL_CERT_FILE), "
            "or this machine's clock or its list of certificates is old.",
            f"The certificate of {what} is not trusted.",
        )  # fmt: skip
    except (OSError, TimeoutError) as error:
        return bad(
            "network", UNREACHABLE, f"{host}:{port} can be reached, but not over a secure connection ({_why(error)}).",
            "Something between here and there may be cutting TLS off; is this the right address and port?",
            f"No secure connection to {what} ({_why(error)}).",
        )  # fmt: skip
    said = "can be reached, and its certificate is good."
    return ok("network", f"{host}:{port} {said}", f"{what.capitalize()} {said}")


async def _touch(host: str, port: int, context: ssl.SSLContext | None) -> None:
    """Connect and hang up."""
    async with asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


def _why(error: Exception) -> str:
    """The kind of failure, in words that quote nothing."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:.0f} seconds"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
