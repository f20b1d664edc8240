"""The models the simulator knows, with what they cost; who may call them is decided in `asks`."""

import difflib
from dataclasses import dataclass
from typing import Any

NANO = 1_000_000_000
"""Nano-dollars in a dollar: all money here is counted in whole ones."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model: prices are nano-dollars a token, which is dollars per million tokens times 1,000."""

    id: str
    context_length: int
    input: int
    output: int
    cached_input: int | None = None
    type: str = "chat"
    serverless: bool = True
    batchable: bool = True
    hourly: float = 0.0  # dollars, of a dedicated endpoint

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """What a call costs, in nano-dollars."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        return fresh * self.input + cached_tokens * cached_price + completion_tokens * self.output


MODELS = {
    model.id: model
    for model in (
        Model("meta-llama/Llama-3.3-70B-Instruct-Turbo", 131_072, 1_040, 1_040),
        Model("openai/gpt-oss-120b", 131_072, 150, 600),
        Model("openai/gpt-oss-20b", 131_072, 50, 200),
        Model("Qwen/Qwen2.5-7B-Instruct-Turbo", 32_768, 300, 300),
        Model("Qwen/Qwen3.5-9B", 262_144, 170, 250),
        Model("deepseek-ai/DeepSeek-V4-Pro", 512_000, 1_740, 3_480, cached_input=200, batchable=False),
        Model("google/gemma-4-31B-it", 262_144, 390, 970),
        Model("LiquidAI/LFM2-24B-A2B", 32_768, 30, 120),
        Model("simulator/tiny-512", 512, 20, 20),
        Model("simulator/small-1k", 1_024, 30, 30),
        Model("simulator/middle-4k", 4_096, 40, 40),
        Model("simulator/storyteller-base", 8_192, 100, 100, type="language"),
        Model("simulator/dedicated-only-70b", 131_072, 0, 0, serverless=False, hourly=2.40),
    )
}
"""By id. Those of `simulator/` do not exist at Together: small contexts, a plain language model, one only listed."""


def nearest(name: str) -> str:
    """The id that looks most like that name."""
    return difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]


def listed(model: Model) -> dict[str, Any]:
    """The model as an item of GET /v1/models, prices in dollars per million tokens."""
    cached = None if model.cached_input is None else model.cached_input / 1_000
    return {
        "id": model.id,
        "object": "model",
        "created": 1_735_689_600,
        "type": model.type,
        "running": False,
        "display_name": model.id.partition("/")[2],
        "organization": model.id.partition("/")[0],
        "link": "",
        "license": None,
        "context_length": model.context_length,
        "config": {"chat_template": None, "stop": [], "bos_token": None, "eos_token": None},
        "pricing": {
            "hourly": model.hourly,
            "input": model.input / 1_000,
            "output": model.output / 1_000,
            "cached_input": cached,
            "base": 0,
            "finetune": 0,
        },
    }
