"""On a terminal a run asks before it may spend much; without one it never does."""

from __future__ import annotations

import os
import pty
import select
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import MODEL, write_prompts

from batchrun.cli.words import CONFIRM_ABOVE, confirm_above
from batchrun.errors import UsageError
from batchrun.rules.money import nano

RUN = ("run", "in.jsonl", "-m", MODEL, "--simulate", "--max-tokens", "50", "-o", "out.jsonl", "--checkpoint", "c.db")
ASKED = b"Go on? [y/N] "
LONGEST = 60.0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHRUN_LOG", raising=False)
    write_prompts(tmp_path / "in.jsonl", range(8))
    return tmp_path


# The terminal is the child's own, so that what is typed on it becomes signals too.
_OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "batchrun", *sys.argv[1:]])
"""


# As a shell starts a command with & behind it: the terminal belongs to another group of processes.
_IN_BACKGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.execv(sys.executable, [sys.executable, "-m", "batchrun", *sys.argv[1:]])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def on_a_terminal(*words: str, answer: bytes | None, how: str = _OWN_TERMINAL) -> tuple[int, str]:
    """Exit code and all that a terminal showed; `answer` is typed when the question comes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", how, *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as child:
        os.close(theirs)
        shown = b""
        while more := _read(ours):
            shown += more
            if answer is not None and ASKED in shown:
                os.write(ours, answer)
                answer = None
        os.close(ours)
        return child.wait(LONGEST), shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    """What comes next, nothing when the other side is gone."""
    assert select.select([terminal], [], [], LONGEST)[0], "nothing was said for a minute"
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def paid(checkpoint: Path) -> int:
    with sqlite3.connect(checkpoint) as sql:
        return int(sql.execute("select count(*) from paid").fetchone()[0])


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04", b"\x03"])
def test_anything_but_yes_sends_nothing_and_is_exit_130(here: Path, answer: bytes) -> None:
    code, shown = on_a_terminal(*RUN, "--confirm-above", "0", answer=answer)
    assert (code, paid(here / "c.db")) == (130, 0)
    assert "This may cost " in shown
    assert "Parked (interrupted): " in shown
    assert "Go on with: batchrun resume c.db" in shown


def test_yes_goes_on_and_the_plan_is_shown_once(here: Path) -> None:
    code, shown = on_a_terminal(*RUN, "--confirm-above", "0", answer=b"y\n")
    assert (code, paid(here / "c.db")) == (0, 8)
    assert shown.count("8 rows: 0 answered, 8 to send.") == 1
    assert "Done: 8 of 8 rows answered" in shown


@pytest.mark.parametrize("words", [("--confirm-above", "none"), (), ("--yes",)])
def test_what_costs_little_or_is_said_beforehand_is_not_asked(here: Path, words: tuple[str, ...]) -> None:
    above = ("--confirm-above", "0") if words == ("--yes",) else ()
    code, shown = on_a_terminal(*RUN, *above, *words, answer=None)
    assert (code, paid(here / "c.db")) == (0, 8)
    assert ASKED.decode() not in shown


def test_a_finished_job_is_not_asked_about(here: Path) -> None:
    assert on_a_terminal(*RUN, "--yes", answer=None)[0] == 0
    code, shown = on_a_terminal(*RUN, "--confirm-above", "0", answer=None)
    assert (code, paid(here / "c.db")) == (0, 8)
    assert ASKED.decode() not in shown


def test_in_the_background_of_a_shell_nobody_is_asked(here: Path) -> None:
    """The question would stop it at the next key that is typed in the shell, and nothing would be sent all night."""
    code, shown = on_a_terminal(*RUN, "--confirm-above", "0", answer=None, how=_IN_BACKGROUND)
    assert (code, paid(here / "c.db")) == (0, 8)
    assert ASKED.decode() not in shown


def test_without_a_terminal_nobody_is_asked(here: Path) -> None:
    code = os.system(f"{sys.executable} -m batchrun {' '.join(RUN)} --confirm-above 0 < /dev/null > said.txt 2>&1")
    assert (os.waitstatus_to_exitcode(code), paid(here / "c.db")) == (0, 8)
    assert ASKED not in (here / "said.txt").read_bytes()


@pytest.mark.parametrize(
    ("word", "limit"), [(None, CONFIRM_ABOVE), ("none", None), (" None ", None), ("0", 0), ("2.5", nano(2.5))]
)
def test_the_amount_to_ask_above(word: str | None, limit: int | None) -> None:
    assert confirm_above(word) == limit


@pytest.mark.parametrize("word", ["", "much", "-1", "nan", "inf", "1e999"])
def test_no_amount_to_ask_above_is_said_so(word: str) -> None:
    with pytest.raises(UsageError, match="--confirm-above takes US dollars"):
        confirm_above(word)
