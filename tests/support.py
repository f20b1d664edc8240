"""What most tests need: prompts, rows read back, one start of a job, and the ledger of charges as the oracle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from batchrun.job import Job
from batchrun.reports import Entry, Report
from batchrun.runner import Options, Run
from batchrun.simulator import Charge
from batchrun.store.opening import APPLICATION_ID
from batchrun.store.sql import migrations
from batchrun.store.view import View

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


_UNUSED = "surplus is null and paid.id not in (select answer from request where answer is not null)"

# Rows that must not be there, in any checkpoint, at any moment.
_WRONG = {
    "a reply is unused exactly when no row holds it and it is no surplus": (
        f"select id from paid where (unused = 1) <> ({_UNUSED})"
    ),
    "no row holds a surplus reply": "select row from request join paid on paid.id = answer where surplus is not null",
    "a reply has its body exactly until it is pruned": (
        "select id from paid where (pruned = 1) = (id in (select id from body))"
    ),
    "an answer is of its row's digest": (
        "select row from request join paid on paid.id = answer where paid.digest <> request.digest"
    ),
}
_SUMS = """
select lane.text, model.text, count(*), sum(cost_nano is null), sum(coalesce(prompt_tokens, 0)),
       sum(coalesce(completion_tokens, 0)), sum(coalesce(cost_nano, 0)),
       {0}, sum(surplus is not null), sum(iif(surplus is not null, coalesce(cost_nano, 0), 0)),
       sum({1}), sum(iif({1}, coalesce(cost_nano, 0), 0))
from paid join name as lane on lane.id = lane join name as model on model.id = model group by 1, 2 order by 1, 2
"""


def assert_ledger(path: str | Path) -> None:
    """What holds of the money in every checkpoint, whatever has happened to it."""
    held = "paid.id in (select answer from request where answer is not null)"
    sums = _SUMS.format(f"sum({held}), sum(iif({held}, coalesce(cost_nano, 0), 0))", _UNUSED)
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as sql:
        for promise, query in _WRONG.items():
            assert not sql.execute(query).fetchall(), f"{path}: {promise}"
        found = sql.execute(sums).fetchall()
    with View(str(path)) as view:
        names = Entry.__struct_fields__[:13]
        assert [tuple(getattr(entry, name) for name in names) for entry in view.ledger()] == found
        assert all(sum(entry.reasons.values()) == entry.wasted for entry in view.ledger())


def is_checkpoint(path: Path) -> bool:
    """Whether it is one of this version, undamaged as far as its first page tells."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as sql:
            identity, version = (
                sql.execute(f"pragma {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
    except sqlite3.Error:
        return False
    return (identity, version) == (APPLICATION_ID, len(migrations()))
