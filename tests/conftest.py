"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import MODEL, MakeJob, assert_ledger, is_checkpoint

from batchrun import door
from batchrun.cli.main import main
from batchrun.job import Asking, Job, Limits, checked

# Most tests read what people see on a terminal; here and in the processes that they start there is none.
os.environ["BATCHRUN_LOG"] = "none"


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


@pytest.fixture(autouse=True)
def _ledgers(request: pytest.FixtureRequest) -> Iterable[None]:
    """Whatever a test did to a checkpoint in its folder, the money in it must add up."""
    yield
    if "by_hand" in request.fixturenames:
        return
    folder = request.node.funcargs.get("tmp_path") if isinstance(request.node, pytest.Function) else None
    for path in folder.rglob("*.db") if folder is not None else ():
        if is_checkpoint(path):
            assert_ledger(path)


@pytest.fixture
def by_hand() -> None:
    """For a test that changes or damages a checkpoint by hand: it need not add up at the end."""


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line as a process runs it, in this one: its exit code, standard output and standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["batchrun", *words])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(SystemExit) as left:
            main()
        for number, handler in before.items():
            signal.signal(number, handler)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call
