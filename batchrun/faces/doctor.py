"""What doctor found, for people and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from batchrun.doctor.findings import Finding, State

_WIDTH = 100


def text(findings: Sequence[Finding], code: int) -> str:
    """One paragraph a check, what to do under it, and a line that sums up."""
    names = max(len(found.name) for found in findings)
    lines = [line for found in findings for line in _lines(found, found.sentence, found.next_step, names)]
    return "\n".join([*lines, "", _sum(findings, code)])


def shared(findings: Sequence[Finding], code: int) -> str:
    """The same for a support bundle, from what may be shared."""
    names = max(len(found.name) for found in findings)
    lines = [line for found in findings for line in _lines(found, found.shared or "(not shown here)", "", names)]
    return "\n".join([*lines, "", _sum(findings, code)])


def as_json(findings: Sequence[Finding], code: int) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "exit_code": code,
        "checks": [
            {
                "name": f.name,
                "state": f.state,
                "sentence": f.sentence,
                "next_step": f.next_step,
                "exit_code": f.exit_code,
            }
            for f in findings
        ],
    }


def _lines(found: Finding, sentence: str, step: str, names: int) -> list[str]:
    head = f"{found.state.value:<7}  {found.name:<{names}}  "
    indent = " " * len(head)
    lines = _wrapped(sentence, head, indent)
    return lines + _wrapped(step, f"{indent}-> ", f"{indent}   ") if step else lines


def _wrapped(sentence: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        sentence, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _sum(findings: Sequence[Finding], code: int) -> str:
    wrong = [found.name for found in findings if found.state is State.BAD]
    odd = [found.name for found in findings if found.state is State.WARN]
    if wrong:
        return f"Bad: {', '.join(wrong)}. Exit code {code}."
    return f"Nothing is bad; look at: {', '.join(odd)}." if odd else "Nothing is wrong."
