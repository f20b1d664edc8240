"""What the error guide needs of the simulator: replies that are good and wrong, contexts in many words, models."""

from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
import pytest
from simulator_batches import jsonl, line, records, simulated
from simulator_client import MODEL, Got, client_of

from batchrun.simulator import BatchFault, BatchFaultKind, ContextWords, Fault, FaultKind, Settings, Simulator
from batchrun.simulator.catalog import MODELS
from batchrun.simulator.faults import Moment, Script
from batchrun.simulator.settings import parse_script

K = FaultKind
W = ContextWords
OTHER = "Qwen/Qwen3.5-9B"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "good": {"type": "boolean"},
        "colour": {"enum": ["red", True]},
        "odd": {"type": 5},
    },
    "required": ["name", "good", "colour"],
}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}


def quick(**settings: Any) -> Simulator:
    return Simulator(Settings(latency=0.0, refusal_latency=0.0, **settings))


def text_of(body: Any) -> str:
    return body["choices"][0]["message"]["content"]


# --- conditions ------------------------------------------------------------------------------------------------------


async def test_a_fault_of_one_model_spares_the_others():
    async with quick(faults=(Fault(K.OVERLOAD, model=MODEL),)) as sim, client_of(sim) as client:
        assert [(await client.chat(model=model)).status for model in (MODEL, OTHER, MODEL)] == [503, 200, 503]


async def test_only_the_first_request_of_each_prompt_is_struck_whatever_else_is_asked():
    async with quick(faults=(Fault(K.STATUS, first=1),)) as sim, client_of(sim) as client:
        assert [(await client.chat(content)).status for content in "abab"] == [500, 500, 200, 200]
        assert (await client.chat("a", max_tokens=9, model=OTHER)).status == 200


def struck(faults: list[Fault], prompts: str) -> list[str]:
    script = Script(faults, seed=0)
    picked = [script.pick(Moment(n, 0, 0.0, prompt, MODEL)) for n, prompt in enumerate(prompts, start=1)]
    return [" " if fault is None else str(fault.status)[0] for fault in picked]


def test_two_faults_that_strike_first_strike_one_after_the_other():
    assert struck([Fault(K.STATUS, first=1, status=401), Fault(K.STATUS, first=1, status=502)], "aabab") == [*"454 5"]


def test_every_counts_new_prompts_when_only_the_first_request_is_struck():
    assert struck([Fault(K.STATUS, first=1, every=2, status=500)], "aabbccddd") == [*"  5   5  "]


def test_a_fault_of_another_model_does_not_count_the_prompt():
    assert struck([Fault(K.STATUS, first=1, model=OTHER)], "aa") == [" ", " "]


async def test_the_words_stand_in_a_script():
    settings = parse_script(
        """
        [server]
        context_words = "openai"
        context_status = 413
        models_status = 503
        clock_skew = -60.0
        [[fault]]
        kind = "overload"
        model = "openai/gpt-oss-20b"
        first = 2
        [[fault]]
        kind = "answered_by"
        served_by = "another/model"
        [[fault]]
        kind = "too_long"
        words = "vllm"
        context = 100
        [[batch_fault]]
        kind = "expire"
        model = "openai/gpt-oss-20b"
        """
    )
    assert (settings.context_words, settings.context_status) == (W.OPENAI, 413)
    assert (settings.models_status, settings.clock_skew) == (503, -60.0)
    assert settings.faults == (
        Fault(K.OVERLOAD, model=MODEL, first=2),
        Fault(K.ANSWERED_BY, served_by="another/model"),
        Fault(K.TOO_LONG, words=W.VLLM, context=100),
    )
    assert settings.batch_faults == (BatchFault(BatchFaultKind.EXPIRE, model=MODEL),)


# --- good replies that are wrong -------------------------------------------------------------------------------------


async def test_another_model_answers_at_the_price_of_the_one_asked():
    async with quick(faults=(Fault(K.ANSWERED_BY, served_by="another/model", count=1),)) as sim:
        async with client_of(sim) as client:
            strange, usual = await client.chat("a"), await client.chat("a")
        first, second = sim.account.charges
    assert (strange.json["model"], usual.json["model"]) == ("simulated/another/model", f"simulated/{MODEL}")
    assert strange.text == usual.text
    assert (first.model, first.nano) == (second.model, second.nano) == (MODEL, second.nano)


def as_asked(text: str) -> bool:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return set(value) == set(SCHEMA["properties"]) and isinstance(value["good"], bool)


@pytest.mark.parametrize("kind", [K.NOT_JSON, K.MISFIT, K.FENCED])
async def test_an_answer_in_another_form_is_charged_by_its_words_and_the_next_is_as_asked(kind):
    async with quick(faults=(Fault(kind, first=1),)) as sim, client_of(sim) as client:
        wrong, right = [await client.chat("a", response_format=AS_JSON) for _ in range(2)]
        assert [charge.delivered for charge in sim.account.charges] == [True, True]
        assert sim.account.charges[0].completion_tokens == len(
            wrong.text.replace("```json\n", "").split("\n")[0].split()
        )
    assert not as_asked(wrong.text)
    assert as_asked(right.text)


async def one_wrong(kind: FaultKind, **fields: Any) -> Got:
    async with quick(faults=(Fault(kind),)) as sim, client_of(sim) as client:
        return await client.chat("a", **fields)


async def test_the_forms_are_plain_text_a_misfit_and_a_fence():
    assert (await one_wrong(K.NOT_JSON, response_format=AS_JSON)).text.startswith("About a:")
    misfit = msgspec.json.decode((await one_wrong(K.MISFIT, response_format=AS_JSON)).text)
    assert misfit == {"unexpected": True, "name": True, "good": "unexpected", "colour": "unexpected", "odd": True}
    assert (await one_wrong(K.MISFIT, response_format={"type": "json_object"})).text == '{"unexpected": true}'
    fenced = (await one_wrong(K.FENCED, response_format=AS_JSON)).text
    assert fenced.startswith("```json\n{")
    assert as_asked(fenced.removeprefix("```json\n").removesuffix("\n```"))


@pytest.mark.parametrize("kind", [K.NOT_JSON, K.MISFIT, K.FENCED])
async def test_an_answer_in_another_form_is_cut_at_max_tokens_too(kind):
    got = await one_wrong(kind, response_format=AS_JSON, max_tokens=1)
    assert got.json["choices"][0]["finish_reason"] == "length"
    assert got.json["usage"]["completion_tokens"] == 1


# --- too long --------------------------------------------------------------------------------------------------------

PROMPT = "x" * 384  # 96 tokens, and 4 for the message
SAID = {
    W.TOGETHER: (
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. "
            "Given: 100 `inputs` tokens and 500 `max_new_tokens`"
        ),
        "invalid_request_error",
        "max_tokens",
        None,
    ),
    W.TOGETHER_DOCUMENTED: (
        "Bad request: input tokens + max_tokens must be less than context length",
        "invalid_request_error",
        None,
        None,
    ),
    W.OPENAI: (
        (
            "This model's maximum context length is 512 tokens. However, you requested 600 tokens (100 in the "
            "messages, 500 in the completion). Please reduce the length of the messages or completion."
        ),
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
    ),
    W.VLLM: (
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context length is 512 "
            "tokens and your request has 100 input tokens (500 > 512 - 100)."
        ),
        "BadRequestError",
        None,
        400,
    ),
    W.BARE: ("The request exceeds the model's context length.", "invalid_request_error", None, None),
}
VLLM_PROMPT = (
    "This model's maximum context length is {} tokens. However, your request has {} input tokens. "
    "Please reduce the length of the input messages."
)


@pytest.mark.parametrize("words", ContextWords)
async def test_what_does_not_fit_is_refused_in_the_words_of_the_settings_and_passes_when_shortened(words):
    message, kind, param, code = SAID[words]
    async with quick(context_words=words, context_status=413) as sim, client_of(sim) as client:
        got = await client.chat(PROMPT, model="simulator/tiny-512", max_tokens=500)
        assert (got.status, got.error) == (413, {"message": message, "type": kind, "param": param, "code": code})
        assert (await client.chat(PROMPT, model="simulator/tiny-512", max_tokens=412)).status == 200
        assert (await client.chat(PROMPT[:32], model="simulator/tiny-512", max_tokens=500)).status == 200
        assert (await client.chat(PROMPT, model="simulator/small-1k", max_tokens=500)).status == 200
        assert len(sim.account.charges) == 3


@pytest.mark.parametrize("words", ContextWords)
@pytest.mark.parametrize("status", [400, 403, 413, 422])
async def test_a_fault_refuses_what_would_fit_in_the_same_words(words, status):
    fault = Fault(K.TOO_LONG, words=words, status=status, context=512, count=1)
    async with quick(faults=(fault,)) as sim, client_of(sim) as client:
        got = await client.chat(PROMPT, max_tokens=500)
        assert (got.status, got.error["message"], got.error["code"]) == (status, SAID[words][0], SAID[words][3])
        assert sim.account.charges == []
        assert (await client.chat(PROMPT, max_tokens=500)).status == 200


async def test_a_prompt_that_leaves_no_room_is_told_its_own_length():
    async with quick(context_words=W.VLLM) as sim, client_of(sim) as client:
        long = await client.chat("x" * 4_000, model="simulator/tiny-512")
        assert long.error["message"] == VLLM_PROMPT.format(512, 1004)
        sim.play([Fault(K.TOO_LONG, words=W.VLLM)])
        assert (await client.chat(PROMPT)).error["message"] == VLLM_PROMPT.format(50, 100)
        sim.play([Fault(K.TOO_LONG, words=W.OPENAI)])
        assert "101 tokens (100 in the messages, 1 in the completion)" in (await client.chat(PROMPT)).error["message"]


# --- batches ---------------------------------------------------------------------------------------------------------


async def test_lines_that_cannot_be_answered_are_refused_as_live_requests_are():
    lines = [
        line("long", "x" * 4_000, model="simulator/tiny-512"),
        line("cut", model="simulator/tiny-512", max_tokens=2),
        line("unknown", model="no/such-model"),
        line("listed", model="simulator/dedicated-only-70b"),
    ]
    async with simulated(context_words=W.OPENAI) as (sim, client), client_of(sim) as live:
        job = await client.run(jsonl(lines))
        errors = {record["custom_id"]: record["error"] for record in records(await client.errors(job))}
        (cut,) = records(await client.output(job))
        refused = (await live.post("/v1/chat/completions", lines[0]["body"])).error
        unlisted = (await live.post("/v1/chat/completions", lines[3]["body"])).error
    assert errors == {
        "long": {"message": refused["message"], "code": "context_length_exceeded"},
        "unknown": {"message": "Invalid model specified", "code": "invalid_model"},
        "listed": {"message": unlisted["message"], "code": "model_not_available"},
    }
    assert (cut["custom_id"], cut["response"]["body"]["choices"][0]["finish_reason"]) == ("cut", "length")


async def test_lines_are_answered_in_another_form_and_the_same_prompt_live_then_gets_the_right_one():
    faults = tuple(Fault(kind, content=kind.value, first=1) for kind in (K.NOT_JSON, K.MISFIT, K.FENCED))
    lines = [line(fault.kind.value, fault.kind.value, response_format=AS_JSON) for fault in faults]
    async with simulated(faults=faults) as (sim, client), client_of(sim) as live:
        job = await client.run(jsonl([*lines, line("good", response_format=AS_JSON)]))
        texts = {
            record["custom_id"]: text_of(record["response"]["body"]) for record in records(await client.output(job))
        }
        again = [(await live.post("/v1/chat/completions", one["body"])).text for one in lines]
        assert [charge.delivered for charge in sim.account.charges] == [True] * 7
    assert {name for name, text in texts.items() if as_asked(text)} == {"good"}
    assert all(as_asked(text) for text in again)


async def test_the_same_prompt_first_live_and_then_in_a_batch_gets_the_right_answer_there():
    async with simulated(faults=(Fault(K.MISFIT, first=1),)) as (sim, client), client_of(sim) as live:
        wrong = await live.chat("a", response_format=AS_JSON)
        (record,) = records(await client.output(await client.run(jsonl([line("a", "a", response_format=AS_JSON)]))))
    assert not as_asked(wrong.text)
    assert as_asked(text_of(record["response"]["body"]))


async def test_lines_of_one_model_are_answered_by_another_and_refused_as_too_long():
    faults = (
        Fault(K.ANSWERED_BY, served_by="another/model", model=OTHER),
        Fault(K.TOO_LONG, words=W.VLLM, model=MODEL, content="long"),
    )
    lines = [line("redirected", model=OTHER), line("kept"), line("long", "long and so on")]
    async with simulated(faults=faults) as (sim, client):
        job = await client.run(jsonl(lines))
        models = {
            record["custom_id"]: record["response"]["body"]["model"] for record in records(await client.output(job))
        }
        (refused,) = records(await client.errors(job))
        assert len(sim.account.charges) == 2
    assert models == {"redirected": "simulated/another/model", "kept": f"simulated/{MODEL}"}
    assert refused == {"custom_id": "long", "error": {"message": VLLM_PROMPT.format(3, 7), "code": "400"}}


async def test_faults_that_need_a_connection_leave_lines_alone_and_do_not_count_them():
    async with simulated(faults=(Fault(K.OVERLOAD, after=1, count=1),)) as (sim, client), client_of(sim) as live:
        job = await client.run(jsonl([line("a"), line("b")]))
        assert "error_file_id" not in job
        assert [(await live.chat()).status for _ in range(3)] == [200, 503, 200]


async def test_after_counts_the_lines_of_batches_by_themselves():
    async with simulated(faults=(Fault(K.MISFIT, after=2),)) as (sim, client), client_of(sim) as live:
        job = await client.run(jsonl([line(f"c{i}", f"prompt {i}") for i in range(5)]))
        texts = [text_of(record["response"]["body"]) for record in records(await client.output(job))]
        assert sum("unexpected" in text for text in texts) == 3
        assert ["unexpected" in (await live.chat()).text for _ in range(3)] == [False, False, True]


async def test_a_batch_fault_of_one_model_spares_the_jobs_of_others():
    faults = (BatchFault(BatchFaultKind.FAIL_VALIDATION, model=MODEL),)
    async with simulated(batch_faults=faults) as (_, client):
        jobs = [await client.run(jsonl([line("a", model=model)])) for model in (OTHER, MODEL)]
        assert [job["status"] for job in jobs] == ["COMPLETED", "FAILED"]


# --- models, counts, the clock ---------------------------------------------------------------------------------------


async def test_a_model_that_must_be_rented_has_a_price_by_the_hour():
    async with quick() as sim, client_of(sim) as client:
        listed = {model["id"]: model for model in (await client.get("/v1/models")).json}
    pricing = listed["simulator/dedicated-only-70b"]["pricing"]
    assert (pricing["hourly"], pricing["input"], pricing["output"]) == (2.4, 0, 0)
    assert {listed[f"simulator/{name}"]["context_length"] for name in ("tiny-512", "small-1k", "middle-4k")} == {
        512,
        1_024,
        4_096,
    }
    assert all(model.input and not model.hourly for model in MODELS.values() if model.serverless)


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (500, None), (503, None)])
async def test_the_list_of_models_can_fail_or_lack(status, code):
    async with quick(models_status=status) as sim, client_of(sim) as client:
        got = await client.get("/v1/models")
        assert (got.status, got.error["code"]) == (status, code)
        assert (await client.chat()).status == 200
        assert (await client.get("/v3/whoami")).status == 200
    async with quick(models_status=status) as sim, client_of(sim, headers={}) as nobody:
        assert (await nobody.get("/v1/models")).status == 401


async def test_requests_are_counted_by_the_model_they_name():
    async with quick(faults=(Fault(K.OVERLOAD, model=OTHER),)) as sim, client_of(sim) as client:
        for model in (MODEL, "no/such-model", OTHER, MODEL):
            await client.chat(model=model)
        for body in (b"{", b'{"model": 3}'):
            await client.post("/v1/chat/completions", body)
        assert sim.account.requests_by_model == {MODEL: 2, "no/such-model": 1, OTHER: 1, "": 2}
        assert (await client.get("/_simulator/account")).json["requests_by_model"][MODEL] == 2


async def date_of(path: str, **settings: Any) -> float:
    async with quick(**settings) as sim, client_of(sim) as client:
        return parsedate_to_datetime((await client.get(path)).headers["Date"]).timestamp()


@pytest.mark.parametrize("path", ["/v1/models", "/v3/whoami", "/nowhere"])
async def test_the_clock_of_the_server_can_be_wrong(path):
    right = await date_of(path)
    assert await date_of(path, clock_skew=86_400.0) - right > 80_000
    assert await date_of(path, clock_skew=-86_400.0) - right < -80_000
