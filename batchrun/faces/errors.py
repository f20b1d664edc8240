"""Rejected rows grouped by what the server, or pass 1, said of them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from batchrun.faces.words import rows
from batchrun.records import Fault
from batchrun.rules.gate import shape
from batchrun.store.view import Rejected

_FIXES = {
    Fault.BAD_ROW: "Mend these lines in the input and run again.",
    Fault.BAD_REQUEST: "Mend the rows or the parameters; edited rows are sent anew by the next run.",
    Fault.TOO_LONG: "Shorten the prompts or lower max_tokens; or use a model with a larger context.",
    Fault.MODEL_MISSING: "Name a model that can be called; the rows name it themselves.",
}
_TRY_AGAIN = "May have passed: batchrun errors --retry --fault {fault}"


class _Group(msgspec.Struct):
    fault: str
    message: str
    rows: int
    examples: list[int]


def table(rejected: Iterable[Rejected], show: int) -> str:
    """Each reason with its count, share, example rows (numbered from 0) and what to do."""
    groups: dict[str, _Group] = {}
    for row in rejected:
        group = groups.setdefault(_reason(row), _Group(row.fault, row.message, 0, []))
        group.rows += 1
        if len(group.examples) < show:
            group.examples.append(row.row)
    total = sum(group.rows for group in groups.values())
    if not total:
        return "No row is rejected."
    lines = [f"{rows(total)} rejected."]
    for group in sorted(groups.values(), key=lambda group: -group.rows):
        lines += ["", *_described(group, total)]
    return "\n".join(lines)


def _reason(row: Rejected) -> str:
    """A bad row's message begins with its place, which is no part of the reason."""
    message = row.message.partition(": ")[2] if row.fault == Fault.BAD_ROW else row.message
    return shape(Fault(row.fault), message)


def _described(group: _Group, total: int) -> list[str]:
    examples = ", ".join(str(row) for row in group.examples)
    more = ", ..." if group.rows > len(group.examples) else ""
    return [
        f"{group.fault}  {rows(group.rows)} ({group.rows / total:.0%}), such as row {examples}{more}",
        f"  {group.message}",
        f"  {_FIXES.get(Fault(group.fault), _TRY_AGAIN.format(fault=group.fault))}",
    ]
