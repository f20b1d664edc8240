"""A notice as the JSON document that webhooks get. It holds no prompt, no answer and no key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchrun.faces import closing
from batchrun.faces.words import count, dollars
from batchrun.reports import Happening, Notice, Sums
from batchrun.rules.money import usd


def payload(notice: Notice) -> bytes:
    """The document, ASCII only: what `document` says."""
    return json.dumps(document(notice)).encode()


def document(notice: Notice) -> dict[str, Any]:
    """The document as plain values, always with the same keys.

    - `event`: `finished`, `parked`, `recovered` or `failed`.
    - `id`: of this notice alone; the same whenever its delivery is tried again, so that doubles can be dropped.
    - `at`: ISO 8601, UTC.
    - `checkpoint`: its path; `job`: the name of that file without its ending, so `nightly.sim` when it is simulated.
    - `reason`: why it parked (`credits`, `key`, `overload`, `budget`, `deadline`, `interrupted`, `remote`, `model`,
      `hopeless`), else null.
    - `exit_code`: the process's; null for `recovered`, since the run goes on.
    - `message`: what happened; `next`: the command that goes on, or what to do after an error; else null.
    - `rows`: `total`, `answered`, `rejected`, `left`; null where the checkpoint could not be read.
    - `spent_usd` (over the life of the checkpoint), `spent_this_start_usd`, `possibly_paid_twice_usd`: null likewise.
    - `left_usd`: `low`, `likely`, `high`, what the rest is expected to cost; null when that is not known.
    - `text`: one sentence for people, which chat services show; a simulated one says so at its beginning.
    """
    sums, report = notice.sums, notice.report
    return {
        "event": notice.event.value,
        "id": notice.id,
        "at": datetime.fromtimestamp(notice.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "checkpoint": notice.checkpoint,
        "job": _job(notice),
        "reason": report.parked.value if report is not None and report.parked is not None else None,
        "exit_code": notice.exit_code,
        "message": _message(notice),
        "next": _next(notice) or None,
        "rows": None if sums is None else _rows(sums),
        "spent_usd": None if sums is None else usd(sums.spent_nano),
        "spent_this_start_usd": None if sums is None else usd(sums.spent_now_nano),
        "possibly_paid_twice_usd": None if sums is None else usd(sums.maybe_twice_nano),
        "left_usd": _left(sums),
        "text": _text(notice),
    }


def _job(notice: Notice) -> str:
    return Path(notice.checkpoint).name.removesuffix(".db")


def _message(notice: Notice) -> str:
    return notice.message if notice.report is None else closing.outcome(notice.report)


def _next(notice: Notice) -> str:
    return notice.next_step if notice.report is None else closing.next_command(notice.report)


def _rows(sums: Sums) -> dict[str, int]:
    return {"total": sums.total, "answered": sums.answered, "rejected": sums.rejected, "left": sums.left}


def _left(sums: Sums | None) -> dict[str, float] | None:
    if sums is None or sums.left_nano is None:
        return None
    return dict(zip(("low", "likely", "high"), map(usd, sums.left_nano), strict=True))


def _text(notice: Notice) -> str:
    """Who, what, how it stands, and what to do."""
    report, sums = notice.report, notice.sums
    why = f" ({report.parked})" if report is not None and report.parked is not None else ""
    simulated = "(simulated) " if _job(notice).endswith(".sim") else ""
    parts = [f"{simulated}{_job(notice) or 'batchrun'} {notice.event}{why}: {_message(notice)}"]
    if sums is not None and notice.event is not Happening.FINISHED:
        likely = "" if sums.left_nano is None else f", likely {dollars(sums.left_nano[1])} more"
        parts.append(f"{count(sums.answered)} of {count(sums.total)} rows answered, {count(sums.left)} left{likely}.")
    if sums is not None:
        parts.append(f"Spent {dollars(sums.spent_nano)}.")
    if next_step := _next(notice):
        parts.append(f"Next: {next_step}")
    return " ".join(parts)
