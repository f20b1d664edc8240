"""The house stands as drawn: a room imports only rooms of lower rows, and one room owns each dependency."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchrun

ROOT = Path(batchrun.__file__).parent

ROWS = {
    "records": 0, "errors": 0, "clock": 0, "door": 0, "diary": 0,
    "job": 1,
    "rules": 2, "reports": 2,
    "data": 3, "files": 3, "store": 3, "api": 3,
    "lanes": 4,
    "output": 5, "wanted": 5, "terms": 5, "herald": 5,
    "choice": 6, "rows": 6, "deadline": 6,
    "kit": 7, "reckoning": 7, "sending": 8, "doctor": 7,
    "runner": 9, "faces": 9,
    "cli": 10, "__main__": 11, "__init__": 11,
}  # fmt: skip

# Rooms of one row that may know one another.
NEIGHBOURS = {("job", "job"), ("records", "errors")}

OWNERS = {
    "aiohttp": {"api", "simulator"},
    "aiosqlite": {"store"},
    "sqlite3": {"store"},
    "zstandard": {"store", "files"},
    "pyarrow": {"files"},
    "jinja2": {"files"},
    "tqdm": {"faces"},
    "click": {"cli"},
    "uvloop": {"cli"},
    "jsonschema_rs": {"rules"},
    "prometheus_client": {"faces"},
}

IMPURE = {"asyncio", "time", "random", "logging", "os", "io", "socket", "pathlib", "threading", "subprocess"}


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "batchrun":
                yield from (f"batchrun.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_of_lower_rows(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        if not name.startswith("batchrun.") or here == "__init__":
            continue
        there = name.split(".")[1]
        if here == "simulator":
            assert there == "simulator", f"the simulator imports {name}"
        elif there == "simulator":
            assert here == "cli", f"{path} imports {name}"
        elif there not in {here, "__version__"}:
            assert ROWS[there] < ROWS[here], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_room_owns_each_dependency(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or room(path) in owners, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "rules").glob("*.py")), ids=lambda path: path.name)
def test_rules_neither_wait_nor_look_at_clocks_nor_touch_anything(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE


def loaded_by(*words: str) -> set[str]:
    code = "import sys; from batchrun.cli.main import main\ntry: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("status", "no-such.db")], ids=" ".join)
def test_help_and_status_load_neither_aiohttp_nor_pyarrow(words: tuple[str, ...]) -> None:
    assert not loaded_by(*words) & {"aiohttp", "pyarrow", "jinja2"}


def test_importing_batchrun_loads_nothing_heavy() -> None:
    code = "import sys, batchrun; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(done.stdout.split()) & {"aiohttp", "pyarrow", "aiosqlite", "click", "msgspec"}
