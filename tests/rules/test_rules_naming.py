"""Which model was meant, and what is said of one that cannot be called: never a made-up price, never a switch."""

from __future__ import annotations

import re

import pytest

from batchrun import data
from batchrun.rules.naming import Known, Successor, advice, close_names

LISTED = (
    "deepseek-ai/DeepSeek-V4-Pro",
    "google/gemma-4-31B-it",
    "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "moonshotai/Kimi-K2.6",
    "moonshotai/Kimi-K2.7-Code",
    "openai/gpt-oss-120b",
    "openai/gpt-oss-20b",
    "Qwen/Qwen2.5-7B-Instruct-Turbo",
    "Qwen/Qwen3.5-9B",
)


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ("gpt-oss-20b", "openai/gpt-oss-20b"),
        ("gpt-oss-120b", "openai/gpt-oss-120b"),
        ("OpenAI/GPT-OSS-20B", "openai/gpt-oss-20b"),
        ("together/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("openai/gpt-oss-2ob", "openai/gpt-oss-20b"),
        ("openai/gpt-oss-20", "openai/gpt-oss-20b"),
        ("Llama-3.3-70B", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct-Turbo", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-V4-Pro"),
        ("gemma", "google/gemma-4-31B-it"),
        ("moonshotai/Kimi-K2.5", "moonshotai/Kimi-K2.6"),
        ("qwen3.5", "Qwen/Qwen3.5-9B"),
    ],
)
def test_the_name_that_was_meant_comes_first(wanted: str, first: str):
    assert close_names(wanted, LISTED)[0] == first


@pytest.mark.parametrize("wanted", ["", "/", "openai/", "nonsense", "12345", "-", "…", "a" * 10_000])
def test_a_name_like_no_other_has_no_close_names(wanted: str):
    assert close_names(wanted, LISTED) == ()


def test_other_sizes_and_versions_of_the_family_follow_but_never_more_than_asked_for():
    assert close_names("Qwen/Qwen3.5-397B-A17B", LISTED) == ("Qwen/Qwen3.5-9B", "Qwen/Qwen2.5-7B-Instruct-Turbo")
    assert len(close_names("gpt", [f"openai/gpt-{n}" for n in range(50)])) == 3
    assert len(close_names("gpt", [f"openai/gpt-{n}" for n in range(50)], most=1)) == 1


def test_names_that_share_only_what_many_names_end_in_are_not_close():
    assert close_names("mistralai/Mixtral-Instruct-Turbo", LISTED) == ()


def test_the_wanted_name_itself_is_no_advice_and_the_order_of_the_list_does_not_matter():
    assert "openai/gpt-oss-20b" not in close_names("openai/gpt-oss-20b", LISTED)
    assert close_names("gpt-oss", LISTED) == close_names("gpt-oss", tuple(reversed(LISTED)))


GONE = "It was taken out of service"
LOOK = "`batchrun models` lists what there is."


def known(*names: str) -> list[Known]:
    return [Known(name, None, serverless_price=True) for name in names]


def test_a_slip_of_the_pen_is_answered_with_the_name_alone():
    assert advice("gpt-oss-20b", known(*LISTED), {}) == "Did you mean openai/gpt-oss-20b?"


def test_several_close_names_are_all_told():
    said = advice("moonshotai/Kimi-K2", known(*LISTED), {})
    assert said == "Did you mean moonshotai/Kimi-K2.6 or moonshotai/Kimi-K2.7-Code?"


@pytest.mark.parametrize(
    ("gone", "listed", "expected"),
    [
        (Successor("2026-03-06", "a/new"), ("a/new",), f"{GONE} on 2026-03-06; its successor is a/new."),
        (Successor("2026-03-06", "a/new"), (), f"{GONE} on 2026-03-06; its successor is a/new."),
        (Successor("2026-02", "a/new"), (), f"{GONE} in 2026-02; its successor is a/new."),
        (Successor("", "a/new"), ("a/new",), "It was replaced by a/new."),
        (
            Successor("2026-03-06", "a/new"),
            ("b/other",),
            f"{GONE} on 2026-03-06; a/new followed it and is not listed. {LOOK}",
        ),
        (Successor("2026-03-06"), ("b/other",), f"{GONE} on 2026-03-06. {LOOK}"),
        (Successor("2026-03-06"), ("a/older",), f"{GONE} on 2026-03-06. The nearest listed: a/older."),
    ],
)
def test_a_model_out_of_service_is_told_with_its_date_and_a_successor_that_is_there(
    gone: Successor, listed: tuple[str, ...], expected: str
):
    assert advice("a/old", known(*listed), {"a/old": gone}) == expected


def test_a_successor_that_is_gone_as_well_is_followed_and_a_circle_comes_to_an_end():
    table = {"a/one": Successor("", "a/two"), "a/two": Successor("2026-05-14")}
    assert advice("a/one", [], table).startswith("a/two followed it and was removed on 2026-05-14 too.")
    circle = {"a/one": Successor("", "a/two"), "a/two": Successor("", "a/one")}
    assert advice("a/one", [], circle)


def test_a_dedicated_model_is_told_with_its_price_an_hour_only_when_the_list_says_one():
    serverless = known("openai/gpt-oss-20b")
    priced = Known("a/big", 2.4, serverless_price=False)
    unpriced = Known("a/big", None, serverless_price=False)
    assert advice("a/big", [*serverless, priced], {}) == (
        "It runs on a dedicated endpoint only: start one ($2.40 an hour), or name a serverless model."
    )
    assert advice("a/big", [*serverless, unpriced], {}) == (
        "It runs on a dedicated endpoint only: start one, or name a serverless model."
    )


def test_a_list_without_any_price_does_not_make_a_model_dedicated():
    said = advice("a/big", [Known("a/big", None, serverless_price=False)], {})
    assert "dedicated" not in said
    assert "$" not in said


def test_a_model_that_has_only_a_price_an_hour_is_not_suggested_while_others_are_priced_by_the_token():
    listed = [Known("a/gpt-oss-21b", 3.0, serverless_price=False), *known("openai/gpt-oss-120b")]
    assert advice("gpt-oss-21", listed, {}) == "Did you mean openai/gpt-oss-120b?"


def test_no_advice_about_any_known_model_ever_shows_a_price_that_no_list_had():
    for name in (*data.successors(), *LISTED, "nonsense"):
        for listed in ([], known(*LISTED)):
            said = advice(name, listed, data.successors())
            assert said
            assert "$" not in said
            assert len(re.findall(r"[.?](?: |$)", said)) <= 2


def test_the_dated_table_has_dates_and_names_as_the_advice_expects_them():
    assert len(data.successors()) > 10
    for model, gone in data.successors().items():
        assert "/" in model
        assert re.fullmatch(r"(?:\d{4}(?:-\d\d){0,2})?", gone.removed)
        assert gone.removed or gone.model
    members = [model for family in data.families().values() for model in family]
    assert len(members) == len(set(members))
    assert not set(members) & {model for model, gone in data.successors().items() if gone.removed}
