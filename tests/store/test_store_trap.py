"""A process that has the checkpoint open never opens that file by other means: closing it drops SQLite's locks."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import batchrun

WATCHED = Path(__file__).parent / "store_watched.py"
ROOT = Path(batchrun.__file__).parent
OPENERS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "copyfile", "copy", "copy2", "move", "mmap"}


def test_while_a_run_has_the_checkpoint_open_only_sqlite_opens_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(WATCHED), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, _, forbidden = done.stdout.partition("...\n")
    assert json.loads(forbidden) == ["open", str(tmp_path / "c.db")]
    assert seen == ""


def test_the_store_opens_files_by_hand_in_two_known_places() -> None:
    """The lock file (a reader looks into it too), and the empty checkpoint made private before SQLite first sees it."""
    found = set()
    for path in (ROOT / "store").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in OPENERS:
                found.add((path.name, ast.unparse(called)))
    by_hand = {(file, call) for file, call in found if call != "cls.open"}
    assert {(file, call) for file, call in by_hand if call == "os.open"} == {
        ("lock.py", "os.open"), ("opening.py", "os.open")
    }  # fmt: skip
    assert {call for _, call in by_hand if call != "os.open"} <= {
        "Path('/proc/self/mounts').read_text",
        "(resources.files(__package__) / name).read_text",
        "(folder / name).read_text",
        "Path(f'{checkpoint}.lock').open",
    }
