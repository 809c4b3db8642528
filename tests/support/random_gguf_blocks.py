"""Random quantised matrices in every encoding of GGUF, with the gguf package's decoding."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from octavo.kernels.interface import GGMLType, PackedTensor

_HALF_FIELDS = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
}
"""Where the float16 scales and minimums of a block lie."""

QUANTISED_KINDS = tuple(_HALF_FIELDS)


def block_columns(kind: GGMLType) -> int:
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]][0])


def random_blocks(
    kind: GGMLType, num_rows: int, num_columns: int, seed: int
) -> tuple[PackedTensor, Tensor]:
    """A matrix of random bytes, its scales sensible, and what it stands for in float32.

    Random bytes use every code of an encoding, which quantising a random matrix would not.
    """
    columns, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]]
    generator = np.random.default_rng(seed)
    num_blocks = num_columns // columns
    blocks = generator.integers(0, 256, (num_rows, num_blocks, num_bytes), dtype=np.uint8)
    for offset in _HALF_FIELDS[kind]:
        values = generator.uniform(-0.02, 0.02, (num_rows, num_blocks, 1)).astype(np.float16)
        values[0, 0] = 3e-7  # a subnormal of float16
        blocks[:, :, offset : offset + 2] = values.view(np.uint8)
    flat = blocks.reshape(num_rows, num_blocks * num_bytes)
    dense = dequantize(flat, GGMLQuantizationType[kind.name]).reshape(num_rows, num_columns)
    packed = PackedTensor(torch.from_numpy(flat), kind, num_columns)
    return packed, torch.from_numpy(dense.astype(np.float32))
