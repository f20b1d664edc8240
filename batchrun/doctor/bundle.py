"""The support bundle: what somebody else needs to find a fault, and nothing of what was asked and answered.

Everything in it is let in by name or by kind: numbers, truth values, words of closed lists, and names of models that
batchrun itself ships. All other text stays out, since any of it may quote a prompt, a column, a file or a person.
"""

from __future__ import annotations

import enum
import platform
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from batchrun import __version__, data
from batchrun.doctor.findings import Finding
from batchrun.doctor.machine import installed
from batchrun.errors import BatchrunError, StorageError, UsageError
from batchrun.files.atomic import replacing
from batchrun.job import SIMULATED, TOGETHER, TOGETHER_KEY, Job
from batchrun.records import Fault, Lane, ParkReason
from batchrun.reports import Event
from batchrun.store import engine
from batchrun.store.view import View

# The newest lines of the diary that are counted.
EVENTS = 10_000

_TEXT = "(text)"
_RUN_STATES = frozenset({"new", "running", "killed", "finished", "parked", "failed", "crashed", "open"})
_KINDS = frozenset(
    {"batch", "closed", "credits", "deadline", "fallback", "finished", "loss", "opened", "parked", "retry"}
    | {"throttled", "why", "plan", "recovered", "written", "notify", "pruned"}
)
_BATCH_STATES = frozenset(
    {"planned", "uploading", "uploaded", "creating", "running", "ended", "collected", "abandoned"}
    | {"VALIDATING", "IN_PROGRESS", "COMPLETED", "FAILED", "EXPIRED", "CANCELLED", "CANCELING"}
)
# Details of these kinds are shown when the whole of them is as we write them: counts, and words of closed lists.
_COUNTS = r"[\d,]+ answered, [\d,]+ rejected, [\d,]+ left"
_DETAILS = {
    "opened": re.compile(r"[\d,]+ rows to send"),
    "finished": re.compile(_COUNTS),
    "parked": re.compile(rf"(?:{'|'.join(ParkReason)}): {_COUNTS}"),
    "retry": re.compile(rf"[\d,]+ rows? pending again \((?:all|{'|'.join(Fault)})\)"),
    "recovered": re.compile(
        r"The account has credits again\.|"
        rf"Answers again; the run before was (?:killed|parked: (?:{'|'.join(ParkReason)}))\."
    ),
    "credits": re.compile(
        r"The account has credits again\.|Out of credits; one call at a time looks whether there are any again\."
    ),
}
_SHOWN_DETAILS = 50

# Parameters of the API (https://docs.together.ai/reference/chat-completions-1); other names may be anybody's words.
_PARAMS = frozenset(
    {"chat_template_kwargs", "compliance", "context_length_exceeded_behavior", "echo", "frequency_penalty"}
    | {"logit_bias", "logprobs", "max_tokens", "min_p", "n", "presence_penalty", "reasoning", "reasoning_effort"}
    | {"repetition_penalty", "response_format", "safety_model", "seed", "stop", "stream", "temperature"}
    | {"tool_choice", "tools", "top_k", "top_p"}
)
_SUFFIXES = frozenset({".jsonl", ".parquet", ".gz", ".zst", ".db", ".sim"})

# Numbers of `status` that are let in as they are.
_FIGURES = (
    "total", "answered", "rejected", "pending", "submitted", "spent_nano", "unpriced", "maybe_twice",
    "maybe_twice_nano", "answers_per_second", "tokens_per_second", "seconds_left", "left_remote", "opened", "closed",
    "now", "again",
)  # fmt: skip


def write(path: str, findings: Iterable[Finding], code: int, text: str, read: Callable[[], dict[str, Any]]) -> None:
    """Write the bundle to a file that is not there yet.

    Args:
        path: it ends in .zip.
        findings: doctor's.
        code: its exit code.
        text: its report for people, made of what may be shared.
        read: what there is to tell of a checkpoint, see `checkpoint`.

    Raises:
        StorageError: it cannot be written.
    """
    shared = [{"name": f.name, "state": f.state, "said": f.shared, "exit_code": f.exit_code} for f in findings]
    members = {
        "report.json": {"exit_code": code, "checks": shared},
        "versions.json": _versions(),
        "checkpoint.json": _read_or_why(read),
    }
    try:
        with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("report.txt", text + "\n")
            for name, value in members.items():
                archive.writestr(name, msgspec.json.format(msgspec.json.encode(value), indent=2))
    except StorageError as error:
        raise StorageError(error.message, "Choose another place for the bundle.") from error


def check_path(path: str) -> None:
    """Refuse a name that could be somebody's data.

    Raises:
        UsageError: it does not end in .zip, or is there already.
    """
    if not path.lower().endswith(".zip"):
        raise UsageError("The bundle is a zip file.", "Name it like --bundle support.zip")
    if Path(path).exists():
        raise UsageError("The bundle's file is there already.", "Name another one, or remove it.")


def _read_or_why(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint that cannot be read is told by the kind of error: its message may name the file."""
    try:
        return read()
    except BatchrunError as error:
        return {"unreadable": type(error).__name__, "exit_code": error.exit_code}
    except Exception as error:  # noqa: BLE001 - a damaged checkpoint is what a bundle is for
        return {"unreadable": type(error).__name__}


def _versions() -> dict[str, Any]:
    return {
        "batchrun": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "sqlite": engine.version(),
        "packages": installed(),
    }


def checkpoint(view: View, standing: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint stands, what its job asks for, and what happened in it.

    Args:
        view: the checkpoint.
        standing: `status` as plain JSON values.
    """
    models = _Models()
    stored = view.job()
    return {
        "status": _status(standing, models),
        "job": None if stored is None else _job(stored[1], models),
        "input": [{"file": _suffix(path), "bytes": size, "rows": rows} for path, size, _, rows in view.sources()],
        "diary": _diary(view.events(EVENTS)),
        "rejections": _rejections(view),
    }


class _Models:
    """Names of models that batchrun ships are shown; others, which may be a person's or a server's words, numbered."""

    def __init__(self) -> None:
        shipped = {name for members in data.families().values() for name in members}
        self._public = shipped | {*data.tariff().prices, *data.discounts(), *data.not_batchable(), *data.successors()}
        self._others: dict[str, str] = {}

    def shown(self, model: Any) -> str | None:
        if not isinstance(model, str) or not model:
            return None
        if model.removeprefix("simulated/") in self._public:
            return model
        return self._others.setdefault(model, f"model {len(self._others) + 1}")


def _status(standing: Mapping[str, Any], models: _Models) -> dict[str, Any]:
    reason = standing.get("reason")
    return {
        "provider": _provider(standing.get("provider")),
        "state": _word(standing.get("state"), _RUN_STATES),
        "held": bool(standing.get("holder")),
        "reason": _word(reason, frozenset(ParkReason)),
        **{name: _number(standing.get(name)) for name in _FIGURES},
        "rejections": {_word(fault, frozenset(Fault)): _number(n) for fault, n in standing["rejections"].items()},
        "models": [_spend(spend, models) for spend in standing["models"]],
        "batches": [_batch(batch, models) for batch in standing["batches"]],
    }


def _spend(spend: Mapping[str, Any], models: _Models) -> dict[str, Any]:
    figures = ("replies", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano")
    return {
        "model": models.shown(spend["model"]),
        "lane": _word(spend["lane"], frozenset(Lane)),
        **{name: _number(spend[name]) for name in figures},
    }


def _batch(batch: Mapping[str, Any], models: _Models) -> dict[str, Any]:
    return {
        "model": models.shown(batch["model"]),
        "state": _word(batch["state"], _BATCH_STATES),
        "has_job": batch["job"] is not None,
        **{name: _number(batch[name]) for name in ("number", "lines", "progress", "since_ms")},
    }


def _job(stored: str, models: _Models) -> dict[str, Any]:
    """The options, without a word of the user's: which are set, and their numbers."""
    job = msgspec.json.decode(stored, type=Job)
    plain: dict[str, Any] = {name: _bare(getattr(job, name)) for name in job.__struct_fields__}
    asking = job.asking
    return plain | {
        "inputs": [_suffix(path) for path in job.inputs],
        "checkpoint": _suffix(job.checkpoint),
        "output": None if job.output is None else _suffix(job.output),
        "base_url": _provider(job.provider),
        "key_env": TOGETHER_KEY if job.key_env == TOGETHER_KEY else "another variable",
        "asking": plain["asking"] | {"model": models.shown(asking.model), "params": _params(asking.params)},
    }


def _params(params: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: _bare(value) for name, value in params.items() if name in _PARAMS}
    return {**shown, "other": len(params) - len(shown)}


def _bare(value: Any) -> Any:
    """A value without its words: fields of ours stay, texts become `(text)`, collections their size."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, msgspec.Struct):
        return {name: _bare(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return {"entries": len(value)}
    return _TEXT


def _diary(events: list[Event]) -> dict[str, Any]:
    """What happened how often and when; details only where they are whole sentences of ours."""
    kinds: dict[str, dict[str, Any]] = {}
    for event in events:
        kind = _word(event.kind, _KINDS) or "other"
        seen = kinds.setdefault(kind, {"count": 0, "first": event.at})
        seen["count"] += 1
        seen["last"] = event.at
    told = [e for e in events if e.kind in _DETAILS and _DETAILS[e.kind].fullmatch(e.detail)]
    details = [{"at": e.at, "kind": e.kind, "detail": e.detail} for e in told[-_SHOWN_DETAILS:]]
    return {"kinds": kinds, "details": details}


def _rejections(view: View) -> list[dict[str, Any]]:
    counted = Counter((_word(row.fault, frozenset(Fault)), _number(row.status)) for row in view.rejected())
    return [{"fault": fault, "status": status, "rows": rows} for (fault, status), rows in counted.most_common()]


def _word(value: Any, allowed: frozenset[Any]) -> str | None:
    return None if value is None else str(value) if value in allowed else "other"


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) else None


def _provider(provider: Any) -> str | None:
    return _word(provider, frozenset({TOGETHER, SIMULATED}))


def _suffix(path: str) -> str:
    """Of a path only what kind of file it is: a name may be a customer's."""
    return "*" + "".join(suffix for suffix in Path(path).suffixes if suffix in _SUFFIXES)
