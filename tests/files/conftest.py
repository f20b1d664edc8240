"""Short ways to put a file on the disk and to read rows and outputs back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrun.files import sink, source


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def put(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return put


@pytest.fixture
def rows_of() -> Callable[..., list[source.Row]]:
    def rows_of(*paths: Path, size: int = 2000) -> list[source.Row]:
        reader = source.Reader(source.discover([str(path) for path in paths]))
        return [row for chunk in reader.chunks(size) for row in chunk]

    return rows_of


class Exported:
    """Reads inputs, settles their columns and writes them with one outcome a row, as a run does."""

    def __init__(self, *paths: Path) -> None:
        self.files = source.discover([str(path) for path in paths])
        scan = sink.ColumnScan()
        for chunk in source.Reader(self.files).chunks():
            scan.see(chunk)
        self.columns = scan.settle()

    def pairs(self) -> Iterator[tuple[source.Row, dict[str, Any]]]:
        for chunk in source.Reader(self.files).chunks():
            for row in chunk:
                yield row, {"state": "answered", "answer": f"answer {row.number}", "attempts": 1, "cost_usd": 0.25}

    def to(self, path: Path, pairs: Iterable[tuple[source.Row, dict[str, Any]]] | None = None) -> Path:
        sink.write(str(path), self.columns, self.files, self.pairs() if pairs is None else pairs)
        return path


@pytest.fixture
def exported() -> type[Exported]:
    return Exported
