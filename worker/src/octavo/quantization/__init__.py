"""Weights that are stored in fewer bits than they are computed with.

Knows encodings and how to decode them, and which of them a device computes with as they are;
knows nothing of files or of architectures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.interface import Kernels, Linear, PackedTensor, WeightPart
from octavo.quantization.ggml_blocks import dequantize

__all__ = ["dequantize", "prepare_linear"]


def prepare_linear(
    kernels: Kernels, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
) -> Linear:
    """One product of several stored matrices, whatever they are stored as.

    Parts in an encoding that the kernels compute with stay packed; the others are decoded to
    ``dtype`` first, on the device they lie on. Arguments otherwise as of
    :meth:`octavo.kernels.interface.Kernels.prepare_linear`.
    """
    prepared = [
        dequantize(part, dtype)
        if isinstance(part, PackedTensor) and part.kind not in kernels.packed_kinds
        else part
        for part in parts
    ]
    return kernels.prepare_linear(prepared, bias, dtype)
