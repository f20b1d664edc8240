"""The simulator as a process of its own beside a run: started, found, and gone when the run is gone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from batchrun.errors import StorageError, UsageError
from batchrun.store.lock import Lock


@contextlib.contextmanager
def simulator(checkpoint: str, credits_usd: float | None, script: str | None) -> Iterator[str]:
    """The address of a simulator whose account outlives kills in a file beside the checkpoint.

    It ends with this process, however that ends, since it watches the pipe between them.

    Raises:
        BusyError: another run holds the checkpoint, and with it the account.
        StorageError: the checkpoint's folder cannot be made, or the account not be renamed.
        UsageError: it did not start; its own line says why.
    """
    try:
        Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The folder of the checkpoint cannot be made: {error.strerror}.") from error
    lock = Lock(checkpoint)
    lock.take()
    try:
        state = _state(checkpoint)
    finally:
        lock.release()
    words = ["--port", "0", "--json", "--with-parent", "--state", str(state)]
    words += ["--credits", str(credits_usd)] if credits_usd is not None else []
    words += ["--script", script] if script is not None else []
    with subprocess.Popen(  # noqa: S603 - our own words, no shell
        [sys.executable, "-m", "batchrun", "simulate", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the run alone
    ) as process:
        yield _address(process)


def _state(checkpoint: str) -> Path:
    """Where the account is kept: an ending that is no input's, since a checkpoint may lie in a folder of inputs.

    Earlier versions wrote `.simulator.jsonl`; such an account is renamed once.
    """
    state, old = Path(f"{checkpoint}.simulator"), Path(f"{checkpoint}.simulator.jsonl")
    try:
        for before, now in ((Path(f"{old}.files"), Path(f"{state}.files")), (old, state)):
            if before.exists() and not now.exists():
                before.rename(now)
    except OSError as error:
        raise StorageError(f"The simulator's account cannot be renamed: {error.strerror}.") from error
    return state


def _address(process: subprocess.Popen[bytes]) -> str:
    line = process.stdout.readline() if process.stdout is not None else b""
    if not line:
        said = process.stderr.read().decode(errors="replace").strip() if process.stderr is not None else ""
        raise UsageError(f"The simulator did not start. {said.removeprefix('Error: ')}")
    address: str = msgspec.json.decode(line)["url"]
    return address
