"""The kernels' Python face: shapes and pointers in, one C call, a new tensor out.

Knows the layout of each call (``csrc/python_face.c``); knows nothing of what the C does with
it. About 270 calls make a token of a 30-layer model, so each does as little as it can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels.cpu.library import load_library
from octavo.kernels.cpu.linear import PACKED_KINDS, CpuLinear
from octavo.kernels.interface import (
    AttentionBatch,
    GGMLType,
    Linear,
    SamplingBatch,
    WeightPart,
)


class CpuKernels:
    """A :class:`octavo.kernels.interface.Kernels` in C. Activations and KV pages are float32."""

    name = "cpu"
    is_batch_invariant = False
    packed_kinds: frozenset[GGMLType] = PACKED_KINDS

    def __init__(self, variant: str | None = None) -> None:
        """``variant``: a build of the C library by name; the best for this machine if None.

        Raises :class:`octavo.kernels.cpu.library.LibraryMissingError`.
        """
        self.library = load_library(variant)
        # Every layer of a step gets the same batch: its pointers are read once.
        self._batch: AttentionBatch | None = None
        self._pointers: tuple[int, ...] = ()

    def prepare_linear(
        self, parts: Sequence[WeightPart], bias: Tensor | None, dtype: torch.dtype
    ) -> Linear:
        return CpuLinear(self.library, parts, bias, dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        size = x.shape[-1]
        self.library.rms_norm(
            x.data_ptr(),
            0,
            weight.data_ptr(),
            out.data_ptr(),
            x.numel() // size,
            size,
            eps,
            torch.get_num_threads(),
        )
        return out

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        x = x.contiguous()
        assert residual.is_contiguous()
        assert residual.shape == x.shape
        out = torch.empty_like(x)
        size = x.shape[-1]
        self.library.rms_norm(
            x.data_ptr(),
            residual.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.numel() // size,
            size,
            eps,
            torch.get_num_threads(),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return self._gated(gate_up, is_gelu=0)

    def gelu_tanh_mul(self, gate_up: Tensor) -> Tensor:
        return self._gated(gate_up, is_gelu=1)

    def _gated(self, gate_up: Tensor, is_gelu: int) -> Tensor:
        gate_up = gate_up.contiguous()
        num_rows, width = gate_up.shape
        size = width // 2
        out = torch.empty(num_rows, size)
        self.library.gated(
            gate_up.data_ptr(), out.data_ptr(), num_rows, size, is_gelu, torch.get_num_threads()
        )
        return out

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
        qkv = qkv.contiguous()
        _, num_kv_heads, block_size, head_dim = key_cache.shape
        num_tokens, width = qkv.shape
        assert width == (num_heads + 2 * num_kv_heads) * head_dim
        _, _, _, positions, slots, _ = self._pointers_of(batch)
        q = torch.empty(num_tokens, num_heads, head_dim)
        self.library.rope_and_cache(
            qkv.data_ptr(),
            cos_sin.data_ptr(),
            cos_sin.shape[1],
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            positions,
            slots,
            num_tokens,
            num_heads,
            num_kv_heads,
            head_dim,
            block_size,
            _block_stride(key_cache, value_cache),
            0 if q_norm is None else q_norm.data_ptr(),
            0 if k_norm is None else k_norm.data_ptr(),
            eps,
            q.data_ptr(),
            torch.get_num_threads(),
        )
        return q

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
        q = q.contiguous()
        _, num_kv_heads, block_size, head_dim = key_cache.shape
        num_tokens, num_heads, _ = q.shape
        starts, lens, tables, _, _, table_stride = self._pointers_of(batch)
        out = torch.empty_like(q)
        self.library.paged_attention(
            q.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            starts,
            lens,
            tables,
            num_tokens,
            batch.context_lens.shape[0],
            batch.num_decodes,
            table_stride,
            num_heads,
            num_kv_heads,
            head_dim,
            block_size,
            _block_stride(key_cache, value_cache),
            scale,
            window or 0,
            batch.max_context_len,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        logits = logits.float().contiguous()
        num_rows, vocab_size = logits.shape
        out = torch.empty(num_rows, dtype=torch.int64)
        self.library.sample(
            logits.data_ptr(),
            num_rows,
            vocab_size,
            batch.temperature.data_ptr(),
            batch.top_k.data_ptr(),
            batch.top_p.data_ptr(),
            batch.min_p.data_ptr(),
            batch.seeds.data_ptr(),
            batch.positions.data_ptr(),
            batch.all_greedy,
            batch.any_filter,
            *self._mask_pointers(batch),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    @staticmethod
    def _mask_pointers(batch: SamplingBatch) -> tuple[int, int]:
        if batch.masks is None or batch.mask_rows is None:
            return 0, 0
        return batch.masks.data_ptr(), batch.mask_rows.data_ptr()

    def _pointers_of(self, batch: AttentionBatch) -> tuple[int, ...]:
        """Addresses of starts, lens, tables, positions and slots, and the tables' row stride."""
        if batch is not self._batch:
            tables = batch.block_tables
            flat = (batch.query_starts, batch.context_lens, batch.positions, batch.slots)
            for tensor in (*flat, tables):
                if tensor.dtype is not torch.int32 or (
                    tensor.shape[-1] > 1 and tensor.stride(-1) != 1
                ):
                    raise ConfigError(
                        f"attention batches hold contiguous int32 tensors, not {tensor.dtype} "
                        f"with strides {tensor.stride()}"
                    )
            starts, lens, positions, slots = (tensor.data_ptr() for tensor in flat)
            self._pointers = (starts, lens, tables.data_ptr(), positions, slots, tables.stride(0))
            self._batch = batch
        return self._pointers


def _block_stride(key_cache: Tensor, value_cache: Tensor) -> int:
    """Elements from block to block: blocks may lie apart, what is in one may not."""
    strides = key_cache.stride()
    _, _, block_size, head_dim = key_cache.shape
    assert strides == value_cache.stride()
    assert key_cache.dtype is torch.float32
    assert strides[1:] == (block_size * head_dim, head_dim, 1)
    return strides[0]
