"""The contract between models and the device.

Knows shapes and dtypes; knows nothing of requests, schedules or architectures.

Conventions used by every implementation:

- ``num_tokens`` (T) is the number of tokens of this step over all sequences, packed without
  padding; ``num_sequences`` (S) the number of sequences they belong to.
- KV pages: ``key_cache, value_cache: [num_blocks, num_kv_heads, block_size, head_dim]``, so
  that one head of one block is one contiguous tile. A *slot* is
  ``block_id * block_size + offset``.
- Rotary embedding is the half-split ("NeoX") form: element ``i`` is paired with
  ``i + rotary_dim / 2``. Weights stored for the interleaved form are permuted at load.
- Norm weights are float32, and hold the whole factor (Gemma's ``1 + w`` is folded at load).
- Activations are the model's dtype on CUDA and always float32 on the CPU, where the dtype
  only says how dense weights are stored.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class GGMLType(enum.StrEnum):
    """Tensor encodings of GGUF files that Octavo reads (ggml's names).

    Source: the GGUF specification and ggml's block structures.
    """

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A matrix of quantised blocks, as they lie in a GGUF file.

    ``blocks: [num_rows, row_bytes], uint8``; each row encodes ``num_columns`` values.
    """

    blocks: Tensor
    kind: GGMLType
    num_columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix it stands for: ``(num_rows, num_columns)``."""
        return self.blocks.shape[0], self.num_columns


WeightPart = Tensor | PackedTensor
"""One stored matrix ``[out_features, in_features]``, dense or packed."""


class Linear(Protocol):
    """A prepared matrix product ``y = x @ W.T + bias``, weights in the backend's own layout."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Memory its weights take on the device."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x: [num_tokens, in_features]`` → ``[num_tokens, out_features]``, same dtype."""

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of W: ``ids: [num_tokens], int32 or int64`` → ``[num_tokens, in_features]``.

        This is how a tied output head serves as the embedding table without a second copy.
        """


@dataclass(frozen=True, slots=True)
class ChosenGroups:
    """Of the groups of rows below a product, those whose results are read."""

    of_tokens: Tensor
    """``[T], int32``: the group that each token chose; less than 0: none."""
    counts: Tensor
    """``[groups], int32``: tokens that chose each."""
    most: int
    """Different ones at most."""


@runtime_checkable
class WidenableLinear(Linear, Protocol):
    """A product that further rows can be computed with."""

    def append_rows(self, num_rows: int) -> Tensor:
        """Move the weights to where so many rows stand below them: ``[num_rows, in_features]``,
        uninitialised."""

    def with_rows_below(self, x: Tensor, groups: ChosenGroups) -> Tensor:
        """``x: [T, in_features]`` → ``[T, out_features + num_rows]``; the rows have no bias.

        They are groups of equal size, and what nobody chose may be left undefined.
        """


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Blocks that several of a batch's decodes have in common: they may be read once for all.

    Says nothing that the block tables do not say already, so a backend may ignore it.
    """

    lens: Tensor
    """``[num_decodes], int32``: tokens of the sequence that lie in the common blocks: the same
    whole number of blocks for each that shares, and 0 for the others. Less than its context."""
    sharer: Tensor
    """``[], int64``: one of those that share."""


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where this step's tokens stand in their sequences. Device tensors are int32.

    Sequences with one new token come first (``num_decodes`` of them), the rest after, so a
    backend can serve both with the kernel that fits.
    """

    query_starts: Tensor
    """``[S + 1]``: tokens of sequence ``s`` are ``query_starts[s] : query_starts[s + 1]``."""
    context_lens: Tensor
    """``[S]``: tokens of the sequence that are in the cache once this step's are written."""
    block_tables: Tensor
    """``[S, max_blocks]``: each sequence's blocks in order; unused entries are any valid id."""
    positions: Tensor
    """``[T]``: each token's position in its sequence, from 0."""
    slots: Tensor
    """``[T]``: where each token's key and value are written; -1: nowhere (padding)."""
    num_decodes: int
    max_query_len: int
    max_context_len: int
    shared: SharedPrefix | None = None
    """None: no decodes share enough to be worth a pass of their own."""
    longest_first: Tensor | None = None
    """``[num_decodes], int64``: decodes from the longest on, so that no long one is begun last.
    None: as they come."""

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one new token."""
        return self.num_decodes == self.context_lens.shape[0]

    @property
    def last_tokens(self) -> Tensor:
        """``[S], int64``: which of the step's tokens is each sequence's last; 0 if it has none."""
        return (self.query_starts[1:].long() - 1).clamp_min(0)

    def of_last_tokens(self) -> AttentionBatch:
        """The same sequences as a batch of decodes, each with the last of its new tokens.

        Their keys and values are in the cache already, so nothing is to be written.
        """
        num_sequences = self.context_lens.shape[0]
        positions = self.context_lens - 1
        return AttentionBatch(
            query_starts=torch.arange(
                num_sequences + 1, dtype=torch.int32, device=positions.device
            ),
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            positions=positions,
            slots=torch.full_like(positions, -1),
            num_decodes=num_sequences,
            max_query_len=1,
            max_context_len=self.max_context_len,
        )


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Sampling parameters of R rows of logits, each a device tensor ``[R]``."""

    temperature: Tensor
    """float32; 0 means greedy."""
    top_k: Tensor
    """int32; 0 means off."""
    top_p: Tensor
    """float32; 1 means off."""
    min_p: Tensor
    """float32; 0 means off."""
    seeds: Tensor
    """int64: the row's random key."""
    positions: Tensor
    """int32: the position of the token being drawn, the row's random counter."""
    all_greedy: bool
    """Host's knowledge that every temperature is 0."""
    any_filter: bool
    """Host's knowledge that some row uses top-k, top-p or min-p."""
    masks: Tensor | None = None
    """``[num_masks, ceil(vocab / 32)], int32, contiguous``: bit ``i % 32`` of word ``i // 32`` is
    set where token ``i`` may be drawn. None: no row has a mask."""
    mask_rows: Tensor | None = None
    """int32: which mask each row of logits obeys; -1: none. Given with ``masks``."""


class Kernels(Protocol):
    """What a model needs of a device. Every method returns new tensors unless it says in place."""

    name: str
    is_batch_invariant: bool
    """Whether a token's bits do not depend on what is computed with it."""
    packed_kinds: frozenset[GGMLType]
    """Encodings ``prepare_linear`` keeps packed; others must be dequantised before."""

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        """Merge matrices that share their input into one product, outputs concatenated.

        ``dtype`` is how dense parts are stored. The parts may be released afterwards.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x: [..., size]``: ``x / sqrt(mean(x²) + eps) * weight``, computed in float32."""

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        """``residual += x`` in place, then :meth:`rms_norm` of it."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``[T, 2 * size]`` → ``[T, size]``: ``silu(first half) * second half``."""

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        """``[T, 2 * size]`` → ``[T, size]``: ``gelu_tanh(first half) * second half``."""

    def rope_and_cache(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        num_heads: int,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Normalise (where weights are given) and rotate q and k; write k and v to their slots.

        ``qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim]``, heads of q, then k, then v.
        ``cos_sin: [max_positions, rotary_dim], float32``: cosines in the first half, sines in
        the second; ``rotary_dim <= head_dim``, elements past it are left as they are.
        ``q_norm, k_norm: [head_dim], float32``: RMSNorm over each head, before the rotation.
        Returns ``q: [T, num_heads, head_dim]``. ``qkv`` may be overwritten, and is what
        :meth:`paged_attention` is given as ``qkv``.
        """

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        qkv: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of each token over its sequence's pages.

        ``q: [T, num_heads, head_dim]`` → the same shape. A query at position ``i`` sees keys
        ``j`` with ``j <= i`` and, given a window, ``i - j < window``. Query head ``h`` reads KV
        head ``h // (num_heads // num_kv_heads)``. ``qkv``: what :meth:`rope_and_cache` left of
        its argument. A backend may have kept this step's keys and values there, and read them
        faster than from the pages that hold them too.
        """

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """``logits: [R, vocab]`` of any float dtype → token ids ``[R], int64``.

        Computed in float32. Greedy rows take the argmax (the lowest id on a tie). The others
        divide by the temperature, keep what top-k, then top-p, then min-p leave (each on the
        distribution that the one before left), and take the argmax of ``logit + g`` with Gumbel
        noise ``g = -log(-log(u))``, ``u = ((r >> 8) + 0.5) * 2**-24`` and ``r`` word number
        ``id // 16 % 4`` of Philox4x32-10 with key ``seed`` (low and high 32 bits) and counter
        ``(id // 64 * 16 + id % 16, position, 0, 0)`` for token ``id``: the draw depends on
        nothing but the row's own logits, seed and position. Source: Salmon et al., "Parallel
        random numbers: as easy as 1, 2, 3".

        Before all that, tokens that a row's mask leaves out get a logit of minus infinity; the
        logits of rows with a mask may be overwritten. Of a row where nothing is left some token
        id is returned, which means nothing.
        """
