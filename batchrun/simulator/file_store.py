"""The files and the folder they are in: bytes to disk and back, and what is known of each. HTTP is `file_api`'s."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Self
from uuid import uuid4

from batchrun.simulator.batch_records import Kept, StoredFile
from batchrun.simulator.settings import SettingsError

_PRIVATE = 0o600


class Incoming:
    """The bytes of an upload on their way to disk; nothing of them stays unless `finish` is called."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path.with_suffix(f".{uuid4().hex[:8]}.part")
        self._hash = sha256()
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        os.write(self._file, data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self, path: Path) -> str:
        """Put the file in its place, and give its sha256."""
        self._path.replace(path)
        return self._hash.hexdigest()


class FileStore:
    """All files by id. `record` is called with each change, so that a restart finds them again."""

    def __init__(self, folder: Path | None, record: Callable[[StoredFile], None]) -> None:
        self.by_id: dict[str, StoredFile] = {}
        self._wanted = folder
        self._record = record
        self.folder = Path()

    def open(self, known: Iterable[StoredFile]) -> None:
        """Make the folder and take up the files of an earlier life."""
        if self._wanted is None:
            self.folder = Path(tempfile.mkdtemp(prefix="simulated-files-"))
        else:
            self.folder = self._wanted
            self._make_folder()
        for torn in self.folder.glob("*.part"):  # uploads that a kill cut short
            torn.unlink(missing_ok=True)
        for file in known:
            self.by_id[file.file_id] = file

    def close(self) -> None:
        """Remove the folder if nobody asked for it to stay."""
        if self._wanted is None and self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def stored(self) -> list[StoredFile]:
        """The files that are there with their bytes, oldest first."""
        return [file for file in self.by_id.values() if file.kept is Kept.STORED]

    @property
    def uploads(self) -> int:
        """Uploads begun so far."""
        return sum(file.number > 0 for file in self.by_id.values())

    def get(self, file_id: str) -> StoredFile | None:
        """The file, unless it is unknown or deleted."""
        file = self.by_id.get(file_id)
        return None if file is None or file.kept is Kept.DELETED else file

    def path(self, file_id: str) -> Path:
        """Where its bytes are."""
        return self.folder / file_id

    def begin(self, name: str, purpose: str, file_type: str, claimed: str) -> StoredFile:
        """A new upload, without its bytes."""
        file_id = f"file-{uuid4()}"
        file = StoredFile(file_id, self.uploads + 1, name, purpose, file_type, time.time(), claimed.lower())
        self._keep(file)
        return file

    def incoming(self, file_id: str) -> Incoming:
        """A place for bytes on their way."""
        return Incoming(self.path(file_id))

    def finish(self, file: StoredFile, incoming: Incoming) -> None:
        """The bytes are here, all of them."""
        file.sha256 = incoming.finish(self.path(file.file_id))
        file.bytes = incoming.size
        file.kept = Kept.STORED
        self._keep(file)

    def add_result(self, file_id: str, name: str, job: int) -> None:
        """A file that a job made, whose bytes are in place."""
        size = self.path(file_id).stat().st_size
        now = time.time()
        self._keep(StoredFile(file_id, 0, name, "batch-generated", "jsonl", now, "", "", size, Kept.STORED, job))

    def delete(self, file: StoredFile) -> None:
        """Forget the bytes."""
        file.kept = Kept.DELETED
        self._keep(file)
        with contextlib.suppress(OSError):
            self.path(file.file_id).unlink(missing_ok=True)

    def same_content(self, checksum: str, *, unfinished: bool) -> StoredFile | None:
        """An uploaded file with that sha256; with `unfinished` also one that only claimed it."""
        for file in self.by_id.values():
            if file.kept is Kept.STORED and file.number and file.sha256 == checksum.lower():
                return file
            if unfinished and file.kept is Kept.PENDING and file.claimed == checksum.lower():
                return file
        return None

    def _keep(self, file: StoredFile) -> None:
        self.by_id[file.file_id] = file
        self._record(file)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"{self.folder}: cannot be made ({error.strerror})") from error
