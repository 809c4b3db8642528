"""The engine as the server sees it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from octavo.outputs import GenerationEvent
from octavo.sampling_params import SamplingParams


class EngineState(enum.Enum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model is, and the limits it is served under."""

    model: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool
    dtype: str
    device: str
    kernels: str
    created: int


class EngineStats(msgspec.Struct, kw_only=True):
    num_running: int = 0
    num_waiting: int = 0
