"""Promise: no run of 16 characters of a request, and no key, is ever in a message that is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from batchrun.api.wire import LONGEST_MESSAGE, QUOTED_RUN, _without_quotations, redacted

KEY = "tgp_v1_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_abcdef"


def body_of(*prompts: str, **more: Any) -> bytes:
    messages = [{"content": prompt, "role": "user"} for prompt in prompts]
    return msgspec.json.encode({"messages": messages, "model": "m", **more}, order="sorted")


def folded(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def escaped_to_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def runs(text: str, length: int = QUOTED_RUN) -> set[str]:
    return {text[at : at + length] for at in range(len(text) - length + 1)}


ALPHABETS = {
    "words": ["river ", "the ", "a", "b", " ", "stone", ". "],
    "two letters": ["a", "b"],
    "white space": ["a ", "b\n", "\t", "  ", "\r\n", "c", "\u00a0", "\u2003", "word"],
    "escapes": ['"', "\\", "\n", "a", "/", "\x01", "\t", "word "],
    "other scripts": ["你", "好", "é", "ß", "🐚", "ы", " "],
}
ECHOES: list[Callable[[str], str]] = [str, folded, escaped, escaped_to_ascii]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_no_run_of_the_prompt_survives_in_any_spelling(alphabet: str):
    dice = random.Random(alphabet)
    for _ in range(400):
        prompts = ["".join(dice.choices(ALPHABETS[alphabet], k=dice.randrange(60))) for _ in range(2)]
        spelled = [echo(prompt) for echo in ECHOES for prompt in prompts]
        message = ""
        for _ in range(dice.randrange(1, 6)):
            text = dice.choice(spelled)
            start = dice.randrange(len(text) + 1)
            part = text[start : start + dice.randrange(60)]
            message += dice.choice(["", "Invalid: ", "Q", KEY, "'", " \n "]) + part
        shown = redacted(message, body_of(*prompts), KEY)
        assert len(shown) <= LONGEST_MESSAGE == 200
        assert KEY not in shown
        for text in spelled:
            # Where white space was folded away a run may begin or end with a single blank.
            assert not runs(folded(text)) & runs(shown), (message, shown)


def test_what_the_prompt_does_not_say_is_shown():
    message = "Input validation error: temperature must be between 0 and 2"
    assert redacted(message, body_of("What is the capital of France?"), KEY) == message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Bad: sixteen letters!", "Bad: …"),
        ("Bad: sixteen letters! Sorry", "Bad: … Sorry"),
        ("sixteen letters!", "…"),
        ("sixteen letters", "sixteen letters"),
        ("Bad: sixteen letters!sixteen letters!", "Bad: …"),
        ("Bad: sixteen letters!, sixteen letters!", "Bad: …, …"),
        ("Bad: sixteen\n\n letters!", "Bad: …"),
        ("", ""),
        ("short", "short"),
    ],
)
def test_a_quotation_is_one_ellipsis(message: str, expected: str):
    assert redacted(message, body_of("sixteen letters!"), None) == expected


@pytest.mark.parametrize(
    "quoted",
    [
        "You are a helpful pirate",
        "https://example.org/cat.png",
        "get_the_weather_of_a_place",
        "a description of the tool",
        "a string to stop at!",
        "name_of_a_property_here",
    ],
)
def test_all_of_the_request_is_searched_and_not_the_last_message_alone(quoted: str):
    parameters = {"name_of_a_property_here": {"description": "a description of the tool"}}
    parts = [{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}]
    body = msgspec.json.encode(
        {
            "messages": [{"role": "system", "content": "You are a helpful pirate"}, {"role": "user", "content": parts}],
            "tools": [{"function": {"name": "get_the_weather_of_a_place", "parameters": parameters}}],
            "stop": ["a string to stop at!"],
        }
    )
    assert redacted(f"Bad: {quoted}", body, None) == "Bad: …"


@pytest.mark.parametrize(
    "message",
    [
        f"Incorrect API key provided: {KEY}.",
        f"Bearer {KEY}",
        f"{KEY}{KEY}",
        f"xx{KEY}yy",
        f"prefix{KEY}",
        f"{KEY[:20]}",
        f"The key {KEY[10:]} is wrong",
        f"The key {KEY[5:15]}*** is wrong",
        f"{KEY[:30]} {KEY[20:]}",
        "x" * 190 + KEY,
        "x" * 990 + KEY,
        "\n".join([KEY] * 40),
    ],
)
def test_no_part_of_the_key_survives(message: str):
    shown = redacted(message, body_of("hello"), KEY)
    assert not runs(KEY, 8) & runs(shown, 8)


@pytest.mark.parametrize("key", ["k", "short", "seven77", "fifteen letters"])
def test_a_short_key_is_taken_out_as_well(key: str):
    assert key not in redacted(f"The key {key} is wrong: '{key}{key}'", body_of("hello"), key)


def test_a_prompt_that_holds_the_key_hides_it_with_the_rest():
    shown = redacted(f"Bad: my key is {KEY}, use it", body_of(f"my key is {KEY}, use it"), KEY)
    assert not runs(KEY, 8) & runs(shown, 8)


def test_without_a_key_nothing_else_changes():
    assert redacted("Nothing of note", body_of("hello"), None) == "Nothing of note"
    assert redacted("Nothing of note", body_of("hello"), "") == "Nothing of note"


@pytest.mark.parametrize("body", [b"", b"not json", b"\xff\xfe", b"[" * 100_000, b'{"prompt":"' + b"\xff" * 40 + b'"}'])
def test_a_body_that_cannot_be_read_breaks_nothing(body: bytes):
    assert redacted("A sentence of the server", body, KEY) == "A sentence of the server"


def test_a_message_is_cut_at_200_characters():
    assert redacted("x y " * 1000, body_of("hello"), None) == ("x y " * 50)


def test_beside_a_request_too_long_to_search_the_sentence_is_not_shown():
    shown = redacted("Invalid: hello there", body_of("hello there " * 400_000), KEY)
    assert "hello" not in shown
    assert "not shown" in shown


class Counted:
    """A long text that counts how often it is searched."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.searches = 0

    def __contains__(self, part: str) -> bool:
        self.searches += 1
        return part in self.text


LONG = " ".join(f"word{number} and" for number in range(60_000))


@pytest.mark.parametrize(
    ("message", "most"),
    [
        ("Zq" * 500, 126),
        ("Input validation error: `inputs` tokens must be <= 4097. Given: 80125 `inputs` tokens. " * 11, 140),
        (LONG[:1000], 1_200),
        ("and word and and word " * 50, 1_200),
    ],
)
def test_a_prompt_of_nine_hundred_kilobytes_is_searched_so_often_and_no_more(message: str, most: int):
    said: Any = Counted(LONG)
    assert len(LONG) > 800_000
    "".join(_without_quotations(message[:1000], said, QUOTED_RUN))
    assert said.searches <= most


def test_a_long_prompt_is_hidden_as_well_as_a_short_one():
    shown = redacted(f"Bad: {LONG[500_000:500_100]}", body_of(LONG), KEY)
    assert shown == "Bad: …"
