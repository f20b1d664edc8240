"""Out of credits: stop at the first 402, or stay shut and let one probe at a time find out whether there are any."""

from __future__ import annotations

import msgspec

FIRST_PROBE = 30.0
LONGEST_PROBE = 600.0


class Shut(msgspec.Struct, frozen=True):
    """No call may start before `until` (monotonic seconds); from then on, one.

    Attributes:
        until: when the next probe may start.
        probes: how many have been answered 402 already.
        probing: whether a probe is on its way.
    """

    until: float
    probes: int = 0
    probing: bool = False


def refused(shut: Shut | None, now: float, wait: float | None, *, patient: bool, probe: bool) -> Shut | None:
    """The gate after a 402: still shut until when, or None to park.

    Args:
        shut: the gate before it, None when it stood open.
        now: monotonic seconds.
        wait: what the server's Retry-After said, in seconds, if anything; one longer than ten minutes is a park.
        patient: whether the user waits for credits.
        probe: whether the refused call was the probe; calls already in flight at the first 402 say nothing new.
    """
    if shut is not None and not probe:
        return shut
    if patient:
        probes = 0 if shut is None else shut.probes + 1
        return Shut(now + max(wait or 0.0, min(LONGEST_PROBE, FIRST_PROBE * 2.0 ** min(probes, 16))), probes)
    if shut is None and wait is not None and wait <= LONGEST_PROBE:
        return Shut(now + wait)
    return None


def probing(shut: Shut) -> Shut:
    """The gate once its probe is on its way."""
    return msgspec.structs.replace(shut, probing=True)
