"""`batchrun errors` as its users meet it: groups with what to do, rows put back, rows written as an input file."""

from __future__ import annotations

import json
import shlex
import sqlite3
import string
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.faces.errors import MARKS, MOST_KINDS, OTHER, Grouping, fix_for, table, text
from batchrun.job import Asking, Job
from batchrun.records import Endpoint, Fault, Route
from batchrun.store.view import Rejected, View

MODEL = "simulator/tiny-512"
LONG = "word " * 900
REFUSED = "BAD question"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Cli) -> Cli:
    """Run the command line in the test's folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    return command_line


def ran(cli: Cli, source: str, *words: str, checkpoint: str = "c.db") -> int:
    """A run of the simulator that refuses every prompt with BAD in it."""
    Path("script.toml").write_text(
        '[server]\nlatency = 0.0\nrefusal_latency = 0.0\n[[fault]]\nkind = "status"\nstatus = 400\ncontent = "BAD"\n'
    )
    code, _, err = cli(
        "run", source, "-m", MODEL, "--simulate", "--concurrency", "4", "--script", "script.toml", "--max-tokens", "20",
        "--route", "live", "--skip-bad-rows", "--checkpoint", checkpoint, *words,
    )  # fmt: skip
    assert code in {0, 10}, err
    return code


def write_lines(path: Path, *rows: dict[str, Any] | str) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def digests(checkpoint: str, *, rejected: bool = False) -> list[bytes]:
    with sqlite3.connect(checkpoint) as connection:
        where = "where state = 3" if rejected else ""
        found = [row[0] for row in connection.execute(f"select digest from request {where} order by row")]
    connection.close()
    return found


MIXED = (
    {"id": 0, "prompt": "good"},
    {"id": 1, "prompt": REFUSED},
    {"id": 2, "prompt": f"too long {LONG}"},
    {"id": 3, "prompt": f"{REFUSED} 2"},
    "{broken",
    {"id": 5, "prompt": f"longer {LONG} {LONG}"},
    {"id": 6, "prompt": f"{REFUSED} 3"},
    {"id": 7},
)


@pytest.fixture
def mixed(cli: Cli, tmp_path: Path) -> Cli:
    """A finished job with rows rejected for four reasons and one answer."""
    write_lines(tmp_path / "in.jsonl", *MIXED)
    assert ran(cli, "in.jsonl") == 10
    return cli


# --- groups ----------------------------------------------------------------------------------------------------------


def test_rejected_rows_are_grouped_by_reason_with_share_status_examples_and_commands(mixed: Cli) -> None:
    code, out, _ = mixed("errors", "c.db")
    assert code == 0
    paragraphs = out.split("\n\n")
    assert paragraphs[0] == "7 rows rejected (rows are numbered from 0)."
    assert paragraphs[1].startswith("bad_request  3 rows (43%), HTTP 400, such as rows 1, 3, 6\n")
    assert paragraphs[2].startswith("too_long  2 rows (29%), HTTP 400, such as rows 2, 5\n")
    assert "batchrun errors c.db --retry too_long && batchrun resume c.db --on-too-long truncate" in paragraphs[2]
    assert "bad_row  1 row (14%), row 4\n  in.jsonl:5: not valid JSON" in paragraphs[3]
    assert paragraphs[3].count("batchrun check in.jsonl") == 1


def test_marked_answers_are_counted_after_the_rejections(mixed: Cli) -> None:
    connection = sqlite3.connect("c.db")
    with connection:
        connection.execute("update paid set fault = 'cut_short'")
    connection.close()
    _, out, _ = mixed("errors", "c.db")
    last = out.split("\n\n")[-1]
    assert last.startswith("cut_short  1 answer marked")
    assert "batchrun resume c.db --on-length retry" in last
    _, out, _ = mixed("errors", "c.db", "--fault", "too_long")
    assert "cut_short" not in out
    assert out.startswith("2 rows rejected (rows are numbered from 0).")
    _, out, _ = mixed("errors", "c.db", "--groups")
    assert [(mark["fault"], mark["answers"]) for mark in json.loads(out)["marked"]] == [("cut_short", 1)]


def test_json_is_one_object_a_rejected_row_and_groups_are_one_object(mixed: Cli) -> None:
    _, out, _ = mixed("errors", "c.db", "--json")
    assert [json.loads(line)["row"] for line in out.splitlines()] == [1, 2, 3, 4, 5, 6, 7]
    assert json.loads(out.splitlines()[0]).keys() == {"row", "fault", "status", "message", "attempts"}
    for words in (("--groups",), ("--json", "--groups")):
        _, out, _ = mixed("errors", "c.db", "--show", "1", *words)
        seen = json.loads(out)
        assert seen["rejected"] == 7
        first = seen["groups"][0]
        assert (first["fault"], first["rows"], first["statuses"], first["examples"]) == ("bad_request", 3, [400], [1])
        assert first["share"] == pytest.approx(3 / 7)
        assert first["commands"][-1] == "batchrun errors c.db --fault bad_request --export rejected.jsonl"


def test_a_job_without_rejections_says_so(cli: Cli, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", {"prompt": "good"})
    assert ran(cli, "in.jsonl", "--max-tokens", "400") == 0
    assert cli("errors", "c.db")[1] == "No row is rejected.\n"
    assert json.loads(cli("errors", "c.db", "--groups")[1]) == {"rejected": 0, "groups": [], "marked": []}


def refused(row: int, message: str, fault: Fault = Fault.BAD_REQUEST) -> Rejected:
    return Rejected(row, fault.value, 400, message, 1)


def words() -> list[str]:
    return ["".join(letters) for letters in product(string.ascii_lowercase[7:], repeat=3)]


def test_however_many_messages_there_are_so_many_kinds_are_told_apart_and_none_is_lost() -> None:
    grouping = Grouping(3)
    grouping.add(refused(number, f"no such thing as {word}") for number, word in enumerate(words()))
    grouping.add(refused(7000 + number, "late but known", Fault.TOO_LONG) for number in range(5))
    kinds = grouping.kinds()
    assert len(kinds) == MOST_KINDS + 2
    assert sum(kind.rows for kind in kinds) == len(words()) + 5
    assert (kinds[0].message, kinds[0].rows) == (OTHER, len(words()) - MOST_KINDS)
    assert next(kind.rows for kind in kinds if kind.fault is Fault.TOO_LONG) == 5
    page = text(kinds, {}, "c.db", None)
    assert page.count("no such thing as") == 9
    assert "of 191 more kinds" in page
    assert len(table(kinds, {}, "c.db", None)["groups"]) == len(kinds)  # type: ignore[arg-type]


def test_what_is_remembered_of_messages_is_bounded() -> None:
    grouping = Grouping(3)
    grouping.add(refused(number, f"value {number} is too much") for number in range(30_000))
    (kind,) = grouping.kinds()
    assert (kind.rows, kind.examples, kind.statuses) == (30_000, [0, 1, 2], [400])
    assert len(grouping._known) <= 10_000


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_its_advice_and_its_commands_can_be_pasted(fault: Fault, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "my job's.db")
    url = "https://my server.example"
    job = Job((str(tmp_path / "a b.jsonl"),), checkpoint, Asking(), base_url=url, key_env="MY_KEY", route=Route.BATCH)
    fix = fix_for(fault, checkpoint, job)
    assert fix.advice[-1] in ".:"
    assert bool(fix.commands) == (fix.advice[-1] == ":")
    for command in fix.commands:
        parts = shlex.split(command)
        assert parts[0] == "batchrun"
        if parts[1] in {"errors", "resume"}:
            assert checkpoint in parts
            assert parts.count("batchrun") == parts.count("&&") + 1
        if parts[1] == "models":
            assert parts[2:] == ["--base-url", url, "--key-env", "MY_KEY"]


@pytest.mark.parametrize("fault", [Fault.CUT_SHORT, Fault.INVALID_OUTPUT])
def test_a_job_in_batches_is_told_the_route_that_can_ask_again(fault: Fault) -> None:
    job = Job((), "c.db", Asking())
    (command,) = fix_for(fault, "c.db", msgspec.structs.replace(job, route=Route.BATCH)).commands
    assert command.startswith("batchrun resume c.db --route auto --on-")
    assert command.endswith(" retry"), "a count may be added"
    assert "--route" not in fix_for(fault, "c.db", job).commands[0]


def test_the_models_to_look_at_are_those_of_the_jobs_server() -> None:
    job = Job((), "c.db", Asking())
    for one, words in ((job, ""), (msgspec.structs.replace(job, simulate=True, base_url="http://x:1"), " --simulate")):
        assert fix_for(Fault.MODEL_MISSING, "c.db", one).commands[0] == f"batchrun models{words}"


@pytest.mark.parametrize("fault", [Fault.BAD_ROW, Fault.BAD_REQUEST])
def test_a_check_that_would_fail_good_rows_is_not_advised(fault: Fault) -> None:
    def checks(asking: Asking) -> list[str]:
        fix = fix_for(fault, "c.db", Job((str(Path("in.jsonl").absolute()),), "c.db", asking))
        assert bool(fix.commands) == (fix.advice[-1] == ":")
        return [command for command in fix.commands if command.startswith("batchrun check")]

    assert checks(Asking()) == ["batchrun check in.jsonl"]
    assert checks(Asking(endpoint=Endpoint.COMPLETIONS)) == ["batchrun check in.jsonl --endpoint completions"]
    assert checks(Asking(template="{{ a }}")) == []


# --- putting back ----------------------------------------------------------------------------------------------------


def left(checkpoint: str) -> dict[str, int]:
    with View(checkpoint) as view:
        return view.rejections_by_fault()


ALL = {"bad_request": 3, "too_long": 2, "bad_row": 2}


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (("--retry",), {"bad_row": 2}),
        (("--retry", "c.db"), {"bad_row": 2}),
        (("c.db", "--retry"), {"bad_row": 2}),
        (("--retry", "too_long", "c.db"), {"bad_request": 3, "bad_row": 2}),
        (("c.db", "--retry", "too_long"), {"bad_request": 3, "bad_row": 2}),
        (("c.db", "--retry=too_long"), {"bad_request": 3, "bad_row": 2}),
        (("c.db", "--retry", "--fault", "too_long"), {"bad_request": 3, "bad_row": 2}),
        (("--retry", "c.db", "--fault", "too_long"), {"bad_request": 3, "bad_row": 2}),
        (("c.db", "--retry", "too_long", "--fault", "too_long"), {"bad_request": 3, "bad_row": 2}),
        (("--retry", "bad_request"), {"too_long": 2, "bad_row": 2}),
        (("c.db", "--retry", "bad_row"), ALL),
        (("c.db", "--retry", "server"), ALL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_retry_puts_back_all_or_those_of_a_fault(
    mixed: Cli, tmp_path: Path, words: tuple[str, ...], rest: dict[str, int]
) -> None:
    if "c.db" not in words:  # the newest in checkpoints/ is meant
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "x.db").symlink_to(tmp_path / "c.db")
    code, out, err = mixed("errors", *words)
    assert (code, out) == (0, "")
    assert left("c.db") == rest
    back = sum(ALL.values()) - sum(rest.values())
    nothing = "Only lines of the input" if "bad_row" in words else "No row is rejected for server"
    assert err.startswith(f"{back} rows pending again." if back else nothing)


def test_putting_back_leaves_told_how_the_last_run_ended_and_writes_a_line_in_the_diary(mixed: Cli) -> None:
    connection = sqlite3.connect("c.db")
    with connection:
        connection.execute("update run set state = 'parked', reason = 'credits'")
    connection.close()
    before = json.loads(mixed("status", "c.db", "--json")[1])
    assert mixed("errors", "c.db", "--retry", "server")[0] == 0
    assert json.loads(mixed("status", "c.db", "--json")[1])["events"] == before["events"], "nothing was opened"
    assert mixed("errors", "c.db", "--retry", "too_long")[0] == 0
    after = json.loads(mixed("status", "c.db", "--json")[1])
    for name in ("state", "reason", "opened", "closed"):
        assert after[name] == before[name]
    assert (before["state"], before["reason"], after["pending"]) == ("parked", "credits", 2)
    assert (after["events"][-1]["kind"], after["events"][-1]["detail"]) == ("retry", "2 rows pending again (too_long)")


def test_without_a_rejected_row_there_is_none_to_put_back(cli: Cli, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", {"prompt": "good"})
    ran(cli, "in.jsonl")
    for words in (("--retry",), ("--retry", "bad_row"), ("--retry", "server")):
        assert cli("errors", "c.db", *words)[2] == "No row is rejected, so there is none to put back.\n"


def test_what_was_put_back_is_sent_by_the_next_run(mixed: Cli) -> None:
    _, out, _ = mixed("errors", "c.db", "--retry", "bad_request", "--json")
    assert json.loads(out) == {"rows": 3}
    Path("good.toml").write_text("[server]\nlatency = 0.0\nrefusal_latency = 0.0\n")
    code, _, err = mixed("resume", "c.db", "--script", "good.toml")
    assert code == 10, err
    assert left("c.db") == {"bad_row": 2, "too_long": 2}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("c.db", "--retry", "bad_luck"), "There is no fault 'bad_luck'."),
        (("--retry", "bad_luck"), "'bad_luck' is neither a fault nor a checkpoint"),
        (("--retry", "other.db", "c.db"), "There is no fault 'other.db'."),
        (("--retry", "in.jsonl", "c.db"), "There is no fault 'in.jsonl'."),
        (("c.db", "--retry", "server", "--fault", "too_long"), "are two faults"),
        (("c.db", "--retry", "cut_short"), "cut_short marks answers"),
        (("c.db", "--fault", "invalid_output"), "invalid_output marks answers"),
        (("c.db", "--fault", "bad_luck"), "There is no fault 'bad_luck'."),
        (("c.db", "--retry", "--export", "x.jsonl"), "--retry goes with neither"),
        (("c.db", "--export", "x.csv"), "neither .jsonl nor .parquet"),
        (("c.db", "--export", "no/x.jsonl"), "does not exist"),
        (("c.db", "--export", "in.jsonl"), "among the input files"),
        (("c.db", "--export", "x.parquet"), "Export them to a .jsonl file."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_changes_nothing_and_exits_2(mixed: Cli, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    before = (tmp_path / "in.jsonl").read_bytes()
    code, out, err = mixed("errors", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) <= 2
    assert left("c.db") == ALL
    assert (tmp_path / "in.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("x.*"))


# --- exporting -------------------------------------------------------------------------------------------------------


def test_exported_rows_are_the_lines_of_the_input_and_lines_that_cannot_be_read_are_named(
    mixed: Cli, tmp_path: Path
) -> None:
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines(keepends=True)
    code, out, err = mixed("errors", "c.db", "--export", "rejected.jsonl")
    assert (code, out) == (0, "")
    assert (tmp_path / "rejected.jsonl").read_bytes() == b"".join(lines[n] for n in (1, 2, 3, 5, 6, 7))
    said = "Wrote 6 rows to rejected.jsonl. 1 line that cannot be read is left out: in.jsonl:5"
    assert err.strip() == said
    code, out, err = mixed("errors", "c.db", "--fault", "too_long", "--export", "-")
    assert (code, err.strip()) == (0, "Wrote 2 rows.")
    assert out.encode() == lines[2] + lines[5]


def test_a_run_on_the_exported_lines_asks_for_the_very_same(cli: Cli, tmp_path: Path) -> None:
    odd = (
        '{"prompt": "BAD 1", "big": 123456789012345678901234567890, "small": 1e-7, "x": [1.0, null, {"a": 0}]}',
        '{"x": null, "prompt":"BAD \\u00e9\\ud83d\\ude00", "": 1, "state": "mine", "a b\\"c": true}',
        '{"body": {"messages": [{"role": "user", "content": "BAD 3", "name": null}], "seed": 9007199254740993}}',
        '{"messages": [{"role": "user", "content": "BAD 4"}], "prompt": "not this"}',
    )
    text = "\r\n".join(['{"prompt": "good"}', *odd[:2], "", odd[2], '{"prompt": "good too"}', odd[3]])
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    ran(cli, "in.jsonl", "--system", "Be brief.")
    assert len(digests("c.db", rejected=True)) == 4
    cli("errors", "c.db", "--export", "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == "".join(f"{line}\n" for line in odd)
    ran(cli, "again.jsonl", "--system", "Be brief.", checkpoint="again.db")
    assert digests("again.db") == digests("c.db", rejected=True)


def parquet_input(path: Path, numbers: range) -> pa.Table:
    """Rows 0, 3, 6, ... are refused; nulls in messages mean that the field is absent."""
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
    said = [f"{REFUSED} {n}" if n % 3 == 0 else f"good {n}" for n in numbers]
    rows = pa.table(
        {
            "messages": pa.array(
                [
                    [{"role": "user", "content": s, "name": None if n % 2 else "Ann"}]
                    for n, s in zip(numbers, said, strict=True)
                ],
                pa.list_(message),
            ),
            "at": pa.array([datetime(2026, 1, 1, n % 24, tzinfo=UTC) for n in numbers], pa.timestamp("ns", "UTC")),
            "label": pa.array([f"label {n % 4}" for n in numbers]).dictionary_encode(),
            "big": pa.array([2**63 + n for n in numbers], pa.uint64()),
            "odd name.": pa.array([None if n % 5 else b"\xff" for n in numbers], pa.binary()),
        }
    ).replace_schema_metadata({"mine": "kept"})
    pq.write_table(rows, path, row_group_size=7)
    return rows


def test_rows_of_parquet_are_exported_as_parquet_with_every_value_and_type(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tables = [parquet_input(tmp_path / "in" / f"{n}.parquet", range(n * 20, n * 20 + 20)) for n in range(3)]
    ran(cli, "in")
    code, _, err = cli("errors", "c.db", "--export", "again.parquet")
    assert (code, err.strip()) == (0, "Wrote 20 rows to again.parquet.")
    again, whole = pq.read_table("again.parquet"), pa.concat_tables(tables)
    assert again.schema.equals(pq.read_schema(tmp_path / "in" / "0.parquet"), check_metadata=True)
    assert again.to_pylist() == whole.take(list(range(0, 60, 3))).to_pylist()
    ran(cli, "again.parquet", checkpoint="again.db")
    assert digests("again.db") == digests("c.db", rejected=True)


def test_rows_of_parquet_exported_as_lines_ask_for_the_very_same(cli: Cli, tmp_path: Path) -> None:
    parquet_input(tmp_path / "in.parquet", range(12))
    ran(cli, "in.parquet")
    code, _, err = cli("errors", "c.db", "--export", "again.jsonl")
    assert (code, err.strip()) == (0, "Wrote 4 rows to again.jsonl.")
    ran(cli, "again.jsonl", checkpoint="again.db")
    assert digests("again.db") == digests("c.db", rejected=True)


def test_nulls_that_a_template_sees_stay_in_exported_lines(cli: Cli, tmp_path: Path) -> None:
    parquet_input(tmp_path / "in.parquet", range(12))
    (tmp_path / "t.j2").write_text("{{ messages[0].content }} {{ messages[0].name is none }}")
    ran(cli, "in.parquet", "--template", "t.j2")
    cli("errors", "c.db", "--export", "again.jsonl")
    ran(cli, "again.jsonl", "--template", "t.j2", checkpoint="again.db")
    assert len(digests("again.db")) == 4
    assert digests("again.db") == digests("c.db", rejected=True)


def test_more_rows_than_are_read_at_once_keep_their_order(cli: Cli, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", *({"id": n} for n in range(4500)), {"prompt": "good"})
    ran(cli, "in.jsonl")
    cli("errors", "c.db", "--export", "again.jsonl")
    lines = (tmp_path / "again.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(4500))


def test_without_such_rows_nothing_is_written_and_an_earlier_file_stays(mixed: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("earlier")
    code, out, err = mixed("errors", "c.db", "--fault", "server", "--export", "x.jsonl")
    assert (code, out) == (0, "")
    assert err.startswith("There is no such row, so nothing was written.")
    assert (tmp_path / "x.jsonl").read_text() == "earlier"


def test_an_input_that_has_changed_is_not_exported_from(mixed: Cli, tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    code, out, err = mixed("errors", "c.db", "--export", "x.jsonl")
    assert (code, out) == (2, "")
    assert "The input has changed since it was read" in err
    assert not (tmp_path / "x.jsonl").exists()


def test_all_marks_are_told_apart_from_rejections() -> None:
    assert {Fault.CUT_SHORT, Fault.FILTERED, Fault.INVALID_OUTPUT} == set(MARKS)
