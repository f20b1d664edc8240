"""Where the key may go."""

from __future__ import annotations

from batchrun.job import TOGETHER_KEY, Job, is_loopback


def key_for(job: Job, key: str | None) -> str | None:
    """The key to send: only to Together and loopback, unless the user named a variable for another host."""
    trusted = job.provider == "together" or is_loopback(job.base_url) or job.key_env != TOGETHER_KEY
    return key if trusted else None
