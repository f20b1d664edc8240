"""The text of an answer: the same for the same question in every process, and nobody's idea of a real one."""

import dataclasses
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from batchrun.simulator.asks import Ask

_MASK = (1 << 64) - 1
_LONGEST = 48  # sentences
_DEEPEST = 16  # levels of a JSON answer
_MOST_ITEMS = 100

_OPENERS = [
    "As far as the harbour knows,",
    "On most Tuesdays",
    "In the second notebook",
    "Quietly, and without a map,",
    "According to the tea leaves,",
    "Between two trains",
    "If you ask the lighthouse,",
    "Strictly speaking,",
    "By lamplight",
    "After some thought",
    "Every autumn",
    "To begin with,",
    "Nobody minds that",
    "Oddly enough,",
]
_SUBJECTS = [
    "the careful otter",
    "a borrowed bicycle",
    "the night librarian",
    "our smallest telescope",
    "the baker's clock",
    "a retired comet",
    "the paper lantern",
    "the third violin",
    "an honest barometer",
    "the ferry to nowhere",
    "a patient snail",
    "the upstairs piano",
    "some weather",
    "the last pencil",
]
_VERBS = [
    "keeps a list of",
    "politely declines",
    "remembers",
    "is fond of",
    "measures twice and cuts",
    "has never quite met",
    "hums along with",
    "counts, then recounts,",
    "writes letters to",
    "carries home",
    "explains",
    "waits for",
    "rhymes with",
    "outlives",
]
_OBJECTS = [
    "every blue umbrella",
    "the sound of snow",
    "seven good questions",
    "a drawer of spare moons",
    "the long way round",
    "unlabelled jam",
    "the tide table",
    "yesterday's crossword",
    "two sorts of silence",
    "a rumour of pears",
    "its own footnotes",
    "the rule about hats",
    "small repairs",
    "what the river said",
]
_ENDINGS = [
    "before breakfast.",
    "for no fee at all.",
    "and leaves it there.",
    "until the kettle sings.",
    "with great dignity.",
    "as one does.",
    "in pencil.",
    "twice a year.",
    "and so should you.",
    "under a fair wind.",
    "more or less.",
    "which settles it.",
    "against all advice.",
    "by the back door.",
]
_PARTS = [[tuple(phrase.split()) for phrase in part] for part in (_OPENERS, _SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)]


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a reply. A token is a word, so there are never more tokens than bytes."""

    text: str
    tokens: int
    finish_reason: str
    seed: int


def answer(ask: Ask, index: int) -> Answer:
    """The index-th choice. A larger max_tokens continues the same text, it does not change it."""
    seed = _seed(ask, index)
    return _cut(_words(ask, seed) if ask.schema is None else _json_words(ask.schema, seed), ask, seed)


def not_json(ask: Ask, index: int) -> Answer:
    """Plain text, even when JSON was asked for."""
    return answer(dataclasses.replace(ask, schema=None), index)


def fenced(ask: Ask, index: int) -> Answer:
    """The right answer inside a Markdown code fence."""
    seed = _seed(ask, index)
    words = _words(ask, seed) if ask.schema is None else _json_words(ask.schema, seed)
    words[0] = f"```json\n{words[0]}"
    words[-1] += "\n```"
    return _cut(words, ask, seed)


def misfit(ask: Ask, index: int) -> Answer:
    """JSON with a word that no schema knows and a wrong value for each property that has a type, or is one of a few."""
    properties = (ask.schema or {}).get("properties")
    fields = properties if isinstance(properties, dict) else {}
    value = {"unexpected": True} | {name: _wrong(sub) for name, sub in fields.items()}
    return _cut(_split(value), ask, _seed(ask, index))


def _wrong(schema: Any) -> Any:
    """True, or a string where true could be right."""
    words = schema if isinstance(schema, dict) else {}
    return "unexpected" if "boolean" in str(words.get("type")) or "enum" in words or "const" in words else True


def _cut(words: list[str], ask: Ask, seed: int) -> Answer:
    """As many of the words as the reply may have."""
    whole = len(words) <= ask.max_tokens
    kept = words if whole else words[: ask.max_tokens]
    return Answer(" ".join(kept), len(kept), "stop" if whole else "length", seed)


def _seed(ask: Ask, index: int) -> int:
    """A number that depends on the question alone, not on the process, the time or the order."""
    key = f"{ask.endpoint.value}\0{ask.model.id}\0{ask.seed}\0{index}\0{ask.text}"
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) >> 1  # fits a signed 64-bit column


def _words(ask: Ask, seed: int) -> list[str]:
    """An opening that echoes a little of the prompt, then sentences; few of them mostly, many of them sometimes."""
    state = seed | 1
    echoed = ask.content[-2000:].split()
    words = ["About"]
    for _ in range(min(2, len(echoed))):
        state = _next(state)
        words.append(echoed[(state >> 33) % len(echoed)][:24])
    words[-1] += ":"
    state = _next(state)
    for _ in range(_sentences(state)):
        for part in _PARTS:
            state = _next(state)
            words += part[(state >> 33) % len(part)]
    return words


def _sentences(state: int) -> int:
    """How many: a Pareto tail, median two, one time in ten more than seven."""
    share = ((state >> 33) + 1) / (1 << 31)
    return int(min(_LONGEST, 1.2 * share**-0.8))


def _next(state: int) -> int:
    """The next number of a 64-bit linear congruential generator (Knuth's constants); only its high bits are used."""
    return (state * 6364136223846793005 + 1442695040888963407) & _MASK


def _json_words(schema: dict[str, Any], seed: int) -> list[str]:
    """A JSON text that fits a simple schema, cut at its spaces so that it is whole only when all of it is."""
    value = _fitting(schema or {"properties": {"answer": {"type": "string"}}}, seed, depth=0)
    return _split(value)


def _split(value: Any) -> list[str]:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode().split()


def _fitting(schema: Any, seed: int, depth: int) -> Any:
    """A value for the plain words of a schema: const, enum, type, properties, items, minimum, minItems."""
    words = schema if isinstance(schema, dict) else {}
    if "const" in words:
        return words["const"]
    if isinstance(choices := words.get("enum"), list) and choices:
        return choices[seed % len(choices)]
    kind = words.get("type", "object" if "properties" in words else "string")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object" if depth < _DEEPEST:
            fields = words["properties"] if isinstance(words.get("properties"), dict) else {}
            return {name: _fitting(sub, _next(seed + i), depth + 1) for i, (name, sub) in enumerate(fields.items())}
        case "array" if depth < _DEEPEST:
            count = max(_whole(words.get("minItems")), 1 + seed % 3)
            return [_fitting(words.get("items"), _next(seed + i), depth + 1) for i in range(min(count, _MOST_ITEMS))]
        case "integer" | "number":
            return _whole(words.get("minimum")) + seed % 5
        case "boolean":
            return seed % 2 == 0
        case "null":
            return None
        case _:
            return " ".join(part[(seed >> 8) % len(part)][-1] for part in _PARTS[1:4])


def _whole(number: Any) -> int:
    """The number rounded up, or 0 for anything that is none."""
    return math.ceil(number) if isinstance(number, int | float) else 0
