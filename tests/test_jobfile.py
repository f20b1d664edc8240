"""Job files: every option a key, what is typed above it, paths from its own folder, and no value in any message."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from batchrun.cli import jobfile
from batchrun.cli.main import batchrun
from batchrun.cli.run import run
from batchrun.cli.words import newest_checkpoint
from batchrun.errors import UsageError
from batchrun.job import Job
from batchrun.records import Price

MODEL = "openai/gpt-oss-20b"
KEYS = jobfile.keys(run)
SECRET = "xq-7-from-the-environment"

Told = tuple[Job, dict[str, Any]]
Parsed = Callable[..., Told]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with an input and a file that serves as template, schema and all else."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHER_API_KEY_FILE", "TOGETHER_BASE_URL", "BATCHRUN_NOTIFY", "NO_SUCH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    (tmp_path / "file.txt").write_text("{}")
    monkeypatch.setenv("BATCHRUN_LOG", "none")  # words for people, as on a terminal
    return tmp_path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """What `run` would start with these words: the job and the options, or the error."""

    def parse(*words: str) -> Told:
        told: list[tuple[Any, ...]] = []
        monkeypatch.setattr("batchrun.cli.run._start", lambda *all_words: told.append(all_words))
        done = CliRunner().invoke(batchrun, ["run", *words], catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        job, given = told[0][:2]
        return job, dict(given)

    return parse


@pytest.fixture
def cli(command_line: Cli) -> Cli:
    """The command line as it stands; returns exit code, standard output and standard error."""

    return command_line


def write(text: str, name: str = "job.toml", *, needed: bool = True) -> str:
    """A job file; with what every job needs, unless the test is about that."""
    own = f'input = "in.jsonl"\nmodel = "{MODEL}"\n' if needed else ""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(own + text, encoding="utf-8")
    return name


# Every option, found in the command itself: a new one is tried without a word here.

_TEXTS = {
    "URL": "https://example.org/hook", "TIME": "2030-01-02", "N|P%": "3%", "USD": "12", "NAME": "SOME_KEY",
    "KEY=JSON": 'seed=[7, "x"]', "MODEL=IN/OUT": "some/model=0.5/1.5", "MODEL=F": "some/model=0.5", "HOW": "keep",
}  # fmt: skip


def word(key: str) -> str | None:
    """Something the option takes, as typed; None for a flag."""
    option = KEYS[key]
    assert isinstance(option, click.Option)
    kind, metavar = option.type, option.metavar or ""
    if option.is_flag:
        return None
    if isinstance(kind, click.Choice):
        return str(kind.choices[1])
    if isinstance(kind, type(click.INT)):
        return "7"
    if isinstance(kind, type(click.FLOAT)):
        return "40.5"
    if metavar.startswith("FILE"):
        return "new.jsonl" if key in {"checkpoint", "output"} else "file.txt"
    return "truncate:head" if key == "on-too-long" else _TEXTS.get(metavar, "some/text")


def toml(key: str) -> str:
    typed = word(key)
    if typed is None:
        return f"{key} = true"
    number = isinstance(KEYS[key].type, type(click.INT) | type(click.FLOAT))
    return f"{key} = {typed if number else json.dumps(typed)}"


OPTIONS = sorted(KEYS.keys() - {"input"})


def plain(given: dict[str, Any]) -> dict[str, Any]:
    """Paths as they are after the command line made them absolute."""
    paths = {str(option.name) for option in KEYS.values() if (option.metavar or "").startswith("FILE")}
    return {
        name: os.path.abspath(value) if name in paths and value is not None else value for name, value in given.items()
    }


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_means_the_same_in_a_file_as_when_it_is_typed(
    key: str, parsed: Parsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "any")
    typed = word(key)
    always = () if key in {"checkpoint", "model"} else ("--checkpoint", "c.db", "-m", MODEL)
    job, given = parsed("in.jsonl", *always, f"--{key}", *([] if typed is None else [typed]))
    write(f'input = "in.jsonl"\n{toml(key)}\n', needed=False)
    again, read = parsed("--job", "job.toml", *always)
    if key == "model":
        again = job = job.__class__(inputs=job.inputs, checkpoint="", asking=again.asking)
        assert again.asking.model == "some/text"
        given["checkpoint"] = read["checkpoint"] = None
    assert again == job
    assert plain(read) == plain(given)
    write(f'input = "in.jsonl"\n{toml(key).replace("-", "_", key.count("-"))}\n', needed=False)
    assert plain(parsed("--job", "job.toml", *always)[1])[str(KEYS[key].name)] == plain(given)[str(KEYS[key].name)]


@pytest.mark.parametrize("command", ["plan", "preview"])
@pytest.mark.parametrize("key", OPTIONS)
def test_one_file_serves_run_plan_and_preview(
    key: str, command: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "any")
    write("simulate = true\n" * (key != "simulate") + 'input = "in.jsonl"\n' + toml(key), needed=False)
    code, out, err = cli(command, "--job", "job.toml", *(() if key == "model" else ("-m", MODEL)))
    assert (code, err) == (0, "")
    assert out


def test_what_only_run_takes_needs_no_variable_under_plan_and_preview(cli: Cli) -> None:
    write('simulate = true\nnotify = "${NO_SUCH}"')
    assert cli("plan", "--job", "job.toml")[0] == 0
    assert cli("preview", "--job", "job.toml")[0] == 0
    code, _, err = cli("run", "--job", "job.toml")
    assert (code, "notify refers to ${NO_SUCH}" in err) == (2, True)


@pytest.mark.parametrize("key", OPTIONS)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key_alone(key: str, parsed: Parsed) -> None:
    option = KEYS[key]
    for wrong in ("[[1], [2]]", "{ inner = [true, { deep = 1 }] }"):
        if (option.metavar, wrong[0]) == ("KEY=JSON", "{"):
            continue
        write(f'input = "in.jsonl"\n{key} = {wrong}\n', needed=False)
        with pytest.raises(UsageError, match=rf"^job\.toml: (\[{key}\] inner|{key}) takes .+, not a (list|table)\.$"):
            parsed("--job", "job.toml")
    is_text = isinstance(option.type, type(click.STRING))
    if not is_text or (isinstance(option, click.Option) and option.is_flag):
        write(f'input = "in.jsonl"\n{key} = "five and {SECRET}"\n', needed=False)
        with pytest.raises(UsageError, match=rf"^job\.toml: {key} takes ") as refused:
            parsed("--job", "job.toml")
        assert "five" not in refused.value.message + refused.value.next_step


@pytest.mark.parametrize("key", [key for key in OPTIONS if not (KEYS[key].metavar or "").startswith("FILE")])
def test_what_a_variable_holds_is_in_no_message(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", SECRET)
    monkeypatch.setattr("batchrun.cli.run._start", lambda *_words: None)
    for text in ('"${HIDDEN}"', '"x${HIDDEN}=${HIDDEN}"', '["${HIDDEN}"]', '{ "a" = "${HIDDEN}" }'):
        write(f'input = "in.jsonl"\n{key} = {text}\n', needed=False)
        told = CliRunner().invoke(batchrun, ["run", "--job", "job.toml"])
        error = told.exception if isinstance(told.exception, UsageError) else UsageError("")
        assert SECRET not in told.output + error.message + error.next_step


def test_every_option_that_is_a_path_is_found_as_one() -> None:
    """A job file's paths start at its own folder, and its reader knows them by the metavar FILE."""
    paths = {key for key, option in KEYS.items() if (option.metavar or "").startswith("FILE")}
    assert paths >= {"output", "template", "schema", "script", "checkpoint"}
    named = {key for key in OPTIONS if "file" in key}
    assert named <= paths


# Good files, as sentences.

GOOD = {
    "a parameter may stand in a table": ("[param]\ntop_p = 0.9", {"param": ("top_p=0.9",)}),
    "a parameter may be a word": ('param = "top_p=0.9"', {"param": ("top_p=0.9",)}),
    "parameters may be words": ('param = ["top_p=0.9", "seed=1"]', {"param": ("top_p=0.9", "seed=1")}),
    "a parameter may be any JSON": (
        '[param]\nstop = ["END", "\\n"]\nlogprobs = true\nresponse_format.type = "text"',
        {"param": ('stop=["END","\\n"]', "logprobs=true", 'response_format={"type":"text"}')},
    ),
    "a parameter that is a text stays a text": ('[param]\nuser = "7"', {"param": ('user="7"',)}),
    "a table may set what an option sets as well": (
        "[param]\nmax_tokens = 9\ntemperature = 0",
        {"param": ("max_tokens=9", "temperature=0")},
    ),
    "a price may be a text": ('[price]\n"my/model" = "0.05/0.20"', {"price": ("my/model=0.05/0.20",)}),
    "a price may be amounts": ('[price]\n"my/model" = [0.05, 0.2, 1]', {"price": ("my/model=0.05/0.2/1",)}),
    "a discount may stand in a table": ("[batch-discount]\nm = 0.5", {"batch_discount": ("m=0.5",)}),
    "one fallback is a text": ('fallback = "a"', {"fallback": ("a",)}),
    "several fallbacks are a list": ('fallback = ["a", "b"]', {"fallback": ("a", "b")}),
    "a flag may be off": ("simulate = false", {"simulate": False}),
    "a whole number does for money": ("max-cost = 5", {"max_cost": 5.0}),
    "an underscore is a dash": ("max_cost = 5", {"max_cost": 5.0}),
    "a number does where a word is typed": ("max-rejected = 20", {"max_rejected": "20"}),
    "a time of TOML is a deadline": ("deadline = 06:30:00", {"deadline": "06:30:00"}),
    "a date of TOML is a deadline": ("deadline = 2030-12-24", {"deadline": "2030-12-24"}),
    "a moment of TOML is a deadline": ("deadline = 2030-12-24 06:30:00", {"deadline": "2030-12-24T06:30:00"}),
    "a variable stands in": ('system = "Be ${TONE}."', {"system": "Be kind."}),
    "a default stands in for a missing variable": ('system = "${NO_SUCH:-calm} $$5"', {"system": "calm $5"}),
    "a default stands in for an empty variable": ('system = "${EMPTY:-calm}"', {"system": "calm"}),
    "a default may be nothing": ('system = "x${NO_SUCH:-}"', {"system": "x"}),
    "an empty variable is an empty text": ('system = "x${EMPTY}"', {"system": "x"}),
    "a variable may be a number": ('max-cost = "${BUDGET}"', {"max_cost": 2.5}),
    "a default may be a number": ('max-tokens = "${NO_SUCH:-5}"', {"max_tokens": 5}),
    "a variable may be a flag": ('simulate = "${NO_SUCH:-true}"', {"simulate": True}),
    "a variable may be in a table": ('[param]\nuser = "${TONE}"', {"param": ('user="kind"',)}),
    "no name of a variable stands in for a key": ('[param]\n"${TONE}" = 1', {"param": ("${TONE}=1",)}),
    "two dollars are one, whatever follows": ('system = "$${TONE} $$$${TONE}"', {"system": "${TONE} $${TONE}"}),
    "a mark at the front does not matter": ("\ufeffmax-cost = 5", {"max_cost": 5.0}),
    "lines may end as on Windows": ("max-cost = 5\r\nmax-tokens = 9\r\n", {"max_cost": 5.0, "max_tokens": 9}),
}


@pytest.mark.parametrize("sentence", GOOD)
def test_a_job_file_is_read(sentence: str, parsed: Parsed, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = GOOD[sentence]
    for name, value in {"TONE": "kind", "EMPTY": "", "BUDGET": "2.5"}.items():
        monkeypatch.setenv(name, value)
    write(text, needed=False)
    _, given = parsed("in.jsonl", "--job", "job.toml", "-m", MODEL)
    assert {name: given[name] for name in expected} == expected


def test_amounts_become_prices_and_discounts(parsed: Parsed) -> None:
    write('[price]\n"my/model" = [0.05, 0.20, 0.01]\n"0/1" = "1/2"\n[batch-discount]\n"my/model" = 0.5')
    job, _ = parsed("--job", "job.toml")
    assert job.prices == {"my/model": Price(50, 200, 10), "0/1": Price(1000, 2000)}
    assert job.discounts == {"my/model": 0.5}


# Bad files, as sentences.

_HOW = r"Set NO_SUCH, or write \$\{NO_SUCH:-default\}\."
_KEY_LIVES = "It comes from TOGETHER_API_KEY, from the file that TOGETHER_API_KEY_FILE names, or .* `key-env`"

BAD = {
    "a slip is told its neighbour": ("max-costs = 5", "unknown key 'max-costs'; did you mean 'max-cost'?", ""),
    "an underscore is no other slip": ("max_costs = 5", "unknown key 'max_costs'; did you mean 'max-cost'?", ""),
    "capitals are a slip": ("Model = 'x'", "unknown key 'Model'; did you mean 'model'?", ""),
    "a short option is told its long name": ("m = 'x'", "unknown key 'm'; did you mean 'model'?", ""),
    "inputs is nearly input": ("inputs = 'x'", "unknown key 'inputs'; did you mean 'input'?", ""),
    "what is like nothing is told where the keys are": ("zzz = 5", "unknown key 'zzz'.", "--help"),
    "a table around it all is unknown": ("[job-of-the-night]\nmax-cost = 5", "unknown key 'job-of-the-night'.", ""),
    "a key of forty signs is repeated": (f"{'z' * 40} = 5", f"unknown key '{'z' * 40}'.", "--help"),
    "a longer one may be a secret": (f"{SECRET.ljust(41, 'z')} = 5", "there is a key that is none.", "--help"),
    "so may an address be": (f'"https://hooks.example/{SECRET}" = 5', "there is a key that is none.", "--help"),
    "no key commands a terminal": ('"\\u001b[2J" = 5', "there is a key that is none.", ""),
    "a job names no job": ("job = 'x'", "a job file cannot name another.", "--job FILE.toml"),
    "a key is told where keys live": ("api-key = 'x'", "an API key has no place in a job file.", _KEY_LIVES),
    "so is a token": ("token = 'x'", "an API key has no place in a job file.", _KEY_LIVES),
    "so is the variable's name": ("TOGETHER_API_KEY = 'x'", "an API key has no place in a job file.", _KEY_LIVES),
    "nor may the key be referred to": ("system = '${TOGETHER_API_KEY}'", "an API key has no place in a job file.", ""),
    "by whatever name": ("key-env = 'ABC'\nsystem = '${ABC}'", "an API key has no place in a job file.", ""),
    "both spellings at once": ("max-cost = 5\nmax_cost = 6", "max-cost is there twice, once with _ and once", ""),
    "text for money": ("max-cost = 'five'", "max-cost takes a number, not this text.", ""),
    "true for money": ("max-cost = true", "max-cost takes a number, not true or false.", ""),
    "a date for money": ("max-cost = 2030-01-01", "max-cost takes a number, not a date or time.", ""),
    "part of a token": ("max-tokens = 1.5", "max-tokens takes a whole number, not a number.", ""),
    "a number for a flag": ("simulate = 1", "simulate takes true or false, not a number.", ""),
    "text for a flag": ("simulate = 'maybe'", "simulate takes true or false, not this text.", ""),
    "a route that is none": ("route = 'fast'", "route takes auto, live or batch.", ""),
    "a list for a text": ("model = ['a']", "model takes text, not a list.", ""),
    "numbers for words": ("fallback = [1]", "fallback takes text or a list of texts, not a list.", ""),
    "a table for words": ("[fallback]\na = 1", "fallback takes text or a list of texts, not a table.", ""),
    "a number for a parameter": ("param = 5", "param takes text, a list of texts, or a table, not a number.", ""),
    "a date for a parameter": ("[param]\nday = 2030-01-01", "[param] day is nothing that JSON can hold.", ""),
    "infinity for a parameter": ("[param]\ntop_p = [inf]", "[param] top_p is nothing that JSON can hold.", ""),
    "a parameter beyond measure": (f"[param]\nseed = {2**63}", "[param] seed is nothing that JSON can hold.", ""),
    "a parameter with an equals sign": ('[param]\n"a=b" = 1', "[param] a=b is nothing that JSON can hold.", ""),
    "true for a price": ("[price]\nm = true", "[price] m takes IN/OUT, not true or false.", ""),
    "a name with a dot and no quotes": ("[price]\nqwen3.5 = '1/2'", "[price] qwen3: a name with a dot in it needs", ""),
    "an option below a table": (
        "[param]\ntop_p = 1\nmax-cost = 5",
        "max-cost stands below [param], and so belongs to that table.",
        r"Move it above the first \[table\]",
    ),
    "a limit among the discounts": ("[batch-discount]\nrpm = 0.5", "rpm stands below [batch-discount]", ""),
    "a variable that is not set": ("system = '${NO_SUCH}'", "system refers to ${NO_SUCH}, and there is no such", _HOW),
    "one in a list": ("fallback = ['${NO_SUCH}']", "fallback refers to ${NO_SUCH}, and there is no", _HOW),
    "a dollar alone": ("system = 'a $5 bill'", "system holds a $ that begins no ${NAME}", r"Write \$\$ for a dollar"),
    "a reference without braces": ("system = '$HOME'", "system holds a $ that begins no ${NAME}", ""),
    "a reference in a reference": ("system = '${NO_SUCH:-${HOME}}'", "system holds a $ that begins no ${NAME}", ""),
    "a reference without end": ("system = '${HOME'", "system holds a $ that begins no ${NAME}", ""),
    "a null character": ('output = "a\\u0000b"', "output holds a null character.", ""),
    "an output without a name": ("output = ''", "output is empty.", ""),
    "no input": ("input = []", "it names no input.", "Add `input`, or name INPUT on the command line."),
    "an input without a name": ("input = ['in.jsonl', '']", "input is empty.", ""),
    "a number as input": ("input = 5", "input takes text or a list of texts, not a number.", ""),
    "a broken line": ("model = 'a'\nmax-cost = five", ", line 2: Invalid value.", ""),
    "a file that ends too soon": ("fallback = ['a'", ": Unclosed array at its end.", ""),
    "a key twice": ("rpm = 5\nrpm = 6\ntpm = 7", ", line 2: Cannot overwrite a value.", ""),
    "a number beyond measure": (f"rpm = {'9' * 5000}", "a number or a list in it is beyond measure.", ""),
    "lists without end": (f"rpm = {'[' * 9000}", "a number or a list in it is beyond measure.", ""),
}  # fmt: skip


@pytest.mark.parametrize("sentence", BAD)
def test_a_bad_job_file_is_refused_in_a_line(sentence: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message, next_step = BAD[sentence]
    monkeypatch.setenv("ABC", SECRET)
    monkeypatch.setenv("TOGETHER_API_KEY", SECRET)
    words = ("run", "--job", write(text, needed=False)) + (() if "input" in text else ("in.jsonl",))
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    first, *more = err.splitlines()
    assert first.startswith("Error: job.toml")
    assert message in first
    assert len(more) <= 1
    assert re.search(next_step, err)
    assert SECRET not in err
    assert not Path("checkpoints").exists()


def test_what_is_no_job_file_is_refused_in_a_line_or_two(cli: Cli, folder: Path) -> None:
    (folder / "folder.toml").mkdir()
    (folder / "latin.toml").write_bytes("system = 'é'".encode("latin-1"))
    (folder / "large.toml").write_bytes(b"#" * 1_000_001)
    os.mkfifo(folder / "pipe.toml")
    for name, reason in {
        "none.toml": "cannot be read: No such file or directory.",
        "folder.toml": "cannot be read: it is a folder.",
        "pipe.toml": "cannot be read: it is not a file.",
        "latin.toml": "latin.toml is not UTF-8 text.",
        "large.toml": "large.toml is too large for a job file.",
        "in.jsonl/x.toml": "cannot be read: Not a directory.",
    }.items():
        for words in (("run", "--job", name), ("status", name)):
            code, _, err = cli(*words)
            assert (code, reason in err, len(err.splitlines()) <= 2) == (2, True, True), err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_job_file_that_may_not_be_read_is_refused(cli: Cli, folder: Path) -> None:
    (folder / write("")).chmod(0)
    code, _, err = cli("run", "--job", "job.toml")
    assert (code, err) == (2, "Error: The job file job.toml cannot be read: Permission denied.\n")


def test_without_input_and_without_a_job_file_the_usage_is_shown(cli: Cli) -> None:
    code, _, err = cli("run")
    assert code == 2
    assert err.endswith("Error: Missing argument 'INPUT...'.\n")


# What wins.


def test_what_is_typed_wins_over_the_file_and_the_file_over_the_default(parsed: Parsed) -> None:
    write('max-cost = 5\nprogress = "json"\n[param]\ntop_p = 0.9\nseed = 1')
    assert parsed("--job", "job.toml")[1]["max_cost"] == 5
    assert parsed("--max-cost", "7", "--job", "job.toml")[1]["max_cost"] == 7
    assert parsed("--job", "job.toml", "--max-cost", "7")[1]["max_cost"] == 7
    assert parsed("--job", "job.toml")[1]["progress"] == "json"
    assert parsed("in.jsonl", "-m", MODEL)[1]["progress"] == "auto"
    assert parsed("--job", "job.toml", "--param", "top_p=1")[1]["param"] == ("top_p=1",)  # the option as a whole
    assert parsed("--job", "job.toml", "-m", "other/model")[0].asking.model == "other/model"


def test_the_file_wins_over_the_environment(parsed: Parsed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_BASE_URL", "https://one.example")
    write("")
    assert parsed("--job", "job.toml")[0].base_url == "https://one.example"
    write('base-url = "https://two.example"')
    assert parsed("--job", "job.toml")[0].base_url == "https://two.example"


def test_the_file_wins_over_a_variable_that_click_reads(parsed: Parsed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KEYS["max-cost"], "envvar", "A_LIMIT")
    monkeypatch.setenv("A_LIMIT", "3")
    assert parsed("in.jsonl", "-m", MODEL)[1]["max_cost"] == 3
    write("max-cost = 5")
    assert parsed("--job", "job.toml")[1]["max_cost"] == 5
    assert parsed("--job", "job.toml", "--max-cost", "7")[1]["max_cost"] == 7


def test_input_on_the_command_line_wins(parsed: Parsed, folder: Path) -> None:
    write('{"prompt": "three"}', "other.jsonl", needed=False)
    write("")
    assert parsed("--job", "job.toml")[0].inputs == (str(folder / "in.jsonl"),)
    assert parsed("other.jsonl", "--job", "job.toml")[0].inputs == (str(folder / "other.jsonl"),)


# Paths and checkpoints.


def test_paths_start_at_the_folder_of_the_file(parsed: Parsed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DAY", "monday")
    write("hello", "jobs/t.j2", needed=False)
    write(
        'input = ["in/*.jsonl", "../${DAY}.jsonl", "~/x.jsonl", "/abs.jsonl"]\noutput = "out/a.jsonl"\n'
        'template = "t.j2"\nscript = "s.toml"\n',
        "jobs/night.toml", needed=False,
    )  # fmt: skip
    for here, name in ((folder, "jobs/night.toml"), (folder / "jobs", "./night.toml"), (Path("/"), None)):
        monkeypatch.chdir(here)
        job, given = parsed("--job", name or str(folder / "jobs/night.toml"), "-m", MODEL)
        assert job.inputs == (
            str(folder / "jobs/in/*.jsonl"), str(folder / "monday.jsonl"), "/home/somebody/x.jsonl", "/abs.jsonl",
        )  # fmt: skip
        assert job.output == str(folder / "jobs/out/a.jsonl")
        assert job.asking.template == "hello"
        assert given["script"] == str(folder / "jobs/s.toml")
        assert job.checkpoint == str(folder / "jobs/checkpoints/night.db")


def test_a_path_that_is_typed_starts_at_the_current_folder(parsed: Parsed, folder: Path) -> None:
    write('output = "o.jsonl"\ncheckpoint = "c.db"', "jobs/night.toml")
    job, _ = parsed("--job", "jobs/night.toml", "--checkpoint", "d.db", "-o", "p.jsonl", "in.jsonl")
    assert (job.checkpoint, job.output, job.inputs) == (
        str(folder / "d.db"), str(folder / "p.jsonl"), (str(folder / "in.jsonl"),),
    )  # fmt: skip
    assert parsed("--job", "jobs/night.toml")[0].checkpoint == str(folder / "jobs/c.db")


def test_the_checkpoint_is_named_after_the_job_unless_another_input_is_typed(parsed: Parsed, folder: Path) -> None:
    write("", "jobs/night.v2.toml")
    own, name = str(folder / "jobs/checkpoints/night.v2.db"), "jobs/night.v2.toml"
    assert parsed("--job", name)[0].checkpoint == own
    assert parsed("--job", name, "--simulate")[0].checkpoint == own.replace(".db", ".sim.db")
    assert parsed("--job", name, "jobs/../jobs/in.jsonl")[0].checkpoint == own  # the same input, by another spelling
    by_input = parsed("in.jsonl", "-m", MODEL)[0].checkpoint
    assert parsed("--job", name, "in.jsonl")[0].checkpoint == by_input
    with pytest.raises(UsageError, match="Several inputs need a checkpoint by name"):
        parsed("--job", name, "in.jsonl", "file.txt")
    write(f'model = "{MODEL}"', "jobs/any.toml", needed=False)
    assert parsed("--job", "jobs/any.toml", "in.jsonl")[0].checkpoint == by_input


def test_a_link_to_the_folder_is_the_same_job_and_a_link_to_the_file_is_a_file_there(
    parsed: Parsed, folder: Path
) -> None:
    write("", "jobs/night.toml")
    (folder / "link").symlink_to("jobs")
    assert parsed("--job", "link/night.toml")[0].checkpoint == str(folder / "jobs/checkpoints/night.db")
    (folder / "data").mkdir()
    (folder / "data/night.toml").symlink_to("../jobs/night.toml")  # as Kubernetes mounts a ConfigMap
    assert parsed("--job", "data/night.toml")[0].checkpoint == str(folder / "data/checkpoints/night.db")


def test_commands_on_a_checkpoint_take_the_name_of_its_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(text: str) -> str:
        return str(Path(newest_checkpoint(write(text, "jobs/n.toml"))).relative_to(folder / "jobs"))

    assert found('system = "${NO_SUCH}"') == "checkpoints/n.db"  # other variables are not needed
    assert found("simulate = true") == "checkpoints/n.sim.db"
    assert found('checkpoint = "c.db"\nsimulate = "${NO_SUCH}"') == "c.db"
    monkeypatch.setenv("PLACE", "p")
    assert found('checkpoint = "${PLACE}/c.db"') == "p/c.db"
    with pytest.raises(UsageError, match=r"checkpoint refers to .+ there is no such variable"):
        found('checkpoint = "${NO_SUCH}"')
    with pytest.raises(UsageError, match="did you mean 'checkpoint'"):
        found('checkpoints = "c.db"')
    write("", "jobs/checkpoints/n.sim.db", needed=False)
    assert found("") == "checkpoints/n.sim.db"  # `--simulate` was typed, and there is no other
    write("", "jobs/checkpoints/n.db", needed=False)
    assert found("") == "checkpoints/n.db"
    assert found("simulate = true") == "checkpoints/n.sim.db"


QUICK = """
simulate = true
concurrency = 4
output = "out.jsonl"
script = "quick.toml"
"""


def test_one_job_from_two_folders_is_one_checkpoint_and_nothing_is_paid_twice(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[server]\nlatency = 0.0\n", "jobs/quick.toml", needed=False)
    write('{"prompt": "one"}\n', "jobs/days/1.jsonl", needed=False)
    write('{"prompt": "two"}\n', "jobs/days/2.jsonl", needed=False)
    write(f'input = ["days/1.jsonl", "days/2.jsonl"]\nmodel = "{MODEL}"\n{QUICK}', "jobs/night.toml", needed=False)
    code, out, err = cli("run", "--job", "jobs/night.toml")
    assert (code, out) == (0, "")
    assert "2 answers in" in err
    before = (folder / "jobs/out.jsonl").read_bytes()
    monkeypatch.chdir(folder / "jobs")
    code, _, err = cli("run", "--job", "night.toml")
    assert (code, "This start: 0 answers" in err) == (0, True)
    monkeypatch.chdir("/")
    name = str(folder / "jobs/night.toml")
    code, _, err = cli("run", "--job", name)
    assert (code, "This start: 0 answers" in err) == (0, True)
    assert (folder / "jobs/out.jsonl").read_bytes() == before
    assert sorted(path.name for path in folder.rglob("*.db")) == ["night.sim.db"]
    code, out, _ = cli("status", "--json", name)
    assert (code, json.loads(out)["checkpoint"]) == (0, str(folder / "jobs/checkpoints/night.sim.db"))
    assert cli("errors", name)[0] == 0
    assert cli("plan", "--job", name)[1] == "2 rows: 2 answered. Nothing is left to send.\n"
    code, out, _ = cli("export", name, "-o", "-")
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["answered", "answered"]
    code, _, err = cli("resume", name, "--script", str(folder / "jobs/quick.toml"))
    assert (code, "This start: 0 answers" in err) == (0, True)
    code, out, _ = cli("preview", "--job", name)
    assert (code, len(out.splitlines())) == (0, 2)


# A trial: `--simulate` typed with the file of real nights.

NIGHT = """
output = "out.jsonl"
metrics-file = "m.prom"
metrics-port = 0
notify = "https://example.org/hook"
"""


def test_a_trial_leaves_output_metrics_and_notices_of_the_real_nights_alone(
    parsed: Parsed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(NIGHT)
    job, given = parsed("--job", "job.toml", "--simulate")
    assert job.output == str(folder / "out.sim.jsonl")
    assert [given[name] for name in ("metrics_file", "metrics_port", "notify")] == [None, None, ()]
    real, given = parsed("--job", "job.toml")
    assert real.output == str(folder / "out.jsonl")
    assert given["notify"] == ("https://example.org/hook",)
    assert (given["metrics_file"], given["metrics_port"]) == (str(folder / "m.prom"), 0)
    write("")
    monkeypatch.setenv("BATCHRUN_NOTIFY", "https://example.org/from-the-environment")
    job, given = parsed("--job", "job.toml", "--simulate")
    assert (job.output, given["notify"]) == (None, ())


def test_what_is_typed_for_a_trial_stays_as_typed(parsed: Parsed, folder: Path) -> None:
    write(NIGHT)
    typed = ("-o", "o.jsonl", "--metrics-file", "n.prom", "--metrics-port", "9", "--notify", "https://example.org/b")
    job, given = parsed("--job", "job.toml", "--simulate", *typed)
    assert job.output == str(folder / "o.jsonl")
    names = ("metrics_file", "metrics_port", "notify")
    assert [given[name] for name in names] == ["n.prom", 9, ("https://example.org/b",)]


def test_a_file_that_says_simulate_itself_means_what_it_names(parsed: Parsed, folder: Path) -> None:
    write(f"simulate = true\n{NIGHT}")
    for words in ((), ("--simulate",)):
        job, given = parsed("--job", "job.toml", *words)
        assert job.output == str(folder / "out.jsonl")
        assert given["notify"] == ("https://example.org/hook",)


def test_a_trial_does_not_take_the_place_of_a_checkpoint_that_is_named(parsed: Parsed, folder: Path) -> None:
    write('checkpoint = "c.db"')
    assert parsed("--job", "job.toml", "--simulate")[0].checkpoint == str(folder / "c.sim.db")
    assert parsed("--job", "job.toml", "--simulate", "--checkpoint", "d.db")[0].checkpoint == str(folder / "d.db")
    assert newest_checkpoint("job.toml") == str(folder / "c.db")
    (folder / "c.sim.db").touch()
    assert newest_checkpoint("job.toml") == str(folder / "c.sim.db")
    (folder / "c.db").touch()
    assert newest_checkpoint("job.toml") == str(folder / "c.db")


def test_a_trial_runs_beside_the_real_output(cli: Cli, folder: Path) -> None:
    (folder / "quick.toml").write_text("[server]\nlatency = 0.0\n")
    (folder / "out.jsonl").write_text("paid for\n")
    write('output = "out.jsonl"\nnotify = "http://127.0.0.1:9/nobody"\nconcurrency = 4')
    code, _, err = cli("run", "--job", "job.toml", "--simulate", "--script", "quick.toml")
    assert (code, "could not be delivered" in err) == (0, False), err
    assert (folder / "out.jsonl").read_text() == "paid for\n"
    assert len((folder / "out.sim.jsonl").read_text().splitlines()) == 2


# Another checkpoint that has the job's answers.


def test_a_link_whose_checkpoint_stands_beside_what_it_points_to_is_refused(cli: Cli, folder: Path) -> None:
    write("", "jobs/night.toml")
    there = folder / "jobs/checkpoints/night.db"
    (folder / "data").mkdir()
    (folder / "data/night.toml").symlink_to("../jobs/night.toml")
    write("", str(there), needed=False)
    for words in (("run", "--job"), ("plan", "--job"), ("status",)):
        code, out, err = cli(*words, "data/night.toml")
        assert (code, out) == (2, "")
        assert err == (
            "Error: data/night.toml: it is a link, and its checkpoint stands beside "
            f"{folder / 'jobs/night.toml'}.\nName `checkpoint`, or all is paid again: {there}\n"
        )
    assert not (folder / "data/checkpoints").exists()


def test_a_link_goes_its_own_way_once_it_has_a_checkpoint_or_names_one(parsed: Parsed, folder: Path) -> None:
    write("", "jobs/night.toml")
    (folder / "data").mkdir()
    (folder / "data/night.toml").symlink_to("../jobs/night.toml")
    own = folder / "data/checkpoints/night.db"
    assert parsed("--job", "data/night.toml")[0].checkpoint == str(own)
    write("", "jobs/checkpoints/night.db", needed=False)
    assert parsed("--job", "data/night.toml", "--checkpoint", "c.db")[0].checkpoint == str(folder / "c.db")
    assert parsed("--job", "data/night.toml", "--simulate")[0].checkpoint == str(own.with_suffix(".sim.db"))
    write("", str(own), needed=False)
    assert parsed("--job", "data/night.toml")[0].checkpoint == str(own)


@pytest.mark.parametrize("place", ["jobs", "."])
@pytest.mark.parametrize("simulate", [False, True])
def test_moving_to_a_job_file_does_not_pay_again_unseen(
    place: str, simulate: bool, parsed: Parsed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("", "jobs/night.toml")
    words = ("--simulate",) * simulate
    monkeypatch.chdir(folder / place)
    before = parsed("in.jsonl" if place == "jobs" else "jobs/in.jsonl", "-m", MODEL, *words)[0].checkpoint
    monkeypatch.chdir(folder)
    write("", before, needed=False)
    own = folder / f"jobs/checkpoints/night{'.sim' * simulate}.db"
    with pytest.raises(UsageError) as refused:
        parsed("--job", "jobs/night.toml", *words)
    message, next_step = refused.value.message, refused.value.next_step
    assert message == f"jobs/night.toml: there is no {own} yet, but {before} is one of this input."
    assert "--new-requests" in next_step
    assert parsed("--job", "jobs/night.toml", *words, "--new-requests")[0].checkpoint == str(own)
    assert parsed("--job", "jobs/night.toml", *words, "--checkpoint", "c.db")[0].checkpoint == str(folder / "c.db")
    other = () if simulate else ("--simulate",)
    assert parsed("--job", "jobs/night.toml", *other)[0].checkpoint != before
    if simulate:  # a trial's checkpoint has no place in the file of real nights
        assert "checkpoint =" not in next_step
        way = re.search(r"--checkpoint (\S+);", next_step)
        assert way is not None
        assert parsed("--job", "jobs/night.toml", *words, "--checkpoint", way[1])[0].checkpoint == before
    else:
        way = re.search(r"checkpoint = \".+\"", next_step)
        assert way is not None
        write(way[0], "jobs/night.toml")
        assert parsed("--job", "jobs/night.toml")[0].checkpoint == before
    write("", "jobs/night.toml")
    write("", str(own), needed=False)
    assert parsed("--job", "jobs/night.toml", *words)[0].checkpoint == str(own)


def test_the_line_to_add_is_right_whatever_the_name(parsed: Parsed) -> None:
    write("{}", 'a "dear" $ é.jsonl', needed=False)
    before = parsed('a "dear" $ é.jsonl', "-m", MODEL)[0].checkpoint
    write("", before, needed=False)
    own = f"""input = 'a "dear" $$ é.jsonl'\nmodel = "{MODEL}"\n"""
    write(own, needed=False)
    with pytest.raises(UsageError) as refused:
        parsed("--job", "job.toml")
    line = re.search(r"checkpoint = \".+\"", refused.value.next_step)
    assert line is not None
    assert not Path(json.loads(line[0].partition(" = ")[2])).is_absolute()  # it moves with its folder
    write(own + line[0], needed=False)
    assert parsed("--job", "job.toml")[0].checkpoint == before


def test_several_inputs_have_no_checkpoint_of_another_name(parsed: Parsed, folder: Path) -> None:
    write("", parsed("in.jsonl", "-m", MODEL)[0].checkpoint, needed=False)
    write(f'input = ["in.jsonl", "file.txt"]\nmodel = "{MODEL}"', needed=False)
    assert parsed("--job", "job.toml")[0].checkpoint == str(folder / "checkpoints/job.db")


# More of what is typed, and of what a file may hold.


@pytest.mark.parametrize("command", ["plan", "preview"])
def test_what_run_refuses_is_refused_by_plan_and_preview(command: str, cli: Cli) -> None:
    for line in (
        "notify = 5", 'log = "loud"', "confirm-above = -3", 'notify = "ftp://example.org"', "metrics-port = 99999999",
        'detach = "perhaps"', 'credits = "much"\nnotify = ["${NO_SUCH}", "x"]',
    ):  # fmt: skip
        write(f"simulate = true\n{line}")
        code, out, err = cli(command, "--job", "job.toml")
        assert (code, out) == (2, ""), line
        assert cli("run", "--job", "job.toml") == (2, "", err)
    write('simulate = true\ncredits = "${NO_SUCH}"\nconfirm-above = "none"\nyes = true')
    assert cli(command, "--job", "job.toml")[0] == 0


def test_a_typed_parameter_and_an_option_of_its_name_are_one(parsed: Parsed) -> None:
    def sent(*words: str) -> dict[str, Any]:
        return dict(parsed("--job", "job.toml", *words)[0].asking.params)

    write("max-tokens = 50\ntemperature = 0.5")
    assert sent("--param", "max_tokens=7") == {"max_tokens": 7, "temperature": 0.5}
    assert sent("--param", "temperature=1", "--param", "top_p=1") == {"max_tokens": 50, "temperature": 1, "top_p": 1}
    assert sent("--param", "max_tokens=7", "--max-tokens", "9") == {"max_tokens": 9, "temperature": 0.5}
    write("[param]\nmax_tokens = 50\ntop_p = 1")
    assert sent("--max-tokens", "7") == {"max_tokens": 7, "top_p": 1}


def test_an_empty_webhook_is_none(parsed: Parsed, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(text: str) -> Any:
        write(text)
        return parsed("--job", "job.toml")[1]["notify"]

    assert told('notify = "${NO_SUCH:-}"') == ()
    assert told('notify = ["${NO_SUCH:-}", "https://example.org/a", ""]') == ("https://example.org/a",)
    monkeypatch.setenv("BATCHRUN_NOTIFY", "https://example.org/b")
    assert told('notify = "${NO_SUCH:-}"') == ()
    assert told("") == ("https://example.org/b",)


@pytest.mark.parametrize("text", ["days/*.jsonl", "days/1.jsonl", "days", "[d]ays/[0-9].jsonl", "../My [x] dir/days"])
def test_a_folder_with_signs_of_a_glob_means_itself(
    text: str, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('{"prompt": "one"}\n', "My [x] dir/days/1.jsonl", needed=False)
    write('{"prompt": "wrong"}\n{"prompt": "wrong"}\n', "My x dir/days/1.jsonl", needed=False)
    write(f'input = "{text}"\nmodel = "{MODEL}"\nsimulate = true', "My [x] dir/n.toml", needed=False)
    code, out, err = cli("preview", "--job", "My [x] dir/n.toml")
    assert (code, len(out.splitlines())) == (0, 1), err
    assert cli("plan", "--job", "My [x] dir/n.toml")[0] == 0
    assert (folder / "My [x] dir/checkpoints/n.sim.db").exists()
    monkeypatch.chdir("My [x] dir")
    assert cli("plan", "--job", "n.toml")[0] == 0
