"""What is sent after a refusal as too long: the servers' own figures, and nothing silly made of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from batchrun.job import Repairs
from batchrun.records import Cut, Endpoint, Fault, Request, TooLong, Usage
from batchrun.rules import repair
from batchrun.rules.canonical import canonical
from batchrun.rules.lengths import Figures, figures, own_words
from batchrun.rules.repair import AS_ASKED, Repair, after_refusal, after_reply, applied, limit_of, told

MODEL, LARGER, LARGEST = "one/small", "two/middle", "three/large"
CONTEXTS = {MODEL: 4096, LARGER: 16384, LARGEST: 131072}
DIGEST = b"d" * 16

TOGETHER = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. "
    "Given: 80125 `inputs` tokens and 4096 `max_new_tokens`"
)
DOCUMENTED = "Bad request: input tokens + max_tokens must be less than context length"


def saying(context: int, prompt: int, output: int) -> str:
    return (
        f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {context}. "
        f"Given: {prompt} `inputs` tokens and {output} `max_new_tokens`"
    )


SENTENCES = {
    "Together, text-generation-inference": (TOGETHER, Figures(4097, 80125, 4096)),
    "text-generation-inference, the prompt alone": (
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500",
        Figures(1023, 1500, None, alone=True),
    ),
    "OpenAI": (
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens "
            "(7000 in the messages, 2000 in the completion). Please reduce the length of the messages or completion."
        ),
        Figures(8192, 7000, 2000),
    ),
    "OpenAI with functions": (
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9300 tokens "
            "(7000 in the messages, 300 in the functions, 2000 in the completion). Please reduce the length."
        ),
        Figures(8192, 7300, 2000),
    ),
    "OpenAI, the messages alone": (
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens. "
            "Please reduce the length of the messages."
        ),
        Figures(128000, 130001, None),
    ),
    "OpenAI, completions": (
        (
            "This model's maximum context length is 4097 tokens, however you requested 4098 tokens (3842 in your "
            "prompt; 256 for the completion). Please reduce your prompt; or completion length."
        ),
        Figures(4097, 3842, 256),
    ),
    "OpenRouter": (
        (
            "This endpoint's maximum context length is 32768 tokens. However, you requested about 40100 tokens "
            "(40000 of text input, 100 in the output). Please reduce the length of either one."
        ),
        Figures(32768, 40000, 100),
    ),
    "OpenRouter with tools": (
        (
            "This endpoint's maximum context length is 32768 tokens. However, you requested about 40150 tokens "
            "(40000 of text input, 50 of tool input, 100 in the output)."
        ),
        Figures(32768, 40050, 100),
    ),
    "vLLM of 2024": (
        (
            "This model's maximum context length is 200 tokens. However, your request has 203 input tokens. "
            "Please reduce the length of the input messages."
        ),
        Figures(200, 203, None),
    ),
    "vLLM of 2025": (
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context length is 1000 "
            "tokens and your request has 203 input tokens (1000 > 1000 - 203)."
        ),
        Figures(1000, 203, None),
    ),
    "vLLM's processor": (
        (
            "The decoder prompt (length 12324) is longer than the maximum model length of 8192. Make sure that "
            "`max_model_len` is no smaller than the number of text tokens."
        ),
        Figures(8192, 12324, None),
    ),
    "vLLM of 2026": (
        (
            "You passed 1193 input tokens and requested 7000 output tokens. However, the model's context length is "
            "only 8192 tokens, resulting in a maximum input length of 1192 tokens. Please reduce the length."
        ),
        Figures(8192, 1193, 7000, floor=True),
    ),
    "vLLM of 2026, in other words": (
        (
            "This model's maximum context length is 8192 tokens. However, you requested 7000 output tokens and your "
            "prompt contains at least 1193 input tokens, for a total of at least 8193 tokens."
        ),
        Figures(8192, 1193, 7000, floor=True),
    ),
    "SGLang": (
        (
            "Requested token count exceeds the model's maximum context length of 64000 tokens. You requested a total "
            "of 71897 tokens: 7897 tokens from the input messages and 64000 tokens for the completion."
        ),
        Figures(64000, 7897, 64000),
    ),
    "SGLang, the prompt alone": (
        "The input (10009 tokens) is longer than the model's context length (128 tokens).",
        Figures(128, 10009, None),
    ),
    "Anthropic": ("prompt is too long: 213462 tokens > 200000 maximum", Figures(200000, 213462, None)),
}

WITHOUT_FIGURES = [
    DOCUMENTED,
    "",
    "Input validation error",
    "The request exceeds the model's context length.",
    "This model's maximum context length is 8192 tokens.",
    "Given: 12 tokens and 13 more; context length is 14",
    TOGETHER.removesuffix(" `max_new_tokens`"),  # cut in its last figure, as a message of 200 characters may be
    TOGETHER[:-20],
    saying(0, 80, 40),
    saying(4097, 0, 40),
]


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_the_figures_of_real_sentences_are_read(sentence: str, expected: Figures):
    assert figures(sentence) == expected
    assert figures(f"upstream said: {sentence} (request 77)") == expected


@pytest.mark.parametrize("sentence", WITHOUT_FIGURES)
def test_a_sentence_without_sound_figures_tells_none(sentence: str):
    assert figures(sentence) is None


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in SENTENCES.values()], ids=SENTENCES)
def test_the_servers_own_words_are_what_a_message_begins_with(sentence: str):
    own = own_words(sentence + ' You wrote "my secret diary".')
    assert own is not None
    assert sentence.startswith(own)
    assert figures(own) == figures(sentence)
    assert own_words("my secret diary: " + sentence) is None


# --- after a refusal -------------------------------------------------------------------------------------------------


def asking(*contents: Any, model: str = MODEL, role: str = "user", **settings: Any) -> Request:
    """A chat request: each content a message of its own."""
    return request({"messages": [{"role": role, "content": text} for text in contents], "model": model, **settings})


def request(body: dict[str, Any]) -> Request:
    endpoint = Endpoint.CHAT if "messages" in body else Endpoint.COMPLETIONS
    return Request(7, DIGEST, endpoint, body["model"], canonical(body), limit_of(body), body.get("n") or 1)


def said(what: TooLong, cut: Cut = Cut.MIDDLE, *fallbacks: str) -> Repairs:
    return Repairs(fallbacks=fallbacks, too_long=what, cut=cut)


SHRINK, TRUNCATE, REJECT = said(TooLong.SHRINK), said(TooLong.TRUNCATE), said(TooLong.REJECT)
FALLBACK = said(TooLong.FALLBACK, Cut.MIDDLE, LARGER, LARGEST)


def refused(asked: Request, message: str, terms: Repairs, before: Repair = AS_ASKED) -> Repair | None:
    return after_refusal(applied(asked, before), before, message, terms, CONTEXTS)


def body_of(sent: Request) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(sent.body)
    return body


def tokens(sent: Request) -> int:
    """What a server of four characters a token counts."""
    body = body_of(sent)
    texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
    return sum(len(text) for text in texts if isinstance(text, str)) // 4


@pytest.mark.parametrize("message", [TOGETHER, DOCUMENTED, ""])
def test_rejecting_sends_nothing_again(message: str):
    assert refused(asking("x" * 9000, max_tokens=100), message, REJECT) is None


def test_the_output_shrinks_to_what_the_context_leaves():
    got = refused(asking("x" * 8000, max_tokens=4000), saying(4096, 2000, 4000), SHRINK)
    assert got == Repair(max_tokens=4096 - 2000 - repair.MARGIN, was=4000, refusals=1)


def test_a_second_refusal_shrinks_the_output_again_and_a_third_is_final():
    asked = asking("x" * 8000, max_tokens=4000)
    first = refused(asked, saying(4096, 2000, 4000), SHRINK)
    assert first is not None
    second = refused(asked, saying(4096, 2000, 2088), SHRINK, first)
    assert second is not None
    assert (second.max_tokens, second.was, second.refusals) == (1044, 4000, 2)
    assert refused(asked, saying(4096, 2000, 1044), SHRINK, second) is None


def test_an_output_that_nobody_limited_is_told_as_unset_after_two_repairs():
    asked = asking("x" * 8000)
    first = refused(asked, saying(4096, 2000, 4000), SHRINK)
    assert first is not None
    second = refused(asked, saying(4096, 2000, 2088), SHRINK, first)
    assert second is not None
    assert told(MODEL, MODEL, second) == "max_tokens unset -> 1044"


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (saying(4096, 4090, 4000), 4000),  # no room at all
        (saying(4096, 4030, 4000), 4000),  # room for too little to be worth it
        (saying(4096, 9000, 4000), 4000),  # the prompt alone is too long
        (saying(4096, 2000, 100), 100),  # it would have fitted
        ("`inputs` must have less than 1024 tokens. Given: 1500", 4000),  # fewer tokens for the answer are no help
        ("The input (10009 tokens) is longer than the model's context length (128 tokens).", 4000),
    ],
)
def test_an_output_that_cannot_shrink_in_earnest_is_given_up(message: str, limit: int):
    assert refused(asking("x" * 8000, max_tokens=limit), message, SHRINK) is None


def test_a_small_output_that_was_asked_for_may_shrink_below_what_is_else_the_least():
    got = refused(asking("x" * 8000, max_tokens=10), saying(2016, 2000, 10), SHRINK)
    assert got is None
    assert repair.LEAST_OUTPUT > 40
    assert refused(asking("x" * 8000, max_tokens=60), saying(2088, 2000, 60), SHRINK) is None


def test_under_both_names_of_the_limit_both_are_lowered():
    asked = asking("x" * 8000, max_tokens=3000, max_completion_tokens=4000)
    got = refused(asked, saying(4096, 2000, 4000), SHRINK)
    assert got is not None
    assert {body_of(applied(asked, got))[name] for name in ("max_tokens", "max_completion_tokens")} == {2088}
    one = asking("x" * 8000, max_completion_tokens=4000)
    assert "max_tokens" not in body_of(applied(one, got))
    assert body_of(applied(one, got))["max_completion_tokens"] == 2088


@pytest.mark.parametrize("limit", [None, 500])
def test_the_documented_sentence_without_figures_is_repaired_by_the_known_context(limit: int | None):
    settings = {} if limit is None else {"max_tokens": limit}
    asked = asking("word " * 6000, **settings)  # 7,500 tokens for 4,096
    first = refused(asked, DOCUMENTED, TRUNCATE)
    assert first is not None
    assert tokens(applied(asked, first)) + (limit or 0) <= CONTEXTS[MODEL]


def test_without_figures_a_huge_output_can_shrink_too():
    got = refused(asking("word " * 200, max_tokens=4000), DOCUMENTED, SHRINK)
    assert got is not None
    assert 250 + (got.max_tokens or 0) <= CONTEXTS[MODEL]
    assert (got.max_tokens or 0) > 3000


def test_without_figures_and_without_a_known_context_nothing_can_be_done():
    for terms in (SHRINK, TRUNCATE, FALLBACK):
        assert refused(asking("word " * 6000, model="nobody/knows", max_tokens=900), DOCUMENTED, terms) is None


def test_without_figures_the_second_cut_is_deeper_than_the_first_guess():
    """A text of two bytes a token: the first guess of three is too short a cut, the second is not."""
    asked = asking("ab" * 9000, max_tokens=1000)
    first = refused(asked, DOCUMENTED, TRUNCATE)
    assert first is not None
    assert len(body_of(applied(asked, first))["messages"][0]["content"]) // 2 + 1000 > CONTEXTS[MODEL]
    second = refused(asked, DOCUMENTED, TRUNCATE, first)
    assert second is not None
    assert len(body_of(applied(asked, second))["messages"][0]["content"]) // 2 + 1000 <= CONTEXTS[MODEL]


def test_a_server_that_stopped_counting_is_not_taken_at_its_word():
    """vLLM since 2026 reads no more of a prompt than would not fit: its figure is the context's, not the prompt's."""
    asked = asking("word " * 20_000, max_tokens=1000)  # 25,000 tokens
    message = (
        "You passed 3097 input tokens and requested 1000 output tokens. However, the model's context length is "
        "only 4096 tokens, resulting in a maximum input length of 3096 tokens."
    )
    got = refused(asked, message, TRUNCATE)
    assert got is not None
    assert tokens(applied(asked, got)) + 1000 <= 4096


@pytest.mark.parametrize("cut", Cut)
def test_the_longest_text_of_the_user_is_cut_where_the_user_says(cut: Cut):
    text = "".join(f"{n:05d}" for n in range(4000))  # 20,000 characters, 5,000 tokens
    asked = asking("short question", text, "another one", max_tokens=1000)
    got = refused(asked, saying(4096, tokens(asked), 1000), said(TooLong.TRUNCATE, cut))
    assert got is not None
    sent = applied(asked, got)
    short, shortened, other = (message["content"] for message in body_of(sent)["messages"])
    assert (short, other) == ("short question", "another one")
    assert "[...]" in shortened
    assert shortened.startswith("00000") is (cut is not Cut.HEAD)
    assert shortened.endswith("03999") is (cut is not Cut.TAIL)
    assert tokens(sent) + 1000 <= 4096
    assert tokens(sent) + 1000 > 4096 * 0.9, "no more is cut than has to be"
    assert (sent.row, sent.digest, sent.max_tokens) == (asked.row, asked.digest, asked.max_tokens)
    assert told(MODEL, MODEL, got) == f"{cut} of message 2 cut, {got.keep} of 20000 characters sent"


@pytest.mark.parametrize("letters", [9_000, 20_000, 100_000, 5_000_000])
def test_however_much_has_to_go_what_stays_nearly_fills_the_context(letters: int):
    asked = asking("word " * (letters // 5), max_tokens=2000)
    got = refused(asked, saying(4096, tokens(asked), 2000), TRUNCATE)
    assert got is not None
    assert 1800 < tokens(applied(asked, got)) <= 4096 - 2000


def test_system_messages_and_earlier_answers_are_never_cut():
    system, answer = {"role": "system", "content": "s" * 9000}, {"role": "assistant", "content": "a" * 9000}
    asked = request({"messages": [system, answer, {"role": "user", "content": "u" * 8000}], "model": MODEL})
    got = refused(asked, saying(6500, 6500, 100), TRUNCATE)
    assert got is not None
    assert got.message == 2
    only = request({"messages": [system, answer], "model": MODEL})
    assert refused(only, saying(4000, 4500, 100), TRUNCATE) is None


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "t" * 9000}], 5, {"text": "t" * 9000}])
def test_a_content_that_is_no_text_is_left_alone(content: Any):
    assert refused(asking(content), saying(4096, 5000, 100), TRUNCATE) is None
    asked = asking(content, "u" * 16_000, max_tokens=100)
    got = refused(asked, saying(4096, 5000, 100), TRUNCATE)
    assert got is not None
    assert body_of(applied(asked, got))["messages"][0]["content"] == content


def test_a_text_too_short_to_cut_is_given_up():
    assert refused(asking("x" * 150, max_tokens=4090), saying(4096, 37, 4090), TRUNCATE) is None
    assert refused(asking("x" * 99), saying(10, 25, 100), TRUNCATE) is None


def test_the_second_cut_is_of_the_same_text_though_another_is_longer_by_now():
    """Both cuts are made in the text as it was asked: to cut another one would bring back what the first took out."""
    asked = asking("a" * 10_000, "b" * 9_000, max_tokens=100)
    first = refused(asked, saying(4096, 4750, 100), TRUNCATE)
    assert first is not None
    second = refused(asked, saying(4096, 4400, 100), TRUNCATE, first)
    assert second is not None
    assert (first.message, second.message) == (0, 0)
    assert second.length == first.length == 10_000
    assert second.keep < first.keep


def test_a_completions_prompt_is_cut():
    asked = request({"model": MODEL, "prompt": "word " * 4000, "max_tokens": 100})
    got = refused(asked, saying(4096, 5000, 100), TRUNCATE)
    assert got is not None
    sent = applied(asked, got)
    assert tokens(sent) + 100 <= 4096
    assert "[...]" in body_of(sent)["prompt"]


@pytest.mark.parametrize("letter", ["ö", "漢", "🦉", "e\u0301", '"', "\\", "\n"])
def test_any_letters_can_be_cut(letter: str):
    asked = asking(letter * 9000, max_tokens=100)
    for cut in Cut:
        got = refused(asked, saying(4096, 9000, 100), said(TooLong.TRUNCATE, cut))
        assert got is not None
        text = body_of(applied(asked, got))["messages"][0]["content"]
        assert set(text) <= set(letter) | set(" [...]")


def test_every_choice_has_the_same_limit():
    got = refused(asking("x" * 8000, max_tokens=4000, n=4), saying(4096, 2000, 4000), SHRINK)
    assert got is not None
    assert got.max_tokens == 2088


def test_a_limit_for_the_prompt_alone_leaves_the_answer_its_tokens():
    asked = asking("x" * 8000, max_tokens=3000)
    got = refused(asked, "`inputs` must have less than 1024 tokens. Given: 2000", TRUNCATE)
    assert got is not None
    assert 900 < tokens(applied(asked, got)) < 1024
    assert body_of(applied(asked, got))["max_tokens"] == 3000


def test_a_fallback_is_the_first_with_a_larger_context_in_which_it_fits():
    asked = asking("x" * 8000, max_tokens=100)
    first = refused(asked, saying(4096, 5000, 100), FALLBACK)
    assert first == Repair(model=LARGER, refusals=1)
    second = refused(asked, saying(16384, 20_000, 100), FALLBACK, first)
    assert second == Repair(model=LARGEST, refusals=2)
    assert refused(asked, saying(4096, 50_000, 100), FALLBACK) == Repair(model=LARGEST, refusals=1)
    assert refused(asked, saying(4096, 500_000, 100), FALLBACK) is None
    assert refused(asked, saying(4096, 5000, 100), said(TooLong.FALLBACK, Cut.MIDDLE, "nobody/knows", MODEL)) is None
    assert applied(asked, first).model == body_of(applied(asked, first))["model"] == LARGER


def test_what_is_applied_keeps_all_that_was_asked_but_what_is_repaired():
    asked = asking("x" * 8000, max_tokens=4000, temperature=0.5, stop=["END"], seed=3)
    sent = applied(asked, Repair(model=LARGER, max_tokens=9, message=0, keep=100, length=8000, seed=4, refusals=2))
    assert (sent.row, sent.digest, sent.endpoint, sent.n) == (asked.row, asked.digest, asked.endpoint, asked.n)
    kept = {name: value for name, value in body_of(sent).items() if name in ("temperature", "stop")}
    assert kept == {"temperature": 0.5, "stop": ["END"]}
    assert (body_of(sent)["seed"], body_of(sent)["max_tokens"], sent.max_tokens, sent.model) == (4, 9, 9, LARGER)
    assert applied(asked, Repair(refusals=2)) is applied(asked, AS_ASKED) is asked


# --- whatever the server says ----------------------------------------------------------------------------------------


def any_request(dice: random.Random) -> Request:
    letters = dice.choice(["abc def ", "ö漢🦉 ", '"\\\n', "0123456789"])

    def text() -> Any:
        if dice.random() < 0.1:
            return [{"type": "text", "text": "part"}]
        return "".join(dice.choices(letters, k=dice.choice([0, 1, 90, 300, 3000, 30_000])))

    settings: dict[str, Any] = {"model": dice.choice([MODEL, LARGER, "nobody/knows"])}
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if dice.random() < 0.4:
            settings[name] = dice.choice([1, 2, 50, 200, 4000, 200_000])
    if dice.random() < 0.2:
        return request({"prompt": "".join(dice.choices(letters, k=dice.randint(1, 9000))), **settings})
    roles = ["system", "user", "assistant", "user", "tool"]
    return request({"messages": [{"role": role, "content": text()} for role in dice.sample(roles, 3)], **settings})


def any_sentence(dice: random.Random) -> str:
    def number() -> int:
        return dice.choice([0, 1, 7, 64, 512, 4096, dice.randint(0, 9000), dice.randint(0, 10**6), 10**60])

    return dice.choice(
        [
            saying(number(), number(), number()),
            (
                f"This model's maximum context length is {number()} tokens. However, you requested {number()} tokens "
                f"({number()} in the messages, {number()} in the functions, {number()} in the completion)."
            ),
            (
                f"You passed {number()} input tokens and requested {number()} output tokens. However, the model's "
                f"context length is only {number()} tokens."
            ),
            f"`inputs` must have less than {number()} tokens. Given: {number()}",
            DOCUMENTED,
        ]
    )


def is_smaller(new: Request, old: Request) -> bool:
    """Whether it takes less room: a larger context, fewer characters, or fewer tokens for the answer."""
    if CONTEXTS.get(new.model, 0) > CONTEXTS.get(old.model, 0):
        return True
    limits = (new.max_tokens or 10**70, old.max_tokens or 10**70)
    return len(new.body.decode()) < len(old.body.decode()) if limits[0] == limits[1] else limits[0] < limits[1]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_server_says_the_request_gets_smaller_or_is_given_up(seed: int):
    dice = random.Random(seed)
    for _ in range(60):
        asked, plan = any_request(dice), AS_ASKED
        what = dice.choice([TooLong.SHRINK, TooLong.TRUNCATE, TooLong.FALLBACK])
        terms = said(what, dice.choice(list(Cut)), LARGER, LARGEST)
        for repairs in range(4):
            sent = applied(asked, plan)
            then = after_refusal(sent, plan, any_sentence(dice), terms, CONTEXTS)
            if then is None:
                break
            assert repairs < repair.MOST_REFUSALS
            again = applied(asked, then)
            assert is_smaller(again, sent), (sent.max_tokens, again.max_tokens, plan, then)
            assert (again.digest, again.row, again.n) == (asked.digest, asked.row, asked.n)
            assert again.max_tokens is None or again.max_tokens >= 1
            assert limit_of(body_of(again)) == again.max_tokens
            assert_unlike_only_where_repaired(asked, again, then)
            assert_quotes_nothing(asked, again, then)
            assert msgspec.json.decode(msgspec.json.encode(then), type=Repair) == then
            plan = then


def assert_unlike_only_where_repaired(asked: Request, sent: Request, plan: Repair) -> None:
    was, now = body_of(asked), body_of(sent)
    assert {name for name in was if was[name] != now.get(name)} <= {
        "max_tokens", "max_completion_tokens", "messages", "prompt", "model",
    }  # fmt: skip
    if plan.message is None or "messages" not in was:
        return
    for place, (before, after) in enumerate(zip(was["messages"], now["messages"], strict=True)):
        assert before["role"] == after["role"]
        assert place == plan.message or before == after
        if place == plan.message:
            assert after["role"] == "user"
            assert repair.LEAST_TEXT <= plan.keep < len(before["content"]) == plan.length


def assert_quotes_nothing(asked: Request, sent: Request, plan: Repair) -> None:
    words = told(asked.model, sent.model, plan) or ""
    texts = [message["content"] for message in body_of(asked).get("messages", [])] + [body_of(asked).get("prompt")]
    prompt = "\0".join(text for text in texts if isinstance(text, str))
    assert words
    assert not [part for at in range(len(words) - 15) if (part := words[at : at + 16]) in prompt]


# --- a better answer -------------------------------------------------------------------------------------------------


def better(asked: Request, plan: Repair, usage: Usage | None, retries: int = 0, most: int = 2) -> Repair | None:
    terms = Repairs(length_retries=most)
    return after_reply(applied(asked, plan), plan, Fault.CUT_SHORT, usage, retries, terms, CONTEXTS)


def test_a_cut_answer_is_asked_with_more_tokens_up_to_the_context():
    asked = asking("x" * 400, max_tokens=300)
    first = better(asked, AS_ASKED, Usage(100, 300))
    assert first == Repair(max_tokens=1200, was=300)
    second = better(asked, first, Usage(100, 1200), retries=1)
    assert second == Repair(max_tokens=4096 - 100 - repair.MARGIN, was=300)
    assert better(asked, second, Usage(100, 3996 - repair.MARGIN), retries=1) is None
    assert better(asked, first, Usage(100, 1200), retries=2) is None


def test_a_cut_answer_that_nobody_limited_is_told_as_unset():
    asked = asking("x" * 400)
    first = better(asked, AS_ASKED, Usage(100, 300))
    assert first == Repair(max_tokens=1200, was=0)
    second = better(asked, first, Usage(100, 1200), retries=1)
    assert second is not None
    assert told(MODEL, MODEL, second) == "max_tokens unset -> 3988"
