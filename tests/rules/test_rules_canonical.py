"""The canonical body and its digest. The hex constants are frozen: checkpoints already written hold such digests."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from batchrun.records import Endpoint
from batchrun.rules.canonical import DIGEST_BYTES, bad_digest, canonical, digest

HELLO = b'{"messages":[{"content":"Hello","role":"user"}],"model":"m"}'


def test_the_digest_of_a_body_written_by_hand_never_changes():
    assert digest(Endpoint.CHAT, HELLO).hex() == "8213ea07ea1dc94c35dc239d1d086e40"
    assert bad_digest(b"not json").hex() == "866c00389a0377bcfc1d86d7e5cd0eca"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}, HELLO),
        ({"b": {"z": 1, "a": 2}, "a": [{"y": 1, "x": 2}]}, b'{"a":[{"x":2,"y":1}],"b":{"a":2,"z":1}}'),
        ({"é": 1, "z": 2, "🐚": 3, "\uff5a": 4}, '{"z":2,"é":1,"\uff5a":4,"🐚":3}'.encode()),
        ({"a": 'Größe \n\t"\\ \u2028 🐚 \x00'}, '{"a":"Größe \\n\\t\\"\\\\ \u2028 🐚 \\u0000"}'.encode()),
        ({"a": [0.1, 1.0, 1, -0.0, 1e22, 1e-7, 0.5]}, b'{"a":[0.1,1.0,1,-0.0,1e22,1e-7,0.5]}'),
        ({"a": [2**63, -(2**63), 2**64, 10**30]}, f'{{"a":[{2**63},{-(2**63)},{2**64},{10**30}]}}'.encode()),
        ({"a": [True, False, None, [], {}, ""]}, b'{"a":[true,false,null,[],{},""]}'),
    ],
)
def test_the_canonical_body_has_sorted_keys_and_no_spaces(body: dict[str, Any], expected: bytes):
    assert canonical(body) == expected


def test_no_order_of_keys_at_any_depth_changes_the_canonical_body():
    dice = random.Random(7)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            dice.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    body = json.loads(HELLO) | {"tools": [{"function": {"name": "f", "parameters": {"b": {}, "a": {"d": 1, "c": 2}}}}]}
    assert {canonical(shuffled(body)) for _ in range(200)} == {canonical(body)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model": "m"}, {"model": "m", "seed": None}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"stop": []}, {}),
        ({"stop": ["a", "b"]}, {"stop": ["b", "a"]}),
        ({"prompt": "é"}, {"prompt": "e\u0301"}),
        ({"prompt": "a"}, {"prompt": "a "}),
        ({"max_tokens": 1}, {"max_tokens": True}),
    ],
)
def test_what_is_written_differently_is_asked_for_differently(one: dict[str, Any], other: dict[str, Any]):
    assert digest(Endpoint.CHAT, canonical(one)) != digest(Endpoint.CHAT, canonical(other))


def test_half_a_surrogate_pair_cannot_be_written_down():
    with pytest.raises(UnicodeEncodeError):
        canonical({"prompt": "\ud83d"})


def test_the_endpoint_is_part_of_the_digest():
    assert digest(Endpoint.CHAT, HELLO) != digest(Endpoint.COMPLETIONS, HELLO)


@pytest.mark.parametrize("raw", [b"", b"{", HELLO, b"chat\0" + HELLO, b"completions\0" + HELLO, b"\xff"])
def test_a_bad_line_never_has_the_digest_of_a_request(raw: bytes):
    requests = {digest(endpoint, raw.removeprefix(b"chat\0")) for endpoint in Endpoint}
    assert bad_digest(raw) not in requests
    assert len(bad_digest(raw)) == len(digest(Endpoint.CHAT, raw)) == DIGEST_BYTES == 16
