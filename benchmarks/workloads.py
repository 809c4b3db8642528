"""The offline workloads, by name, independent of the engine that runs them.

A workload is token-id prompts and an output length for each: random ids, no stop at
end-of-text. The same definitions drive Octavo and the engines it is compared with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, output lengths, and what figure is wanted of them."""

    name: str
    description: str
    prompts: list[list[int]]
    output_lens: list[int]
    temperature: float = 0.0
    figure: str = "output_tokens_per_s"
    """output_tokens_per_s, prompt_tokens_per_s, seconds, ms_per_step (needs a second run
    with one output token, which is subtracted), or what only ours has (single, constrained,
    wishes)."""
    schema: dict[str, Any] | None = None
    """A JSON schema that the outputs are to follow."""
    warm_prefix: list[int] = field(default_factory=list)
    """A prompt to run before the clock starts, so that its blocks are cached."""


_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 60},
        "kind": {"enum": ["person", "company", "public body"]},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "minLength": 8, "maxLength": 60},
                "number": {"type": "integer", "minimum": 1, "maximum": 999},
            },
            "required": ["street", "number"],
            "additionalProperties": False,
        },
        "active": {"type": "boolean"},
    },
    "required": ["name", "kind", "address", "active"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {"type": "array", "items": _PERSON, "minItems": 60, "maxItems": 99}
"""Long enough that no output of 200 tokens reaches its end."""
NAMES = (
    "mixed256", "single", "decode64", "decode256", "prefill", "prefix", "json32", "json128",
    "wishes64", "cpu1", "cpu32",
)  # fmt: skip


def make_workload(name: str, vocab_size: int, scale: float = 1.0, seed: int = 0) -> Workload:
    """Build a workload; ``scale`` below 1 shrinks counts for a quick look, and is recorded."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(vocab_size // 10, vocab_size) for _ in range(length)]

    def count(number: int) -> int:
        return max(1, round(number * scale))

    match name:
        case "mixed256":
            prompts = [ids(draw.randint(100, 1024)) for _ in range(count(256))]
            outputs = [draw.randint(100, 1024) for _ in prompts]
            text = "256 requests at once, prompt and output uniform 100-1024, T=0.6"
            return Workload(name, text, prompts, outputs, temperature=0.6)
        case "single":
            return Workload(
                name, "one 128-token prompt, 256 tokens out", [ids(128)], [256], figure="single"
            )
        case "decode64" | "decode256":
            prompts = [ids(512) for _ in range(count(int(name.removeprefix("decode"))))]
            text = f"{len(prompts)} sequences of 512 tokens, 128 steps"
            return Workload(name, text, prompts, [129] * len(prompts), figure="ms_per_step")
        case "prefill":
            prompts = [ids(4096) for _ in range(count(32))]
            text = "32 prompts of 4096 tokens, one output"
            return Workload(name, text, prompts, [1] * len(prompts), figure="prompt_tokens_per_s")
        case "prefix":
            prefix = ids(4096)
            prompts = [prefix + ids(64) for _ in range(count(256))]
            text = "a cached 4096-token prefix, 256 requests of it + 64 own tokens, 64 out"
            return Workload(
                name, text, prompts, [64] * len(prompts), figure="seconds", warm_prefix=prefix
            )
        case "json32" | "json128":
            prompts = [ids(256) for _ in range(count(int(name.removeprefix("json"))))]
            text = f"{len(prompts)} requests of 256 tokens, 200 out, one nested JSON schema"
            outputs = [200] * len(prompts)
            return Workload(
                name, text, prompts, outputs, temperature=1.0, figure="constrained", schema=SCHEMA
            )
        case "wishes64":
            prompts = [ids(128) for _ in range(count(64))]
            text = f"{len(prompts)} requests of 128 tokens, 200 out, one or all with log "
            text += "probabilities or a penalty, T=1"
            outputs = [200] * len(prompts)
            return Workload(name, text, prompts, outputs, temperature=1.0, figure="wishes")
        case "cpu1" | "cpu32":
            prompts = [ids(128) for _ in range(int(name.removeprefix("cpu")))]
            text = f"{len(prompts)} at once, 128 in, 128 out, greedy"
            return Workload(name, text, prompts, [128] * len(prompts))
    raise ValueError(f"workload is {name!r}; choose one of {', '.join(NAMES)}")
