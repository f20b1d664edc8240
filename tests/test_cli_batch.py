"""Batches from the command line: submit and collect, plan, status, and options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import MODEL, read_rows, write_prompts

from batchrun.cli.main import batchrun
from batchrun.errors import BatchrunError


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    done = CliRunner().invoke(batchrun, list(words))
    if isinstance(done.exception, BatchrunError):
        return done.exception.exit_code, done.stdout, done.exception.message
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    write_prompts(tmp_path / "in.jsonl", range(30))
    return tmp_path


def script(folder: Path, text: str) -> str:
    path = folder / "script.toml"
    path.write_text(text)
    return str(path)


RUN = ("run", "in.jsonl", "-m", MODEL, "--simulate", "--max-tokens", "50", "-o", "out.jsonl", "--batch-poll", "0.05")
FAST = ("--concurrency", "8")


def test_detach_submits_and_exits_7_and_a_later_start_collects(here: Path) -> None:
    slow = script(here, "[batch]\nspeed = 0.001\n")
    code, _, err = said(*RUN, "--route", "batch", "--detach", "--script", slow)
    assert code == 7
    last_two = err.strip().splitlines()[-2:]
    assert last_two[0].startswith("Parked (remote): 1 batch with 30 rows at the provider.")
    assert last_two[1].startswith("Collect what is ready, and go on: batchrun resume ")
    code, out, _ = said("status")
    assert "parked (remote)" in out
    assert f"30 rows of {MODEL}" in out
    status = json.loads(said("status", "--json")[1])
    assert (status["submitted"], [batch["lines"] for batch in status["batches"]]) == (30, [30])
    code, out, _ = said("plan", *RUN[1:-2])
    assert (code, "30 rows are in batches already." in out) == (0, True)
    code, _, _ = said("export", "-o", "so-far.jsonl")
    assert {row["state"] for row in read_rows(here / "so-far.jsonl")} == {"pending"}
    code, _, err = said("resume", "--detach", "--script", slow)
    assert code == 7
    fast = script(here, "[batch]\n")
    code, _, err = said("resume", "--script", fast)
    assert code == 0, err
    assert "Still at the provider: files of 1 batch" in said("status")[1]
    assert said("resume", "--script", fast, "--delete-remote")[0] == 0
    assert [row["lane"] for row in read_rows(here / "out.jsonl")] == ["batch"] * 30
    assert "Still at the provider" not in said("status")[1]


def test_plan_sends_nothing_and_tells_lane_cost_and_time(here: Path) -> None:
    code, out, err = said("plan", *RUN[1:-2])
    assert (code, err) == (0, "")
    assert out.startswith(f"30 rows: 0 answered, 30 to send.\n\n{MODEL}: live, 30 rows. A batch costs the same")
    assert not list(here.glob("checkpoints/*.simulator*"))
    plan = json.loads(said("plan", *RUN[1:-2], "--json")[1])
    assert plan["models"][0]["lane"] == "live"
    assert plan["cost_usd"]["likely"] > 0
    code, out, _ = said(*RUN, *FAST)
    assert code == 0
    assert "Nothing is left to send." in said("plan", *RUN[1:-2])[1]


@pytest.mark.usefixtures("here")
def test_plan_says_unknown_and_not_nothing_where_no_price_is_known() -> None:
    code, out, _ = said("plan", "in.jsonl", "-m", "some/model", "--simulate")
    assert code == 0
    assert "unknown" in out
    assert "$0" not in out
    assert json.loads(said("plan", "in.jsonl", "-m", "some/model", "--simulate", "--json")[1])["cost_usd"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-lines", "60000"), "--batch-lines takes 1 to 50,000"),
        (("--batch-lines", "0"), "--batch-lines takes 1 to 50,000"),
        (("--batch-jobs", "0"), "--batch-jobs must be at least 1"),
        (("--batch-poll", "0"), "--batch-poll must be at least 30"),
        (("--batch-grace", "-1"), "--batch-grace and --batch-patience must be more than 0"),
        (("--batch-patience", "0"), "--batch-grace and --batch-patience must be more than 0"),
        (("--batch-patience", "nan"), "--batch-patience is not a number"),
        (("--batch-discount", f"{MODEL}=2"), "the factor must be above 0 and at most 1"),
        (("--batch-discount", "half"), "is not MODEL=FACTOR"),
        (("--deadline", "soon"), "is no time"),
        (("--route", "batch", "--endpoint", "completions"), "The Batch API takes chat requests only"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(here: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = said("run", "in.jsonl", "-m", MODEL, "--simulate", *words)
    assert code == 2
    assert message in err
    assert not (here / "checkpoints").exists()


@pytest.mark.usefixtures("here")
def test_batches_are_not_looked_at_more_often_than_every_30_seconds_elsewhere() -> None:
    words = ("run", "in.jsonl", "-m", MODEL, "--route", "batch", "--batch-poll", "5")
    code, _, err = said(*words, "--base-url", "https://api.together.ai")
    assert (code, "at least 30 seconds" in err) == (2, True)


@pytest.mark.usefixtures("here")
def test_a_model_without_batches_is_refused_under_route_batch() -> None:
    code, _, err = said("run", "in.jsonl", "-m", "deepseek-ai/DeepSeek-V4-Pro", "--simulate", "--route", "batch")
    assert code == 2
    assert "deepseek-ai/DeepSeek-V4-Pro: this model is not taken in batches" in err
