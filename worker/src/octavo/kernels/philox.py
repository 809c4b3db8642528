"""Philox4x32-10, the counter-based random numbers behind sampling, in plain torch.

Knows the generator and the noise drawn from it; knows nothing of logits or requests. Every
backend must give the same words, so the integers here are exact on any device.

Source: Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC11).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_NUM_ROUNDS = 10
COUNTERS_PER_GROUP = 16
TOKENS_PER_GROUP = 4 * COUNTERS_PER_GROUP

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter and key.

    All tensors are int64, hold values below 2**32, and broadcast against each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _KEY_INCREMENTS[0]) & _WORD
        k1 = (k1 + _KEY_INCREMENTS[1]) & _WORD
    return c0, c1, c2, c3


def gumbel_noise(seeds: Tensor, positions: Tensor, num_tokens: int) -> Tensor:
    """Gumbel noise of every token id: ``seeds, positions: [R]`` → ``[R, num_tokens], float64``.

    All four words of a counter are used: of each 64 tokens, 16 counters in a row give the first
    words to the first 16 tokens, the second words to the next, and so on, which suits vectors of
    any width. ``-log(-log(u))`` with ``u = ((r >> 8) + 0.5) * 2**-24``. float64 is needed: in
    float32 the largest ``u`` rounds to 1 and its noise to infinity, which would hit one token in
    2**24, that is one draw in a hundred over a large vocabulary.
    """
    key = seeds.to(torch.int64)[:, None]
    num_groups = -(-num_tokens // TOKENS_PER_GROUP)
    counters = torch.arange(num_groups * COUNTERS_PER_GROUP, device=seeds.device)[None, :]
    position = positions.to(torch.int64)[:, None] & _WORD
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    words = philox4x32((counters, position, zero, zero), (key & _WORD, (key >> 32) & _WORD))
    by_group = [word.view(-1, num_groups, COUNTERS_PER_GROUP) for word in words]
    word = torch.stack(by_group, dim=2).flatten(1)[:, :num_tokens]
    u = ((word >> 8).to(torch.float64) + 0.5) * 2.0**-24
    return -torch.log(-torch.log(u))


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, by 16-bit halves so that int64 never wraps."""
    low_part = multiplier * (word & 0xFFFF)
    high_part = multiplier * (word >> 16) + (low_part >> 16)
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)
