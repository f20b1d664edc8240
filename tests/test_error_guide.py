"""The error guide, played with real bodies: what a run does with each of them, live and in a batch's error file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_jobs import Hurried, batching, diary, looking_into, one_start, rows_by_state
from multidict import CIMultiDict
from support import MODEL, MakeJob, content, paid_for, prompt, read_rows, write_prompts

from batchrun.api import jobs, wire
from batchrun.job import Asking, Repairs
from batchrun.records import Fault, ParkReason, Refusal, Reply, Route, Trouble
from batchrun.rules import faults
from batchrun.simulator import Fault as Struck
from batchrun.simulator import FaultKind, Settings, Simulator, batch_work
from batchrun.simulator.batch_lines import Failed

WIRE = Path(__file__).parent / "fixtures" / "wire"
BODIES: dict[str, dict[str, Any]] = {
    path.stem.removeprefix("error_"): msgspec.json.decode(path.read_bytes()) for path in sorted(WIRE.glob("error_*"))
}
NOW = 1_767_225_600.0
BODY = b'{"messages":[{"content":"Name a river in Spain.","role":"user"}],"model":"no/such-model"}'
ROWS = 8

PARKS = {
    Fault.CREDITS: (3, ParkReason.CREDITS),
    Fault.KEY: (4, ParkReason.KEY),
    Fault.MODEL_MISSING: (9, ParkReason.MODEL),
}
REJECTS = (Fault.TOO_LONG, Fault.BAD_REQUEST)
PASSES = (Fault.THROTTLED, Fault.OVERLOADED, Fault.SERVER)


def named(*wanted: Fault) -> list[str]:
    return [name for name, seen in BODIES.items() if Fault(seen["fault"]) in wanted]


def text_of(seen: dict[str, Any]) -> str:
    return str(seen["text"]) if "text" in seen else json.dumps(seen["body"])


def struck(name: str, **when: Any) -> Struck:
    """The simulator answers with this body."""
    seen = BODIES[name]
    headers = {key: value for key, value in seen["headers"].items() if key.lower() != "content-type"}
    return Struck(FaultKind.STATUS, status=seen["status"], body=text_of(seen), headers=headers, **when)


def in_response(seen: dict[str, Any]) -> dict[str, Any]:
    """The same reply as an error line that holds the whole response."""
    return {"response": {"status_code": seen["status"], "body": seen.get("body", seen.get("text"))}}


def in_error(seen: dict[str, Any]) -> dict[str, Any] | None:
    """The same reply as an error line in the provider's documented form, which has no status; None when it has none."""
    error = seen["body"].get("error") if isinstance(seen.get("body"), dict) else None
    return {"error": error} if error else None


def failing(monkeypatch: pytest.MonkeyPatch, said: dict[str, dict[str, Any]], times: int = 1) -> None:
    """Let the lines with these words fail in these words, so many times."""
    left = dict.fromkeys(said, times)
    answer_line = batch_work.answer_line

    def otherwise(line: bytes, settings: Settings) -> Any:
        for words, thing in said.items():
            if words.encode() in line and left[words] > 0:
                left[words] -= 1
                custom_id = batch_work.custom_id_of(line)
                return Failed(custom_id, msgspec.json.encode({"custom_id": custom_id, **thing}) + b"\n")
        return answer_line(line, settings)

    monkeypatch.setattr(batch_work, "answer_line", otherwise)


# --- the same verdict in both lanes ----------------------------------------------------------------------------------


def judged(seen: Refusal) -> Trouble:
    message = wire.redacted(seen.message, BODY, "an-example-key")
    return faults.trouble(msgspec.structs.replace(seen, message=message))


def live(seen: dict[str, Any]) -> Trouble:
    read = wire.read(Reply(seen["status"], CIMultiDict(seen["headers"]), text_of(seen).encode(), 0.5), NOW)
    assert isinstance(read, Refusal)
    return judged(read)


def in_a_line(line: dict[str, Any]) -> Trouble:
    found = jobs.result_line(json.dumps({"custom_id": "a-1", **line}).encode(), NOW)
    assert found is not None
    assert isinstance(found.outcome, Refusal)
    return judged(found.outcome)


@pytest.mark.parametrize("name", BODIES)
def test_a_line_that_holds_the_response_is_judged_as_the_live_reply(name: str):
    ours, theirs = in_a_line(in_response(BODIES[name])), live(BODIES[name])
    assert (ours.fault, ours.status, ours.message) == (theirs.fault, theirs.status, theirs.message)


# Without its status this body is taken at its type, and that says credits: the account is asked before a row is blamed.
AT_ITS_TYPE = {"429_credit_limit_without_words": Fault.CREDITS}


@pytest.mark.parametrize("name", [name for name, seen in BODIES.items() if in_error(seen)])
def test_a_line_without_a_status_is_judged_as_the_live_reply_or_gets_another_chance(name: str):
    line = in_error(BODIES[name])
    assert line is not None
    got = in_a_line(line).fault
    assert got in {AT_ITS_TYPE.get(name, Fault(BODIES[name]["fault"])), Fault.SERVER}
    if live(BODIES[name]).fault in (Fault.KEY, Fault.TOO_LONG):
        assert got is live(BODIES[name]).fault, "these say themselves what they are"


@pytest.mark.parametrize("word", ["code", "type"])
def test_a_line_that_calls_the_request_invalid_is_refused_with_its_words(word: str):
    got = in_a_line({"error": {"message": "Input validation error", word: "invalid_request_error"}})
    assert (got.fault, got.message) == (Fault.BAD_REQUEST, "Input validation error")


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Request timeout", "code": "timeout"},
        {"message": "Request timeout", "code": "timeout", "type": "invalid_request_error"},
        {"message": "The hamster has left the wheel", "code": "hamster_gone"},
        {"message": "Invalid request to a service of ours"},
        "invalid_request",
    ],
)
def test_a_line_with_an_unknown_code_gets_another_chance(error: Any):
    assert in_a_line({"error": error}).fault is Fault.SERVER


@pytest.mark.parametrize("code", [402, "402", 429, "429", 503, "503"])
def test_a_status_that_stands_as_a_code_is_the_status(code: Any):
    assert in_a_line({"error": {"message": "No.", "code": code}}).status == int(code)


# --- what stops the run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", named(*PARKS))
async def test_live_a_reason_that_a_person_can_mend_parks_with_every_row_pending(
    name: str, tmp_path: Path, make_job: MakeJob
) -> None:
    seen = BODIES[name]
    if "retry" in name:
        pytest.skip("a 402 with a wait is probed: test_parks")
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.0, faults=(struck(name, after=2),))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 1})
        report = await one_start(job, Hurried())
        assert (report.exit_code, report.parked) == PARKS[Fault(seen["fault"])]
        assert (report.answered, report.rejected, report.pending) == (2, 0, ROWS - 2)
        assert report.output is None or not report.written
        assert simulator.account.requests == 3, "nothing is sent after it"
        simulator.play([])
        assert (await one_start(job)).exit_code == 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
        assert {row["attempts"] for row in read_rows(tmp_path / "out.jsonl")} == {1}


@pytest.mark.parametrize("shape", [in_response, in_error])
@pytest.mark.parametrize(
    "name",
    [
        "401_invalid_key",
        "402_credit_limit",
        "402_positive_balance",
        "404_model_not_available",
        "400_non_serverless",
        "422_gateway_budget",
        "422_litellm_exceeded_budget",
        "429_gateway_budget",
        "429_insufficient_quota",
    ],
)
async def test_in_a_batch_it_parks_too_and_the_rows_go_again(
    name: str, shape: Any, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    failing(monkeypatch, {prompt(n): shape(BODIES[name]) for n in (3, 5)})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.parked) == PARKS[Fault(BODIES[name]["fault"])], report.message
        assert (report.answered, report.rejected, report.pending) == (ROWS - 2, 0, 2)
        assert (await one_start(job)).exit_code == 0
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(ROWS)}
        assert {row["attempts"] for row in read_rows(tmp_path / "out.jsonl")} == {1}


# --- what a row is refused for, and what passes ----------------------------------------------------------------------


async def test_live_every_other_body_is_refused_or_asked_again(tmp_path: Path, make_job: MakeJob) -> None:
    """All of them in one run, each for a row of its own."""
    refused, passing = named(*REJECTS), named(*PASSES)
    names = [*refused, *passing]
    rows = 2 * len(names)
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    script = [struck(name, content=f" {n} ", count=1) for n, name in enumerate(names)]
    async with Simulator(Settings(latency=0.0, faults=tuple(script))) as simulator:
        job = make_job(simulator.url, source, limits={"concurrency": 4, "max_rejected": "50%"})
        report = await one_start(job, Hurried())
        assert (report.answered, report.rejected, report.pending) == (rows - len(refused), len(refused), 0)
        out = read_rows(tmp_path / "out.jsonl")
        for row, name in zip(out, names, strict=False):
            assert_followed(row, BODIES[name], live(BODIES[name]))
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(len(refused), rows)}


async def test_in_a_batch_every_other_body_is_refused_or_asked_again(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, passing = named(*REJECTS), named(*PASSES)
    names = [*refused, *passing]
    rows = 2 * len(names)
    source = write_prompts(tmp_path / "in.jsonl", range(rows))
    failing(monkeypatch, {f" {n} ": in_response(BODIES[name]) for n, name in enumerate(names)})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching(lines=1000), limits={"max_rejected": "50%"})
        report = await one_start(job)
        assert (report.answered, report.rejected, report.pending) == (rows - len(refused), len(refused), 0)
        out = read_rows(tmp_path / "out.jsonl")
        for row, name in zip(out, names, strict=False):
            assert_followed(row, BODIES[name], live(BODIES[name]))
        assert paid_for(simulator.account.charges) == {content(prompt(n)): 1 for n in range(len(refused), rows)}


def assert_followed(row: dict[str, Any], seen: dict[str, Any], expected: Trouble) -> None:
    if Fault(seen["fault"]) in REJECTS:
        assert (row["state"], row["fault"], row["fault_message"]) == ("rejected", seen["fault"], expected.message)
        assert row["attempts"] == 1
    else:
        assert (row["state"], row["attempts"]) == ("answered", 2), seen


@pytest.mark.parametrize("lane", [Route.LIVE, Route.BATCH])
async def test_bodies_of_other_servers_are_shown_in_their_own_words(
    lane: Route, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {
        1: ({"detail": "No tools, sorry."}, "No tools, sorry."),
        2: ({"detail": [{"loc": ["body", "seed"], "msg": "Input should be a number"}]}, "Input should be a number"),
        3: ({"error": "Seeds are not known here."}, "Seeds are not known here."),
        4: ("<html><body>Bad</body></html>", "HTTP status 400"),
        5: ("not a word of JSON", "HTTP status 400"),
        6: ([], "HTTP status 400"),
    }
    source = write_prompts(tmp_path / "in.jsonl", range(20))
    script = [
        Struck(FaultKind.STATUS, status=400, content=f" {n} ", body=body if isinstance(body, str) else json.dumps(body))
        for n, (body, _) in shapes.items()
    ]
    failing(monkeypatch, {f" {n} ": {"response": {"status_code": 400, "body": b}} for n, (b, _) in shapes.items()})
    fields = batching() if lane is Route.BATCH else {"route": lane}
    async with Simulator(Settings(latency=0.0, faults=tuple(script))) as simulator:
        report = await one_start(make_job(simulator.url, source, **fields))
        assert (report.exit_code, report.rejections) == (10, {"bad_request": len(shapes)})
        out = read_rows(tmp_path / "out.jsonl")
        assert {n: out[n]["fault_message"] for n in shapes} == {n: words for n, (_, words) in shapes.items()}


# --- lines that fail in every batch ----------------------------------------------------------------------------------


async def test_a_row_given_up_after_three_batches_tells_the_providers_last_words(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    said = {"error": {"message": f"The hamster fell off at {prompt(3)}", "code": "hamster_gone"}}
    failing(monkeypatch, {prompt(3): said}, times=9)
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        report = await one_start(job)
        assert (report.exit_code, report.rejections, len(simulator.batches.jobs)) == (10, {"server": 1}, 3)
        row = read_rows(tmp_path / "out.jsonl")[3]
        assert row["fault_message"] == (
            "3 batches brought no answer for it; --route auto would send it live. "
            "The provider's last words: The hamster fell off at …"
        )


async def test_without_the_request_file_a_quotation_in_a_line_decides_nothing(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [prompt(n) for n in range(ROWS)]
    rows[3] = "What does this mean: unable to access model x, maximum context length exceeded?"
    source.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(rows)))
    failing(monkeypatch, {"What does this mean": {"error": {"message": f"Failed at {rows[3]!r}"}}})
    async with Simulator(Settings(latency=0.0)) as simulator:
        job = make_job(simulator.url, source, **batching())
        simulator.hold_batches()
        assert (await one_start(job, detach=True)).submitted == ROWS
        for file in (tmp_path / "checkpoint.db.batches").iterdir():
            file.unlink()
        simulator.release_batches()
        report = await one_start(job)
        assert (report.exit_code, report.answered) == (0, ROWS), report.message


# --- innocent words --------------------------------------------------------------------------------------------------

INNOCENT = [
    "could not generate",
    "We could not generate a response for this prompt",
    "temperature",
    "temperature must be between 0 and 2",
    "temperature is separate from the rate",
    "rate your answer from 1 to 5",
    "Cannot rate your answer",
    "the credit card number in your prompt is not allowed",
    "credit to the author is missing",
    "a balance of payments is not a tool",
    "the word balance is insufficient",
    "insufficient arguments for the function",
    "insufficient_tools is not a parameter",
    "separate the messages",
    "model answer not found in your prompt",
    "model not found in your drawing",
    "Your model not foundational enough",
    "the data model does not exist in the schema",
    "the model answer does not exist",
    "unable to access memory",
    "the tool 'rate limit' is not defined",
    'the function "crossed budget" is unknown',
    "the enum `model not found` is not one of the choices",
    "a role 'rate-limited' is not known",
    "'ExceededBudget' is not a valid name of a tool",
    "limit must be a number",
    "rates limited to ten are not allowed",
    "generate limits for the rate",
    "corporate limits apply",
    "too many requested items",
    "too many messages",
    "429 is no valid seed",
    "402 words at most",
    "quota is misspelt as quote",
    "your budget has three digits",
    "budget must be positive",
    "the server is overloadedly busy",
    "overloaded functions are not supported by tools",
    "overloaded",
    "the engine of the car is loaded",
    "max_tokens must be less than 100",
    "max_tokens must be at most the context",
    "the context must be an object",
    "maximum length of a name is 64",
    "stop sequences are too long",
    "the name of the tool is too long",
    "the prompt is long",
    "prompts too long to read aloud",
    "exceeds the model is no sentence",
    "please reduce the number of tools",
    "the input must be text",
    "the deadline is longer than allowed",
    "spending advice is not given",
]


def test_there_are_many_innocent_messages():
    assert len(set(INNOCENT)) > 40


@pytest.mark.parametrize("message", INNOCENT)
def test_innocent_messages_are_read_as_what_their_status_says(message: str):
    for status in (400, 403, 404, 413, 422):
        assert live({"status": status, "headers": {}, "body": {"error": {"message": message}}}).fault is (
            Fault.BAD_REQUEST
        )
        assert live({"status": status, "headers": {}, "body": {"detail": message}}).fault is Fault.BAD_REQUEST
    assert live({"status": 500, "headers": {}, "body": {"error": {"message": message}}}).fault is Fault.SERVER
    assert live({"status": 429, "headers": {}, "body": {"error": {"message": message}}}).fault is Fault.THROTTLED


@pytest.mark.parametrize("message", INNOCENT)
def test_innocent_messages_in_an_error_line_are_refused_by_their_code_or_get_another_chance(message: str):
    assert in_a_line({"error": message}).fault is Fault.SERVER
    assert in_a_line({"error": {"message": message, "code": "odd"}}).fault is Fault.SERVER
    assert in_a_line({"error": {"message": message, "code": "invalid_request"}}).fault is Fault.BAD_REQUEST
    assert not faults.says_credits(message)
    assert not faults.says_missing(message)


QUOTABLE = [
    "Credit limit exceeded. Please add credit.",
    "You have been rate limited. Your rate limit is 5 queries per minute",
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "Unable to access model x. Please visit",
    "Invalid model specified in line 3",
    "The server is overloaded or not ready yet.",
    "Budget has been exceeded! Current cost: 0.5",
    "The model `something` does not exist.",
]


@pytest.mark.parametrize("said", QUOTABLE)
@pytest.mark.parametrize("around", ["Cannot parse {!r}", "{}", "Field `messages`: {} is not allowed", '"{}"'])
def test_a_prompt_that_an_error_echoes_decides_nothing(said: str, around: str):
    body = msgspec.json.encode({"messages": [{"role": "user", "content": f"Explain: {said} And why?"}], "model": "m"})
    echo = wire.redacted(around.format(f"Explain: {said} And why?"), body, None)
    for status, expected in (
        (400, Fault.BAD_REQUEST),
        (422, Fault.BAD_REQUEST),
        (500, Fault.SERVER),
        (0, Fault.SERVER),
    ):
        assert faults.trouble(Refusal(status, "", "", echo, None)).fault is expected, echo


# --- requests that are too long to be searched -----------------------------------------------------------------------

HUGE = b'{"messages":[{"content":"' + b"Lorem ipsum dolor sit amet. " * 150_000 + b'%b","role":"user"}],"model":"m"}'
OVERFLOW = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. "
    "Given: 1050000 `inputs` tokens and 4096 `max_new_tokens`"
)


def test_of_a_huge_request_the_servers_own_sentence_is_known_and_nothing_else_shown():
    body = HUGE % b""
    assert len(body) > 4_000_000
    said = wire.redacted(f"{OVERFLOW}. You wrote: Lorem ipsum dolor sit amet.", body, "an-example-key")
    assert said == OVERFLOW
    assert faults.trouble(Refusal(422, "", "", said, None)).fault is Fault.TOO_LONG


@pytest.mark.parametrize(
    "message",
    [
        f"You wrote: {OVERFLOW}",
        "Lorem ipsum dolor sit amet.",
        "Credit limit exceeded. Please add credit.",
        "maximum context length",
        "",
    ],
)
def test_of_a_huge_request_no_other_message_is_shown_or_decides(message: str):
    said = wire.redacted(message, HUGE % b"", "an-example-key")
    assert said.startswith("(not shown: ")
    assert faults.trouble(Refusal(400, "", "", said, None)).fault is Fault.BAD_REQUEST
    assert faults.trouble(Refusal(400, "", "context_length_exceeded", said, None)).fault is Fault.TOO_LONG


def test_of_a_huge_request_that_holds_the_sentence_it_decides_nothing():
    said = wire.redacted(OVERFLOW, HUGE % OVERFLOW.encode(), "an-example-key")
    assert said.startswith("(not shown: ")


# --- rows of the guide that no single body shows ---------------------------------------------------------------------


@pytest.mark.parametrize("body", ["404_model_not_available", "400_non_serverless", "404_vllm_model"])
async def test_a_model_that_is_missing_is_replaced_by_the_fallback(
    body: str, tmp_path: Path, make_job: MakeJob
) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    async with Simulator(Settings(latency=0.0, faults=(struck(body, model=MODEL),))) as simulator:
        repairs = Repairs(fallbacks=("openai/gpt-oss-120b",))
        report = await one_start(make_job(simulator.url, source, repairs=repairs))
        assert (report.exit_code, report.answered) == (0, ROWS)
        rows = read_rows(tmp_path / "out.jsonl")
        assert {row["model"] for row in rows} == {"simulated/openai/gpt-oss-120b"}
        assert {row["repair"] for row in rows} == {f"model {MODEL} -> openai/gpt-oss-120b"}


async def test_a_model_that_a_row_names_and_that_is_missing_rejects_the_row(tmp_path: Path, make_job: MakeJob) -> None:
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        for n in range(ROWS):
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt(n)}]}
            file.write(json.dumps({"custom_id": f"row-{n}", "body": body}) + "\n")
    faulty = struck("404_model_not_available", content=prompt(2))
    async with Simulator(Settings(latency=0.0, faults=(faulty,))) as simulator:
        report = await one_start(make_job(simulator.url, source, asking=Asking(params={"max_tokens": 60})))
        assert (report.exit_code, report.rejections) == (10, {"model_missing": 1})


async def test_every_diary_and_message_of_these_runs_is_free_of_prompts(tmp_path: Path, make_job: MakeJob) -> None:
    source = write_prompts(tmp_path / "in.jsonl", range(ROWS))
    echo = Struck(FaultKind.STATUS, status=400, body=json.dumps({"detail": f"Bad: {prompt(3)}"}), content=prompt(3))
    async with Simulator(Settings(latency=0.0, faults=(echo,))) as simulator:
        job = make_job(simulator.url, source)
        report = await one_start(job)
        assert rows_by_state(job) == {2: ROWS - 1, 3: 1}
        with looking_into(job) as sql:
            kept = "".join(message for (message,) in sql.execute("select message from rejection"))
        told = kept + diary(job) + report.message
        assert not [at for at in range(len(prompt(3)) - 15) if prompt(3)[at : at + 16] in told]
