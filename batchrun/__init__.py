"""batchrun: run a million prompts overnight. Lose nothing, pay once.

From Python: `run(Job(...), key=...)` returns a `Report`, or raises a `BatchrunError`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrun.errors import BatchrunError
    from batchrun.job import Job
    from batchrun.reports import Report
    from batchrun.runner import run

__version__ = "0.1.0"
__all__ = ["BatchrunError", "Job", "Report", "run"]

# Who wants to hear what happens configures this logger; who does not hears nothing.
logging.getLogger("batchrun").addHandler(logging.NullHandler())

_HOMES = {
    "BatchrunError": "batchrun.errors",
    "Job": "batchrun.job",
    "Report": "batchrun.reports",
    "run": "batchrun.runner",
}


def __getattr__(name: str) -> Any:
    """The public names, loaded when they are first asked for, so that importing batchrun costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchrun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
