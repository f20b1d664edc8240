"""Ready batch lines, to be uploaded as they are: what the Batch API asks of a file, checked before it does.

Facts: https://docs.together.ai/docs/inference/batch/overview (50,000 lines and 100 MB a file, 10 MB a line, `custom_id`
unique and of at most 64 characters; a line is `custom_id` and `body`). `together files check` of the package together
3.1.1 passes missing and repeated ids, missing bodies and blank lines, so none of these is found before the job fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from batchrun.files import opening
from batchrun.files.prompt import messages_problem, model_problem, settings_problem
from batchrun.files.row import Row
from batchrun.files.source import SourceFile
from batchrun.files.wording import kind_of, names_of
from batchrun.job import MOST_LINES
from batchrun.rules.pack import LARGEST_FILE, LARGEST_LINE

LONGEST_ID = 64

_LINE_KEYS = frozenset({"custom_id", "body"})
_BOM = b"\xef\xbb\xbf"
_TAIL = 4096


class BatchLines:
    """Checks the lines of one file in their order; ids are kept in memory up to `MOST_LINES`, never more.

    Attributes:
        models: the model of the first good body: a file has one.
    """

    form = ""

    def __init__(self, file: SourceFile, warn: Callable[[int | None, str], None]) -> None:
        self.models: dict[str, None] = {}
        self._file = file
        self._warn = warn
        self._plain = file.path.lower().endswith(".jsonl")
        self._ids: dict[str, int] = {}
        self._rows = self._size = self._line = 0
        self._model_line = 0
        if not self._plain:
            warn(None, "only plain .jsonl can be uploaded: unpack or rewrite this one, and check what comes out")

    def problem(self, row: Row) -> str:
        """What is wrong with the line, or with blank ones before it; empty when nothing is."""
        blank = row.line - self._line - 1
        self._line = row.line
        self._rows += 1
        self._size += len(row.text or b"")
        problem = self._row_problem(row)
        if blank:
            before = f"{'a blank line stands' if blank == 1 else f'{blank:,} blank lines stand'} before it"
            return f"{problem}; {before}" if problem else before
        return problem

    def at_end(self) -> Iterator[str]:
        """What is wrong with the file as a whole."""
        if self._rows > MOST_LINES:
            yield (
                f"has {self._rows:,} lines, and a batch file may have {MOST_LINES:,}; ids were compared up to there. "
                "Split it (`batchrun run` does so by itself)"
            )
        size = self._file.size if self._plain else self._size
        if size > LARGEST_FILE:
            yield (
                f"has {size:,} bytes, and a batch file should have {LARGEST_FILE:,} at most. "
                "Split it (`batchrun run` does so by itself)"
            )
        if self._plain and self._rows:
            yield from _edges(self._file.path, self._line)

    def _row_problem(self, row: Row) -> str:
        if row.cells is None:
            return row.problem
        if row.text is not None and len(row.text) > LARGEST_LINE:
            return f"is {len(row.text):,} bytes long, and a line should have {LARGEST_LINE:,} at most"
        return self._id_problem(row.cells, row.line) or self._body_problem(row.cells, row.line)

    def _id_problem(self, cells: dict[str, Any], line: int) -> str:
        name = cells.get("custom_id")
        if not isinstance(name, str):
            return "has no `custom_id`" if name is None else f"`custom_id` is {kind_of(name)}, not a string"
        if not 1 <= len(name) <= LONGEST_ID:
            return f"`custom_id` has {len(name):,} characters; 1 to {LONGEST_ID} are allowed"
        if self._rows > MOST_LINES:
            return ""
        first = self._ids.setdefault(name, line)
        return "" if first == line else f"`custom_id` is that of line {first:,}; each must be unique"

    def _body_problem(self, cells: dict[str, Any], line: int) -> str:
        unknown = {name: None for name in cells if name not in _LINE_KEYS}
        if unknown:
            self._warn(line, f"a line has `custom_id` and `body` only; here also: {names_of(unknown)}")
        body = cells.get("body")
        if not isinstance(body, dict):
            return "has no `body`" if body is None else f"`body` is {kind_of(body)}, not an object"
        if "model" not in body:
            return "the body names no model"
        problem = model_problem(body) or settings_problem(body) or messages_problem(body.get("messages"))
        return f"in the body, {problem}" if problem else self._other_model(body["model"], line)

    def _other_model(self, model: str, line: int) -> str:
        """A job has one `model_id`, so a file has one model."""
        if not self.models:
            self.models[model] = None
            self._model_line = line
        if model in self.models:
            return ""
        return f"names another model than line {self._model_line:,}; a batch file has one"


def _edges(path: str, last: int) -> Iterator[str]:
    """What reading rows passes over in silence: a byte order mark in front, blank lines at the end."""
    with opening.reading(path), open(path, "rb") as file:  # noqa: PTH123 - a path as text
        if file.read(len(_BOM)) == _BOM:
            yield "begins with a byte order mark (EF BB BF). Write it as UTF-8 without one"
        file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
        end = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
    if not end.strip():
        yield f"ends with a blank line, after line {last:,}"
