"""What was typed, turned into a `Job`; the options themselves are `options`'s."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from batchrun.cli.joboption import checkpoint_of
from batchrun.errors import UsageError
from batchrun.job import Asking, Job, Repairs, base_url, checked
from batchrun.records import Cut, Endpoint, Price, Route, TooLong
from batchrun.rules import money
from batchrun.rules.fit import Fit

_KEY_FILE = "TOGETHER_API_KEY_FILE"

_BATCHING = {
    "batch_lines": "lines",
    "batch_jobs": "at_once",
    "batch_poll": "poll",
    "batch_grace": "grace",
    "batch_patience": "patience",
}


def default_checkpoint(inputs: tuple[str, ...], *, simulate: bool, here: str = os.curdir) -> str:
    """`checkpoints/<stem>-<8 hex of the INPUT as seen from here>.db`, `.sim.db` when simulated.

    Raises:
        UsageError: several inputs, which could be meant in any order and number.
    """
    if len(inputs) != 1:
        raise UsageError(
            "Several inputs need a checkpoint by name.", "Add --checkpoint FILE.db, or put quotes around a glob."
        )
    seen = _from_here(inputs[0], here)
    stem = Path(seen).name.split(".")[0].strip("*?[]") or "input"
    mark = hashlib.blake2b(os.fsencode(seen), digest_size=4).hexdigest()
    return str(Path(here) / "checkpoints" / f"{stem}-{mark}{'.sim.db' if simulate else '.db'}")


def _from_here(typed: str, here: str) -> str:
    """The input as one would type it from this folder: `./x`, `x` and its absolute path are one input."""
    folder, name = os.path.split(_absolute(typed))
    path, here = os.path.join(os.path.realpath(folder), name), os.path.realpath(here)  # noqa: PTH118 - may be a glob
    return os.path.relpath(path, here) if path.startswith(here + os.sep) else path


def new_job(inputs: tuple[str, ...], given: Mapping[str, Any], environment: Mapping[str, str]) -> Job:
    """The job that the words of `run` ask for.

    Raises:
        UsageError: they do not fit together.
    """
    simulate = bool(given.get("simulate"))
    checkpoint = given.get("checkpoint") or default_checkpoint(inputs, simulate=simulate)
    job = Job(
        inputs=tuple(_absolute(typed) for typed in inputs),
        checkpoint=os.path.realpath(_absolute(checkpoint)),  # one file, one lock, by whatever link
        asking=_asking(given),
        simulate=simulate,
    )
    url = given.get("base_url") or environment.get("TOGETHER_BASE_URL")
    fields: dict[str, Any] = {name: given[name] for name in ("skip_bad_rows", "dedupe", "insecure_http")}
    if url and not simulate:
        fields["base_url"] = base_url(url)
    if given.get("key_env"):
        if given["key_env"] not in environment:
            # Not repeated, not stored: it may be the key itself.
            raise UsageError("--key-env takes the name of a variable, and there is none of that name.", "Set it first.")
        fields["key_env"] = given["key_env"]
    return changed(msgspec.structs.replace(job, **fields), given)


def changed(job: Job, given: Mapping[str, Any]) -> Job:
    """The job with what may change at any start: limits, route, money, timeouts, output, prices."""
    said = {name: value for name, value in given.items() if value is not None}
    _check_finite(said)
    for name in ("max_cost", "max_cost_run"):
        if name in said:
            said[f"{name}_nano"] = money.nano(said[name])
    if "deadline" in said:
        said["deadline"] = deadline(said["deadline"], datetime.now().astimezone())
    fields: dict[str, Any] = {
        "limits": _replaced(job.limits, said),
        "timeouts": _replaced(
            job.timeouts, {name.removesuffix("_timeout"): v for name, v in said.items() if name.endswith("_timeout")}
        ),
        "prices": {**job.prices, **_prices(given.get("price") or ())},
        "batching": _replaced(
            job.batching, {n: said[o] for o, n in _BATCHING.items() if o in said} | _only(said, "delete_remote")
        ),
        "repairs": repairs(job.repairs, said),
        "discounts": {**job.discounts, **dict(map(_discount, given.get("batch_discount") or ()))},
    }
    if "output" in said:
        fields["output"] = _absolute(said["output"])
    if "route" in said:
        fields["route"] = Route(said["route"])
    return checked(msgspec.structs.replace(job, **fields))


CONFIRM_ABOVE = money.nano(10)


def confirm_above(word: str | None) -> int | None:
    """Nano-dollars above which the user is asked, None for never.

    Raises:
        UsageError: no amount of money.
    """
    if word is None:
        return CONFIRM_ABOVE
    if word.strip().lower() == "none":
        return None
    try:
        return money.nano(_not_negative(word))
    except ValueError:
        raise UsageError("--confirm-above takes US dollars, such as 25, or none.") from None


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _check_finite(said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} is not a number one can count with.")


_S = TypeVar("_S", bound=msgspec.Struct)


def _replaced(value: _S, said: Mapping[str, Any]) -> _S:
    return msgspec.structs.replace(value, **{n: said[n] for n in value.__struct_fields__ if n in said})


def _only(said: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: said[name] for name in names if name in said}


def repairs(before: Repairs, said: Mapping[str, Any]) -> Repairs:
    """What may be repaired, with the words of this start put in place of earlier ones.

    `--fallback none` takes earlier fallbacks away.

    Raises:
        UsageError: a word is none of those it takes.
    """
    fields: dict[str, Any] = {}
    if said.get("fallback"):
        fields["fallbacks"] = tuple(model for model in dict.fromkeys(said["fallback"]) if model != "none")
    if "on_too_long" in said:
        fields["too_long"], fields["cut"] = _on_too_long(said["on_too_long"])
    for option, name in (("on_length", "length_retries"), ("on_invalid", "invalid_retries")):
        if option in said:
            fields[name] = _retries(option, said[option])
    return msgspec.structs.replace(before, **fields)


def _on_too_long(word: str) -> tuple[TooLong, Cut]:
    how, _, where = word.partition(":")
    try:
        found, cut = TooLong(how), Cut(where or Cut.MIDDLE)
    except ValueError:
        found = None
    if found is None or (where and found is not TooLong.TRUNCATE):
        raise UsageError(
            f"--on-too-long {word!r} is nothing it takes.",
            "It takes reject, truncate, truncate:head, truncate:middle, truncate:tail, shrink-output or fallback.",
        )
    return found, cut


def _retries(option: str, word: str) -> int:
    how, colon, times = word.partition(":")
    if word == "keep":
        return 0
    if how == "retry" and (not colon or (times.isdecimal() and int(times) > 0)):
        return int(times) if colon else 1
    raise UsageError(f"--{option.replace('_', '-')} {word!r} is nothing it takes.", "It takes keep, retry or retry:3.")


def _discount(word: str) -> tuple[str, float]:
    model, equals, text = word.rpartition("=")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not model or not equals or not math.isfinite(factor):
        raise UsageError(f"--batch-discount {word!r} is not MODEL=FACTOR.", "For half price: some/model=0.5")
    return model, factor


_SPANS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def deadline(word: str, now: datetime) -> float | None:
    """Seconds since the epoch: the next `06:30` of this place, a date with or without a time, or `8h` from now.

    `none` takes a deadline of an earlier start away.

    Raises:
        UsageError: it is none of these.
    """
    word = word.strip()
    if word == "none":
        return None
    try:
        if word[-1:] in _SPANS:
            return (now + _positive(word[:-1]) * _SPANS[word[-1]]).timestamp()
        if ":" in word and "-" not in word:
            at = datetime.combine(now.date(), time.fromisoformat(word.zfill(5)))
            today = at.replace(tzinfo=None).astimezone()
            return (today if today > now else (at + timedelta(days=1)).astimezone()).timestamp()
        return datetime.fromisoformat(word).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--deadline {word!r} is no time.", "Write it like 06:30, 2026-12-24, '2026-12-24 06:30', 90m or 8h."
        ) from None


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError
    return number


def _asking(given: Mapping[str, Any]) -> Asking:
    params = dict(_param(word) for word in given["param"])
    for name in ("max_tokens", "temperature"):
        if given[name] is not None:
            params[name] = given[name]
    return Asking(
        model=given["model"],
        endpoint=Endpoint(given["endpoint"] or Endpoint.CHAT),
        template=None if given["template"] is None else _text(given["template"], "template"),
        system=given["system"],
        params=params,
        schema=None if given["schema"] is None else _schema(given["schema"]),
    )


def _schema(path: str) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(_text(path, "schema").removeprefix("\ufeff"))
    except msgspec.DecodeError as error:  # it names a byte, and quotes nothing
        raise UsageError(f"The schema {path} is not valid JSON ({error}).") from None
    except RecursionError:
        raise UsageError(f"The schema {path} is nested too deeply.") from None
    if not isinstance(schema, dict):
        raise UsageError(f"The schema {path} is not a JSON object.")
    Fit(schema)  # said here, before there is a checkpoint
    return schema


def _param(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = None
        equals = ""
    if not name or not equals:
        raise UsageError(f"--param {name or word!r} is not KEY=JSON.", """Write it like top_p=0.9 or 'stop=["END"]'.""")
    return name, value


def _prices(words: tuple[str, ...]) -> dict[str, Price]:
    return dict(_price(word) for word in words)


def _price(word: str) -> tuple[str, Price]:
    model, _, text = word.rpartition("=")
    try:
        usd = [float(part) for part in text.split("/")]
    except ValueError:
        usd = []
    if not model or len(usd) not in {2, 3} or not all(0 <= amount < math.inf for amount in usd):
        raise UsageError(f"--price {word!r} is not MODEL=INPUT/OUTPUT.", "Such as --price my/model=0.5/1.5")
    return model, money.price(*usd)


def _text(path: str, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise UsageError(f"The {what} {path} is not UTF-8 text.") from None


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - a glob is no path yet


def key_in(job: Job, environment: Mapping[str, str]) -> str | None:
    """The key from its variable, or from the file that TOGETHER_API_KEY_FILE names.

    Raises:
        UsageError: there is none and the server needs one.
    """
    key = environment.get(job.key_env)
    if not key and job.key_env == "TOGETHER_API_KEY" and environment.get(_KEY_FILE):
        key = _key_file(environment[_KEY_FILE])
    key = (key or "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"The key in {job.key_env} holds characters that no key has.", "Copy it again.")
    if not key and job.provider == "together":
        raise UsageError(
            f"There is no API key: {job.key_env} is empty.",
            "Set it (https://api.together.ai/settings/api-keys), or try without one: --simulate.",
        )
    return key or None


def _key_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{_KEY_FILE} names a file that cannot be read.") from error


def newest_checkpoint(typed: str | None) -> str:
    """The checkpoint that was named, by itself or by its job file, or the newest in `checkpoints/`.

    Raises:
        UsageError: there is none.
    """
    if typed is not None:
        return os.path.realpath(_absolute(checkpoint_of(typed) if typed.lower().endswith(".toml") else typed))
    found = sorted(Path("checkpoints").glob("*.db"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError("There is no checkpoint in checkpoints/.", "Name one, or start one with `batchrun run`.")
    return _absolute(str(found[-1]))
