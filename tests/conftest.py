"""Fixtures that every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import MODEL, MakeJob

from batchrun import door
from batchrun.job import Asking, Job, Limits, checked


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job on a server, with everything in the test's own folder."""

    def make(url: str, source: Path, *, limits: Mapping[str, Any] | None = None, **fields: Any) -> Job:
        settings: dict[str, Any] = {
            "inputs": (str(source),),
            "checkpoint": str(tmp_path / "checkpoint.db"),
            "output": str(tmp_path / "out.jsonl"),
            "asking": Asking(model=MODEL, params={"max_tokens": 100}),
            "base_url": url,
            "limits": Limits(**{"concurrency": 32, **(limits or {})}),
            **fields,
        }
        return checked(Job(**settings))

    return make


@pytest.fixture(autouse=True)
def _hearing() -> None:
    """A shell starts its background jobs deaf to SIGINT, and a run leaves its process so; children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _open_door() -> Iterable[None]:
    yield
    door.watch(None)
