"""How much memory the GPUs of a product have, where no node is there to tell.

Names are the values of the node label `nvidia.com/gpu.product`, sizes those of
`nvidia.com/gpu.memory` (what nvidia-smi shows as total): both written by NVIDIA's GPU feature
discovery. Only cards whose figures are known are listed; `accelerator.memory` serves for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_MIB: Final = 1 << 20
_MEMORY_MIB: Final[Mapping[str, int]] = {
    "Tesla-T4": 15_360,
    "Tesla-V100-SXM2-16GB": 16_384,
    "Tesla-V100-SXM2-32GB": 32_768,
    "NVIDIA-A10": 23_028,
    "NVIDIA-A10G": 23_028,
    "NVIDIA-A30": 24_576,
    "NVIDIA-A40": 46_068,
    "NVIDIA-A100-PCIE-40GB": 40_960,
    "NVIDIA-A100-SXM4-40GB": 40_960,
    "NVIDIA-A100-80GB-PCIe": 81_920,
    "NVIDIA-A100-SXM4-80GB": 81_920,
    "NVIDIA-L4": 23_034,
    "NVIDIA-L40": 46_068,
    "NVIDIA-L40S": 46_068,
    "NVIDIA-RTX-A6000": 49_140,
    "NVIDIA-GeForce-RTX-3090": 24_576,
    "NVIDIA-GeForce-RTX-4090": 24_564,
    "NVIDIA-H100-PCIe": 81_559,
    "NVIDIA-H100-80GB-HBM3": 81_559,
    "NVIDIA-H100-NVL": 95_830,
    "NVIDIA-H200": 143_771,
    "NVIDIA-B200": 183_359,
}


def product_memory_bytes(product: str) -> int | None:
    """Memory of one GPU of the product; None for a product that is not listed."""
    memory_mib = _MEMORY_MIB.get(product)
    return None if memory_mib is None else memory_mib * _MIB
