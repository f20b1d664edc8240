"""Checks a whole file before money is spent on it, row by row, and says what it is; bad rows are told as they are met.

What a line must be like is `prompt`'s, `check_batch`'s and `check_fine_tune`'s; showing it is a face's.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import assert_never

import msgspec

from batchrun.errors import InputError
from batchrun.files.check_batch import BatchLines
from batchrun.files.check_fine_tune import FineTuneLines
from batchrun.files.prompt import Prompter
from batchrun.files.source import Reader, Row, SourceFile, discover
from batchrun.job import Asking
from batchrun.records import BadRow

# Names and warnings come from the file, so their number is bounded.
MOST_MODELS = 20
MOST_WARNINGS = 20

# Stands in for a model when none was named, so that rows can be checked without one.
_NO_MODEL = "(no model named)"


class Kind(enum.StrEnum):
    """What a file is checked as."""

    PROMPTS = "prompts"
    BATCH = "batch"
    FINE_TUNE = "fine-tune"


class Problem(msgspec.Struct, frozen=True, gc=False):
    """Why a file does not pass; `line` counts from 1 (rows in Parquet), None when it is the file as a whole."""

    line: int | None
    reason: str


class Warned(msgspec.Struct, frozen=True):
    """Something odd that is let pass: in how many rows, and in which first (None: the file as a whole)."""

    reason: str
    rows: int
    line: int | None


class Report(msgspec.Struct, frozen=True):
    """What a file turned out to be.

    Attributes:
        file: its path, or what was typed when nothing is there.
        kind: None when it could not be read far enough to tell.
        form: for fine-tuning files the format of their rows; empty otherwise.
        samples: rows, good and bad; blank lines are none.
        size: bytes on the disk; None when there is no such file.
        models: those named, by first appearance, at most `MOST_MODELS`.
        problems: how many there are.
    """

    file: str
    kind: Kind | None = None
    form: str = ""
    samples: int = 0
    size: int | None = None
    models: tuple[str, ...] = ()
    problems: int = 0
    warnings: tuple[Warned, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


class Missing(msgspec.Struct, frozen=True):
    """A word of the command line that means no file, and why."""

    typed: str
    reason: str


Tell = Callable[[Problem], None]


def found(words: Sequence[str]) -> Iterator[SourceFile | Missing]:
    """The files meant by each word (see `source.discover`), each once; a word that means none stops no other."""
    seen = set()
    for typed in words:
        try:
            files = discover([typed])
        except InputError as error:
            yield Missing(typed, _sentence(error, os.path.abspath(typed)))  # noqa: PTH100 - as it is named there
            continue
        for file in files:
            real = str(Path(file.path).resolve())
            if real not in seen:
                seen.add(real)
                yield file


class Checker:
    """Checks files as one kind, or each as what its first readable row is (`kind` None).

    Raises:
        UsageError: what is asked for cannot be sent, or its template does not compile.
    """

    def __init__(self, kind: Kind | None, asking: Asking) -> None:
        self._kind = kind
        self._prompter = Prompter(asking if asking.model else msgspec.structs.replace(asking, model=_NO_MODEL))

    def check(self, file: SourceFile, tell: Tell) -> Report:
        """Read it once (a second time from its beginning when the kind is not said) and tell each problem in order.

        Memory does not grow with the file. A file that breaks off in the middle is a problem like any other.
        """
        notes = _Notes(tell)
        kind, lines, samples = self._kind, None, 0
        try:
            kind = kind or _kind_of(file)
            lines = self._lines(kind, file, notes.warn)
            for chunk in Reader([file]).chunks():
                samples += len(chunk)
                for row in chunk:
                    if reason := lines.problem(row):
                        notes.problem(row.line, reason)
            for reason in lines.at_end():
                notes.problem(None, reason)
            if not samples:
                notes.problem(None, "has no rows")
        except InputError as error:
            notes.problem(None, _sentence(error, file.path))
        return Report(
            file.path,
            kind,
            lines.form if lines else "",
            samples,
            file.size,
            tuple(lines.models) if lines else (),
            notes.problems,
            tuple(notes.warnings.values()),
        )

    def _lines(
        self, kind: Kind, file: SourceFile, warn: Callable[[int | None, str], None]
    ) -> _Prompts | BatchLines | FineTuneLines:
        match kind:
            case Kind.PROMPTS:
                return _Prompts(self._prompter, warn)
            case Kind.BATCH:
                return BatchLines(file, warn)
            case Kind.FINE_TUNE:
                return FineTuneLines(file, warn)
        assert_never(kind)


class _Prompts:
    """Rows as `run` takes them: what its first pass would refuse is a problem, by its own code."""

    form = ""

    def __init__(self, prompter: Prompter, warn: Callable[[int | None, str], None]) -> None:
        self.models: dict[str, None] = {}
        self._prompter = prompter
        self._warn = warn

    def problem(self, row: Row) -> str:
        """Why `run` would refuse the row; empty when it would not."""
        request = self._prompter.request(row)
        if isinstance(request, BadRow):
            return request.message
        if request.model == _NO_MODEL:
            self._warn(row.line, "names no model: `batchrun run` needs one with -m")
        elif len(self.models) < MOST_MODELS:
            self.models.setdefault(request.model)
        return ""

    def at_end(self) -> Iterator[str]:
        """Nothing: each row stands for itself."""
        return iter(())


class _Notes:
    """Counts problems and gathers warnings of one file."""

    def __init__(self, tell: Tell) -> None:
        self.problems = 0
        self.warnings: dict[str, Warned] = {}
        self._tell = tell

    def problem(self, line: int | None, reason: str) -> None:
        self.problems += 1
        self._tell(Problem(line, reason))

    def warn(self, line: int | None, reason: str) -> None:
        before = self.warnings.get(reason)
        if before is not None:
            self.warnings[reason] = msgspec.structs.replace(before, rows=before.rows + 1)
        elif len(self.warnings) < MOST_WARNINGS:
            self.warnings[reason] = Warned(reason, 1, line)


def _kind_of(file: SourceFile) -> Kind:
    """Batch lines have an id and a body; every other row is a prompt, if it is anything."""
    for chunk in Reader([file]).chunks():
        for row in chunk:
            if row.cells is not None:
                return Kind.BATCH if "custom_id" in row.cells and "body" in row.cells else Kind.PROMPTS
    return Kind.PROMPTS


def _sentence(error: InputError, path: str) -> str:
    """What happened and what to do; the path goes, since every problem is told with it."""
    happened = error.message.removeprefix(f"{path} ").rstrip(".")
    return f"{happened}. {error.next_step}".strip()
