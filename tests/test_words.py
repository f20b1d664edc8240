"""What was typed is never repeated where it may be the key, and what servers say commands no terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchrun.api import wire
from batchrun.cli.main import batchrun
from batchrun.errors import UsageError
from batchrun.files.wording import names_of
from batchrun.job import base_url

KEY = "tgp_v1_a-key-typed-in-the-wrong-place"


@pytest.mark.parametrize("more", [(), ("--simulate",), ("--base-url", "http://127.0.0.1:9")])
def test_a_key_typed_as_the_name_of_a_variable_is_neither_shown_nor_stored(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n')
    said: Any = CliRunner().invoke(batchrun, ["run", "in.jsonl", "-m", "some/model", "--key-env", KEY, *more])
    assert isinstance(said.exception, UsageError)
    assert KEY not in said.output + said.exception.message + said.exception.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("typed", ["http://[::bad", "http://127.0.0.1:99999", "http://127.0.0.1:abc", "https://"])
def test_an_address_that_is_none_is_refused_before_anything_else(typed: str) -> None:
    with pytest.raises(UsageError, match="not an http or https address"):
        base_url(typed)


def test_what_would_command_a_terminal_is_shown_as_a_mark() -> None:
    assert wire.redacted("bad \x1b[31mred\x1b[0m key \x07", b"{}", None) == "bad ?[31mred?[0m key ?"
    assert names_of({"\x1b[2Jcol": 1}) == "?[2Jcol"
