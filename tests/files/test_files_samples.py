"""The samples hold what their README says, and every row of them ends as intended."""

from __future__ import annotations

from pathlib import Path

from batchrun.files.prompt import Prompter
from batchrun.job import Asking
from batchrun.records import BadRow, Request

SAMPLES = Path(__file__).parents[2] / "samples"


def asked(rows_of, name, **asking):
    prompter = Prompter(Asking(**asking))
    return [prompter.request(row) for row in rows_of(SAMPLES / name)]


def test_the_200_prompts_are_all_different_and_ask_the_same_in_either_form(rows_of):
    requests = asked(rows_of, "prompts.jsonl", model="m")
    assert len({request.digest for request in requests}) == 200
    assert [request.digest for request in asked(rows_of, "prompts.parquet", model="m")] == [r.digest for r in requests]


def test_the_ready_batch_lines_need_no_model(rows_of):
    requests = asked(rows_of, "batch.jsonl")
    assert len(requests) == 20
    assert all(isinstance(request, Request) and request.max_tokens for request in requests)


def test_the_awkward_rows_are_bad_where_they_should_be(rows_of):
    outcomes = asked(rows_of, "awkward.jsonl", model="m")
    assert len(outcomes) == 28
    bad = {int(outcome.where.split(":")[1]) for outcome in outcomes if isinstance(outcome, BadRow)}
    assert bad == {5, 6, 7, 8, 9, 10, 15, 16, 17, 22, 23, 24, 25}
    good = [outcome.digest for outcome in outcomes if isinstance(outcome, Request)]
    assert (len(good), len(set(good))) == (15, 14)


def test_the_awkward_rows_go_into_both_outputs(exported, tmp_path):
    job = exported(SAMPLES / "awkward.jsonl")
    assert len(job.to(tmp_path / "out.jsonl").read_bytes().splitlines()) == 28
    assert job.to(tmp_path / "out.parquet").stat().st_size > 0


def test_the_template_builds_a_prompt_from_every_ticket(rows_of):
    template = (SAMPLES / "template.j2").read_text(encoding="utf-8")
    requests = asked(rows_of, "tickets.jsonl", model="m", template=template)
    assert len(requests) == 8
    assert all(isinstance(request, Request) for request in requests)
    assert b"Customer since: 2019" in requests[0].body
    assert b"Customer since" not in requests[1].body
