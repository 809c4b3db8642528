"""How much memory the KV cache gets: what is left after everything else of this engine's own.

On CUDA that is the share of the card that was asked for, less weights, the workspace of the
largest step and what captured steps keep. Only this process's own allocations count, never what
a neighbour on the card does, so two engines can share one card by giving each its share.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.models.interface import CausalLM
from octavo.runner.card_memory import CardMemory
from octavo.runner.cgroup import memory_bytes_left
from octavo.runner.kv_tensors import block_size_bytes
from octavo.runner.trial_steps import CardUse

_GIB = 1 << 30
UNCOUNTED_BYTES = 1 << 30
"""What a process holds on a card that no allocator counts: CUDA's context, loaded kernels, the
nodes of captured graphs."""
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
    max_model_len: int,
    max_num_seqs: int,
    card: CardMemory | None = None,
    use: CardUse | None = None,
) -> KVBudget:
    """Decide the number of blocks, on ``card`` (None: in the machine's memory).

    ``use``: what the engine needs of the card beside the cache. Raises
    :class:`OutOfMemoryError` with the numbers and what to lower when not even one request of
    the ``max_model_len`` that was asked for fits, or when others hold what was to be ours.
    """
    per_block = block_size_bytes(model, config.block_size, dtype)
    blocks_of_one = -(-max_model_len // config.block_size)
    where = ""
    if config.kv_cache_memory_bytes is not None:
        available = config.kv_cache_memory_bytes
        remedy = "raise --kv-cache-memory-bytes"
    elif card is not None and use is not None:
        share = int(card.total_bytes * config.gpu_memory_utilization)
        available = share - _needed_beside(use)
        where = f" of the card's share ({_shares(config, card, use)})"
        remedy = "raise --gpu-memory-utilization, or lower --max-num-batched-tokens"
    else:
        wanted = blocks_of_one * max_num_seqs * per_block
        available = min(wanted, max(_CPU_DEFAULT_LIMIT_BYTES, blocks_of_one * per_block))
        available = min(available, _host_bytes_left())
        remedy = "free memory on this machine"
    num_blocks = max(available, 0) // per_block
    # A length that was not asked for is reduced to what fits, as long as that is of use.
    is_enough = num_blocks >= (1 if config.max_model_len is None else blocks_of_one)
    if not is_enough:
        raise OutOfMemoryError(
            f"One request of {max_model_len} tokens needs {blocks_of_one * per_block / _GIB:.2f} "
            f"GiB of KV cache, and {max(available, 0) / _GIB:.2f} GiB{where} are left for it: "
            f"lower --max-model-len to {num_blocks * config.block_size} or less, or {remedy}."
        )
    budget = KVBudget(int(num_blocks), int(num_blocks * per_block))
    if card is not None and use is not None:
        _check_free(config, card, use, budget)
    return budget


def _needed_beside(use: CardUse) -> int:
    """Everything of an engine but its cache."""
    return use.weights_bytes + use.step_bytes + use.graphs_bytes + UNCOUNTED_BYTES


def _shares(config: EngineConfig, card: CardMemory, use: CardUse) -> str:
    return (
        f"{config.gpu_memory_utilization:g} of {card.total_bytes / _GIB:.2f} GiB, less "
        f"{use.weights_bytes / _GIB:.2f} for weights, {use.step_bytes / _GIB:.2f} for a step, "
        f"{use.graphs_bytes / _GIB:.2f} for captured steps and {UNCOUNTED_BYTES / _GIB:.2f} for "
        "CUDA itself"
    )


def _check_free(config: EngineConfig, card: CardMemory, use: CardUse, budget: KVBudget) -> None:
    """Notice at start, not under load, that others hold what was to be ours."""
    needed = budget.size_bytes + use.step_bytes + use.graphs_bytes
    free = card.free_bytes()
    if needed <= free:
        return
    others = card.total_bytes - free - use.weights_bytes
    share = int(100 * (card.total_bytes - others) / card.total_bytes) / 100
    what = "--kv-cache-memory-bytes"
    if config.kv_cache_memory_bytes is None:
        what = f"--gpu-memory-utilization to {max(share - 0.01, 0):.2f} or less"
    raise OutOfMemoryError(
        f"{needed / _GIB:.2f} GiB are needed for the KV cache and the steps' workspace, but of "
        f"the card's {card.total_bytes / _GIB:.2f} GiB only {free / _GIB:.2f} are free, as other "
        f"processes and CUDA hold {others / _GIB:.2f}: lower {what}, or stop them."
    )


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
