"""The state file: a line for each charge, delivery and purchase, and for each change of a file or a batch job."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchrun.simulator.batch_records import BatchDelivered, Job, StoredFile
from batchrun.simulator.settings import SettingsError


@dataclass(slots=True)
class Charge:
    """One generation that was charged.

    `content` (of the last user message, or the prompt) and `body` (of the request as sent) are sha256 in hex.
    `delivered` says that the reply was written whole and readable, or that the line is in an output file that exists.
    `batch` is the job's id and `custom_id` the line's, for a line of a batch.
    """

    number: int
    time: float
    path: str
    model: str
    content: str
    body: str
    prompt_tokens: int
    completion_tokens: int
    nano: int
    delivered: bool = False
    batch: str = ""
    custom_id: str = ""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The reply of that charge was written whole."""

    delivered: int


@dataclass(frozen=True, slots=True)
class Purchase:
    """Credits bought in all, in nano-dollars (None: unlimited), and how many answers had been charged by then."""

    bought: int | None
    answers: int
    top_up: bool  # false for the first purchase of an account


BatchRecord = Job | StoredFile
Record = Charge | Delivered | Purchase | BatchDelivered | BatchRecord

_KINDS: dict[str, type[Record]] = {
    "nano": Charge,
    "bought": Purchase,
    "delivered": Delivered,
    "batch_delivered": BatchDelivered,
    "job_id": Job,
    "file_id": StoredFile,
}
"""The key that only this record has, but for a charge's `delivered`, which is why charges come first."""

_encoder = msgspec.json.Encoder()


class Ledger:
    """An append-only file of records, or nothing at all when `path` is None. One process at a time."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None

    def open(self) -> Iterator[Record]:
        """Open (mode 0600) and lock the file, drop a torn last line, and yield what is in it."""
        if self._path is None:
            return
        self._file = _open_locked(self._path)
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                yield _record(msgspec.json.decode(line))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise SettingsError(f"{self._path}: line {number} is not a record of the simulator") from error

    def append(self, record: Record) -> None:
        """Write one record with one call: once this returns, killing the process forgets nothing."""
        if self._file is not None:
            os.write(self._file, _encoder.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file and let another process have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open_locked(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise SettingsError(f"{path}: another simulator is using this state file") from error
    return file


def _record(value: object) -> Record:
    """The record a line stands for, told apart by the key only it has."""
    keys = value if isinstance(value, dict) else {}
    kind = next((kind for key, kind in _KINDS.items() if key in keys), Delivered)
    return msgspec.convert(value, kind)
