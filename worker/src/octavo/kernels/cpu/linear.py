"""Matrix products over weights repacked into panels.

Knows formats and layout of prepared weights (``csrc/panels.h``, ``csrc/blocks.h``: the numbers
here are the enumerations there); knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from octavo.errors import WeightError
from octavo.kernels.cpu.library import Library
from octavo.kernels.interface import GGMLType, PackedTensor, WeightPart

PANEL = 32
"""Outputs that lie side by side."""

HUGE_PAGE_BYTES = 2 << 20

DENSE_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_DENSE_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DENSE_GGML = {GGMLType.F32: 0, GGMLType.F16: 1, GGMLType.BF16: 2}
_DENSE_BYTES = {0: 4, 1: 2, 2: 2}


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How one GGUF encoding is stored: source kind, panel format, and their sizes."""

    kind: int
    format: int
    block_columns: int
    block_bytes: int
    panel_bytes: int
    """Of 32 outputs by 32 inputs."""


_ENCODINGS = {
    GGMLType.Q4_0: _Encoding(3, 3, 32, 18, 512 + 64),
    GGMLType.Q4_1: _Encoding(4, 4, 32, 20, 512 + 128),
    GGMLType.Q5_0: _Encoding(5, 6, 32, 22, 1024 + 64),
    GGMLType.Q5_1: _Encoding(6, 7, 32, 24, 1024 + 128),
    GGMLType.Q8_0: _Encoding(7, 6, 32, 34, 1024 + 64),
    GGMLType.Q4_K: _Encoding(8, 5, 256, 144, 512 + 256),
    GGMLType.Q5_K: _Encoding(9, 8, 256, 176, 1024 + 256),
    GGMLType.Q6_K: _Encoding(10, 9, 256, 210, 1024 + 256),
}

PACKED_KINDS = frozenset(_ENCODINGS) | frozenset(_DENSE_GGML)


@dataclass(frozen=True, slots=True)
class _Source:
    """One matrix to repack, as C sees it."""

    tensor: Tensor
    kind: int
    format: int
    panel_bytes: int
    num_rows: int
    num_columns: int
    row_bytes: int


class CpuLinear:
    """A :class:`octavo.kernels.interface.Linear` over panels; exact float32 arithmetic.

    Quantised weights are multiplied as ``scale * quant + minimum`` in float32: the result is
    that of the dequantised matrix, up to the order of summation.
    """

    __slots__ = (
        "_keep_alive",
        "_linear",
        "_plan",
        "_rows",
        "in_features",
        "out_features",
        "size_bytes",
    )

    def __init__(
        self,
        library: Library,
        parts: Sequence[WeightPart],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Repack ``parts`` (matrices with the same input, outputs concatenated).

        Raises :class:`octavo.errors.WeightError` when the parts disagree on their input.
        """
        sources = [_describe(part, dtype) for part in parts]
        if len({source.num_columns for source in sources}) != 1:
            shapes = [(source.num_rows, source.num_columns) for source in sources]
            raise WeightError(f"matrices {shapes} cannot be merged: their inputs differ in size")
        self.in_features = sources[0].num_columns
        self.out_features = sum(source.num_rows for source in sources)
        self._linear, self._rows = library.linear, library.rows
        segments: list[tuple[int, ...]] = []
        panels: list[Tensor] = []
        column = 0
        for form, group in groupby(sources, key=lambda source: source.format):
            run = list(group)
            num_outputs = sum(source.num_rows for source in run)
            data = _pack_run(library, run, num_outputs)
            num_panels = -(-num_outputs // PANEL)
            segments.append(
                (form, column, num_outputs, num_panels, run[0].panel_bytes, data.data_ptr())
            )
            panels.append(data)
            column += num_outputs
        padded_bias = None if bias is None else _pad_bias(bias, segments)
        plan = torch.tensor(
            [
                self.in_features,
                self.out_features,
                sum(segment[3] for segment in segments),
                0 if padded_bias is None else padded_bias.data_ptr(),
                len(segments),
                *(value for segment in segments for value in segment),
            ],
            dtype=torch.int64,
        )
        self._plan = plan.data_ptr()
        self._keep_alive = (plan, panels, padded_bias)
        bias_bytes = 0 if padded_bias is None else padded_bias.numel() * 4
        self.size_bytes = sum(data.numel() for data in panels) + bias_bytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        num_rows, in_features = x.shape
        assert in_features == self.in_features
        assert x.dtype is torch.float32
        y = torch.empty(num_rows, self.out_features)
        self._linear(self._plan, x.data_ptr(), num_rows, y.data_ptr(), torch.get_num_threads())
        return y

    def rows(self, ids: Tensor) -> Tensor:
        ids = ids.contiguous()
        assert ids.dtype is torch.int64 or ids.dtype is torch.int32
        num_ids = ids.shape[0]
        out = torch.empty(num_ids, self.in_features)
        self._rows(
            self._plan,
            ids.data_ptr(),
            ids.element_size(),
            num_ids,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


def _describe(part: WeightPart, dtype: torch.dtype) -> _Source:
    if isinstance(part, PackedTensor) and part.kind in _ENCODINGS:
        return _describe_packed(part, _ENCODINGS[part.kind])
    if dtype not in _DENSE_FORMATS:
        raise WeightError(f"weights cannot be stored as {dtype}: use float32, bfloat16 or float16")
    if isinstance(part, PackedTensor):
        kind, num_columns = _DENSE_GGML[part.kind], part.num_columns
        _check_row_bytes(part, num_columns * _DENSE_BYTES[kind])
        tensor = part.blocks.contiguous()
    else:
        tensor = (part if part.dtype in DENSE_KINDS else part.float()).contiguous()
        kind, num_columns = DENSE_KINDS[tensor.dtype], tensor.shape[1]
    return _Source(
        tensor=tensor,
        kind=kind,
        format=_DENSE_FORMATS[dtype],
        panel_bytes=num_columns * PANEL * dtype.itemsize,
        num_rows=tensor.shape[0],
        num_columns=num_columns,
        row_bytes=num_columns * _DENSE_BYTES[kind],
    )


def _describe_packed(part: PackedTensor, encoding: _Encoding) -> _Source:
    if part.num_columns % encoding.block_columns:
        raise WeightError(
            f"a {part.kind} matrix has {part.num_columns} columns: they must be a multiple of "
            f"{encoding.block_columns}; dequantise it or choose another encoding"
        )
    row_bytes = part.num_columns // encoding.block_columns * encoding.block_bytes
    _check_row_bytes(part, row_bytes)
    return _Source(
        tensor=part.blocks.contiguous(),
        kind=encoding.kind,
        format=encoding.format,
        panel_bytes=part.num_columns // 32 * encoding.panel_bytes,
        num_rows=part.blocks.shape[0],
        num_columns=part.num_columns,
        row_bytes=row_bytes,
    )


def _check_row_bytes(part: PackedTensor, row_bytes: int) -> None:
    if part.blocks.shape[1] != row_bytes or part.blocks.dtype is not torch.uint8:
        raise WeightError(
            f"a {part.kind} row of {part.num_columns} columns takes {row_bytes} bytes, "
            f"not {part.blocks.shape[1]} elements of {part.blocks.dtype}: the file is damaged"
        )


def _pack_run(library: Library, sources: Sequence[_Source], num_outputs: int) -> Tensor:
    """Panels of matrices in one format: ``[num_panels * panel_bytes], uint8``."""
    panel_bytes = sources[0].panel_bytes
    data = _allocate(library, -(-num_outputs // PANEL) * panel_bytes)
    if num_outputs % PANEL:
        data[-panel_bytes:].zero_()
    first_row = 0
    for source in sources:
        library.pack(
            data.data_ptr(),
            source.format,
            first_row,
            source.num_rows,
            source.num_columns,
            source.tensor.data_ptr(),
            source.row_bytes,
            source.kind,
            torch.get_num_threads(),
        )
        first_row += source.num_rows
    return data


def _allocate(library: Library, size_bytes: int) -> Tensor:
    """Bytes for panels, on huge pages where they fill some.

    The slack before the first huge page is never touched, so it takes no memory.
    """
    if size_bytes < HUGE_PAGE_BYTES:
        return torch.empty(size_bytes, dtype=torch.uint8)
    data = torch.empty(size_bytes + HUGE_PAGE_BYTES, dtype=torch.uint8)
    offset = -data.data_ptr() % HUGE_PAGE_BYTES
    data = data[offset : offset + size_bytes]
    library.advise(data.data_ptr(), size_bytes)
    return data


def _pad_bias(bias: Tensor, segments: Sequence[tuple[int, ...]]) -> Tensor:
    """The bias with each segment's part padded to whole panels."""
    parts = []
    for _, column, num_outputs, num_panels, *_ in segments:
        part = bias[column : column + num_outputs].float()
        parts.append(torch.nn.functional.pad(part, (0, num_panels * PANEL - num_outputs)))
    return torch.cat(parts)
