"""Prompts in any form to what the engine takes."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.engine.interface import Engine
from octavo.engine.model_info import ModelInfo
from octavo.server.errors import bad_request
from octavo.tokenization.tokenizer import Truncation


def check_prompts(prompts: Sequence[str | list[int]], info: ModelInfo, field: str) -> None:
    """Raise ApiError for a text without a tokenizer, or for a token id the model does not have."""
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if not info.has_tokenizer:
                raise bad_request(
                    f"{field} is text and this server runs without a tokenizer; "
                    "send token ids, or start it without --skip-tokenizer-init.",
                    field,
                )
        # A longer one is refused for that, or cut and then looked at, by the engine.
        elif len(prompt) <= info.max_model_len and (largest := max(prompt)) >= info.vocab_size:
            raise bad_request(
                f"{field} {number} holds the token id {largest}; the model's ids end at "
                f"{info.vocab_size - 1}. Encode the text with this model's tokenizer.",
                field,
            )


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
