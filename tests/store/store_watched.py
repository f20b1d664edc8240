"""A run that is watched from inside: who opens the checkpoint by other means than SQLite while it is open?

`store_watched.py FOLDER` prints one line of JSON for each such opening, then a line of dots, then does once what is
forbidden, so that whoever reads this knows that it would have been seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import msgspec

from batchrun import output
from batchrun.job import Asking, Job, Limits, checked
from batchrun.runner import Run
from batchrun.simulator import Settings, Simulator
from batchrun.store.view import View

FOLDER = Path(sys.argv[1])
CHECKPOINT = FOLDER / "c.db"
GUARDED = {os.path.realpath(f"{CHECKPOINT}{ending}") for ending in ("", "-wal", "-shm")}
connected = threading.Event()


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "sqlite3.connect" and str(CHECKPOINT) in str(arguments[0]):
        connected.set()
    elif connected.is_set() and event in {"open", "shutil.copyfile", "os.truncate", "os.rename", "os.remove"}:
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.realpath(os.fsdecode(path)) in GUARDED:
            print(json.dumps([event, os.fsdecode(path)]), flush=True)


async def main() -> None:
    source = FOLDER / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"prompt {n % 350}"}) + "\n" for n in range(400)))
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = checked(
            Job(
                inputs=(str(source),), checkpoint=str(CHECKPOINT), output=str(FOLDER / "out.jsonl"),
                asking=Asking(model="openai/gpt-oss-20b", params={"max_tokens": 100}), base_url=simulator.url,
                limits=Limits(concurrency=64), dedupe=True,
            )
        )  # fmt: skip
        sys.addaudithook(hook)
        running = asyncio.create_task(Run(job, "any-key").go())
        await simulator.reached(answers=200)
        with View(job.checkpoint) as view:
            view.kept()
            view.events()
            files = [msgspec.convert(dict(zip(("path", "size", "mtime_ns"), s[:3], strict=True)), output.SourceFile)
                     for s in view.sources()]  # fmt: skip
        assert files
        report = await running
        assert report.answered == 400, report
    print("...", flush=True)
    CHECKPOINT.read_bytes()


if __name__ == "__main__":
    asyncio.run(main())
