"""Requests into request files on this machine, one open file a kind; what a file may hold is `rules/pack.py`."""

from __future__ import annotations

import asyncio
import os

import msgspec

from batchrun.files.lines import RequestFile
from batchrun.records import Request
from batchrun.rules import pack
from batchrun.rules.pack import Bounds
from batchrun.rules.repair import AS_ASKED, Repair
from batchrun.store.batches import Draft, Line


class Kind(msgspec.Struct, frozen=True):
    """What a file holds: requests sent to one model, of rows that ask for one model."""

    model: str
    asked: str


class _Open:
    """A file being packed."""

    def __init__(self, folder: str) -> None:
        self.nonce = os.urandom(6).hex()
        self.name = f"batchrun-{self.nonce}.jsonl"
        self.file = RequestFile.create(folder, self.name)
        self.lines: list[Line] = []
        self.reserved = 0


class Packer:
    """Packs requests of any models."""

    def __init__(self, folder: str, bounds: Bounds) -> None:
        self._folder = folder
        self._bounds = bounds
        self._open: dict[Kind, _Open] = {}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds with an open file."""
        return tuple(self._open)

    @property
    def rows(self) -> int:
        """Requests in the open files."""
        return sum(opened.file.lines for opened in self._open.values())

    @property
    def reserved(self) -> int:
        """Nano-dollars set aside for them."""
        return sum(opened.reserved for opened in self._open.values())

    def is_full(self, kind: Kind, request: Request) -> bool:
        """Whether the open file of its kind has no room for it."""
        opened = self._open.get(kind)
        return opened is not None and pack.is_full(opened.file.lines, opened.file.size, request.body, self._bounds)

    def add(self, kind: Kind, request: Request, bound: int, repair: Repair = AS_ASKED) -> None:
        """Append it to the file of its kind.

        Args:
            kind: which file.
            request: what is sent.
            bound: nano-dollars that it may cost.
            repair: how it differs from what its row asked.

        Raises:
            StorageError: the disk is full.
        """
        if kind not in self._open:
            self._open[kind] = _Open(self._folder)
        opened = self._open[kind]
        opened.file.add(pack.custom_id(opened.nonce, len(opened.lines)), request.body)
        opened.lines.append(Line(request.row, request.digest, len(request.body), repair))
        opened.reserved += bound

    async def close(self, kind: Kind) -> Draft:
        """The file of this kind, put on the disk."""
        opened = self._open.pop(kind)
        sha256 = await asyncio.to_thread(opened.file.close)
        stands_for = None if kind.model == kind.asked else kind.asked
        return Draft(
            kind.model, opened.name, opened.nonce, opened.file.size, sha256, opened.reserved, opened.lines, stands_for
        )

    def discard(self) -> int:
        """Let the open files go; their rows are pending as they were. The nano-dollars set aside for them."""
        for opened in self._open.values():
            opened.file.discard()
        reserved = self.reserved
        self._open.clear()
        return reserved
