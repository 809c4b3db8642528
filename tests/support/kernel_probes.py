"""Small Triton programs that show what a piece of Octavo's programs computes."""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import sampling


@triton.jit
def _gumbel_program(words, out, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    bits = tl.load(words + lanes).to(tl.uint32)
    tl.store(out + lanes, sampling.gumbel_of_words(bits))


def gumbel_of_words(words: Tensor) -> Tensor:
    """``words: [n], int64``, n a power of two -> float32 noise ``[n]``."""
    out = torch.full(words.shape, float("nan"), device=words.device)
    _gumbel_program[(1,)](words, out, BLOCK=len(words))
    return out
