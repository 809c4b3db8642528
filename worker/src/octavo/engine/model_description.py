"""Gathers what is told of a model once it is loaded (:class:`.model_info.ModelInfo`)."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from octavo.config import EngineConfig, SchedulerConfig
from octavo.engine.model_info import ModelInfo
from octavo.engine.resolution import dtype_name
from octavo.errors import InvalidRequestError
from octavo.kernels.interface import Kernels
from octavo.loading.checkpoint import Checkpoint
from octavo.models.family import ModelFamily
from octavo.models.interface import CausalLM
from octavo.sampling_params import SamplingParams

_log = logging.getLogger(__name__)
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def describe_model(
    config: EngineConfig,
    checkpoint: Checkpoint,
    family: ModelFamily,
    model: CausalLM,
    kernels: Kernels,
    limits: SchedulerConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> ModelInfo:
    """As the server and its clients are told it; grammars are not tried yet."""
    return ModelInfo(
        name=config.model,
        max_model_len=limits.max_model_len,
        vocab_size=model.vocab_size,
        hidden_size=family.config.hidden_size,
        pooling=checkpoint.embedding.pooling,
        embedding_dimensions=checkpoint.embedding.dimensions,
        has_tokenizer=not config.skip_tokenizer_init and checkpoint.tokenizer_path is not None,
        eos_token_ids=checkpoint.eos_token_ids,
        created=int(time.time()),
        sampling_defaults=_sampling_defaults(checkpoint),
        architecture=_architecture(checkpoint),
        dtype=dtype_name(dtype),
        device=device.type,
        kernels=kernels.name,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        enable_prefix_caching=limits.enable_prefix_caching,
    )


def _sampling_defaults(checkpoint: Checkpoint) -> dict[str, float]:
    """What generation_config.json recommends, as far as it can be served."""
    defaults: dict[str, float] = {}
    for name in _SAMPLING_DEFAULTS:
        value: Any = checkpoint.generation_config.get(name)
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except InvalidRequestError as error:
            _log.warning("generation_config.json is not followed: %s", error)
        else:
            defaults[name] = value
    return defaults


def _architecture(checkpoint: Checkpoint) -> str:
    names = checkpoint.hf_config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
