"""What comes back for good and for bad requests."""

import hashlib
import subprocess
import sys

import msgspec
import pytest
from simulator_client import MODEL, client_of

from batchrun.simulator import Settings, Simulator
from batchrun.simulator.answers import answer
from batchrun.simulator.asks import Endpoint, parse

FAST = Settings(latency=0.0, refusal_latency=0.0)
CHAT = "/v1/chat/completions"


async def test_a_chat_reply_has_every_field_and_says_that_it_is_simulated():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.chat("why is the tide late?", max_tokens=400)
    reply = got.json
    assert (got.status, reply["object"], reply["model"]) == (200, "chat.completion", f"simulated/{MODEL}")
    assert reply["choices"][0]["message"]["role"] == "assistant"
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= len(got.text.encode())
    assert usage["cached_tokens"] == 0


async def test_a_completion_reply_has_its_text_in_the_choice():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.post("/v1/completions", {"model": "simulator/storyteller-base", "prompt": "Once"})
    assert got.json["object"] == "text.completion"
    assert got.json["choices"][0]["text"].startswith("About Once:")


async def test_the_same_question_gets_the_same_answer_and_another_question_another():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        first, again, seeded, other = [
            (await client.chat(content, **fields)).text
            for content, fields in (("a b", {}), ("a b", {}), ("a b", {"seed": 7}), ("a c", {}))
        ]
    assert first == again
    assert len({first, seeded, other}) == 3


def test_the_answer_is_the_same_in_another_process_with_another_hash_seed():
    program = (
        "from batchrun.simulator.asks import parse, Endpoint\n"
        "from batchrun.simulator.answers import answer\n"
        f'body = b\'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hi there"}}]}}\'\n'
        "print(answer(parse(Endpoint.CHAT, body, 400), 0))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(outputs) == 1
    assert b"About" in outputs.pop()


async def test_a_long_answer_is_cut_at_max_tokens_and_a_larger_limit_continues_it():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        short = await client.chat("same", max_tokens=5)
        whole = await client.chat("same")
    assert short.json["choices"][0]["finish_reason"] == "length"
    assert short.json["usage"]["completion_tokens"] == 5
    assert whole.json["choices"][0]["finish_reason"] == "stop"
    assert whole.text.startswith(short.text)


async def test_n_choices_are_given_and_all_are_paid():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        one, three = await client.chat("x", max_tokens=4), await client.chat("x", max_tokens=4, n=3)
        assert len({choice["message"]["content"] for choice in three.json["choices"]}) == 3
        assert three.json["usage"]["completion_tokens"] == 3 * one.json["usage"]["completion_tokens"]
        assert [charge.completion_tokens for charge in sim.account.charges] == [4, 12]


async def test_a_schema_that_is_nonsense_does_not_break_the_server():
    schema = {"properties": {"a": {"type": "integer", "minimum": "x"}, "b": 1, "c": {"enum": 3}, "d": {"type": [[]]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    async with Simulator(FAST) as sim, client_of(sim) as client:
        assert list(msgspec.json.decode((await client.chat(response_format=wanted)).text)) == ["a", "b", "c", "d"]


def test_answers_are_mostly_short_and_sometimes_long():
    def tokens(number: int) -> int:
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"number {number}"}]}
        return answer(parse(Endpoint.CHAT, msgspec.json.encode(body), 400), 0).tokens

    lengths = sorted(tokens(number) for number in range(1000))
    assert lengths[0] < 20 < lengths[500] < 50 < 90 < lengths[950] < 400 < lengths[-1]


async def test_a_json_schema_is_answered_with_json_that_fits():
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "colour": {"enum": ["red", "blue"]}, "tags": {"type": "array"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.chat("x", response_format=wanted)
    value = msgspec.json.decode(got.text)
    assert list(value) == ["name", "colour", "tags"]
    assert value["colour"] in ("red", "blue")


BAD = {
    "bad JSON": (b"{", 400, "invalid_request_error"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "invalid_request_error"),
    "not an object": (b"[]", 400, "invalid_request_error"),
    "no model": ({"messages": []}, 400, "invalid_request_error"),
    "no messages": ({"model": MODEL}, 400, "invalid_request_error"),
    "empty messages": ({"model": MODEL, "messages": []}, 400, "invalid_request_error"),
    "a role nobody has": (
        {"model": MODEL, "messages": [{"role": "king", "content": "x"}]},
        400,
        "invalid_request_error",
    ),
    "a role that is a list": (
        {"model": MODEL, "messages": [{"role": [], "content": "x"}]},
        400,
        "invalid_request_error",
    ),
    "empty tool_calls": (
        {"model": MODEL, "messages": [{"role": "assistant", "content": "x", "tool_calls": []}]},
        400,
        "invalid_request_error",
    ),
    "unknown model": (
        {"model": "no/such", "messages": [{"role": "user", "content": "x"}]},
        404,
        "invalid_request_error",
    ),
}


@pytest.mark.parametrize(("body", "status", "kind"), BAD.values(), ids=BAD.keys())
async def test_a_bad_request_is_refused_and_costs_nothing(body, status, kind):
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.post(CHAT, body)
        assert sim.account.charges == []
    assert (got.status, got.error["type"]) == (status, kind)
    assert got.json["id"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": None},
        {"stop": [1]},
        {"stream": True},
        {"max_tokens": "5"},
        {"max_tokens": 0},
        {"n": 129},
        {"n": True},
        {"temperature": "warm"},
        {"logprobs": 21},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
    ],
    ids=str,
)
async def test_a_bad_parameter_is_refused_with_400(fields):
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.chat(**fields)
    assert got.status == 400
    assert got.error["param"] in fields


async def test_a_list_of_prompts_is_refused():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        got = await client.post("/v1/completions", {"model": MODEL, "prompt": ["a"]})
    assert (got.status, got.error["param"]) == (400, "prompt")


@pytest.mark.parametrize("status", [400, 403, 413, 422])
async def test_a_prompt_too_long_is_refused_with_the_status_of_the_settings(status):
    settings = Settings(latency=0.0, refusal_latency=0.0, context_status=status)
    async with Simulator(settings) as sim, client_of(sim) as client:
        got = await client.chat("x" * 400, model="simulator/tiny-512", max_tokens=500)
    assert got.status == status
    assert got.error["message"].endswith("must be <= 512. Given: 104 `inputs` tokens and 500 `max_new_tokens`")


async def test_truncate_lowers_max_tokens_instead():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        fields = {"model": "simulator/tiny-512", "max_tokens": 500, "context_length_exceeded_behavior": "truncate"}
        got = await client.chat("x" * 2000, **fields)
    assert got.status == 200
    assert got.json["usage"]["total_tokens"] <= 512


async def test_a_model_that_is_listed_need_not_be_callable():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        listed = {model["id"]: model for model in (await client.get("/v1/models")).json}
        got = await client.chat(model="simulator/dedicated-only-70b")
    assert "simulator/dedicated-only-70b" in listed
    assert (got.status, got.error["code"]) == (400, "model_not_available")
    assert "non-serverless" in got.error["message"]
    assert listed["Qwen/Qwen2.5-7B-Instruct-Turbo"]["context_length"] == 32_768
    assert listed[MODEL]["pricing"] == {
        "hourly": 0,
        "input": 0.05,
        "output": 0.2,
        "cached_input": None,
        "base": 0,
        "finetune": 0,
    }


async def test_no_key_and_a_refused_key_get_401_everywhere():
    settings = Settings(latency=0.0, refusal_latency=0.0, refused_keys=("old",))
    async with Simulator(settings) as sim:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer old"}):
            async with client_of(sim, headers) as client:
                replies = [await client.chat(), await client.get("/v1/models"), await client.get("/v3/whoami")]
            assert [got.status for got in replies] == [401, 401, 401]
            assert replies[0].error["code"] == "invalid_api_key"


async def test_a_path_that_is_nowhere_is_a_json_404():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        assert (await client.get("/v1/nowhere")).error["code"] == "not_found"
        assert (await client.get("/v3/whoami")).status == 200


async def test_the_ledger_knows_the_prompt_and_the_body_by_their_hashes():
    body = msgspec.json.encode(
        {
            "model": MODEL,
            "messages": [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "yes?"},
                {"role": "user", "content": "last"},
            ],
        }
    )
    async with Simulator(FAST) as sim, client_of(sim) as client:
        await client.post(CHAT, body)
        [charge] = sim.account.charges
    assert charge.content == hashlib.sha256(b"last").hexdigest()
    assert charge.body == hashlib.sha256(body).hexdigest()
    assert charge.nano == charge.prompt_tokens * 50 + charge.completion_tokens * 200
    assert (charge.path, charge.model, charge.delivered) == (CHAT, MODEL, True)


async def test_cached_tokens_are_cheaper_where_the_model_has_such_a_price():
    async with Simulator(Settings(latency=0.0, cached_share=0.5)) as sim, client_of(sim) as client:
        usage = (await client.chat("x" * 400, model="deepseek-ai/DeepSeek-V4-Pro", max_tokens=1)).json["usage"]
        [charge] = sim.account.charges
    assert usage["cached_tokens"] == 52
    assert charge.nano == 52 * 1_740 + 52 * 200 + 3_480
