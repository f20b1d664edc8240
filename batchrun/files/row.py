"""One input row as it was found: its cells, or why there are none. What it asks for is `prompt`'s affair."""

from __future__ import annotations

from typing import Any

import msgspec

from batchrun.rules.canonical import canonical


class Row(msgspec.Struct, frozen=True, gc=False):
    """One input row.

    Attributes:
        number: over all files, from 0; blank lines are no rows.
        origin: the file's name up to where the position goes, as in `prompts.jsonl:`; one string for all its rows.
        line: the line in a JSONL file or the row in a Parquet file, from 1.
        cells: column -> value, fit for JSON; None when the line could not be read.
        text: the line as it stands in the file; None for Parquet.
        problem: why the line could not be read, without quoting it; empty when it could.
        batch: the Arrow record batch the row was read from, so that the output can pass values on untouched.
        index: the row's place in that batch.
    """

    number: int
    origin: str
    line: int
    cells: dict[str, Any] | None
    text: bytes | None = None
    problem: str = ""
    batch: Any = None
    index: int = 0

    @property
    def where(self) -> str:
        """Where to look: `prompts.jsonl:17`, or `part.parquet row 17`."""
        return f"{self.origin}{self.line}"

    @property
    def raw(self) -> bytes:
        """What a bad row is known by: its line without the line end, or its cells as canonical JSON."""
        if self.text is not None:
            return self.text.rstrip(b"\r\n")
        return canonical(self.cells or {})
