"""Every setting as one frozen value, and reading them from TOML with errors that name the nearest known word."""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from batchrun.simulator.batch_faults import BatchFault, BatchFaultKind
from batchrun.simulator.faults import TOO_LONG_STATUSES, ContextWords, Fault, FaultKind

_T = TypeVar("_T")
_ERROR_STATUSES = range(400, 600)
_DISCOUNTS = {"meta-llama/Llama-3.3-70B-Instruct-Turbo": 0.5}


class SettingsError(ValueError):
    """A setting, a script or a state file that cannot be used; the message says which word is wrong."""


class Headers(StrEnum):
    """Which rate-limit headers the replies carry: the service's documents have described all three."""

    NONE = "none"
    RESET = "reset"  # x-ratelimit-reset, on a 429 only
    ALL = "all"  # the full set, on every reply


class CreditsWord(StrEnum):
    """How the batch lane says, before a job exists, that credits are gone; no document shows it."""

    CREATE_402 = "create_402"
    CREATE_400 = "create_400"  # in another sentence
    UPLOAD_401 = "upload_401"  # beginning an upload is refused as if the key were bad


class CreditsEnd(StrEnum):
    """What becomes of a job in whose middle credits end."""

    JOB_ERROR = "job_error"  # FAILED with the sentence, and what was finished
    ERROR_LINES = "error_lines"  # COMPLETED, and the rest is in the error file with the sentence
    CANCEL = "cancel"  # CANCELLED without a word


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is like. Times are seconds, money is dollars, None means without limit."""

    latency: float = 0.3  # median of a lognormal
    sigma: float = 0.35
    refusal_latency: float = 0.02
    seed: int = 0
    context_status: int = 400  # for a prompt that is too long; 403 and 422 have been seen, others say 413
    context_words: ContextWords = ContextWords.TOGETHER
    models_status: int | None = None  # GET /v1/models fails with it
    clock_skew: float = 0.0  # the Date of every reply is so much ahead, below 0 behind
    refused_keys: tuple[str, ...] = ()
    cached_share: float = 0.0  # of the prompt tokens, for models with a cached price

    credits: float | None = None  # bought in all
    metering_delay: float = 0.0  # a charge lowers the balance only so much later
    strict_in_flight: bool = False  # calls in flight when credits end get 402 instead of overdrawing

    requests_per_second: float | None = None
    burst: float | None = None
    tokens_per_second: float | None = None
    tokens_per_minute: float | None = None
    token_burst: float | None = None
    max_in_flight: int | None = None
    slots: int | None = None  # served at once; the rest wait, without a 429
    headers: Headers = Headers.NONE
    retry_after: float | None = None  # on a 429 of the limits

    faults: tuple[Fault, ...] = ()

    batch_speed: float | None = None  # lines per second and job
    batch_validation: float = 0.0
    batch_cancel_seconds: float = 0.05  # from CANCELING to CANCELLED
    batch_list_lag: float = 0.0  # a new job is not in the list for so long
    batch_null_list: bool = False  # an empty list is `null`
    batch_dedupe_unfinished: bool = False  # 409 also for an upload whose bytes never came
    batch_discounts: Mapping[str, float] = field(default_factory=lambda: dict(_DISCOUNTS))
    batch_credits_word: CreditsWord = CreditsWord.CREATE_402
    batch_out_of_credits: CreditsEnd = CreditsEnd.JOB_ERROR
    batch_max_lines: int = 50_000
    batch_max_bytes: int = 100_000_000
    batch_max_line_bytes: int = 10_000_000
    batch_faults: tuple[BatchFault, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latency", "sigma", "refusal_latency", "metering_delay", "credits"):
            _check(name, getattr(self, name), lambda value: value >= 0, "must not be negative")
        for name in ("requests_per_second", "burst", "tokens_per_second", "tokens_per_minute", "token_burst"):
            _check(name, getattr(self, name), lambda value: value > 0, "must be more than 0")
        for name in ("batch_validation", "batch_cancel_seconds", "batch_list_lag"):
            _check(name, getattr(self, name), lambda value: value >= 0, "must not be negative")
        _check("batch_speed", self.batch_speed, lambda value: value > 0, "must be more than 0")
        for model, factor in self.batch_discounts.items():
            _check(f"the discount of {model}", factor, lambda value: 0 < value <= 1, "must be above 0 and at most 1")
        for name in ("max_in_flight", "slots", "batch_max_lines", "batch_max_bytes", "batch_max_line_bytes"):
            _check(name, getattr(self, name), lambda value: value >= 1, "must be at least 1")
        _check("cached_share", self.cached_share, lambda value: 0 <= value <= 1, "must be between 0 and 1")
        words, sentence = "must be 400, 403, 413 or 422", "must be between 400 and 599"
        _check("context_status", self.context_status, lambda value: value in TOO_LONG_STATUSES, words)
        _check("models_status", self.models_status, lambda value: value in _ERROR_STATUSES, sentence)
        if self.tokens_per_second is not None and self.tokens_per_minute is not None:
            raise SettingsError("give tokens_per_second or tokens_per_minute, not both")


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "server": (
        "latency",
        "sigma",
        "refusal_latency",
        "seed",
        "context_status",
        "context_words",
        "models_status",
        "clock_skew",
        "refused_keys",
        "cached_share",
    ),
    "account": ("credits", "metering_delay", "strict_in_flight"),
    "limits": (
        "requests_per_second",
        "burst",
        "tokens_per_second",
        "tokens_per_minute",
        "token_burst",
        "max_in_flight",
        "slots",
        "headers",
        "retry_after",
    ),
}
"""Where each setting stands in a script."""

BATCH_SECTION = {
    field.name.removeprefix("batch_"): field.name
    for field in dataclasses.fields(Settings)
    if field.name.startswith("batch_") and field.name != "batch_faults"
}
"""The words of [batch], and the setting each stands for."""


def read_script(path: Path) -> Settings:
    """Read a script file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({_reason(error)})") from error
    try:
        return parse_script(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def parse_script(text: str) -> Settings:
    """Settings from TOML: the sections [server], [account], [limits] and [batch], [[fault]] and [[batch_fault]]."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not TOML: {error}") from error
    _refuse_unknown(document, (*SECTIONS, "batch", "fault", "batch_fault"), "section")
    values: dict[str, Any] = {}
    for section, names in SECTIONS.items():
        values |= _section(document, section, names)
    values |= {BATCH_SECTION[word]: value for word, value in _section(document, "batch", BATCH_SECTION).items()}
    _refuse_unknown_words(values, "context_words")
    values["faults"] = parse_faults(document.get("fault", []))
    values["batch_faults"] = parse_batch_faults(document.get("batch_fault", []))
    return _convert(values, Settings)


def _section(document: dict[str, Any], section: str, names: Iterable[str]) -> dict[str, Any]:
    table = document.get(section, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{section} must be a section: write [{section}]")
    _refuse_unknown(table, names, f"setting in [{section}]")
    return table


def parse_faults(tables: Any) -> tuple[Fault, ...]:
    """Faults from a list of tables, as TOML's [[fault]] or a JSON array of objects gives them."""
    kinds = [kind.value for kind in FaultKind]
    return tuple(_parse_fault(table, Fault, kinds) for table in _tables(tables, "fault"))


def parse_batch_faults(tables: Any) -> tuple[BatchFault, ...]:
    """Batch faults from a list of tables, in the same way."""
    kinds = [kind.value for kind in BatchFaultKind]
    return tuple(_parse_fault(table, BatchFault, kinds) for table in _tables(tables, "batch_fault"))


def _tables(tables: Any, word: str) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"faults must be a list of tables: write [[{word}]]")
    return tables


def _parse_fault(table: dict[str, Any], into: type[_T], kinds: list[str]) -> _T:
    _refuse_unknown(table, [field.name for field in dataclasses.fields(into)], "word in a fault")  # type: ignore[arg-type]
    kind = table.get("kind")
    if not isinstance(kind, str):
        raise SettingsError("a fault needs a kind")
    _refuse_unknown([kind], kinds, "kind of fault")
    _refuse_unknown_words(table, "words")
    return _convert(table, into)


def _convert(values: dict[str, Any], into: type[_T]) -> _T:
    try:
        return msgspec.convert(values, into)
    except ValueError as error:  # msgspec's own error is one too
        raise SettingsError(str(error)) from error


def _refuse_unknown(words: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
            raise SettingsError(f"unknown {what}: {word!r}; the nearest known is {near[0]!r}")


def _refuse_unknown_words(values: Mapping[str, Any], name: str) -> None:
    """Name the nearest when the choice of words for a context that is too small is none of them."""
    if isinstance(value := values.get(name), str):
        _refuse_unknown([value], [words.value for words in ContextWords], f"choice of {name}")


def _check(name: str, value: Any, is_good: Callable[[Any], bool], sentence: str) -> None:
    if value is not None and not is_good(value):
        raise SettingsError(f"{name} {sentence}, not {value}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
