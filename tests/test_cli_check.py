"""`batchrun check` as its users meet it: exit code, table, the first problems and the count of the rest, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batchrun.cli.main import main
from batchrun.faces import check as face
from batchrun.files.check import Kind, Problem, Report, Warned

SAMPLES = Path(__file__).parent.parent / "samples"

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Run `batchrun check` in the test's folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["batchrun", "check", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


def write(name: str, *lines: str) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def test_good_files_exit_0_with_a_table_and_nothing_else(check: Check) -> None:
    code, out, err = check(str(SAMPLES / "batch.jsonl"), str(SAMPLES / "prompts.jsonl"), "--as", "prompts", "-m", "a/b")
    assert (code, err) == (0, "")
    head, batch, prompts = out.splitlines()
    assert head.split() == ["file", "what", "it", "is", "rows", "size", "model", "result"]
    assert "prompts" in batch
    assert " 7.8 kB  meta-llama/Llama-3.3-70B-Instruct-Turbo  passed" in batch
    assert "a/b" in prompts
    assert " 200  " in prompts


def test_bad_lines_exit_2_and_each_is_told_with_its_place(check: Check) -> None:
    write("b.jsonl", '{"custom_id":"a","body":{}}', "", '{"custom_id":"a","body":{"model":"m","messages":[]}}')
    write("p.jsonl", '{"prompt":"good"}')
    code, out, err = check("p.jsonl", "b.jsonl")
    assert code == 2
    assert out.splitlines()[1:3] == [
        "b.jsonl:1: the body names no model",
        "b.jsonl:3: `custom_id` is that of line 1; each must be unique; a blank line stands before it",
    ]
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["p.jsonl", "b.jsonl"]
    assert out.splitlines()[-2].endswith("passed")
    assert out.splitlines()[-1].endswith("2 problems")
    assert err.splitlines() == [
        "Error: 1 of 2 files did not pass the check.",
        "Batch lines were checked for being uploaded as they are; `batchrun run` asks for less: --as prompts.",
    ]


def test_the_first_20_problems_are_told_and_the_rest_counted_unless_all_are_wanted(check: Check) -> None:
    write("t.jsonl", *(f'{{"text": {number}}}' if number % 2 else "{" for number in range(50)))
    code, out, _ = check("t.jsonl", "--as", "fine-tune")
    assert code == 2
    assert out.splitlines()[19] == "t.jsonl:20: `text` is a number, not a string"
    assert out.splitlines()[20] == "t.jsonl: 30 more problems; --all lists them"
    code, out, _ = check("t.jsonl", "--as", "fine-tune", "--all")
    assert code == 2
    assert [line.partition(": ")[0] for line in out.splitlines()[:50]] == [f"t.jsonl:{n}" for n in range(1, 51)]
    assert "more" not in out


def test_many_lines_with_one_problem_take_two_lines(check: Check) -> None:
    write("t.jsonl", *['{"prompt": "p"}'] * 100)
    code, out, _ = check("t.jsonl", "--as", "fine-tune")
    assert code == 2
    assert out.splitlines()[:2] == [
        "t.jsonl:1: has `prompt`, but no `completion` (and so on: the first 20 problems all say this)",
        "t.jsonl: 99 more problems; --all lists them",
    ]


def test_json_is_one_object_whatever_is_found(check: Check, tmp_path: Path) -> None:
    write("t.jsonl", *['{"prompt": "p"}'] * 30)
    write("u.jsonl", '{"text": "t", "id": 1}')
    code, out, err = check("t.jsonl", "none.jsonl", "u.jsonl", "--as", "fine-tune", "--json")
    assert (code, err) == (2, "Error: 2 of 3 files did not pass the check.\n")
    told = json.loads(out)
    assert told["is_check_passed"] is False
    first, missing, last = told["files"]
    assert first["file"] == str(tmp_path / "t.jsonl")
    assert first["problems"] == [{"line": line, "reason": "has `prompt`, but no `completion`"} for line in range(1, 21)]
    assert (first["more_problems"], first["num_samples"], first["file_size"]) == (10, 30, 480)
    assert (first["as"], first["is_check_passed"]) == ("fine-tune", False)
    assert (missing["as"], missing["file_size"], missing["problems"][0]["line"]) == (None, None, None)
    assert (last["is_check_passed"], last["format"], last["problems"]) == (True, "generic text", [])
    assert [(warned["rows"], warned["line"]) for warned in last["warnings"]] == [(1, 1)]
    code, out, err = check("t.jsonl", "--as", "fine-tune", "--json", "--all")
    assert len(json.loads(out)["files"][0]["problems"]) == 30
    code, out, err = check("u.jsonl", "--as", "fine-tune", "--json")
    assert (code, json.loads(out)["is_check_passed"], err) == (0, True, "")


def test_options_of_a_request_make_batch_lines_rows_for_run(check: Check) -> None:
    write("b.jsonl", '{"custom_id":"a","body":{"messages":[{"role":"user","content":"x"}]}}')
    assert check("b.jsonl")[0] == 2
    assert check("b.jsonl", "-m", "a/b")[0] == 0
    code, out, err = check("b.jsonl", "--as", "batch", "-m", "a/b")
    assert (code, out) == (2, "")
    assert err.startswith("Error: -m and the other options of a request belong to prompts.")


def test_a_template_is_checked_against_the_columns(check: Check) -> None:
    Path("t.j2").write_text("{{ question }}")
    write("p.jsonl", '{"question":"q"}', '{"other":"q"}')
    code, out, _ = check("p.jsonl", "-m", "a/b", "--template", "t.j2")
    assert code == 2
    assert out.startswith("p.jsonl:2: ")


def test_parameters_that_cannot_be_sent_stop_before_any_file_is_read(check: Check) -> None:
    write("p.jsonl", '{"prompt":"q"}')
    code, out, err = check("p.jsonl", "--max-tokens", "0")
    assert (code, out) == (2, "")
    assert "max_tokens" in err


def test_a_reader_that_leaves_early_is_no_internal_error(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{\n" * 50_000)
    command = [sys.executable, "-m", "batchrun", "check", "t.jsonl", "--all"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"t.jsonl:1: not valid JSON: the line ends too soon\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 141


def test_a_pipe_is_refused_and_not_waited_for(check: Check) -> None:
    os.mkfifo("p.jsonl")
    code, out, _ = check("p.jsonl")
    assert code == 2
    assert out.startswith("p.jsonl: is not a regular file.")
    reading, writing = os.pipe()
    try:
        code, out, _ = check(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    assert code == 2
    assert "is not a regular file." in out


@pytest.mark.parametrize(
    ("report", "row"),
    [
        (Report("a.jsonl", Kind.PROMPTS, "", 1, 999, ("m",)), "a.jsonl  prompts        1  999 B  m      passed"),
        (
            Report("a.jsonl", Kind.FINE_TUNE, "preference", 12345, 1_500_000_000, problems=1),
            "a.jsonl  fine-tuning: preference  12,345  1.5 GB  -      1 problem",
        ),
        (
            Report("a.jsonl", Kind.PROMPTS, "", 2, 1000, ("evil\x1b[2J", "b", "c")),
            "a.jsonl  prompts        2  1.0 kB  evil?[2J and 2 more  passed",
        ),
        (Report("a.jsonl", problems=1), "a.jsonl  unknown                 -      1 problem"),
    ],
)
def test_the_table_says_what_a_file_is(report: Report, row: str) -> None:
    said: list[str] = []
    face.Text(said.append, 20).close([report])
    assert said[-1] == row


def test_warnings_name_the_first_line_and_count_the_rows_except_those_of_the_whole_file() -> None:
    said: list[str] = []
    text = face.Text(said.append, 2)
    text.begin(os.path.abspath("a.jsonl"))
    text.end(Report("a.jsonl", warnings=(Warned("odd", 3, 7), Warned("odder", 1, None))))
    assert said == ["a.jsonl:7: warning: odd (3 rows)", "a.jsonl: warning: odder"]


def test_one_more_problem_is_told_in_the_singular() -> None:
    said: list[str] = []
    text = face.Text(said.append, 2)
    text.begin(os.path.abspath("a.parquet"))
    for line in (1, 2, 3):
        text.problem(Problem(line, f"reason {line}"))
    text.end(Report("a.parquet", problems=3))
    assert said == [
        "a.parquet row 1: reason 1",
        "a.parquet row 2: reason 2",
        "a.parquet: 1 more problem; --all lists them",
    ]
