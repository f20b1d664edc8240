"""Memory does not grow with rows: the same job with twenty times the rows peaks at nearly the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import write_prompts

MODEL = "openai/gpt-oss-20b"


@pytest.fixture
def url() -> Iterator[str]:
    """A simulator in a process of its own."""
    words = [sys.executable, "-m", "batchrun", "simulate", "--port", "0", "--json", "--with-parent", "--latency", "0"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def peak_mb(folder: Path, url: str, rows: int, ending: str) -> float:
    """Peak memory of a whole run, from the kernel's own count of the finished process."""
    source = write_prompts(folder / f"{rows}.jsonl", range(rows))
    words = [
        sys.executable, "-m", "batchrun", "run", str(source), "-m", MODEL, "--base-url", url, "--max-tokens", "60",
        "--concurrency", "256", "--checkpoint", str(folder / f"{rows}.db"), "-o", str(folder / f"out{rows}{ending}"),
    ]  # fmt: skip
    process = subprocess.Popen(words, env={**os.environ, "TOGETHER_API_KEY": "any"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)


@pytest.mark.soak
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_memory_with_200_000_rows_is_within_a_fifth_of_that_with_10_000(tmp_path: Path, url: str, ending: str) -> None:
    few, many = (peak_mb(tmp_path, url, rows, ending) for rows in (10_000, 200_000))
    print(f"{ending}: {few:.0f} MB with 10,000 rows, {many:.0f} MB with 200,000")
    assert many <= 1.2 * few
