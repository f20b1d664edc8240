"""Every commit, remote call and rename passes this door: a test can end the process, or fail a step, at the n-th.

In production the door is open: `passing` looks at one variable and returns.
"""

from __future__ import annotations

from collections.abc import Callable

Watcher = Callable[[str], None]

_watch: Watcher | None = None


def passing(step: str) -> None:
    """Say that `step` (such as `commit`, `call`, `rename`) is about to be taken."""
    if _watch is not None:
        _watch(step)


def watch(watcher: Watcher | None) -> None:
    """Let `watcher` see every step from now on (None: nobody); what it raises, the step raises."""
    global _watch  # noqa: PLW0603 - one door for the process is the point
    _watch = watcher
