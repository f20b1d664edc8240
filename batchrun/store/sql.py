"""The queries by name. A query stands in a `.sql` file under `-- name:` with a sentence, and ends before the next."""

from __future__ import annotations

from functools import cache
from importlib import resources

_NAME = "-- name:"
_FILES = ("queries.sql", "batches.sql")


@cache
def queries() -> dict[str, str]:
    """Every query, by its name, without comments."""
    text = "\n".join((resources.files(__package__) / name).read_text(encoding="utf-8") for name in _FILES)
    found: dict[str, str] = {}
    for part in text.split(_NAME)[1:]:
        name, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        found[name.strip()] = "\n".join(lines).strip().removesuffix(";")
    return found


def query(name: str) -> str:
    """The query with this name."""
    return queries()[name]


@cache
def migrations() -> tuple[str, ...]:
    """The steps from an empty file to the newest schema; the n-th (from 1) leads to version n."""
    folder = resources.files(__package__) / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple((folder / name).read_text(encoding="utf-8") for name in names)
