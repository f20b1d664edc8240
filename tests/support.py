"""What most tests need: prompts, rows read back, one start of a job, and the ledger of charges as the oracle."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from batchrun.job import Job
from batchrun.reports import Report
from batchrun.run import Options, Run
from batchrun.simulator import Charge

MODEL = "openai/gpt-oss-20b"


def prompt(number: int) -> str:
    return f"Explain the number {number} to a child in one sentence."


def write_prompts(path: Path, numbers: Iterable[int]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            file.write(json.dumps({"id": number, "prompt": prompt(number)}) + "\n")
    return path


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def paid_for(charges: Iterable[Charge]) -> Counter[str]:
    """How often each prompt was charged, by the hash the ledger knows it by."""
    return Counter(charge.content for charge in charges)


def content(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MakeJob = Callable[..., Job]


async def start(job: Job, **options: Any) -> Report:
    """One start of the job, as a new process would make it."""
    return await Run(job, "any-key", options=Options(**options)).go()
