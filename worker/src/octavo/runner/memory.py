"""How much memory the KV cache gets: what is left after everything else of this engine's own.

On CUDA only this process's own allocations count, never what a neighbour on the card does, so
two engines can share one card by giving each its share.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.models.interface import CausalLM
from octavo.runner.cgroup import memory_bytes_left
from octavo.runner.kv_tensors import block_size_bytes

_GIB = 1 << 30
_CPU_DEFAULT_LIMIT_BYTES = 4 * _GIB


@dataclass(frozen=True, slots=True)
class KVBudget:
    """The size of the KV cache."""

    num_blocks: int
    size_bytes: int


def kv_budget(
    config: EngineConfig,
    model: CausalLM,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    max_num_seqs: int,
) -> KVBudget:
    """Decide the number of blocks.

    On CUDA a step's workspace must fit in what ``gpu_memory_utilization`` leaves free. Raises
    :class:`OutOfMemoryError` with the numbers and what to lower when not even one request of
    the ``max_model_len`` that was asked for fits.
    """
    per_block = block_size_bytes(model, config.block_size, dtype)
    blocks_of_one = -(-max_model_len // config.block_size)
    if config.kv_cache_memory_bytes is not None:
        available = config.kv_cache_memory_bytes
        remedy = "raise --kv-cache-memory-bytes"
    elif device.type == "cuda":
        available = _cuda_bytes_left(config, device)
        remedy = "raise --gpu-memory-utilization"
    else:
        wanted = blocks_of_one * max_num_seqs * per_block
        available = min(wanted, max(_CPU_DEFAULT_LIMIT_BYTES, blocks_of_one * per_block))
        available = min(available, _host_bytes_left())
        remedy = "free memory on this machine"
    num_blocks = available // per_block
    # A length that was not asked for is reduced to what fits, as long as that is of use.
    is_enough = num_blocks >= (1 if config.max_model_len is None else blocks_of_one)
    if not is_enough:
        raise OutOfMemoryError(
            f"One request of {max_model_len} tokens needs {blocks_of_one * per_block / _GIB:.2f} "
            f"GiB of KV cache, and {max(available, 0) / _GIB:.2f} GiB are left for it: lower "
            f"--max-model-len to {max(num_blocks, 0) * config.block_size} or less, or {remedy}."
        )
    return KVBudget(int(num_blocks), int(num_blocks * per_block))


def _cuda_bytes_left(config: EngineConfig, device: torch.device) -> int:
    _, total = torch.cuda.mem_get_info(device)
    return int(total * config.gpu_memory_utilization) - torch.cuda.memory_reserved(device)


def _host_bytes_left() -> int:
    """Memory this process could still get, less a tenth to stay clear of the edge.

    In a container its limit counts, not what the machine has.
    """
    available = _machine_bytes_left()
    in_container = memory_bytes_left()
    if in_container is not None:
        available = min(available, in_container)
    return int(available * 0.9)


def _machine_bytes_left() -> int:
    pages: int = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return pages
