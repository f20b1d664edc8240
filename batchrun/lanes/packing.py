"""Requests into request files on this machine, one open file a model; what a file may hold is `rules/pack.py`."""

from __future__ import annotations

import asyncio
import os

from batchrun.files.lines import RequestFile
from batchrun.records import Request
from batchrun.rules import pack
from batchrun.rules.pack import Bounds
from batchrun.store.batches import Draft, Line


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
        self._open: dict[str, _Open] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Models with an open file."""
        return tuple(self._open)

    @property
    def rows(self) -> int:
        """Requests in the open files."""
        return sum(opened.file.lines for opened in self._open.values())

    @property
    def reserved(self) -> int:
        """Nano-dollars set aside for them."""
        return sum(opened.reserved for opened in self._open.values())

    def is_full(self, request: Request) -> bool:
        """Whether the open file of its model has no room for it."""
        opened = self._open.get(request.model)
        return opened is not None and pack.is_full(opened.file.lines, opened.file.size, request.body, self._bounds)

    def add(self, request: Request, bound: int) -> None:
        """Append it to the file of its model; `bound` nano-dollars is what it may cost.

        Raises:
            StorageError: the disk is full.
        """
        if request.model not in self._open:
            self._open[request.model] = _Open(self._folder)
        opened = self._open[request.model]
        opened.file.add(pack.custom_id(opened.nonce, len(opened.lines)), request.body)
        opened.lines.append(Line(request.row, request.digest, len(request.body)))
        opened.reserved += bound

    async def close(self, model: str) -> Draft:
        """The file of this model, put on the disk."""
        opened = self._open.pop(model)
        sha256 = await asyncio.to_thread(opened.file.close)
        return Draft(model, opened.name, opened.nonce, opened.file.size, sha256, opened.reserved, opened.lines)

    def discard(self) -> int:
        """Let the open files go; their rows are pending as they were. The nano-dollars set aside for them."""
        for opened in self._open.values():
            opened.file.discard()
        reserved = self.reserved
        self._open.clear()
        return reserved
