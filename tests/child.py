"""A run in a process of its own, for tests that end it: `child.py JOB.json [STEP N]` kills itself at the n-th STEP.

The step `*` is any step at all, `remove` the removal of a file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from batchrun import door
from batchrun.errors import BatchrunError
from batchrun.job import Job
from batchrun.runner import Run


class Killer:
    """Ends the process without a word at the n-th step of a kind."""

    def __init__(self, step: str, number: int) -> None:
        self._step = step
        self._left = number

    def __call__(self, step: str) -> None:
        self._left -= self._step in (step, "*")
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    if len(sys.argv) > 2:
        killer = Killer(sys.argv[2], int(sys.argv[3]))
        door.watch(killer)
        if sys.argv[2] == "remove":
            sys.addaudithook(lambda event, _args: killer("remove") if event == "os.remove" else None)
    try:
        report = asyncio.run(Run(job, "any-key").go())
    except BatchrunError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    print(msgspec.json.encode(report.to_dict()).decode())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
