"""The entry point: every error ends as one or two lines and the right exit code, never as a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import click

from batchrun import __version__
from batchrun.cli import logs, notify, signals
from batchrun.cli.check import check
from batchrun.cli.doctor import doctor
from batchrun.cli.errors import errors
from batchrun.cli.look import export, preview, status
from batchrun.cli.models import models
from batchrun.cli.plan import plan
from batchrun.cli.prune import prune
from batchrun.cli.run import resume, run
from batchrun.cli.simulate import simulate
from batchrun.errors import BatchrunError

_STANDARD_ERROR = 2
_BROKEN_PIPE = 141  # as the shell says of a program that SIGPIPE ended


class _Aborted(click.Abort):
    """What click lets through of a signal, with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class _Commands(click.Group):
    """A group whose reader may leave early, as `head` does: silent, and told by the exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would make it exit code 1
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter complains when it flushes once more
            os.close(nowhere)
            raise click.exceptions.Exit(_BROKEN_PIPE) from None
        except KeyboardInterrupt as stopped:  # click would print an empty line, also among lines of JSON
            raise _Aborted(signals.code_of(stopped)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="batchrun")
def batchrun() -> None:
    """Run a million prompts overnight. Lose nothing, pay once.

    The same command again goes on from the last answer that was kept,
    whatever ended the run before.
    """


for command in (run, resume, plan, preview, check, status, export, errors, prune, models, doctor, simulate):
    batchrun.add_command(command)


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    _fill_standard_streams()
    logs.forget()
    notify.forget()
    try:
        if logs.starts(sys.argv[1:]):
            signals.hear()
        code = batchrun.main(standalone_mode=False)
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    except click.ClickException as error:
        _voice().misused(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as stopped:
        code = signals.code_of(stopped)
        _voice().aborted(code)
    except BatchrunError as error:
        _voice().failed(error)
        code = error.exit_code
        _tell(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        code = _internal(error)
        _tell(error)
    sys.exit(code or 0)


def _tell(error: Exception) -> None:
    """To whom `--notify` names, after it was said here: a delivery takes up to a minute, and may be cut off."""
    if why := notify.begun().failed(error):
        _voice().after_the_end(why)


def _voice() -> logs.Voice:
    return logs.voice_for(sys.argv[1:], os.environ)


def _fill_standard_streams() -> None:
    """A closed standard stream leaves its number free, and a database or socket must not be opened under it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(number)


def _internal(error: Exception) -> int:
    """A bug. The message may hold anything, so only its kind and place are shown."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    _voice().broken(
        f"Internal error: {type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}. "  # noqa: PTH119
        "Every answer counted so far is kept.",
        "Run the same command to go on; please report this line.",
    )
    if os.environ.get("BATCHRUN_TRACEBACK"):
        traceback.print_exception(error)
    return 1
