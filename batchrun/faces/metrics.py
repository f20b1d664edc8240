"""How a run stands, for Prometheus: on a port of this machine, and in a file for node_exporter's textfile collector.

The only module that knows prometheus_client. It never stops a run: a port that cannot be had is said before anything is
sent. What is told is `figures`'s, and wiring it around a run is the command's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchrun.errors import BatchrunError, BusyError, UsageError, first_of
from batchrun.faces import figures
from batchrun.job import Job
from batchrun.reports import Progress
from batchrun.store.lock import Holder, living_holder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Poll = Callable[[], Progress]
Note = Callable[[str, str, int], None]
Ended = Callable[[int], None]

_LOOPBACK = "127.0.0.1"
_LOOK_EVERY = 1.0
_WRITE_EVERY = 15.0
_LEFT_BEHIND = 3600.0  # seconds; a temporary file lives for some milliseconds
_READABLE = 0o644  # node_exporter is another user


class _Now:
    """What the run last said of itself: written by the event loop, read by the threads that answer."""

    def __init__(self, job: Job, poll: Poll) -> None:
        self.job = job
        self._poll = poll
        self.progress = poll()
        self.exit_code: int | None = None
        self.going = True

    def look(self) -> None:
        """Ask the run; only from its event loop."""
        self.progress = self._poll()

    def ended(self, exit_code: int) -> None:
        """How it ended."""
        self.exit_code = exit_code

    def end(self, failed: BaseException | None) -> None:
        """It is over; what it failed with says the exit code, unless `ended` said it."""
        if isinstance(failed, BatchrunError):
            self.exit_code = failed.exit_code
        elif isinstance(failed, Exception):
            self.exit_code = 1
        with contextlib.suppress(Exception):  # what is only shown must not stop what is paid for
            self.look()
        self.going = False


@contextlib.asynccontextmanager
async def serving(job: Job, poll: Poll, *, port: int | None, path: str | None, note: Note) -> AsyncIterator[Ended]:
    """Show a run to Prometheus for as long as the block lasts; hands out what is to be told the exit code.

    Args:
        job: what is being done; its checkpoint need not be there yet.
        poll: how it stands; asked once a second, on this event loop only.
        port: of 127.0.0.1 to answer on, 0 for any free one, None for none.
        path: of the .prom file to write about every 15 seconds and at the end, None for none.
        note: takes a line for the log, as kind, detail and level: the address, and once why the file cannot be written.

    Raises:
        UsageError: the extra is not installed, the file is not named .prom, or the port cannot be had.
        BusyError: the port is taken, and another run holds the checkpoint.
    """
    if port is None and path is None:
        yield lambda _code: None
        return
    now = _Now(job, poll)
    registry = _registry(now)
    file = None if path is None else _File(path, registry, now, note)
    with contextlib.nullcontext() if port is None else _listening(port, registry, job.checkpoint, note):
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_following(now))]
                if file is not None:
                    tasks.append(group.create_task(file.keep_up()))
                try:
                    yield now.ended
                finally:
                    for task in tasks:
                        task.cancel()
        except BaseExceptionGroup as group_failed:
            failed = first_of(group_failed)
            raise failed from group_failed
        except BaseException as error:
            failed = error
            raise
        finally:
            now.end(failed)
            if file is not None:
                file.write()


async def _following(now: _Now) -> None:
    with contextlib.suppress(Exception):  # as for every face
        while True:
            now.look()
            await asyncio.sleep(_LOOK_EVERY)


# --- what is told ----------------------------------------------------------------------------------------------------


def _registry(now: _Now) -> CollectorRegistry:
    """One of our own: figures of the Python process would say nothing of a job."""
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise UsageError("--metrics-port and --metrics-file need the extra: pip install 'batchrun[metrics]'") from None
    registry = CollectorRegistry()
    registry.register(_Collector(now))
    return registry


class _Collector:
    """What prometheus_client asks at every scrape, from a thread of its own."""

    def __init__(self, now: _Now) -> None:
        self._now = now

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics without values."""
        return _families("", ())

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics as they are now."""
        checkpoint = Path(self._now.job.checkpoint).stem
        now, job = self._now, self._now.job
        start = figures.of_start(job, now.progress, now.exit_code, going=now.going)
        return _families(checkpoint, [*start, *figures.of_checkpoint(job.checkpoint, going=now.going)])


def _families(checkpoint: str, samples: Iterable[figures.Sample]) -> list[CounterMetricFamily | GaugeMetricFamily]:
    """Every metric, also those that have nothing to tell just now."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    found = {f.name: kinds[f.kind](f.name, f.told, labels=("checkpoint", *f.labels)) for f in figures.FAMILIES}
    for sample in samples:
        found[sample.name].add_metric((checkpoint, *sample.labels), sample.value)
    return list(found.values())


def _another(checkpoint: str) -> Holder | None:
    """The other process that holds the checkpoint, as far as a reader can tell."""
    holder = living_holder(checkpoint)
    ours = holder is not None and (holder.pid, holder.host) == (os.getpid(), socket.gethostname()[: len(holder.host)])
    return None if ours else holder


# --- the port --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listening(port: int, registry: CollectorRegistry, checkpoint: str, note: Note) -> Iterator[None]:
    """Answer on loopback from a thread: also while the event loop is busy."""
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=_LOOPBACK, registry=registry)
    except OSError as error:
        raise _refused(port, error, checkpoint) from error
    quiet: Any = server
    quiet.handle_error = lambda *_: None  # who hangs up in the middle is no news
    try:
        with contextlib.suppress(Exception):
            note("metrics", f"Metrics: http://{_LOOPBACK}:{server.server_port}/metrics", logging.INFO)
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _refused(port: int, error: OSError, checkpoint: str) -> BatchrunError:
    """Why there is no port; a start that comes too early is told so, as it would be without a port."""
    if error.errno != errno.EADDRINUSE:
        return UsageError(f"Port {port} of {_LOOPBACK} cannot be used: {error.strerror}.", "Name another one.")
    holder = _another(checkpoint)
    if holder is None:
        return UsageError(
            f"Port {port} of {_LOOPBACK} is taken.", "Name another one with --metrics-port; 0 takes any that is free."
        )
    return BusyError(
        f"{checkpoint} is being written by process {holder.pid} on {holder.host} since {holder.since}.",
        "Wait for it, or stop that process first.",
    )


# --- the file --------------------------------------------------------------------------------------------------------


class _File:
    """The .prom file: whole at any moment, and never a reason to stop."""

    def __init__(self, path: str, registry: CollectorRegistry, now: _Now, note: Note) -> None:
        if not path.endswith(".prom"):
            raise UsageError("--metrics-file must end in .prom: node_exporter reads no other files.")
        self._path = Path(path).resolve()  # a link goes on pointing where it did
        self._registry = registry
        self._now = now
        self._note = note
        self._noted = False
        self._writing = threading.Lock()

    async def keep_up(self) -> None:
        """Write it every few seconds, until cancelled."""
        with contextlib.suppress(Exception):  # as for every face
            await asyncio.to_thread(_sweep, self._path)
            while True:
                self._tell(await asyncio.to_thread(self._written))
                await asyncio.sleep(_WRITE_EVERY)

    def write(self) -> None:
        """Write it once more; after a write that is still under way."""
        with contextlib.suppress(Exception):
            self._tell(self._written())

    def _written(self) -> str | None:
        """Write it, unless the checkpoint is another run's, who writes the file too; returns what went wrong."""
        from prometheus_client import generate_latest

        with self._writing:
            if _another(self._now.job.checkpoint) is not None:
                return None
            try:
                _replace(self._path, generate_latest(self._registry))
            except OSError as error:
                return error.strerror or type(error).__name__
        return None

    def _tell(self, trouble: str | None) -> None:
        if trouble is not None and not self._noted:
            self._noted = True
            self._note("metrics", f"{self._path} cannot be written: {trouble}. The run goes on.", logging.WARNING)


def _replace(path: Path, content: bytes) -> None:
    """A temporary file beside it, synced, readable for all whatever the umask, and renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), _READABLE)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sweep(path: Path) -> None:
    """Remove what killed processes left."""
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if left.name.startswith(f".{path.name}.") and left.suffix == ".tmp":
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > _LEFT_BEHIND:
                        left.unlink()
