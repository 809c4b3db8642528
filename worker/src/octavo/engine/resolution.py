"""What the options that a user leaves open stand for, once model and device are known.

Knows nothing of memory: how much the KV cache gets is measured later.
"""

from __future__ import annotations

import torch

from octavo.config import EngineConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.loading.checkpoint import DTYPES, Checkpoint
from octavo.models.family import ModelFamily


def resolve_device(config: EngineConfig) -> torch.device:
    """Raises ConfigError for a device that torch does not see."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError(
            "device is 'cuda', but torch sees no CUDA device: check nvidia-smi and that torch is "
            "a CUDA build, or use --device cpu."
        )
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def resolve_dtype(
    config: EngineConfig, checkpoint: Checkpoint, device: torch.device
) -> torch.dtype:
    """How dense weights are stored on a device."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32
    # float32 checkpoints are training artefacts: served in bfloat16, as everywhere.
    return torch.bfloat16 if checkpoint.dtype is torch.float32 else checkpoint.dtype


def dtype_name(dtype: torch.dtype) -> str:
    """As options and configurations write it."""
    return str(dtype).removeprefix("torch.")


def resolve_max_model_len(config: EngineConfig, family: ModelFamily) -> int:
    """Most tokens of a request, as far as the model goes. Raises ConfigError past that."""
    longest = family.config.context_len
    if config.max_model_len == 1:
        raise ConfigError(
            "max_model_len is 1; a request has at least one token of prompt and one of output, "
            "so it must be at least 2."
        )
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for {longest} "
            "positions: lower it, or extend the model with --hf-overrides and a rope scaling."
        )
    return config.max_model_len


def step_limits(config: EngineConfig, device: torch.device, max_model_len: int) -> SchedulerConfig:
    """All limits but the cache's: it has one block yet, enough to try steps with."""
    is_cuda = device.type == "cuda"
    look_ahead = is_cuda if config.look_ahead is None else config.look_ahead
    return SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs or (256 if is_cuda else 64),
        max_num_batched_tokens=config.max_num_batched_tokens or (8192 if is_cuda else 1024),
        max_num_waiting=config.max_num_waiting,
        max_queue_tokens=config.max_queue_tokens,
        block_size=config.block_size,
        num_blocks=1,
        enable_prefix_caching=config.enable_prefix_caching,
        max_tokens_in_flight=int(look_ahead),
        num_adapter_slots=config.max_loras if config.enable_lora else 0,
        max_num_batched_tokens_while_decoding=config.max_num_batched_tokens_while_decoding,
    )
