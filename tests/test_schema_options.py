"""`--schema` as its users meet it: what is sent, what stands in the output, and what is said when it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from support import MODEL, MakeJob, read_rows, start, write_prompts

from batchrun import output
from batchrun.errors import GuardError, UsageError
from batchrun.job import Asking, Job, checked
from batchrun.records import Endpoint, Fault, Outcome, State
from batchrun.simulator import Settings, Simulator

SCHEMA = {
    "title": "A count",
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 1}, "words": {"type": "array", "items": {"type": "string"}}},
    "required": ["count", "words"],
    "additionalProperties": False,
}
WANTED = {"type": "json_schema", "json_schema": {"name": "A_count", "schema": SCHEMA}}

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Cli) -> Cli:
    """Run the command line in the test's folder, which holds `in.jsonl` and `s.json`."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHER_API_KEY_FILE", "TOGETHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    write_prompts(tmp_path / "in.jsonl", range(4))
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "fast.toml").write_text("[server]\nlatency = 0.0\n")

    return command_line


RUN = ("run", "in.jsonl", "-m", MODEL, "--simulate", "--script", "fast.toml", "--concurrency", "8")


def fits(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"count", "words"} and value["count"] >= 1 and all(isinstance(w, str) for w in value["words"])


def test_the_parsed_answers_are_a_column_of_json_text_in_both_formats(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "--schema", "s.json", "-o", "o.jsonl")[0] == 0
    rows = read_rows(tmp_path / "o.jsonl")
    assert [row["state"] for row in rows] == ["answered"] * 4
    for row in rows:
        assert fits(row["parsed"])
        assert json.loads(row["parsed"]) == json.loads(row["answer"])
        assert row["parsed"] == msgspec.json.format(row["answer"], indent=-1)
    assert cli("resume", "-o", "o.parquet")[0] == 0
    table = pq.read_table(tmp_path / "o.parquet")
    assert str(table.schema.field("parsed").type) == "string"
    assert table["parsed"].to_pylist() == [row["parsed"] for row in rows]
    code, out, _ = cli("export", "-o", "-")
    assert (code, [json.loads(line)["parsed"] for line in out.splitlines()]) == (0, [row["parsed"] for row in rows])


def test_without_a_schema_nothing_is_parsed_not_even_json(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "--param", 'response_format={"type":"json_object"}', "-o", "o.jsonl")[0] == 0
    rows = read_rows(tmp_path / "o.jsonl")
    assert all(json.loads(row["answer"]) for row in rows)
    assert {row["parsed"] for row in rows} == {None}


def test_preview_shows_what_would_be_sent(cli: Cli) -> None:
    code, out, err = cli("preview", "in.jsonl", "-m", MODEL, "--schema", "s.json", "-n", "1")
    assert (code, err) == (0, "")
    assert json.loads(out)["body"]["response_format"] == WANTED


def test_another_schema_leaves_paid_answers_unused_and_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "--schema", "s.json", "-o", "o.jsonl")[0] == 0
    written = (tmp_path / "o.jsonl").read_bytes()
    code, _, err = cli(*RUN, "--schema", "s.json", "-o", "o.jsonl")
    assert (code, "0 answers in" in err) == (0, True)
    code, _, err = cli(*RUN, "-o", "o.jsonl")
    assert (code, "The schema has changed: 4 kept answers" in err) == (2, True)
    (tmp_path / "s.json").write_text(json.dumps({**SCHEMA, "required": ["count"]}))
    code, _, err = cli(*RUN, "--schema", "s.json", "-o", "o.jsonl")
    assert (code, "The schema has changed: 4 kept answers" in err) == (2, True)
    assert (tmp_path / "o.jsonl").read_bytes() == written
    code, _, err = cli(*RUN, "--schema", "s.json", "-o", "o.jsonl", "--new-requests")
    assert (code, "4 answers in" in err) == (0, True)


def test_the_order_of_keys_in_the_file_is_no_other_schema(cli: Cli, tmp_path: Path) -> None:
    assert cli(*RUN, "--schema", "s.json")[0] == 0
    (tmp_path / "s.json").write_text("\ufeff" + json.dumps(dict(reversed(SCHEMA.items())), indent=4), encoding="utf-8")
    code, _, err = cli(*RUN, "--schema", "s.json")
    assert (code, "0 answers in" in err) == (0, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, secret", "The schema bad.json is not valid JSON ("),
        ('["secret"]', "The schema bad.json is not a JSON object."),
        ("true", "The schema bad.json is not a JSON object."),
        ("[" * 100_000, "The schema bad.json is n"),
        ('{"properties": {"a": {"type": "secret"}}}', "what stands at `/properties/a/type` is not allowed there"),
        ('{"items": {"$ref": "https://secret.invalid/x.json"}}', "The schema refers at `/items/$ref` to something"),
        ('{"$schema": "https://secret.invalid/draft"}', "names no draft that is known"),
        (None, "The schema bad.json cannot be read: No such file or directory."),
    ],
)
def test_a_file_that_is_no_schema_is_refused_before_there_is_a_checkpoint(
    cli: Cli, tmp_path: Path, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / "bad.json").write_text(text)
    for command in (RUN, ("preview", "in.jsonl", "-m", MODEL)):
        code, out, err = cli(*command, "--schema", "bad.json")
        assert (code, out) == (2, "")
        assert told in err
        assert "secret" not in err
    assert not (tmp_path / "checkpoints").exists()


def test_a_schema_has_no_place_beside_completions_or_another_response_format(cli: Cli) -> None:
    code, _, err = cli(*RUN, "--schema", "s.json", "--endpoint", "completions")
    assert (code, "--schema has no place in a completions request" in err) == (2, True)
    code, _, err = cli(*RUN, "--schema", "s.json", "--param", f"response_format={json.dumps(WANTED)}")
    assert (code, "both set `response_format`" in err) == (2, True)
    for asking in (Asking(endpoint=Endpoint.COMPLETIONS, schema={}), Asking(params={"response_format": 1}, schema={})):
        with pytest.raises(UsageError):
            checked(Job(("in.jsonl",), "c.db", asking))


WITHOUT = "import sys; sys.modules['jsonschema_rs'] = None; from batchrun.cli.main import main; main()"
LOADED = (
    "import sys; from batchrun.cli.main import main\ntry: main()\nexcept SystemExit as left: code = left.code\n"
    "print(code, 'jsonschema_rs' in sys.modules)"
)


def apart(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.usefixtures("cli")
def test_without_the_extra_a_schema_is_refused_and_everything_else_works(tmp_path: Path) -> None:
    refused = apart(tmp_path, WITHOUT, *RUN, "--schema", "s.json")
    assert refused.returncode == 2
    assert "--schema needs the extra: pip install 'batchrun[schema]'" in refused.stderr
    assert not (tmp_path / "checkpoints").exists()
    assert apart(tmp_path, WITHOUT, *RUN, "-o", "o.jsonl").returncode == 0
    assert apart(tmp_path, WITHOUT, *RUN, "--schema", "s.json").returncode == 2


@pytest.mark.usefixtures("cli")
def test_a_run_without_a_schema_never_loads_the_validator(tmp_path: Path) -> None:
    assert apart(tmp_path, LOADED, *RUN, "-o", "o.jsonl").stdout.split() == ["0", "False"]
    preview = ("preview", "in.jsonl", "-m", MODEL)
    assert apart(tmp_path, LOADED, *preview).stdout.split()[-2:] == ["0", "False"]
    assert apart(tmp_path, LOADED, *preview, "--schema", "s.json").stdout.split()[-2:] == ["0", "True"]


async def test_a_job_keeps_its_schema_and_a_run_from_python_is_guarded_too(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(3))
    asking = Asking(model=MODEL, params={"max_tokens": 200}, schema=SCHEMA)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, asking=asking)
        assert (await start(job)).exit_code == 0
        assert all(fits(row["parsed"]) for row in read_rows(tmp_path / "out.jsonl"))
        assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
        other = msgspec.structs.replace(job, asking=msgspec.structs.replace(asking, schema={"type": "object"}))
        with pytest.raises(GuardError, match="The schema has changed"):
            await start(other)
        broken = msgspec.structs.replace(job, asking=msgspec.structs.replace(asking, schema={"type": "objec"}))
        with pytest.raises(UsageError, match="`/type`"):
            await start(broken)


def reply(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def parsed(text: Any, *, is_json: bool = True, **fields: Any) -> Any:
    return output.cells(Outcome(0, b"", State.ANSWERED, reply(text), **fields), is_json=is_json)["parsed"]


def test_an_answer_marked_as_not_fitting_is_not_parsed() -> None:
    assert parsed('{"a": 1}') == '{"a":1}'
    assert parsed('```json\n{"a": 1}\n```') == '{"a":1}'
    assert parsed('{"a": 1}', fault=Fault.CUT_SHORT.value) == '{"a":1}'
    assert parsed('{"a": 1}', fault=Fault.INVALID_OUTPUT.value) is None
    assert parsed("Sorry.") is None
    assert parsed(None) is None
    assert parsed('{"a": 1}', is_json=False) is None


def test_rows_without_an_answer_have_nothing_parsed() -> None:
    for state in (State.PENDING, State.SUBMITTED, State.REJECTED):
        assert output.cells(Outcome(0, b"", state), is_json=True)["parsed"] is None


def test_a_schema_that_differs_only_in_the_kind_of_a_number_is_another_schema(cli: Cli, tmp_path: Path) -> None:
    """For Python 1, 1.0 and true are equal; a body, and so a digest, holds them as they are written."""
    write_prompts(tmp_path / "in.jsonl", range(40))
    (tmp_path / "s.json").write_text('{"properties": {"a": {"const": 1}}}')
    command = (*RUN, "--schema", "s.json", "--concurrency", "1")
    assert cli(*command, "--credits", "0.00001")[0] == 3
    (tmp_path / "s.json").write_text('{"properties": {"a": {"const": true}}}')
    code, _, err = cli(*command, "--credits", "5")
    assert (code, "The schema has changed" in err) == (2, True)
    assert cli(*command, "--credits", "5", "--new-requests")[0] == 0
