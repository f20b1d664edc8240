"""`--job`: what a job file says becomes click's `default_map`, below what was typed and above the environment.

Reading the file is `jobfile`'s; here is what only a look at all words can tell, and the checkpoint a job file means.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from batchrun.cli.jobfile import JobFile, Reading, UnsetError, keys, load, settings
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
        try:
            found = Reading(file, key, parameter, frozenset(known), hidden).value(value)
        except UnsetError:
            if parameter.name in here:
                raise
            continue  # so that one file serves `plan` as well, without the variables of the night
        if parameter.name in here:
            values[str(parameter.name)] = found
        else:
            _judge(key, found)
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[_META] = _Filled(file, values, frozenset(text for text in hidden if len(text) >= _SHOWN))


def _judge(key: str, value: Any) -> None:
    """What `run` says of a word when it starts; `plan` and `preview`, which do not take it, say the same."""
    from batchrun.cli.notify import notify_of
    from batchrun.cli.words import confirm_above

    if key == "confirm-above":
        confirm_above(value)
    elif key == "notify":
        notify_of(value)


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
    """The command, called with what only a look at all words can tell: see `_settled`."""

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        context = click.get_current_context()
        filled: _Filled | None = context.meta.get(_META)
        if filled is None:
            return command(**given)
        try:
            return command(**_settled(context, filled, given))
        except UsageError as error:
            raise UsageError(_without(filled.hidden, error.message), _without(filled.hidden, error.next_step)) from None

    return call  # type: ignore[return-value]


def _settled(context: click.Context, filled: _Filled, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, with the file above the environment, what was typed above the file, and the job's checkpoint."""
    sources = {name: context.get_parameter_source(name) for name in given}
    typed = {name for name, source in sources.items() if source is click.core.ParameterSource.COMMANDLINE}
    given |= {name: filled.values[name] for name in given if _from_environment(context, name, filled)}
    given |= _not_param(typed, filled, given)
    if "simulate" in typed and not filled.values.get("simulate"):
        given |= _trial(typed, given)
    if given.get("checkpoint", "") is None and _is_own_input(filled, given["inputs"]):
        given["checkpoint"] = _own_checkpoint(filled.file, given)
    if "inputs" not in typed:
        given["inputs"] = tuple(map(filled.file.pattern, given["inputs"]))
    return given


def _not_param(typed: set[str], filled: _Filled, given: Mapping[str, Any]) -> dict[str, None]:
    """The file's `max-tokens` and its like, which a typed `--param max_tokens=7` takes the place of."""
    if "param" not in typed:
        return {}
    names = {word.partition("=")[0] for word in given["param"]}
    return dict.fromkeys((names & {"max_tokens", "temperature"} & filled.values.keys()) - typed)


def _trial(typed: set[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """For `--simulate` typed with the file of real nights: beside their files, and neither metrics nor notices."""
    changed: dict[str, Any] = {"metrics_file": None, "metrics_port": None, "notify": ()}
    changed |= {name: _simulated(given[name]) for name in ("output", "checkpoint") if given.get(name) is not None}
    return {name: value for name, value in changed.items() if name in given and name not in typed}


def _simulated(path: str) -> str:
    """`answers.sim.parquet` for `answers.parquet`."""
    stem, suffix = os.path.splitext(path)  # noqa: PTH122
    return f"{stem}.sim{suffix}"


def _own_checkpoint(file: JobFile, given: Mapping[str, Any]) -> str:
    """The job's own checkpoint, unless there is none yet, but one of its input or its link: all would be paid anew.

    Raises:
        UsageError: there is such another one.
    """
    simulate = bool(given["simulate"])
    own = file.checkpoint(simulate=simulate)
    _check_link(file, own, simulate=simulate)
    named = given["inputs"]
    if os.path.exists(own) or given.get("new_requests") or len(named) != 1:  # noqa: PTH110
        return own
    from batchrun.cli.words import default_checkpoint

    for here in (os.curdir, file.folder):
        other = os.path.abspath(default_checkpoint(named, simulate=simulate, here=here))  # noqa: PTH100
        if os.path.exists(other):  # noqa: PTH110
            _refuse_moved(file, own, other, simulate=simulate)
    return own


def _refuse_moved(file: JobFile, own: str, other: str, *, simulate: bool) -> NoReturn:
    below = json.dumps(other.removeprefix(file.folder + os.sep), ensure_ascii=False).replace("$", "$$")
    # A trial's checkpoint has no place in the file of real nights.
    how = f"--checkpoint {shlex.quote(other)}" if simulate else f"add to the file: checkpoint = {below}"
    file.refuse(
        f"there is no {own} yet, but {other} is one of this input.",
        f"To go on with that, {how}; to begin anew{'' if simulate else ' and pay anew'}: --new-requests.",
    )


def _check_link(file: JobFile, own: str, *, simulate: bool) -> None:
    target = None if os.path.exists(own) else file.target()  # noqa: PTH110
    if target is None:
        return
    there = target.checkpoint(simulate=simulate)
    if os.path.exists(there):  # noqa: PTH110
        file.refuse(
            f"it is a link, and its checkpoint stands beside {target.name}.",
            f"Name `checkpoint`, or all is paid again: {there}",
        )


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

    With only one of the two that it may have, the real one and that of a trial, that one.

    Raises:
        UsageError: it cannot be read, it is a link and its checkpoint stands elsewhere, or `checkpoint` names a
            variable that is not set.
    """
    from batchrun.cli.run import run

    file, known = load(name), keys(run)
    said = {key: value for key, value in settings(file, known) if key in {"checkpoint", "simulate"}}
    values = {
        key: Reading(file, key, known[key], frozenset(known), set()).value(said[key])
        for key in ("checkpoint", "simulate")
        if key in said and (key == "checkpoint" or "checkpoint" not in said)
    }
    simulate = bool(values.get("simulate"))
    if "checkpoint" in values:
        own = str(values["checkpoint"])
        other = _simulated(own)
    else:
        own, other = (file.checkpoint(simulate=simulate is not swap) for swap in (False, True))
    if os.path.exists(other) and not os.path.exists(own):  # noqa: PTH110
        return other
    if "checkpoint" not in values:
        _check_link(file, own, simulate=simulate)
    return own
