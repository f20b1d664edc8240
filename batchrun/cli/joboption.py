"""`--job`: what a job file says becomes click's `default_map`, below what was typed and above the environment.

Reading the file is `jobfile`'s; here is what only a look at all words can tell, and the checkpoint a job file means.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
import msgspec

from batchrun.cli.jobfile import JobFile, Reading, keys, load, settings
from batchrun.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

_META = "batchrun.job"
_SHOWN = 6  # a shorter value is no secret, and may be part of any word


class _Filled(msgspec.Struct, frozen=True):
    """What a job file put in place of what was not typed; `hidden` came from the environment and is never shown."""

    file: JobFile
    values: Mapping[str, Any]
    hidden: frozenset[str]


def read(context: click.Context, _option: click.Parameter, name: str | None) -> None:
    """The callback of `--job`, which is eager: what the file says becomes click's default for what is not typed.

    https://click.palletsprojects.com/en/stable/commands/#overriding-defaults: words > environment > `default_map`;
    `finished` puts the file above the environment.

    Raises:
        UsageError: a key is unknown, or its value nothing the option takes.
    """
    if name is None or context.resilient_parsing:
        return
    from batchrun.cli.run import run

    file, hidden = load(name), set[str]()
    known, here = keys(run), {parameter.name for parameter in context.command.params}
    values: dict[str, Any] = {}
    for key, value in settings(file, known):
        parameter = known[key]
        if parameter.name in here:  # what only `run` takes is left alone, so that one file serves `plan` as well
            reading = Reading(file, key, parameter, frozenset(known), hidden)
            values[str(parameter.name)] = reading.value(value)
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[_META] = _Filled(file, values, frozenset(text for text in hidden if len(text) >= _SHOWN))


def inputs(context: click.Context, argument: click.Parameter, typed: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of `INPUT...`: what was typed, else what the job file names.

    click takes a default for an argument of any length only from 8.3 on.

    Raises:
        UsageError: neither names one.
    """
    filled: _Filled | None = context.meta.get(_META)
    if typed or context.resilient_parsing:
        return typed
    if filled is None:
        raise click.MissingParameter(ctx=context, param=argument)
    found: tuple[str, ...] = filled.values.get("inputs", ())
    if not found:
        filled.file.refuse("it names no input.", "Add `input`, or name INPUT on the command line.")
    return found


def finished(command: _F) -> _F:
    """The command, called with the checkpoint of its job file, and with what the file puts above the environment."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        context = click.get_current_context()
        filled: _Filled | None = context.meta.get(_META)
        if filled is None:
            return command(**given)
        given |= {name: filled.values[name] for name in given if _from_environment(context, name, filled)}
        if given.get("checkpoint", "") is None and _is_own_input(filled, given["inputs"]):
            given["checkpoint"] = filled.file.checkpoint(simulate=bool(given["simulate"]))
        try:
            return command(**given)
        except UsageError as error:
            raise UsageError(_without(filled.hidden, error.message), _without(filled.hidden, error.next_step)) from None

    return call  # type: ignore[return-value]


def _from_environment(context: click.Context, name: str, filled: _Filled) -> bool:
    source = context.get_parameter_source(name)
    return name in filled.values and source is click.core.ParameterSource.ENVIRONMENT


def _is_own_input(filled: _Filled, named: tuple[str, ...]) -> bool:
    """Whether the input is the file's own: another one must not take over the job's checkpoint."""
    own = filled.values.get("inputs", ())
    return bool(own) and [*map(_real, own)] == [*map(_real, named)]


def _real(path: str) -> str:
    """Absolute, with the links of its folder resolved; the last part may be a glob."""
    folder, last = os.path.split(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111
    return os.path.join(os.path.realpath(folder), last)  # noqa: PTH118


def _without(hidden: Iterable[str], text: str) -> str:
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, "...")
    return text


def checkpoint_of(name: str) -> str:
    """The checkpoint of a job file, for `status` and its like: only what says so is read, and no other variable needed.

    Without `checkpoint` in it, and with only one of the two that may stand beside it, that one.

    Raises:
        UsageError: it cannot be read, or `checkpoint` names a variable that is not set.
    """
    from batchrun.cli.run import run

    file, known = load(name), keys(run)
    said = {key: value for key, value in settings(file, known) if key in {"checkpoint", "simulate"}}
    values = {
        key: Reading(file, key, known[key], frozenset(known), set()).value(said[key])
        for key in ("checkpoint", "simulate")
        if key in said and (key == "checkpoint" or "checkpoint" not in said)
    }
    if "checkpoint" in values:
        return str(values["checkpoint"])
    own, other = (file.checkpoint(simulate=bool(values.get("simulate")) is not swap) for swap in (False, True))
    return other if os.path.exists(other) and not os.path.exists(own) else own  # noqa: PTH110
