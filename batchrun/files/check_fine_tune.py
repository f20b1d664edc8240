"""Training data for fine-tuning: which of the known formats a row has, and whether it keeps that format's rules.

Facts: https://docs.together.ai/docs/fine-tuning/data-preparation (formats, roles and their order, weights of 0 and 1, a
row of two formats is refused), .../fine-tuning/preference-tuning (a context may begin with the assistant),
.../fine-tuning/function-calling (`tools`, `tool_calls`, the role `tool`), and the checks of the official package
together: 2.10.0 has them in full (`lib/utils/files.py`), 3.1.1 leaves most of them to the server, after the upload.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from batchrun.files import prompt
from batchrun.files.row import Row
from batchrun.files.source import SourceFile
from batchrun.files.wording import kind_of, names_of

# together 3.1.1, lib/constants.py: 50.1 GB of 2**30 bytes, 10 images of 10 MiB in an example.
LARGEST_FILE = int(50.1 * 2**30)
MOST_IMAGES = 10
_LONGEST_IMAGE = len("data:image/jpeg;base64,") + 4 * 10 * 2**20 // 3
_IMAGES = tuple(f"data:image/{form};base64," for form in ("jpeg", "png", "webp"))

ROLES = ("system", "user", "assistant", "tool")


class Format(enum.StrEnum):
    """What a training file holds."""

    CONVERSATIONAL = "conversational"
    INSTRUCTION = "instruction"
    PREFERENCE = "preference"
    TEXT = "generic text"
    TOKENIZED = "tokenized"


_COLUMNS = {
    Format.CONVERSATIONAL: ("messages",),
    Format.INSTRUCTION: ("prompt", "completion"),
    Format.PREFERENCE: ("input", "preferred_output", "non_preferred_output"),
    Format.TEXT: ("text",),
}
_WITH_TOOLS = frozenset({Format.CONVERSATIONAL, Format.PREFERENCE})
_TOKENS = ("input_ids", "attention_mask", "labels", "position_ids")
_KNOWN = "messages; prompt and completion; input, preferred_output and non_preferred_output; or text"

_Cells = dict[str, Any]


class FineTuneLines:
    """Checks the rows of one file; the first row that has a format settles it for all.

    Attributes:
        models: none: training data names no model.
    """

    def __init__(self, file: SourceFile, warn: Callable[[int | None, str], None]) -> None:
        self.models: dict[str, None] = {}
        self._file = file
        self._warn = warn
        self._format: Format | None = None
        self._line = 0
        if not file.path.lower().endswith((".jsonl", ".parquet")):
            warn(None, "only plain .jsonl and .parquet can be uploaded: unpack or rename this one")

    @property
    def form(self) -> str:
        """The file's format, empty while no row had one."""
        return self._format.value if self._format else ""

    def problem(self, row: Row) -> str:
        """What is wrong with the row; empty when nothing is."""
        if row.cells is None:
            return row.problem
        here = Format.TOKENIZED if row.text is None else format_of(row.cells)
        if not isinstance(here, Format):
            return here
        problem = self._problem_of(here, row)
        if self._format is None:
            self._format, self._line = here, row.line
        elif self._format is not here:
            return f"is {here.value}, but line {self._line:,} is {self._format.value}; a file has one format"
        return problem

    def at_end(self) -> Iterator[str]:
        """What is wrong with the file as a whole."""
        if self._file.size > LARGEST_FILE:
            yield f"has {self._file.size:,} bytes; {LARGEST_FILE:,} can be uploaded"

    def _problem_of(self, here: Format, row: Row) -> str:
        cells = row.cells or {}
        if here is not Format.TOKENIZED:
            self._warn_of_extras(here, row.line, cells)
        match here:
            case Format.CONVERSATIONAL:
                return conversation_problem(cells["messages"])
            case Format.PREFERENCE:
                return preference_problem(cells)
            case Format.TOKENIZED:
                return tokens_problem(cells)
            case Format.INSTRUCTION | Format.TEXT:
                return self._texts_problem(here, row.line, cells)

    def _warn_of_extras(self, here: Format, line: int, cells: _Cells) -> None:
        known = {*_COLUMNS[here], *(("tools",) if here in _WITH_TOOLS else ())}
        if extra := {name: None for name in cells if name not in known}:
            self._warn(
                line, f"columns that training does not use, and some versions of the client refuse: {names_of(extra)}"
            )

    def _texts_problem(self, here: Format, line: int, cells: _Cells) -> str:
        for name in _COLUMNS[here]:
            text = cells[name]
            if isinstance(text, list) and here is Format.INSTRUCTION:
                if problem := parts_problem(text, images=name == "prompt"):
                    return f"`{name}` {problem}"
            elif not isinstance(text, str):
                return f"`{name}` is {kind_of(text)}, not a string"
            if not text and name != "prompt":
                self._warn(line, f"`{name}` is empty: there is nothing to learn from it")
        return ""


def format_of(cells: Mapping[str, Any]) -> Format | str:
    """The one format a row of text data has, or why it has none."""
    fits = [form for form, columns in _COLUMNS.items() if all(name in cells for name in columns)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        return f"fits more than one format: {' and '.join(fits)}. Take the columns of the others out"
    for columns in _COLUMNS.values():
        missing = [f"`{name}`" for name in columns if name not in cells]
        if len(missing) < len(columns):
            there = [f"`{name}`" for name in columns if name in cells]
            return f"has {' and '.join(there)}, but no {' and no '.join(missing)}"
    return f"has no known format; the columns are: {names_of(cells)}. Known: {_KNOWN}"


def conversation_problem(messages: Any) -> str:
    """What is wrong with a conversation to learn from; empty when nothing is."""
    if problem := _messages_problem(messages, first=("user",)):
        return problem
    if not any(message["role"] == "assistant" for message in messages):
        return "`messages` has no message of the assistant: there is nothing to learn"
    return ""


def preference_problem(cells: Mapping[str, Any]) -> str:
    """What is wrong with a context and its two outputs; empty when nothing is."""
    context = cells["input"]
    if not isinstance(context, dict):
        return f"`input` is {kind_of(context)}, not an object"
    if problem := _messages_problem(context.get("messages"), first=("user", "assistant")):
        return f"in `input`, {problem}"
    if context["messages"][-1]["role"] == "assistant":
        return "in `input`, the last message is the assistant's; its turn is what the outputs are"
    for name in ("preferred_output", "non_preferred_output"):
        if problem := _output_problem(cells[name]):
            return f"`{name}` {problem}"
    return ""


def tokens_problem(cells: Mapping[str, Any]) -> str:
    """What is wrong with a row of tokenized data (Parquet); empty when nothing is."""
    if "input_ids" not in cells:
        return "has no `input_ids`; Parquet is for tokenized data, write text as .jsonl"
    if unknown := {name: None for name in cells if name not in _TOKENS}:
        return f"has columns that tokenized data may not have: {names_of(unknown)}. Known: {', '.join(_TOKENS)}"
    for name, tokens in cells.items():
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            return f"`{name}` is no list of whole numbers"
        if len(tokens) != len(cells["input_ids"]):
            return f"`{name}` has {len(tokens):,} entries, and `input_ids` {len(cells['input_ids']):,}"
    return "" if cells["input_ids"] else "`input_ids` is empty"


def parts_problem(parts: list[Any], *, images: bool) -> str:
    """What is wrong with content made of text and images; empty when nothing is. Goes on after the content's name."""
    for place, part in enumerate(parts, 1):
        if not isinstance(part, dict):
            return f"has a part {place} that is {kind_of(part)}, not an object"
        match part.get("type"):
            case "text":
                if not isinstance(part.get("text"), str):
                    return f"has a part {place} without a `text` that is a string"
            case "image_url":
                if not images:
                    return "has an image; only a user's may"
                if problem := _image_problem(part.get("image_url")):
                    return f"has a part {place} {problem}"
            case _:
                return f"has a part {place} whose `type` is neither text nor image_url"
    if _images_in(parts) > MOST_IMAGES:
        return f"has {_images_in(parts):,} images; {MOST_IMAGES} are allowed"
    return ""


def _image_problem(image: Any) -> str:
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        return "without an `image_url` that is an object with a `url`"
    if not url.startswith(_IMAGES):
        return "whose image is no base64 data URL of a JPEG, PNG or WEBP"
    return "with an image of more than 10 MiB" if len(url) > _LONGEST_IMAGE else ""


def _images_in(content: Any) -> int:
    return sum(part["type"] == "image_url" for part in content) if isinstance(content, list) else 0


def _messages_problem(messages: Any, first: tuple[str, ...]) -> str:
    """What is wrong with messages, of which the first after the system's is by one of `first`."""
    if problem := prompt.messages_problem(messages):
        return problem
    for place, message in enumerate(messages, 1):
        if problem := _message_problem(message):
            return f"message {place} {problem}"
    if problem := _order_problem(messages, first):
        return problem
    contents = [message["content"] for message in messages if message.get("content")]
    if len({type(content) for content in contents}) > 1:
        return "some messages have text and some a list of parts; all must be of one sort"
    images = sum(map(_images_in, contents))
    return f"the messages have {images:,} images; {MOST_IMAGES} are allowed" if images > MOST_IMAGES else ""


def _message_problem(message: _Cells) -> str:
    """What is wrong with a message, beyond what would be wrong with it in any chat."""
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        return f"has a `role` that is none of {', '.join(ROLES)}"
    if calls is not None and not isinstance(calls, list):
        return f"has a `tool_calls` that is {kind_of(calls)}, not a list"
    if calls and role != "assistant":
        return "has `tool_calls`; only an assistant's may"
    if isinstance(content, list) and (problem := parts_problem(content, images=role == "user")):
        return problem
    weight = message.get("weight")
    if "weight" in message and (type(weight) is not int or weight not in {0, 1}):
        return "has a `weight` that is neither 0 nor 1"
    return "has an image and a `weight` that is not 0" if weight and _images_in(content) else ""


def _order_problem(messages: list[_Cells], first: tuple[str, ...]) -> str:
    """User and assistant take turns after the system; tools answer the assistant's calls."""
    before: _Cells = {"role": None}
    for place, message in enumerate(messages, 1):
        role = message["role"]
        if role == "system":
            if place > 1:
                return f"message {place} is a system message; only the first may be one"
            continue
        if before["role"] is None and role not in first:
            return f"message {place} is the {role}'s; the conversation must start with the system or the {first[0]}"
        if role == "tool":
            if before["role"] != "tool" and not before.get("tool_calls"):
                return f"message {place} is a tool's, but no `tool_calls` stand before it"
        elif role == before["role"]:
            return f"message {place} is the {role}'s, as the one before it; user and assistant take turns"
        before = message
    return ""


def _output_problem(output: Any) -> str:
    """What is wrong with one of a pair of outputs; goes on after its name."""
    if not isinstance(output, list):
        return f"is {kind_of(output)}, not a list of one message"
    if len(output) != 1:
        return f"has {len(output):,} messages; it must have one"
    if problem := prompt.messages_problem(output):
        return f"is wrong: {problem}"
    if output[0]["role"] != "assistant":
        return "must be a message of the assistant"
    problem = _message_problem(output[0])
    return f"is wrong: its message {problem}" if problem else ""
