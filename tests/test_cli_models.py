"""`models`: what is listed, at what price, and what answers when asked for a token; what is unknown is never 0."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from answering import Command, command, saying, serving, simulating

PRICED = {"id": "a/priced", "type": "chat", "context_length": 4096, "pricing": {"input": 0.3, "output": 1.2}}
DEDICATED = {"id": "a/dedicated", "type": "chat", "pricing": {"hourly": 2.4, "input": 0, "output": 0}}
BARE = {"id": "b/bare"}
IMAGE = {"id": "b/image", "type": "image", "pricing": {"input": 0, "output": 0}}
LIST = [PRICED, DEDICATED, BARE, IMAGE]
KNOWN = {"id": "openai/gpt-oss-20b", "type": "chat"}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return command(tmp_path, monkeypatch, capfd)


def listed(cli: Command, models: Any, *words: str) -> list[dict[str, Any]]:
    with serving({"GET /v1/models": saying(body=models)}) as url:
        code, out, _ = cli("models", "--json", "--base-url", url, *words)
    assert code == 0
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_the_simulators_models_need_no_key(cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    code, out, err = cli("models", "--simulate")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if "/" in line}
    assert lines["openai/gpt-oss-20b"] == "chat 131,072 $0.05 $0.20 same same price not probed"
    assert lines["meta-llama/Llama-3.3-70B-Instruct-Turbo"].endswith("$1.04 $1.04 same 50% off not probed")
    assert lines["deepseek-ai/DeepSeek-V4-Pro"].endswith("$1.74 $3.48 $0.20 no batches not probed")
    assert lines["simulator/dedicated-only-70b"].endswith(
        "unknown unknown unknown no batches not probed, dedicated endpoint $2.40 an hour"
    )
    assert "$0.00" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_filter_is_a_part_of_the_name_in_any_case(cli: Command) -> None:
    assert [model["id"] for model in listed(cli, LIST, "A/")] == ["a/dedicated", "a/priced"]
    assert [model["id"] for model in listed(cli, LIST, "PRICED")] == ["a/priced"]
    assert listed(cli, LIST, "nothing") == []


def test_models_that_are_not_for_text_are_shown_when_asked_for(cli: Command) -> None:
    assert [model["id"] for model in listed(cli, LIST)] == ["a/dedicated", "a/priced", "b/bare"]
    assert [model["id"] for model in listed(cli, LIST, "--all")][-1] == "b/image"
    assert [model["id"] for model in listed(cli, LIST, "--type", "image")] == ["b/image"]
    assert [model["id"] for model in listed(cli, LIST, "--type", "chat")] == ["a/dedicated", "a/priced"]


def test_unknown_is_null_in_json_and_unknown_in_the_table(cli: Command) -> None:
    by_id = {model["id"]: model for model in listed(cli, LIST, "--all")}
    assert by_id["a/priced"] | {"input": 0.3, "output": 1.2, "price_from": "server"} == by_id["a/priced"]
    for name in ("a/dedicated", "b/bare", "b/image"):
        assert [by_id[name][key] for key in ("input", "output", "cached", "price_from")] == [None] * 4
    assert by_id["a/dedicated"]["hourly"] == 2.4
    assert by_id["b/bare"]["context"] is None
    assert by_id["b/bare"]["callable"] is None
    with serving({"GET /v1/models": saying(body=LIST)}) as url:
        _, out, _ = cli("models", "--all", "--base-url", url)
    assert "$0.00" not in out
    assert len(re.findall("unknown +unknown +unknown +(?:same|no|unknown)", out)) == 3


def test_another_servers_prices_are_never_taken_from_togethers_list(cli: Command) -> None:
    assert listed(cli, [KNOWN])[0]["input"] is None
    assert listed(cli, [KNOWN])[0]["batches"] is None


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (saying(404, b"nothing here"), 2, "This server has no model list (HTTP 404)."),
        (saying(405, {"detail": "Method Not Allowed"}), 2, "This server has no model list (HTTP 405)."),
        (saying(200, b"<html>welcome</html>"), 2, "no model list that can be read"),
        (saying(401, {"error": {"message": "Invalid API key"}}), 4, "refuses the key read from TOGETHER_API_KEY (401)"),
        (saying(403, {"error": "Forbidden"}), 4, "refuses the key read from TOGETHER_API_KEY (403)"),
        (saying(403, b"<html>blocked</html>"), 5, "Something on the way may be answering in its place."),
        (saying(402, {"error": {"message": "Credit limit exceeded."}}), 3, "out of credits"),
        (saying(503, b"<html>busy</html>"), 5, "just now (HTTP 503)"),
        (saying(500, b""), 5, "just now (HTTP 500)"),
        (saying(429, b""), 5, "just now (HTTP 429)"),
    ],
)
def test_a_server_that_gives_no_list_is_told_in_a_line_or_two_with_the_code_that_fits(
    cli: Command, reply: Any, code: int, words: str
) -> None:
    with serving({"GET /v1/models": reply}) as url:
        got, out, err = cli("models", "--base-url", url)
    assert (got, out) == (code, "")
    assert len(err.splitlines()) <= 2
    assert words in err


@pytest.mark.parametrize(
    "reply",
    [saying(403, b"blocked"), saying(401, b"no"), saying(403, {"error": "Forbidden"}), saying(402, b""), saying(502)],
)
@pytest.mark.parametrize("key", [True, False])
def test_models_and_doctor_say_the_same_of_the_same_replies(
    cli: Command, monkeypatch: pytest.MonkeyPatch, reply: Any, *, key: bool
) -> None:
    if not key:
        monkeypatch.delenv("TOGETHER_API_KEY")
    with serving({"GET /v3/whoami": reply, "GET /v1/models": reply}) as url:
        code, _, said = cli("models", "--base-url", url)
        other, report, _ = cli("doctor", "--json", "--base-url", url)
    (found,) = [check for check in json.loads(report)["checks"] if check["name"] == "key"]
    assert code == other
    if code != 5:
        assert said == f"Error: {found['sentence']}\n{found['next_step']}\n"
        assert ("none is sent" in said) is (not key and code == 4)


def test_a_server_that_cannot_be_reached_is_exit_5(cli: Command) -> None:
    code, _, err = cli("models", "--base-url", "http://127.0.0.1:9")
    assert (code, err) == (5, "Error: The server cannot be reached (Connection refused).\n")


def test_together_without_a_key_is_exit_2(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    code, _, err = cli("models")
    assert code == 2
    assert "There is no API key" in err


def test_a_probe_tells_which_models_answer_and_why_the_others_do_not(cli: Command) -> None:
    with simulating() as simulator:
        code, out, err = cli("models", "--base-url", simulator.url, "--probe", "--yes", "--json")
        charged = len(list(simulator.account.charges))
    found = {model["id"]: model for model in json.loads(out)}
    assert code == 0
    assert f"Sending {len(found)} calls of one token (at most $0.0" in err
    assert "1 of unknown price)" in err
    assert [name for name, model in found.items() if not model["callable"]] == ["simulator/dedicated-only-70b"]
    assert "$2.40 an hour" in found["simulator/dedicated-only-70b"]["reason"]
    assert found["simulator/storyteller-base"]["callable"] is True, "a language model is asked as such"
    assert charged == len(found) - 1


def test_a_probe_with_nobody_to_ask_sends_nothing_and_says_how_many_calls_it_would_be(cli: Command) -> None:
    with simulating() as simulator:
        code, out, err = cli("models", "oss", "--base-url", simulator.url, "--probe")
        assert list(simulator.account.charges) == []
    assert (code, out) == (2, "")
    assert "2 calls of one token (at most $0.0" in err
    assert "--yes" in err


@pytest.mark.parametrize(("said", "charges"), [("y", 2), ("n", 0)])
def test_on_a_terminal_the_user_is_asked(
    cli: Command, monkeypatch: pytest.MonkeyPatch, said: str, charges: int
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    questions: list[str] = []
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda asked: questions.append(asked) or said)
    with simulating() as simulator:
        code, out, _ = cli("models", "oss", "--base-url", simulator.url, "--probe")
        assert len(list(simulator.account.charges)) == charges
    assert code == 0
    assert "2 calls of one token" in "".join(questions)
    assert ("not probed" in out) is (charges == 0)


def test_when_credits_end_the_other_models_are_left_alone(cli: Command) -> None:
    models = [{**PRICED, "id": f"a/{n:02}"} for n in range(40)]
    asked: list[str] = []

    async def refuse(request: web.Request) -> web.StreamResponse:
        asked.append((await request.json())["model"])
        await asyncio.sleep(0)
        return web.json_response({"error": {"message": "Credit limit exceeded."}}, status=402)

    with serving({"GET /v1/models": saying(body=models), "POST /v1/chat/completions": refuse}) as url:
        code, out, err = cli("models", "--base-url", url, "--probe", "--yes", "--json")
    assert code == 3
    assert len(asked) <= 4
    assert "Probing stopped: the account is out of credits.\n" in err
    assert [model["callable"] for model in json.loads(out)] == [None] * 40


@pytest.mark.parametrize(
    ("key", "words"), [(True, "the server refuses the key"), (False, "the server wants a key, and none is sent")]
)
def test_probing_that_stops_for_the_key_says_so(
    cli: Command, monkeypatch: pytest.MonkeyPatch, *, key: bool, words: str
) -> None:
    if not key:
        monkeypatch.delenv("TOGETHER_API_KEY")
    refusal = saying(401, {"error": {"message": "Invalid API key"}})
    with serving({"GET /v1/models": saying(body=[PRICED]), "POST /v1/chat/completions": refusal}) as url:
        code, _, err = cli("models", "--base-url", url, "--probe", "--yes")
    assert code == 4
    assert err.endswith(f"Probing stopped: {words}.\n")


@pytest.mark.parametrize(
    ("reply", "told", "words"),
    [
        (saying(404, {"error": {"message": "x", "code": "model_not_available"}}), False, "refused all the same"),
        (saying(400, {"error": {"message": "max_tokens is too small"}}), False, "max_tokens is too small"),
        (saying(429, {"error": {"message": "slow down"}}), None, "too many requests"),
        (saying(503, b""), None, "overloaded"),
        (saying(200, b"junk"), None, "not JSON"),
        (saying(200, {"model": "a/other", "choices": [{"message": {"content": "x"}}]}), True, "answered by a/other"),
    ],
)
def test_what_does_not_tell_whether_a_model_can_be_called_is_not_a_no(
    cli: Command, reply: Any, told: bool | None, words: str
) -> None:
    with serving({"GET /v1/models": saying(body=[PRICED]), "POST /v1/chat/completions": reply}) as url:
        _, out, _ = cli("models", "--base-url", url, "--probe", "--yes", "--json")
    (model,) = json.loads(out)
    assert model["callable"] is told
    assert words in model["reason"]
