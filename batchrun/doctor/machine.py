"""Checks of this machine: versions, environment, checkpoint and its folder, free space, open files. Nothing is sent."""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from batchrun import __version__
from batchrun.doctor.findings import DISK, USAGE, Finding, bad, ok, skipped, warn
from batchrun.errors import StorageError, UsageError
from batchrun.job import TOGETHER, TOGETHER_KEY, Job, is_loopback
from batchrun.lanes.quota import CEILING
from batchrun.store import engine
from batchrun.store.opening import refuse_network
from batchrun.store.view import View
from batchrun.terms import OTHER_FILES

NEEDED = ("aiohttp", "aiosqlite", "click", "jinja2", "msgspec", "pyarrow", "tqdm", "zstandard")
EXTRAS = ("uvloop", "jsonschema-rs")

_GIGABYTE, _MEGABYTE = 10**9, 10**6
# A million kept answers of 500 tokens take about a gigabyte; the smallest run needs room for its log.
_LITTLE_SPACE, _NO_SPACE = _GIGABYTE, 50 * _MEGABYTE

_GET_KEY = "Get one at https://api.together.ai/settings/api-keys and set it, or try without one: --simulate."


def installed() -> dict[str, str | None]:
    """The packages that batchrun uses, with their versions; None: not installed."""
    return {name: _version(name) for name in (*NEEDED, *EXTRAS)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> Finding:
    """Of batchrun and all it stands on."""
    found = installed()
    sqlite = engine.version()
    told = [f"{name} {found[name]}" for name in NEEDED if found[name]]
    extras = [f"{name} {found[name] or 'not installed'}" for name in EXTRAS]
    base = [f"batchrun {__version__}", f"Python {platform.python_version()}", f"SQLite {sqlite}{_bug(sqlite)}"]
    said = f"{', '.join([*base, *told])}; extras: {', '.join(extras)}."
    missing = [name for name in NEEDED if not found[name]]
    if missing:
        return bad(
            "versions", USAGE, f"Not installed: {', '.join(missing)}. {said}", "Install batchrun again with pip.", said
        )
    return ok("versions", said, said)


def _bug(sqlite: str) -> str:
    return " (with the WAL-reset bug, which one writer cannot meet)" if engine.has_wal_reset_bug(sqlite) else ""


def environment(job: Job, environ: Mapping[str, str], problem: UsageError | None, *, sent: bool) -> Finding:
    """Where key, server and proxy come from; of the key itself nothing is told.

    Args:
        job: with the server and the key's variable.
        environ: the environment.
        problem: why there is no usable key, None when there is one or none is needed.
        sent: whether a key will be sent.
    """
    server = {"together": "Together's", "simulated": "the simulator"}.get(job.provider, "another one")
    proxy = proxy_for(job.base_url)
    place = "the simulator" if job.simulate else _origin(job.base_url)
    through = "" if proxy is None else f"; calls go through the proxy {proxy or 'that cannot be read'}"
    said = f"The server is {place}{through}."
    shared = f"Key: {'sent' if sent else 'none sent'}. Server: {server}.{'' if proxy is None else ' A proxy is set.'}"
    if problem is not None:
        return bad("environment", USAGE, f"{_safe(problem.message, job, environ)} {said}", _next(job, problem), shared)
    if proxy == "":
        return bad(
            "environment",
            USAGE,
            "The proxy in the environment is no address.",
            "Write it like http://host:port.",
            shared,
        )
    said = f"The key is {key_source(job, environ, sent=sent)}. {said}"
    if not sent and environ.get(job.key_env) and not job.simulate and job.provider != TOGETHER:
        return warn("environment", f"{said} The key is for Together alone.", "Name a variable with --key-env.", shared)
    return ok("environment", said, shared)


def key_source(job: Job, environ: Mapping[str, str], *, sent: bool) -> str:
    """Which variable the key was read from, as the end of a sentence; a name that is not set is never repeated."""
    if job.simulate:
        return "not needed"
    if environ.get(job.key_env):
        return f"read from {job.key_env}" if sent else f"in {job.key_env} and not sent"
    if job.key_env == TOGETHER_KEY and environ.get("TOGETHER_API_KEY_FILE"):
        return "read from the file that TOGETHER_API_KEY_FILE names" if sent else "not read"
    return "not set"


def _safe(message: str, job: Job, environ: Mapping[str, str]) -> str:
    """Who types the key itself after --key-env must not read it here."""
    known = job.key_env == TOGETHER_KEY or job.key_env in environ
    return message if known else message.replace(job.key_env, "the variable that --key-env names")


def _next(job: Job, problem: UsageError) -> str:
    return _GET_KEY if job.provider == TOGETHER else problem.next_step


def _origin(url: str) -> str:
    """Scheme, host and port: a path may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"


def proxy_for(url: str) -> str | None:
    """Host and port of the proxy for a server, without user and password; None: no proxy, "": it cannot be read."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return None
    found = getproxies().get(parts.scheme)
    if not found:
        return None
    try:
        proxy = urlsplit(found)
        port = proxy.port or (443 if proxy.scheme == "https" else 80)
    except ValueError:
        return ""
    return f"{proxy.hostname}:{port}" if proxy.scheme in {"http", "https"} and proxy.hostname else ""


def folder(checkpoint: str) -> Finding:
    """Whether a checkpoint can live where it shall: a local disk, writable, with a write-ahead log."""
    place, shown = _nearest(checkpoint), _shown(checkpoint)
    try:
        refuse_network(place)
        engine.try_wal(place)
    except StorageError as error:
        return bad("folder", DISK, f"{shown}: {error.message}", error.next_step, "The folder is not usable.")
    will = "" if place == Path(checkpoint).parent else " (the folder will be made)"
    return ok(
        "folder", f"{shown}{will} is on a local disk, can be written, and takes SQLite's write-ahead log.",
        "Local disk, writable, takes a write-ahead log.",
    )  # fmt: skip


def checkpoint(place: str, *, named: bool) -> Finding:
    """Whether the checkpoint can be read; one that was named has to be there."""
    if not named and not Path(place).exists():
        return skipped("checkpoint", "There is none yet.")
    try:
        with View(place) as view:
            view.kept()
    except UsageError as error:  # it names the place itself
        return bad("checkpoint", error.exit_code, error.message, error.next_step, "What was named is not there.")
    except StorageError as error:
        said = f"{Path(place).name}: {error.message}"
        return bad("checkpoint", error.exit_code, said, error.next_step, "It cannot be read.")
    return ok("checkpoint", f"{Path(place).name} can be read.", "It can be read.")


def space(checkpoint: str) -> Finding:
    """Free space for the checkpoint."""
    free = shutil.disk_usage(_nearest(checkpoint)).free
    said = f"{_size(free)} free for the checkpoint and the output."
    if free < _NO_SPACE:
        return bad("space", DISK, f"Only {said}", "Free some space, or name a place on another disk.", f"Only {said}")
    if free < _LITTLE_SPACE:
        return warn("space", f"Only {said}", "A million answers take about 1 GB: free some for a large run.", said)
    return ok("space", said, said)


def _nearest(checkpoint: str) -> Path:
    """The checkpoint's folder, or the nearest one above it that is there."""
    place = Path(checkpoint).parent
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def _shown(checkpoint: str) -> str:
    here, place = Path.cwd(), Path(checkpoint).parent
    return str(place.relative_to(here)) if place.is_relative_to(here) and place != here else str(place)


def _size(number: int) -> str:
    return f"{number / _GIGABYTE:,.1f} GB" if number >= _GIGABYTE else f"{number / _MEGABYTE:,.0f} MB"


def open_files() -> Finding:
    """Whether the limit of open files lets the pace go as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= CEILING + OTHER_FILES:
        told = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        said = f"The limit is {told}, enough for {CEILING} calls at once."
        return ok("open files", said, said)
    said = f"The limit is {hard:,}: at most {max(1, hard - OTHER_FILES)} calls at once instead of {CEILING}."
    return warn("open files", said, "Raise it (ulimit -n 1024), or go on more slowly.", said)
