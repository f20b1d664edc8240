"""Finds the input files and streams their rows in order, whatever their form.

How each form is read is the affair of `jsonl` and `parquet`; what a row asks for, of `prompt`.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from batchrun.errors import InputError
from batchrun.files.jsonl import Lines
from batchrun.files.parquet import Groups
from batchrun.files.row import Row

__all__ = ["ENDINGS", "Reader", "Row", "SourceFile", "discover"]

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".parquet")
_KNOWN = "Known endings: " + ", ".join(ENDINGS)


class SourceFile(msgspec.Struct, frozen=True):
    """One input file as it was found: absolute path, size in bytes, modification time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


def discover(inputs: Sequence[str]) -> tuple[SourceFile, ...]:
    """The files meant by `inputs` (files, folders, globs), in that order; folders and globs sorted by name.

    Folders give their own files with a known ending, no hidden ones and none of their subfolders (`dir/**/*.jsonl`
    does).

    Raises:
        InputError: something is missing, empty, no regular file, of an unknown ending, or named twice.
    """
    try:
        paths = [path for typed in inputs for path in _meant(typed)]
    except OSError as error:
        raise InputError(f"The input cannot be looked up: {error.strerror}.", "Check the path.") from error
    for path, times in Counter(map(os.path.realpath, paths)).items():
        if times > 1:
            raise InputError(f"{path} is named {times} times in the input.", "Name each file once.")
    return tuple(_found(path) for path in paths)


def _meant(typed: str) -> list[str]:
    path = Path(os.path.abspath(typed))  # noqa: PTH100 - `..` out, links not followed
    if path.is_dir():
        inside = sorted(str(entry) for entry in path.iterdir() if _is_input(entry))
        if not inside:
            raise InputError(f"{path} has no input files in it.", _KNOWN)
        return inside
    if path.exists():
        return [str(path)]
    if not glob.has_magic(typed):
        raise InputError(f"{path} does not exist.", "Check the path; relative paths start at the current folder.")
    matches = sorted(match for match in glob.iglob(str(path), recursive=True) if _is_input(Path(match)))  # noqa: PTH207
    if not matches:
        raise InputError(f"No input file matches {typed}", _KNOWN)
    return matches


def _is_input(entry: Path) -> bool:
    return entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and entry.is_file()


def _found(path: str) -> SourceFile:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"The name of {path.encode(errors='replace').decode()} is not UTF-8.", "Rename it.") from None
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(facts.st_mode):  # a pipe cannot be read twice, and may never end
        raise InputError(f"{path} is not a regular file.", "Write it to a file first: it is read more than once.")
    if not path.lower().endswith(ENDINGS):
        raise InputError(f"{path} has an ending that is not known.", _KNOWN)
    return SourceFile(path, facts.st_size, facts.st_mtime_ns)


class Reader:
    """The rows of several files as one sequence. `chunks` and `take` go their own ways and do not disturb each other.

    Attributes:
        rows_per_file: after `chunks` is exhausted, how many rows each file has.
    """

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.rows_per_file: list[int] = []
        self._files = tuple(files)
        self._names = _names([file.path for file in files])
        self._open: Lines | Groups | None = None  # where `take` stands
        self._taken = 0  # the files before it
        self._passed = -1

    def chunks(self, size: int = 2000) -> Iterator[list[Row]]:
        """Every row in order, at most `size` at a time and fewer when they are long.

        Raises:
            InputError: a file cannot be read, is cut short, or is not what it was when it was listed.
        """
        self.rows_per_file = []
        first = 0
        for file, name in zip(self._files, self._names, strict=True):
            opened = _opened(file, name, first)
            try:
                yield from opened.chunks(size)
            finally:
                opened.close()
            self.rows_per_file.append(opened.rows)
            first += opened.rows

    def take(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows with these ascending numbers; a later call goes on after the last row of the one before.

        Raises:
            InputError: as for `chunks`, or there are fewer rows than that.
            ValueError: the numbers do not ascend.
        """
        done = 0
        while done < len(numbers):
            for row in self._current().take(numbers[done:] if done else numbers):
                self._expect(row, numbers[done])
                done += 1
                yield row
            if done < len(numbers):
                self._advance()

    def close(self) -> None:
        """Let go of the file `take` stands in."""
        if self._open is not None:
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expect(self, row: Row, number: int) -> None:
        if row.number != number:
            raise ValueError(f"row {number} was asked for after row {self._passed}")
        self._passed = number

    def _current(self) -> Lines | Groups:
        if self._open is None:
            if not self._files:
                raise InputError("There is no input file.")
            self._open = _opened(self._files[0], self._names[0], 0)
        return self._open

    def _advance(self) -> None:
        ended = self._current()
        first = ended.first + ended.rows
        ended.close()
        self._taken += 1
        if self._taken == len(self._files):
            raise InputError(
                f"The input has only {first} rows now; it had more when it was read first.",
                "Run the same command again: answers are kept.",
            )
        self._open = _opened(self._files[self._taken], self._names[self._taken], first)


def _names(paths: list[str]) -> list[str]:
    """Short names for messages: the last part of each path where that tells them apart, else all of it."""
    times = Counter(Path(path).name for path in paths)
    return [path if times[Path(path).name] > 1 else Path(path).name for path in paths]


def _opened(file: SourceFile, name: str, first: int) -> Lines | Groups:
    now = _found(file.path)
    if now != file:
        raise InputError(
            f"{file.path} has changed while batchrun was using it.", "Run the same command again: answers are kept."
        )
    return (Groups if file.path.lower().endswith(".parquet") else Lines)(file.path, name, first)
