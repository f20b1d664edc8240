"""Rejected rows in groups that say the same, and marked answers, each with what to do and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

import msgspec

from batchrun.faces.words import place, rows
from batchrun.job import TOGETHER_KEY, TOGETHER_URL, Job
from batchrun.records import Endpoint, Fault, Route
from batchrun.rules.gate import shape
from batchrun.store.view import Marked, Rejected

# So many kinds of message are told apart, and so many of a fault shown; the rest is counted as one for each fault.
MOST_KINDS = 200
SHOWN_KINDS = 10
OTHER = "other messages"

_REMEMBERED = 10_000  # messages whose group is known without a second look

MARKS = (Fault.CUT_SHORT, Fault.INVALID_OUTPUT, Fault.FILTERED)
"""Faults that mark answers; no row is rejected for them."""


class Fix(msgspec.Struct, frozen=True):
    """What to do about a fault: a sentence, and commands to choose from."""

    advice: str
    commands: tuple[str, ...] = ()


class Kind(msgspec.Struct):
    """Rejections of one fault whose messages say the same; `message` is the first, `statuses` are HTTP's."""

    fault: Fault
    message: str
    rows: int = 0
    statuses: list[int] = []
    examples: list[int] = []


class Grouping:
    """Groups rejected rows one by one, in memory that does not grow with them."""

    def __init__(self, show: int) -> None:
        """Make one that keeps so many row numbers (from 0) as examples of each kind."""
        self._show = show
        self._kinds: dict[str, Kind] = {}
        self._known: dict[tuple[str, str], Kind] = {}

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Count these rows."""
        for row in rejected:
            kind = self._known.get((row.fault, row.message)) or self._kind(row)
            kind.rows += 1
            if len(kind.examples) < self._show:
                kind.examples.append(row.row)
            if row.status is not None and row.status not in kind.statuses:
                kind.statuses.append(row.status)

    def _kind(self, row: Rejected) -> Kind:
        fault = Fault(row.fault)
        reason, message = shape(fault, _said(fault, row.message)), row.message
        if reason not in self._kinds and len(self._kinds) >= MOST_KINDS:
            reason, message = fault.value, OTHER  # no shape is a fault alone
        kind = self._kinds.setdefault(reason, Kind(fault, message))
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[row.fault, row.message] = kind
        return kind

    def kinds(self) -> list[Kind]:
        """All kinds, those with the most rows first."""
        return sorted(self._kinds.values(), key=lambda kind: -kind.rows)


def _said(fault: Fault, message: str) -> str:
    """A bad row's message begins with its place, which is no part of the reason."""
    return message.partition(": ")[2] if fault is Fault.BAD_ROW else message


def text(kinds: Sequence[Kind], marked: Mapping[str, Marked], checkpoint: str, job: Job | None) -> str:
    """Everything as a page: a paragraph for each fault, the kinds in it, and how to mend them."""
    total = sum(kind.rows for kind in kinds)
    lines = [f"{rows(total)} rejected (rows are numbered from 0)." if total else "No row is rejected."]
    for fault in dict.fromkeys(kind.fault for kind in kinds):
        of_fault = [kind for kind in kinds if kind.fault is fault]
        fix = fix_for(fault, checkpoint, job)
        lines += ["", *_paragraph(fault, of_fault, total), *_mending(fix)]
    for name, seen in marked.items():
        lines += ["", f"{name}  {_answers(seen.answers)} marked: {_MARKED[Fault(name)]}"]
        lines += _mending(_fix_marked(Fault(name), seen, checkpoint, job))
    return "\n".join(lines)


def table(kinds: Sequence[Kind], marked: Mapping[str, Marked], checkpoint: str, job: Job | None) -> dict[str, object]:
    """The same as one JSON object, whole."""
    total = sum(kind.rows for kind in kinds)
    return {
        "rejected": total,
        "groups": [
            {
                **msgspec.structs.asdict(kind),
                "share": kind.rows / total,
                **msgspec.structs.asdict(fix_for(kind.fault, checkpoint, job)),
            }
            for kind in kinds
        ],
        "marked": [
            {
                "fault": name,
                "answers": seen.answers,
                **msgspec.structs.asdict(_fix_marked(Fault(name), seen, checkpoint, job)),
            }
            for name, seen in marked.items()
        ],
    }


def _paragraph(fault: Fault, kinds: Sequence[Kind], total: int) -> list[str]:
    of_fault = sum(kind.rows for kind in kinds)
    shown = kinds if len(kinds) <= SHOWN_KINDS + 1 else kinds[:SHOWN_KINDS]
    lines = []
    for kind in shown:
        lines += [f"{fault}  {_counted(kind.rows, total)}{_status(kind)}, {_examples(kind)}", f"  {kind.message}"]
    if len(kinds) > len(shown):
        hidden = of_fault - sum(kind.rows for kind in shown)
        lines.append(f"{fault}  {_counted(hidden, total)}, of {len(kinds) - len(shown)} more kinds (see --groups)")
    return lines


def _counted(count: int, total: int) -> str:
    share = count / total
    percent = f"{share:.0%}"
    return f"{rows(count)} ({'< 1%' if percent == '0%' else '> 99%' if percent == '100%' and share < 1 else percent})"


def _status(kind: Kind) -> str:
    return f", HTTP {' or '.join(map(str, sorted(kind.statuses)))}" if kind.statuses else ""


def _examples(kind: Kind) -> str:
    if kind.rows == 1:
        return f"row {kind.examples[0]}"
    return f"such as row{'s' * (len(kind.examples) > 1)} {', '.join(map(str, kind.examples))}"


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _mending(fix: Fix) -> list[str]:
    return [f"  > {fix.advice}", *(f"      {command}" for command in fix.commands)]


_MARKED = {
    Fault.CUT_SHORT: "ended by max_tokens (finish_reason length).",
    Fault.INVALID_OUTPUT: "not as the schema wants.",
    Fault.FILTERED: "cut or withheld by a content filter.",
}


def _fix_marked(fault: Fault, seen: Marked, checkpoint: str, job: Job | None) -> Fix:
    """What to do about marked answers; those that were asked for again already need a higher count."""
    fix = fix_for(fault, checkpoint, job)
    if not fix.commands or seen.asked == 0:
        return fix
    if seen.asked is None:
        return Fix("They were asked for again and cannot be had better: the model takes no more, or refused.")
    return Fix(fix.advice, tuple(f"{command}:{seen.asked + 1}" for command in fix.commands))


def fix_for(fault: Fault, checkpoint: str, job: Job | None) -> Fix:
    """What to do about rows or answers of this fault in this checkpoint, as its job was stored (None: it has none)."""
    at = place(checkpoint)
    better = f"batchrun resume {at}{' --route auto' * (job is not None and job.route is Route.BATCH)}"
    again = f"batchrun errors {at} --retry {fault} && batchrun resume {at}"
    match fault:
        case Fault.TOO_LONG:
            return Fix(
                "Prompt and max_tokens together exceed the model's context. Have prompts cut, or max_tokens lowered, "
                "or ask a model with a larger context (batchrun models):",
                (
                    f"{again} --on-too-long truncate",
                    f"{again} --on-too-long shrink-output",
                    f"{again} --fallback MODEL --on-too-long fallback",
                ),
            )
        case Fault.MODEL_MISSING:
            return Fix(
                "These rows name a model that cannot be called. Look for one that can, and let it answer them:",
                (f"batchrun models{_server(job)}", f"{again} --fallback MODEL"),
            )
        case Fault.BAD_REQUEST:
            return Fix(
                "Mend the rows, or the parameter the server speaks of (batchrun preview shows what is sent), and run "
                "again: what changed is asked anew. To look at the rows, or to mend them apart:",
                (*_check(job), f"batchrun errors {at} --fault {fault} --export rejected.jsonl"),
            )
        case Fault.BAD_ROW:
            said, check = "These rows of the input were never sent. Mend them there and run again", _check(job)
            return Fix(f"{said}{':' if check else '.'}", check)
        case Fault.SERVER | Fault.NETWORK | Fault.GARBLED:
            return Fix("Given up after several tries while other rows were answered. Send them again, later:", (again,))
        case Fault.CREDITS | Fault.KEY | Fault.THROTTLED | Fault.OVERLOADED:
            return Fix("It has nothing to do with the rows. Send them again:", (again,))
        case Fault.CUT_SHORT:
            return Fix("Ask them again with more tokens:", (f"{better} --on-length retry",))
        case Fault.INVALID_OUTPUT:
            return Fix("Ask them again:", (f"{better} --on-invalid retry",))
        case Fault.FILTERED:
            return Fix("Reword these prompts and run again: edited rows are asked anew.")
        case _:
            assert_never(fault)


def _check(job: Job | None) -> tuple[str, ...]:
    """The command that checks the input as the job reads it; none for a template, whose file is not known any more."""
    if job is None:
        return ("batchrun check FILE",)
    if job.asking.template is not None:
        return ()
    endpoint = " --endpoint completions" if job.asking.endpoint is Endpoint.COMPLETIONS else ""
    return (f"batchrun check {' '.join(map(place, job.inputs))}{endpoint}",)


def _server(job: Job | None) -> str:
    """The words that make another command ask the job's own server."""
    if job is None:
        return ""
    if job.simulate:
        return " --simulate"
    words = ["--base-url", job.base_url] if job.base_url != TOGETHER_URL else []
    words += ["--key-env", job.key_env] if job.key_env != TOGETHER_KEY else []
    words += ["--insecure-http"] if job.insecure_http else []
    return "".join(f" {shlex.quote(word)}" for word in words)
