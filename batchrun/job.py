"""What the user asked for, as one frozen value: options in, validated `Job` out.

Reading argv, files and the environment is the command line's; the checkpoint stores the job whole, without the key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from batchrun.errors import UsageError
from batchrun.records import Cut, Endpoint, Price, Route, TooLong

# https://docs.together.ai/docs/inference/batch: 50,000 requests a batch, 1,000 to 10,000 advised; polling faster than
# every 30 to 60 seconds "will likely cause you to hit rate limits".
MOST_LINES = 50_000
ADVISED_LINES = 10_000
POLL = 30.0

TOGETHER_URL = "https://api.together.ai"
TOGETHER_HOSTS = frozenset({"api.together.ai", "api.together.xyz"})
TOGETHER_KEY = "TOGETHER_API_KEY"
SIMULATED = "simulated"
TOGETHER = "together"

# How long things may take by default, in seconds. A reply that is not streamed sends its first byte when the whole
# text is written: 64,000 tokens at 20 a second are 53 minutes, so the first byte may take an hour.
CONNECT_TIMEOUT = 30.0
FIRST_BYTE_TIMEOUT = 3600.0
IDLE_TIMEOUT = 300.0
TOTAL_TIMEOUT = 7200.0

OVERLOAD_PATIENCE = 900.0


class Asking(msgspec.Struct, frozen=True, omit_defaults=True):
    """What turns a row into a request. A change here changes every digest, so it is guarded (`--new-requests`)."""

    model: str | None = None
    endpoint: Endpoint = Endpoint.CHAT
    template: str | None = None
    system: str | None = None
    params: Mapping[str, Any] = {}
    schema: Mapping[str, Any] | None = None


class Timeouts(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long one call may take, in seconds: to connect, to the first byte, between bytes, in all."""

    connect: float = CONNECT_TIMEOUT
    first_byte: float = FIRST_BYTE_TIMEOUT
    idle: float = IDLE_TIMEOUT
    total: float = TOTAL_TIMEOUT


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The user's word on speed, money and time (`deadline`: seconds since the epoch); None: not said.

    `max_cost_nano` bounds what the checkpoint ever costs, `max_cost_run_nano` what one start may commit to spend.
    """

    concurrency: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    max_cost_nano: int | None = None
    max_cost_run_nano: int | None = None
    overload_patience: float = OVERLOAD_PATIENCE
    wait_for_credits: bool = False
    max_rejected: str | None = None
    deadline: float | None = None


class Batching(msgspec.Struct, frozen=True, omit_defaults=True):
    """How batches are made and waited for; times in seconds.

    Attributes:
        lines: requests in a batch at most.
        at_once: batches at the provider at most.
        poll: between two looks at the list, doubled at random, more for old batches.
        grace: until a job that does not show in the list counts as never created.
        patience: until a batch is taken back.
        delete_remote: whether files are removed from the provider when a batch is collected.
    """

    lines: int = ADVISED_LINES
    at_once: int = 50
    poll: float = POLL
    grace: float = 600.0
    patience: float = 72 * 3600.0
    delete_remote: bool = False


class Repairs(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be sent in place of what was asked, when that does not work; by default nothing.

    Attributes:
        fallbacks: models that stand in for one that cannot be called or is overloaded, in this order.
        too_long: what to do with a row that does not fit the context.
        cut: which part of a text goes when it is truncated.
        length_retries: how often a cut-off answer is asked for again, with more tokens.
        invalid_retries: how often an answer that does not fit the schema is asked for again.
    """

    fallbacks: tuple[str, ...] = ()
    too_long: TooLong = TooLong.REJECT
    cut: Cut = Cut.MIDDLE
    length_retries: int = 0
    invalid_retries: int = 0


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole wish. Paths are absolute; `inputs` are files, folders or globs as they were typed, made absolute."""

    inputs: tuple[str, ...]
    checkpoint: str
    asking: Asking
    output: str | None = None
    base_url: str = TOGETHER_URL
    key_env: str = TOGETHER_KEY
    route: Route = Route.AUTO
    simulate: bool = False
    skip_bad_rows: bool = False
    dedupe: bool = False
    insecure_http: bool = False
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    prices: Mapping[str, Price] = {}
    batching: Batching = Batching()
    discounts: Mapping[str, float] = {}
    repairs: Repairs = Repairs()

    @property
    def provider(self) -> str:
        """Who answers: `simulated`, `together`, else the host without its port. A checkpoint never mixes them."""
        return SIMULATED if self.simulate else provider(self.base_url)


def base_url(typed: str) -> str:
    """The address without a trailing slash or `/v1`: both ways of writing it are in use.

    Raises:
        UsageError: it is no http or https address.
    """
    try:
        parts = urlsplit(typed)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(
            "The base URL is not an http or https address of a server.", "Write it like https://api.together.ai/v1"
        )
    return typed.rstrip("/").removesuffix("/v1").rstrip("/")


def provider(url: str) -> str:
    """`together` for both of Together's hosts, else the host without its port."""
    host = urlsplit(url).hostname or ""
    return TOGETHER if host in TOGETHER_HOSTS else host


def is_loopback(url: str) -> bool:
    """Whether the address is this machine, by name or number."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked(job: Job) -> Job:
    """The job, when its parts fit together.

    Raises:
        UsageError: they do not; the message says which.
    """
    if job.output == job.checkpoint:
        raise UsageError("The output would be written over the checkpoint.", "Name another output.")
    _check_route(job)
    _check_batching(job)
    _check_repairs(job)
    _check_address(job)
    _check_asking(job.asking)
    _check_limits(job.limits)
    for name, seconds in msgspec.structs.asdict(job.timeouts).items():
        if not seconds > 0:
            raise UsageError(f"--{name.replace('_', '-')}-timeout must be more than 0 seconds.")
    return job


def _check_route(job: Job) -> None:
    if job.route is Route.BATCH and job.asking.endpoint is Endpoint.COMPLETIONS:
        raise UsageError("The Batch API takes chat requests only.", "Use --route live or auto for completions.")


def _check_batching(job: Job) -> None:
    said = job.batching
    if not 1 <= said.lines <= MOST_LINES:
        raise UsageError(f"--batch-lines takes 1 to {MOST_LINES:,}: a batch holds no more.")
    if said.at_once < 1:
        raise UsageError("--batch-jobs must be at least 1.")
    if not said.poll > 0 or (said.poll < POLL and not (job.simulate or is_loopback(job.base_url))):
        raise UsageError(f"--batch-poll must be at least {POLL:.0f} seconds: looking more often runs into rate limits.")
    if not said.grace > 0 or not said.patience > 0:
        raise UsageError("--batch-grace and --batch-patience must be more than 0 seconds.")
    for model, factor in job.discounts.items():
        if not 0 < factor <= 1:
            raise UsageError(f"--batch-discount {model}: the factor must be above 0 and at most 1, such as 0.5.")


def _check_repairs(job: Job) -> None:
    said = job.repairs
    if said.too_long is TooLong.FALLBACK and not said.fallbacks:
        raise UsageError("--on-too-long fallback needs a model to fall back to.", "Name one: --fallback MODEL.")
    if said.length_retries < 0 or said.invalid_retries < 0:
        raise UsageError("--on-length and --on-invalid take keep, retry, or retry:N with N above 0.")
    if said.invalid_retries and job.asking.schema is None:
        raise UsageError("--on-invalid needs a schema that answers have to fit.", "Name it: --schema FILE.")
    if job.route is Route.BATCH and (said.length_retries or said.invalid_retries):
        raise UsageError(
            "--on-length and --on-invalid retry ask for a better answer live, which --route batch rules out.",
            "Use --route auto: it may send everything else in batches.",
        )


def _check_address(job: Job) -> None:
    if urlsplit(job.base_url).scheme == "http" and not is_loopback(job.base_url) and not job.insecure_http:
        raise UsageError(
            "Plain http would send prompts and key in the clear.", "Use https, or --insecure-http if you mean it."
        )


def _check_asking(asking: Asking) -> None:
    if asking.endpoint is Endpoint.COMPLETIONS and asking.system is not None:
        raise UsageError("--system has no place in a completions request.", "Leave it out, or use --endpoint chat.")
    _check_schema(asking)
    for name in ("model", "messages", "prompt"):
        if name in asking.params:
            raise UsageError(f"--param cannot set {name!r}.", "The model comes from -m, the prompt from the input.")
    if asking.params.get("stream"):
        raise UsageError("Streaming has no place in a batch run.", "Leave the parameter `stream` out.")


def _check_schema(asking: Asking) -> None:
    """Whether there is room for a schema; whether it is one is judged where requests are made."""
    if asking.schema is None:
        return
    if asking.endpoint is Endpoint.COMPLETIONS:
        raise UsageError("--schema has no place in a completions request.", "Leave it out, or use --endpoint chat.")
    if "response_format" in asking.params:
        raise UsageError("--schema and --param response_format both set `response_format`.", "Leave one of them out.")


def _check_limits(limits: Limits) -> None:
    for name in ("concurrency", "rpm", "tpm"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} must be more than 0.")
    if limits.max_cost_nano is not None and limits.max_cost_nano <= 0:
        raise UsageError("--max-cost must be more than 0.")
    if not limits.overload_patience > 0:
        raise UsageError("--overload-patience must be more than 0 seconds.")
    if limits.max_cost_run_nano is not None and limits.max_cost_run_nano <= 0:
        raise UsageError("--max-cost-run must be more than 0.")
    allowed_rejections(limits.max_rejected, 100)


def allowed_rejections(limit: str | None, total: int) -> int:
    """How many rejected rows of `total` still count as success: `N`, or `P%` of the rows, rounded down.

    Raises:
        UsageError: neither a count nor a percentage.
    """
    if limit is None:
        return 0
    try:
        if limit.endswith("%"):
            share = float(limit[:-1])
            if 0 <= share <= 100:  # noqa: PLR2004 - a percentage
                return int(total * share / 100)
        elif int(limit) >= 0:
            return int(limit)
    except ValueError:
        pass
    raise UsageError("--max-rejected takes a count like 20 or a share like 0.5%.")
