"""What `check` found, in words and a table for people, and as one JSON object; both are written as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from batchrun.faces.words import count, rows
from batchrun.files.check import Kind, Problem, Report, Warned

SHOWN = 20

_HEADER = ("file", "what it is", "rows", "size", "model", "result")
_FIGURES = frozenset({2, 3})
_LONGEST_MODEL = 60
_THOUSAND = 1000

_WHAT = {Kind.PROMPTS: "prompts", Kind.BATCH: "batch lines", Kind.FINE_TUNE: "fine-tuning"}

Say = Callable[[str], None]


class Text:
    """For people: the problems of each file, then one table of all."""

    def __init__(self, say: Say, most: int | None) -> None:
        self._say = say
        self._most = most
        self._told: list[str] = []
        self._reasons: set[str] = set()
        self._file = ""

    def begin(self, file: str) -> None:
        """The problems that follow are this file's."""
        self._file, self._told, self._reasons = _shown(file), [], set()

    def problem(self, problem: Problem) -> None:
        """One of them; the first few are held back, since they may all say the same."""
        line = f"{_place(self._file, problem.line)}: {problem.reason}"
        if self._most is None:
            self._say(line)
        elif len(self._told) < self._most:
            self._told.append(line)
            self._reasons.add(problem.reason)

    def end(self, report: Report) -> None:
        """There are no more."""
        more = report.problems - len(self._told)
        if more and self._told and len(self._reasons) == 1:
            self._say(f"{self._told[0]} (and so on: the first {len(self._told)} problems all say this)")
            self._say(f"{self._file}: {count(report.problems - 1)} more problems; --all lists them")
        else:
            for line in self._told:
                self._say(line)
            if more and self._most is not None:
                self._say(f"{self._file}: {count(more)} more problem{'' if more == 1 else 's'}; --all lists them")
        for warning in report.warnings:
            self._say(f"{_place(self._file, warning.line)}: warning: {warning.reason}{_in_rows(warning)}")

    def close(self, reports: Sequence[Report]) -> None:
        """The table."""
        told = any(report.problems or report.warnings for report in reports)
        for line in ([""] if told else []) + _aligned([_HEADER, *map(_row, reports)]):
            self._say(line)


class Json:
    """For programs: one object, written piece by piece, so that a million problems take no memory."""

    def __init__(self, say: Say, most: int | None) -> None:
        self._say = say
        self._most = most
        self._files = self._told = 0

    def begin(self, file: str) -> None:
        """The problems that follow are this file's."""
        self._say(f'{"," if self._files else _OPENING}{{"file":{_json(file)},"problems":[')
        self._files += 1
        self._told = 0

    def problem(self, problem: Problem) -> None:
        """One of them; after the first few they are only counted."""
        if self._most is None or self._told < self._most:
            self._say(("," if self._told else "") + _json(problem))
            self._told += 1

    def end(self, report: Report) -> None:
        """There are no more."""
        facts = {
            "more_problems": report.problems - self._told,
            "as": report.kind,
            "format": report.form or None,
            "is_check_passed": report.passed,
            "num_samples": report.samples,
            "file_size": report.size,
            "models": report.models,
            "warnings": report.warnings,
        }
        self._say(f"],{_json(facts)[1:]}")

    def close(self, reports: Sequence[Report]) -> None:
        """Whether all is well."""
        passed = all(report.passed for report in reports)
        self._say(f'{"" if self._files else _OPENING}],"is_check_passed":{_json(passed)}}}\n')


_OPENING = '{"files":['


def verdict(reports: Sequence[Report]) -> str:
    """One sentence on files that did not all pass."""
    bad = sum(not report.passed for report in reports)
    if len(reports) == 1:
        return "The file did not pass the check."
    return f"{count(bad)} of {count(len(reports))} files did not pass the check."


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _row(report: Report) -> tuple[str, ...]:
    what = _WHAT[report.kind] if report.kind else "unknown"
    return (
        _shown(report.file),
        f"{what}: {report.form}" if report.form else what,
        "" if report.kind is None else count(report.samples),
        "" if report.size is None else _bytes(report.size),
        _models(report.models),
        "passed" if report.passed else f"{count(report.problems)} problem{'' if report.problems == 1 else 's'}",
    )


def _models(models: Sequence[str]) -> str:
    """The first, as far as it can be shown: it is a word of the file, so nothing that steers a terminal stays in it."""
    if not models:
        return "-"
    first = "".join(letter if letter.isprintable() else "?" for letter in models[0][:_LONGEST_MODEL])
    return first if len(models) == 1 else f"{first} and {len(models) - 1} more"


def _bytes(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < _THOUSAND:
            break
        amount, unit = amount / _THOUSAND, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def _shown(path: str) -> str:
    """A path as short as it can be read from here."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _place(file: str, line: int | None) -> str:
    if line is None:
        return file
    return f"{file} row {line}" if file.lower().endswith(".parquet") else f"{file}:{line}"


def _in_rows(warning: Warned) -> str:
    return f" ({rows(warning.rows)})" if warning.line is not None else ""


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    return [
        "  ".join(
            cell.rjust(width[column]) if column in _FIGURES else cell.ljust(width[column])
            for column, cell in enumerate(row)
        ).rstrip()
        for row in table
    ]
