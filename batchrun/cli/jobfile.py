"""Job files: the options of `run` as TOML, read into what click would make of the same words.

A key is the name of an option, so there is no second list of them; what the words mean stays with `words`, and which
of them wins with `joboption`. A message names keys and never a value: it may be a secret.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import stat
from collections.abc import Mapping, MutableSet
from datetime import date, time
from typing import Any, NoReturn

import click
import msgspec

from batchrun.errors import UsageError

_MOST_BYTES = 1_000_000  # a job file holds words; what is larger is some other file
_SECRETS = frozenset(
    {"access-token", "api-key", "api-token", "apikey", "authorization", "auth", "bearer", "key", "password", "secret"}
    | {"together-api-key", "token"}
)
_KEY = "TOGETHER_API_KEY"
_WHERE_KEYS_LIVE = f"It comes from {_KEY}, from the file that {_KEY}_FILE names, or from the variable in `key-env`."
_KEYS_ARE = "Every option of `batchrun run` is a key: batchrun run --help"
# What `[param]` may hold although it is an option as well: it ends in the same place.
_SAME_AS_PARAM = frozenset({"max-tokens", "temperature"})
_KEY_LIKE = re.compile(r"[A-Za-z0-9_-]{1,40}")  # what else stands in the place of a key may be a misplaced secret
# `$$`, `${NAME}`, `${NAME:-default}`, or a dollar that begins none of them.
_REFERENCE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^${}]*))?\})?")


class UnsetError(UsageError):
    """A value refers to a variable that is not set."""


class JobFile(msgspec.Struct, frozen=True):
    """A file that was read: `name` as it was typed, `folder` that its paths start from, and what it says.

    The folder is that of the name as typed, its links resolved, but not a link in the place of the file itself: a
    mounted Kubernetes ConfigMap is such a link, and where it points to changes with every edit.
    """

    name: str
    folder: str
    table: Mapping[str, Any]

    def path(self, text: str) -> str:
        """A path or glob of the file, absolute: relative ones start at its folder, whoever calls from where."""
        return os.path.normpath(os.path.join(self.folder, os.path.expanduser(text)))  # noqa: PTH111, PTH118 - may be a glob

    def pattern(self, path: str) -> str:
        """An absolute INPUT of the file such that the folder it stands in means itself, whatever signs are in it."""
        folder = os.path.commonpath([self.folder, path])
        if not glob.has_magic(folder) or os.path.lexists(path):
            return path
        return glob.escape(folder) + path[len(folder) :]

    def target(self) -> JobFile | None:
        """What it is a link to, as a job file of its own; None when it is no link."""
        real = os.path.realpath(self.name)
        is_here = real == os.path.join(self.folder, os.path.basename(self.name))  # noqa: PTH118, PTH119
        return None if is_here else JobFile(real, os.path.dirname(real), self.table)  # noqa: PTH120

    def checkpoint(self, *, simulate: bool) -> str:
        """`checkpoints/<stem>.db` beside the file, `.sim.db` when simulated: one job, one checkpoint, from anywhere."""
        stem = os.path.splitext(os.path.basename(self.name))[0]  # noqa: PTH119, PTH122
        return self.path(os.path.join("checkpoints", stem + (".sim.db" if simulate else ".db")))  # noqa: PTH118

    def refuse(self, problem: str, next_step: str = "") -> NoReturn:
        """Say what is wrong with the file.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name}: {problem}", next_step)


def load(name: str) -> JobFile:
    """Read a job file; its keys are looked at by `read`.

    Raises:
        UsageError: there is none, or it is no TOML.
    """
    import tomllib

    text = _text(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # it names places and keys, and quotes no value
        reason, _, place = str(error).rpartition(" (at ")
        line = re.match(r"line \d+", place)
        raise UsageError(
            f"{name}{f', {line[0]}' if line else ''}: {reason or error}{'' if line else ' at its end'}."
        ) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{name}: a number or a list in it is beyond measure.") from None
    folder = os.path.realpath(os.path.dirname(os.path.abspath(name)))  # noqa: PTH100, PTH120
    return JobFile(name, folder, table)


def _text(name: str) -> str:
    try:
        with open(name, "rb", opener=_regular) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"The job file {name} cannot be read: {error.strerror or 'it is not a file'}.") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{name} is too large for a job file.", "An INPUT goes without --job.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(
            f"{name} is not UTF-8 text.", "A job file is TOML; samples/nightly/nightly.toml is one."
        ) from None


def _regular(path: str, flags: int) -> int:
    """A descriptor of a regular file only: a pipe would be waited for without a word."""
    number = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        is_folder = stat.S_ISDIR(os.fstat(number).st_mode)
        os.close(number)
        raise OSError(0, "it is a folder" if is_folder else "it is not a file")
    return number


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """The keys a job file may have: the long names of the command's options without their dashes, and `input`."""
    found: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            found["input"] = parameter
        elif parameter.name != "job":
            found |= {name[2:]: parameter for name in parameter.opts if name.startswith("--")}
    return found


def settings(file: JobFile, known: Mapping[str, click.Parameter]) -> list[tuple[str, Any]]:
    """The file's keys as they are typed on the command line, each once and each known."""
    found: dict[str, Any] = {}
    for typed, value in file.table.items():
        key = typed.replace("_", "-")
        if key in found:
            file.refuse(f"{key} is there twice, once with _ and once with -.")
        if key not in known:
            _unknown(file, typed, known)
        found[key] = value
    return list(found.items())


def _unknown(file: JobFile, typed: str, known: Mapping[str, click.Parameter]) -> NoReturn:
    if not _KEY_LIKE.fullmatch(typed):
        file.refuse("there is a key that is none.", _KEYS_ARE)
    key = typed.replace("_", "-").lower()
    if key in _SECRETS:
        file.refuse("an API key has no place in a job file.", _WHERE_KEYS_LIVE)
    if key == "job":
        file.refuse("a job file cannot name another.", "Give the one you mean: --job FILE.toml")
    short = [name for name, parameter in known.items() if f"-{key}" in parameter.opts]
    near = short or difflib.get_close_matches(key, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    file.refuse(f"unknown key {typed!r}{meant}", "" if near else _KEYS_ARE)


class Reading(msgspec.Struct, frozen=True):
    """One key being read: what it is an option of, and where values from the environment are noted."""

    file: JobFile
    key: str
    parameter: click.Parameter
    known: frozenset[str]
    hidden: MutableSet[str]

    def value(self, value: Any) -> Any:
        """What click gets: a tuple of words where it may be repeated, paths absolute, all else of the option's type.

        Raises:
            UsageError: it is nothing the option takes.
            UnsetError: it refers to a variable that is not set.
        """
        value = self._expanded(value)
        if self.parameter.multiple or self.parameter.nargs == -1:
            return tuple(self._located(word) for word in self._words(value) if word or not self._may_be_none)
        return self._located(self._single(value))

    @property
    def _metavar(self) -> str:
        return self.parameter.metavar or ""

    @property
    def _is_path(self) -> bool:
        return self._metavar.startswith(("FILE", "INPUT"))

    @property
    def _may_be_none(self) -> bool:
        """Whether an empty word is none, as in `notify = "${HOOK:-}"`; elsewhere it is a slip."""
        return not self._is_path and "=" not in self._metavar

    def _located(self, value: Any) -> Any:
        if not self._is_path:
            return value
        if not value:
            self.file.refuse(f"{self.key} is empty.")
        return self.file.path(value)

    def _single(self, value: Any) -> Any:
        if not isinstance(value, self._kinds()) or (isinstance(value, bool) and bool not in self._kinds()):
            self._wrong(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, date | time):
            value = value.isoformat()  # TOML knows dates and times: deadline = 06:30:00
        try:
            return self.parameter.type.convert(value, self.parameter, None)
        except (click.BadParameter, ValueError, OverflowError):
            self._wrong(value)

    def _kinds(self) -> tuple[type, ...]:
        """What TOML may hold for the option; a text may be what a reference stands for, and is judged by its type."""
        kind = self.parameter.type
        if getattr(self.parameter, "is_flag", False):
            return bool, str
        if isinstance(kind, type(click.INT)):
            return int, str
        if isinstance(kind, type(click.FLOAT)):
            return int, float, str
        return (str,) if isinstance(kind, click.Choice) else (str, int, float, date, time)

    def _words(self, value: Any) -> list[str]:
        """The words of an option that may be repeated, from a word, a list of words, or a table where it takes A=B."""
        if isinstance(value, dict) and "=" in self._metavar:
            return [self._word(name, inner) for name, inner in value.items()]
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            self._wrong(value)
        return words

    def _word(self, name: str, value: Any) -> str:
        """`NAME=VALUE` as it is typed: `param` takes JSON, `price` amounts with slashes between them."""
        where = f"[{self.key}] {name}"
        plain = name.replace("_", "-")
        if plain in self.known and not (plain in _SAME_AS_PARAM and self._metavar.endswith("=JSON")):
            self.file.refuse(
                f"{plain} stands below [{self.key}], and so belongs to that table.", "Move it above the first [table]."
            )
        if self._metavar.endswith("=JSON"):
            if "=" in name or not _is_json(value):
                self.file.refuse(f"{where} is nothing that JSON can hold.")
            return f"{name}={msgspec.json.encode(value).decode()}"
        amounts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            self.file.refuse(f"{where}: a name with a dot in it needs quotes around it.")
        if not all(isinstance(amount, str | int | float) and not isinstance(amount, bool) for amount in amounts):
            self.file.refuse(f"{where} takes {self._metavar.partition('=')[2]}, not {_kind(value)}.")
        return f"{name}={'/'.join(map(str, amounts))}"

    def _wrong(self, value: Any) -> NoReturn:
        takes = self._takes()
        is_listed = isinstance(self.parameter.type, click.Choice) and isinstance(value, str)
        self.file.refuse(f"{self.key} takes {takes}{'' if is_listed else f', not {_kind(value)}'}.")

    def _takes(self) -> str:
        kind = self.parameter.type
        if self.parameter.multiple or self.parameter.nargs == -1:
            return "text, a list of texts, or a table" if "=" in self._metavar else "text or a list of texts"
        if getattr(self.parameter, "is_flag", False):
            return "true or false"
        if isinstance(kind, click.Choice):
            *most, last = map(str, kind.choices)
            return f"{', '.join(most)} or {last}"
        if isinstance(kind, click.IntRange | click.FloatRange):
            ends = [f" {word} {end}" for word, end in (("from", kind.min), ("to", kind.max)) if end is not None]
            return f"a number{''.join(ends)}"
        return {type(click.INT): "a whole number", type(click.FLOAT): "a number"}.get(type(kind), "text")

    def _expanded(self, value: Any) -> Any:
        """The value with what its texts refer to; keys are left alone."""
        if isinstance(value, dict):
            return {name: self._expanded(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._expanded(inner) for inner in value]
        if not isinstance(value, str):
            return value
        if "\0" in value:
            self.file.refuse(f"{self.key} holds a null character.")
        return _REFERENCE.sub(self._referred, value)

    def _referred(self, match: re.Match[str]) -> str:
        dollar, name, default = match.groups()
        if dollar:
            return "$"
        if name is None:
            self.file.refuse(
                f"{self.key} holds a $ that begins no ${{NAME}} or ${{NAME:-default}}.", "Write $$ for a dollar."
            )
        if name in (_KEY, self.file.table.get("key-env"), self.file.table.get("key_env")):  # which may be anything
            self.file.refuse("an API key has no place in a job file.", _WHERE_KEYS_LIVE)
        found = os.environ.get(name)
        if default is not None and not found:
            return str(default)
        if found is None:
            raise UnsetError(
                f"{self.file.name}: {self.key} refers to ${{{name}}}, and there is no such variable.",
                f"Set {name}, or write ${{{name}:-default}}.",
            )
        if not self._is_path:  # where a file was looked for may be said
            self.hidden.add(found)
        return found


def _is_json(value: Any) -> bool:
    """Whether a value of TOML is one of JSON: no date, no infinity, no number that is too large to be sent."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return value - value == 0
    return isinstance(value, str | bool) or (isinstance(value, int) and -(2**63) <= value < 2**63)


_KINDS: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "this text"),
    (list, "a list"),
    (dict, "a table"),
)


def _kind(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")
