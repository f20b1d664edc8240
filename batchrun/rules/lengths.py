"""How servers tell that a request does not fit the context, and the figures in their sentences.

What is sent after that, `repair` decides; whether a refusal is one of these at all, `faults`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

# Nothing but figures varies in a sentence. They come from: Together (bodies recorded in 2024 and 2025), whose first is
# that of text-generation-inference (its router's validation.rs, as the second); OpenAI, with and without functions, and
# its completions of old; OpenRouter; vLLM up to 2025 (its serving_engine.py and processor.py); vLLM since 2026, which
# stops counting at the first token too many and so tells a floor; SGLang (its tokenizer_manager.py); Anthropic.
_SENTENCES = """\
`inputs` tokens + `max_new_tokens` must be <= {context}. \
Given: {prompt} `inputs` tokens and {output} `max_new_tokens`
`inputs` must have less than {alone} tokens. Given: {prompt}
maximum context length is {context} tokens. \
However, you requested {any} tokens ({prompt} in the messages, {output} in the completion)
maximum context length is {context} tokens. \
However, you requested {total} tokens ({any} in the messages, {any} in the functions, {output} in the completion)
maximum context length is {context} tokens. However, your messages resulted in {prompt} tokens
maximum context length is {context} tokens, however you requested {any} tokens ({prompt} in your \
prompt; {output} for the completion)
maximum context length is {context} tokens. \
However, you requested about {any} tokens ({prompt} of text input, {output} in the output)
maximum context length is {context} tokens. \
However, you requested about {total} tokens ({any} of text input, {any} of tool input, {output} in the output)
maximum context length is {context} tokens. However, your request has {prompt} input tokens
maximum context length is {context} tokens and your request has {prompt} input tokens
prompt (length {prompt}) is longer than the maximum model length of {context}
maximum context length is {context} tokens. \
However, you requested {output} output tokens and your prompt contains at least {floor} input tokens
You passed {floor} input tokens and requested {output} output tokens. \
However, the model's context length is only {context} tokens
maximum context length of {context} tokens. \
You requested a total of {any} tokens: {prompt} tokens from the input messages and {output} tokens for the completion
input ({prompt} tokens) is longer than the model's context length ({context} tokens)
prompt is too long: {prompt} tokens > {context} maximum""".splitlines()
# Words that stand before them, where a message begins with one.
_BEFORE = (
    "Input validation error: ",
    "This model's ",
    "This endpoint's ",
    "'max_tokens' or 'max_completion_tokens' is too large: {any}. This model's ",
    "The ",
    "The decoder ",
    "Requested token count exceeds the model's ",
)


def _pattern(sentence: str) -> str:
    """The sentence as an expression; the figures `any` are not worth a name."""
    escaped = re.escape(sentence).replace(r"\{any\}", r"\d+")
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)(?!\\d)", escaped)


_KNOWN = tuple(re.compile(_pattern(sentence), re.ASCII) for sentence in _SENTENCES)
_STARTS = re.compile("|".join(_pattern(words) for words in sorted(_BEFORE, key=len, reverse=True)), re.ASCII)


class Figures(msgspec.Struct, frozen=True):
    """What a server, or an estimate, says of a request that does not fit; in tokens.

    Attributes:
        context: what prompt and answer may have together.
        prompt: what the prompt has.
        output: what the answer may have, None when not said.
        alone: whether the context is what the prompt may have by itself.
        floor: whether the server stopped counting, so that the prompt has this many or more.
    """

    context: int
    prompt: int
    output: int | None
    alone: bool = False
    floor: bool = False


def figures(message: str) -> Figures | None:
    """The server's own figures in its sentence, None when it tells none that can be."""
    for pattern in _KNOWN:
        if found := pattern.search(message):
            told = _figures({name: int(text) for name, text in found.groupdict().items()})
            return told if told.context > 0 and told.prompt > 0 else None
    return None


def _figures(said: Mapping[str, int]) -> Figures:
    output = said.get("output")
    if "alone" in said:
        return Figures(said["alone"] - 1, said["prompt"], None, alone=True)
    if "floor" in said:
        return Figures(said["context"], said["floor"], output, floor=True)
    return Figures(said["context"], said["prompt"] if "prompt" in said else said["total"] - (output or 0), output)


def own_words(message: str) -> str | None:
    """The known sentence that a message begins with, up to its last figure; None when it begins otherwise.

    It holds nothing but figures and words that stand in this file.
    """
    start = _STARTS.match(message)
    begins = start.end() if start else 0
    return next((message[: found.end()] for pattern in _KNOWN if (found := pattern.match(message, begins))), None)
