"""Prompts in any form to what the engine takes."""

from __future__ import annotations

from octavo.engine.interface import Engine
from octavo.tokenization.tokenizer import Truncation


async def encode_prompt(
    engine: Engine,
    prompt: str | list[int],
    *,
    add_special_tokens: bool = True,
    truncation: Truncation | None = None,
) -> str | list[int]:
    """Token ids where the request has a wish about them; else as it is: the engine encodes."""
    if not isinstance(prompt, str):
        return prompt if truncation is None else truncation.cut(prompt)
    if add_special_tokens and truncation is None:
        return prompt
    return await engine.encode(prompt, add_special_tokens, truncation)
