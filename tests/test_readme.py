"""What README tells people to type, typed. (Its test command is what `.ci/run` calls.)"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchrun.cli.main import batchrun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_set_up_commands_are_two_lines_of_the_readme() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    assert len(commands) == 2
    assert " run samples/prompts.jsonl " in commands[0]
    assert commands[1].endswith("pytest -q -n 2")


@pytest.mark.soak
def test_the_main_job_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    line = next(line for line in README.splitlines() if line.startswith("python3 -m venv ") and " run " in line)
    words = shlex.split(line.rpartition("&& ")[2])
    assert words[0] == ".venv/bin/batchrun"
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOGETHER_")}
    done = subprocess.run(
        [sys.executable, "-m", "batchrun", *words[1:]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nDone: 200 of 200 rows answered, 0 rejected." in done.stderr
    assert (tmp_path / "answers.parquet").stat().st_size > 0


def test_every_option_and_command_that_the_readme_names_exists() -> None:
    helps = [CliRunner().invoke(batchrun, [name, "--help"]).output for name in batchrun.commands]
    known = set(re.findall(r"--[a-z-]+", " ".join(helps)))
    for option in set(re.findall(r"`?(--[a-z][a-z-]+)", README)):
        assert option in known, option
    for command in set(re.findall(r"`batchrun ([a-z]+)", README)):
        assert command in batchrun.commands, command


@pytest.mark.parametrize("path", ["README.md", "CHANGELOG.md", "LICENSE", "checkpoints/README.md", "bench/README.md"])
def test_the_pages_are_there_and_finished(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.strip()
    assert "FIGURE_" not in text
