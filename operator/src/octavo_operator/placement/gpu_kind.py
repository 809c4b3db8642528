"""A kind of GPU that pods could get: how much memory, and how many of them in a node."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

DRIVER_BYTES: Final = 7 << 27
"""What the driver keeps of the memory that a card's label names: the worker sees 0.3 to 0.9 GiB
less than nvidia-smi's total, from a T4 to a B200."""

USUAL_PER_NODE: Final = 8
"""GPUs of a node where no node tells."""


def share_bytes(memory_bytes: int, utilization: Decimal) -> int:
    """What a worker takes of a card's memory."""
    return int(memory_bytes * utilization)


@dataclass(frozen=True, slots=True)
class GpuKind:
    """product: None where only the memory is known. memory_bytes: as the label has it.

    per_node: most GPUs in one node, None when no node was looked at. num_nodes: nodes that have
    so many; 0 when no node was looked at.
    is_slice: it is a part of a card (MIG). is_shared: other pods may get the same card, whose
    memory is not divided (time-slicing). Two of either may be one card, which NCCL does not join.
    is_closed: no node that has it takes the pods now.
    """

    product: str | None
    memory_bytes: int
    per_node: int | None = None
    num_nodes: int = 0
    is_slice: bool = False
    is_shared: bool = False
    is_closed: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether a pod that gets several can use them together."""
        return not (self.is_slice or self.is_shared)

    @property
    def usable_bytes(self) -> int:
        """What a worker can count on."""
        return self.memory_bytes - DRIVER_BYTES

    @property
    def most_per_node(self) -> int:
        return USUAL_PER_NODE if self.per_node is None else self.per_node

    @property
    def name(self) -> str:
        return self.product or "GPU"
