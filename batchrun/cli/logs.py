"""What `run` and `resume` say on standard error: words for people, or one JSON line for each event.

The diary's lines come through the logger of `batchrun.diary`, the only one that is listened to: libraries log as well,
and nobody knows what. Bars and tables are `faces`'.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, assert_never

import click

from batchrun import diary
from batchrun.errors import BatchrunError, InputError
from batchrun.records import ParkReason

if TYPE_CHECKING:
    from batchrun.reports import Report
    from batchrun.rules.route import Plan

VARIABLE = "BATCHRUN_LOG"
_COMMANDS = frozenset({"run", "resume"})

# In JSON the last line tells how the run ended, with the whole report; twice would be two ends.
_IN_THE_END = frozenset({diary.Kind.FINISHED, diary.Kind.PARKED, diary.Kind.WHY})


class Log(enum.StrEnum):
    """What standard error carries beside the bar."""

    TEXT = "text"
    JSON = "json"
    NONE = "none"


def log_of(word: str | None) -> Log:
    """The user's word; `auto` is nothing on a terminal, where bar and summary say it all, and JSON elsewhere."""
    if word in set(Log):
        return Log(str(word))
    return Log.NONE if sys.stderr is not None and sys.stderr.isatty() else Log.JSON


def starts(words: Sequence[str]) -> bool:
    """Whether the bare command line starts a run."""
    return bool(words) and words[0] in _COMMANDS


def log_typed(words: Sequence[str], environment: Mapping[str, str]) -> Log:
    """The same from the bare command line: an error in the options comes before they are read."""
    if not starts(words):
        return Log.NONE
    said = environment.get(VARIABLE)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--log":
            said = following
        elif word.startswith("--log="):
            said = word.removeprefix("--log=")
    return log_of(said)


# --- lines -----------------------------------------------------------------------------------------------------------


def text_line(record: logging.LogRecord) -> str:
    """A record for people, in local time, as `status` writes the diary."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_at(record)))
    return f"{at} {_event(record)}: {bare_line(record)}"


def bare_line(record: logging.LogRecord) -> str:
    """Its words alone."""
    return " ".join(record.getMessage().split())


def json_line(record: logging.LogRecord) -> str:
    """A record for programs."""
    checkpoint = getattr(record, "checkpoint", None)
    fields = {} if checkpoint is None else {"checkpoint": checkpoint}
    return _json(_at(record), record.levelname.lower(), _event(record), record.getMessage(), fields)


def _at(record: logging.LogRecord) -> float:
    """When it happened, in seconds since the epoch: what stands in the diary, which was committed a little later."""
    at_ms = getattr(record, "at_ms", None)
    return float(at_ms) / 1000 if at_ms is not None else record.created


def _event(record: logging.LogRecord) -> str:
    return str(getattr(record, "event", "log"))


def _json(at: float, level: str, event: str, message: str, fields: Mapping[str, Any]) -> str:
    """One line; ASCII only, so that it is JSON whatever the terminal's encoding."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"at": when, "level": level, "event": event, "message": message, **fields})


class _Lines(logging.Handler):
    """Writes each record as a line, and never minds when nobody takes it."""

    def __init__(self, write: Callable[[str], None], line: Callable[[logging.LogRecord], str]) -> None:
        super().__init__(logging.INFO)
        self._write = write
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        with contextlib.suppress(Exception):  # what is only shown must not stop what is paid for
            self._write(self._line(record))


def _not_in_the_end(record: logging.LogRecord) -> bool:
    return _event(record) not in _IN_THE_END


def _undelivered(record: logging.LogRecord) -> bool:
    """What neither bar nor summary say."""
    return _event(record) == diary.Kind.NOTIFY


@contextlib.contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Our logger goes to this handler, and what libraries log nowhere: by default it would come here as text."""
    deaf, before = logging.NullHandler(), diary.LOGGER.level
    diary.LOGGER.setLevel(logging.INFO)
    diary.LOGGER.addHandler(handler)
    logging.getLogger().addHandler(deaf)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(deaf)
        diary.LOGGER.removeHandler(handler)
        diary.LOGGER.setLevel(before)


# --- the voice -------------------------------------------------------------------------------------------------------


class Voice:
    """What a start says of itself, chosen once.

    Attributes:
        log: how.
    """

    def __init__(self, log: Log) -> None:
        self.log = log

    @contextlib.contextmanager
    def listening(self, *, bar: bool = False) -> Iterator[None]:
        """Say what comes into the diary meanwhile; above the bar when there is one."""
        write = _above_the_bar if bar else say_if_heard
        match self.log:
            case Log.JSON:
                handler = _Lines(say_if_heard, json_line)
                handler.addFilter(_not_in_the_end)
            case Log.TEXT:
                handler = _Lines(write, text_line)
            case Log.NONE:
                handler = _Lines(write, bare_line)
                handler.addFilter(_undelivered)
            case _:
                assert_never(self.log)
        with _listening(handler):
            yield

    def say(self, event: str, text: str, level: int = logging.INFO) -> None:
        """Something worth knowing that is in no diary."""
        if self.log is Log.JSON:
            say_if_heard(_json(time.time(), logging.getLevelName(level).lower(), event, text.strip(), {}))
        else:
            say_if_heard(text)

    def plan(self, plan: Plan) -> None:
        """What will be done; in JSON the diary tells it, a line a model."""
        if self.log is not Log.JSON:
            from batchrun.faces.plan import text

            say_if_heard(text(plan))

    def end(self, report: Report) -> None:
        """How the run ended."""
        from batchrun.faces import closing

        if self.log is not Log.JSON:
            say(closing.summary(report))
            return
        level, event = _ending(report)
        fields = {
            "exit_code": report.exit_code,
            "next": closing.next_command(report) or None,
            "report": report.to_dict(),
        }
        say(_json(time.time(), level, event, closing.outcome(report), fields))

    def failed(self, error: BatchrunError) -> None:
        """An error that ends the command."""
        problems = error.problems if isinstance(error, InputError) else ()
        if self.log is Log.JSON:
            self._failed(error.message, error.next_step, error.exit_code, {"problems": problems} if problems else {})
        else:
            words = [*problems, f"Error: {error.message}", *([error.next_step] if error.next_step else [])]
            say("\n".join(words))

    def misused(self, error: click.ClickException) -> None:
        """Words that click does not take."""
        if self.log is Log.JSON:
            context = getattr(error, "ctx", None)
            todo = f"Try `{context.command_path} -h`." if context is not None else ""
            self._failed(error.format_message(), todo, error.exit_code, {})
        else:
            error.show()

    def broken(self, message: str, next_step: str) -> None:
        """A bug."""
        if self.log is Log.JSON:
            self._failed(message, next_step, 1, {})
        else:
            say(f"{message}\n{next_step}")

    def aborted(self, exit_code: int) -> None:
        """Interrupted before there was a run to say so, or after."""
        if self.log is Log.JSON:
            say(_json(time.time(), "warning", "interrupted", "Interrupted.", {"exit_code": exit_code, "next": None}))
        else:
            say("")  # the terminal shows the key that was pressed, and nothing behind it

    def after_the_end(self, text: str) -> None:
        """What became known after the error was said; the last line of JSON stays the last."""
        if self.log is not Log.JSON:
            say(text)

    def _failed(self, message: str, next_step: str, exit_code: int, fields: Mapping[str, Any]) -> None:
        ending = {"exit_code": exit_code, "next": next_step or None, **fields}
        say(_json(time.time(), "error", "failed", message, ending))


_chosen: Voice | None = None


def choose(word: str | None) -> Voice:
    """The voice that the user's word means, for this process from now on."""
    global _chosen  # noqa: PLW0603 - a process has one standard error
    _chosen = Voice(log_of(word))
    return _chosen


def voice_for(words: Sequence[str], environment: Mapping[str, str]) -> Voice:
    """The voice that was chosen; before that, and in other commands, what the bare command line says."""
    return _chosen or Voice(log_typed(words, environment))


def forget() -> None:
    """Another command begins in this process."""
    global _chosen  # noqa: PLW0603 - as in `choose`
    _chosen = None


def _ending(report: Report) -> tuple[str, str]:
    """How grave the end is, and its name."""
    if report.parked is None:
        return "info", "finished"
    return "warning", "interrupted" if report.parked is ParkReason.INTERRUPTED else "parked"


def _above_the_bar(line: str) -> None:
    from batchrun.faces.progress import above_the_bar

    above_the_bar(line)


def say(text: str) -> None:
    """To standard error, if there is still anybody: a run outlives its terminal."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def say_if_heard(text: str) -> None:
    """The same, unless it would have to wait: who stops reading a pipe must not stop the run that writes to it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # AttributeError: there is no standard error at all
        if select.select((), (sys.stderr.fileno(),), (), 0)[1]:
            say(text)
