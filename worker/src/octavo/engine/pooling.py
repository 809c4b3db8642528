"""What is asked of vectors of prompts, over HTTP or in this process, checked against the model."""

from __future__ import annotations

from typing import get_args

from octavo.engine.model_info import ModelInfo
from octavo.errors import InvalidRequestError
from octavo.pooling_params import Pooling, PoolingParams
from octavo.tokenization.tokenizer import Truncation


def checked_pooling(
    info: ModelInfo, pooling: Pooling | None, dimensions: int | None, normalize: bool
) -> PoolingParams:
    """``pooling``: None for the model's own. Raises InvalidRequestError for what it cannot do."""
    if pooling is not None and pooling not in get_args(Pooling):
        choice = " or ".join(map(repr, get_args(Pooling)))
        raise InvalidRequestError(
            f"pooling is {pooling!r:.120}; it must be {choice}. Leave it out for the model's own, "
            f"{info.pooling!r}.",
            "pooling",
        )
    if dimensions is not None:
        _check_dimensions(dimensions, info)
    return PoolingParams(pooling or info.pooling, dimensions, bool(normalize))


def checked_truncation(info: ModelInfo, kept: object) -> Truncation | None:
    """``kept``: tokens of each prompt, its last ones; -1: as many as fit; None: no cut."""
    if kept is None:
        return None
    if isinstance(kept, bool) or not isinstance(kept, int) or (kept < 1 and kept != -1):
        raise InvalidRequestError(
            f"truncate_prompt_tokens is {kept!r:.120}; it must be at least 1, or -1 for as many "
            "as fit. Leave it out to refuse prompts that are too long.",
            "truncate_prompt_tokens",
        )
    return Truncation(info.max_model_len if kept == -1 else kept, "left")


def _check_dimensions(asked: object, info: ModelInfo) -> None:
    allowed, most = info.embedding_dimensions, info.hidden_size
    if isinstance(asked, int) and (
        asked == most or (0 < asked < most and (allowed is None or asked in allowed))
    ):
        return
    if allowed is None:
        choice = f"it must be from 1 to {most}"
    elif allowed:
        choice = f"it must be one of {', '.join(map(str, [*allowed, most]))}"
    else:
        choice = f"this model's vectors have {most} and were not made to be cut"
    raise InvalidRequestError(
        f"dimensions is {asked!r:.120}; {choice}. Leave it out for all.", "dimensions"
    )
