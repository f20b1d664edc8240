"""The other side, as the batch lane holds it, and the folder on this side where files for it wait."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from batchrun.api.remote import Remote
from batchrun.lanes.errands import Board, Errands
from batchrun.lanes.judging import Redact
from batchrun.lanes.uploading import Uploader


class Provider(msgspec.Struct, frozen=True):
    """The other side: its calls, the shared listing, and how calls are tried again."""

    remote: Remote
    board: Board
    errands: Errands
    uploader: Uploader
    redact: Redact


def remove(path: str | Path) -> None:
    """What cannot be removed is swept away by a later start."""
    with contextlib.suppress(OSError):
        Path(path).unlink()


def batch_folder(checkpoint: str) -> str:
    """Where request and result files stay for as long as they are needed."""
    return f"{checkpoint}.batches"
