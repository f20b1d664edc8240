"""batchrun beside a bare aiohttp loop, in pairs: wall time, CPU and memory of whole processes.

Each round runs both, in turns, in fresh processes and an empty folder, against the simulator in a process of its own.
The ratios are medians of the rounds' own ratios, so that a busy machine weighs on both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MODEL = "openai/gpt-oss-20b"
HERE = Path(__file__).parent


def write_prompts(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            prompt = (
                f"Explain in three sentences why the treaties of 1648 mattered for the sovereign state. Item {row}."
            )
            file.write(json.dumps({"id": row, "prompt": prompt}) + "\n")


def measured(words: list[str], folder: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MB) of one process."""
    began = time.perf_counter()
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "said").read_text())
    scale = 1024 if sys.platform != "darwin" else 1024 * 1024
    return {
        "wall": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mb": usage.ru_maxrss / scale,
    }


def span(url: str, before: int) -> float:
    """Seconds from the first to the last charge of this run, from the simulator's ledger."""
    with urllib.request.urlopen(f"{url}/_simulator/ledger", timeout=60) as reply:
        times = [json.loads(line)["time"] for line in reply.read().splitlines()[before:]]
    return max(times) - min(times)


def charges(url: str) -> int:
    with urllib.request.urlopen(f"{url}/_simulator/account", timeout=60) as reply:
        return int(json.loads(reply.read())["answers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.0, help="of the simulator, in seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="out.jsonl", help="out.jsonl or out.parquet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_prompts(folder / "in.jsonl", options.rows)
        words = ["--port", "0", "--json", "--with-parent", "--latency", str(options.latency), "--sigma", "0"]
        with subprocess.Popen(
            [sys.executable, "-m", "batchrun", "simulate", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as simulator:
            assert simulator.stdout is not None
            url = json.loads(simulator.stdout.readline())["url"]
            compare(options, folder, url)
            simulator.terminate()


def compare(options: argparse.Namespace, folder: Path, url: str) -> None:
    source = str(folder / "in.jsonl")
    runners = {
        "bare": [sys.executable, str(HERE / "bare.py"), source, url, MODEL, str(options.concurrency)],
        "batchrun": [
            sys.executable, "-m", "batchrun", "run", source, "-m", MODEL, "--base-url", url, "--max-tokens", "60",
            "--concurrency", str(options.concurrency), "-o", options.output, "--checkpoint", "c.db",
            "--progress", "none",
        ],
    }  # fmt: skip
    os.environ.setdefault("TOGETHER_API_KEY", "any")
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for number in range(options.rounds):
        for name in sorted(runners, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory(dir=folder) as empty:
                before = charges(url)
                figures = measured(runners[name], Path(empty))
                figures["span"] = span(url, before)
            seen[name].append(figures)
    report(options, seen)


def report(options: argparse.Namespace, seen: dict[str, list[dict[str, float]]]) -> None:
    ideal = options.rows / options.concurrency * options.latency
    print(f"{options.rows} rows, {options.concurrency} in flight, latency {options.latency} s, {options.rounds} rounds")
    for name, rounds in seen.items():
        middle = {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        ratios = {
            key: statistics.median(ours[key] / bare[key] for ours, bare in zip(rounds, seen["bare"], strict=True))
            for key in ("wall", "cpu")
        }
        over = f", first to last answer / ideal {middle['span'] / ideal:.3f}" if ideal else ""
        print(
            f"{name:9} wall {middle['wall']:.2f} s, cpu {middle['cpu']:.2f} s, peak {middle['mb']:.0f} MB; throughput "
            f"of bare {1 / ratios['wall']:.2f}, cpu of bare {ratios['cpu']:.2f}{over}"
        )


if __name__ == "__main__":
    main()
