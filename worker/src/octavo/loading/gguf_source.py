"""Weights of a GGUF file under Hugging Face's names and in Hugging Face's meaning.

Two things llama.cpp's converter changes are changed back:

- Rows of q and k in files of the ``llama`` architecture are permuted for interleaved rotary
  embedding. Whole rows move, so packed blocks stay packed.
- Gemma's norm weights are stored as the whole factor ``1 + w``; Hugging Face stores ``w``, and
  so does this source.

Tensor data is never copied but for those rows: views of the mapped file are handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.errors import WeightError
from octavo.gguf.container import GGUFContainer, TensorInfo
from octavo.kernels.interface import GGMLType, PackedTensor, WeightPart
from octavo.loading.gguf_names import ROPE_FACTORS, hf_name
from octavo.loading.used_tensors import UsedTensors
from octavo.quantization.ggml_blocks import dequantize

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GGUFSource:
    """A :class:`octavo.models.interface.WeightSource` over one file.

    ``num_heads, num_kv_heads`` say how q and k are cut into heads, to undo the permutation.
    """

    def __init__(self, container: GGUFContainer, num_heads: int, num_kv_heads: int) -> None:
        self._container = container
        architecture = str(container.metadata.get("general.architecture"))
        self._is_permuted = architecture == "llama"
        self._has_unit_offset_norms = architecture == "gemma3"
        self._num_heads = {"q_proj": num_heads, "k_proj": num_kv_heads}
        self._tensors: dict[str, TensorInfo] = {}
        for name, info in container.tensors.items():
            if name != ROPE_FACTORS:
                # A tensor without a name on the hub keeps its own, so that it shows as left over.
                self._tensors[hf_name(name, architecture) or name] = info
        self._used = UsedTensors(str(container.path), self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A small dense tensor as float32; a norm of Gemma's as its difference from 1."""
        info = self._take(name, shape)
        rows = self._unpermute(name, _stored(self._container, info, _matrix_shape(info.shape)))
        part = dequantize(rows) if isinstance(rows, PackedTensor) else rows.float()
        values = part.reshape(info.shape)
        if self._has_unit_offset_norms and name.endswith("norm.weight"):
            return values - 1.0
        return values.clone()  # not a view: it would keep the file mapped for a few numbers

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        """A matrix as it is stored, dense or packed; a view of the file unless rows moved."""
        info = self._take(name, shape)
        return self._unpermute(name, _stored(self._container, info, shape))

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Raises WeightError when the model left tensors that it may not ignore."""
        self._used.check_all(can_ignore)

    def _take(self, name: str, shape: Sequence[int]) -> TensorInfo:
        self._used.take(name)
        info = self._tensors[name]
        self._used.check_shape(name, info.shape, shape)
        return info

    def _unpermute(self, name: str, part: WeightPart) -> WeightPart:
        module = name.rsplit(".", 2)[-2]
        if not self._is_permuted or module not in self._num_heads:
            return part
        if isinstance(part, PackedTensor):
            rows = _half_split_rows(part.blocks, self._num_heads[module])
            return PackedTensor(rows, part.kind, part.num_columns)
        if part.shape[0] == 1:  # a bias, as one row
            return _half_split_rows(part.t(), self._num_heads[module]).t()
        return _half_split_rows(part, self._num_heads[module])


def _half_split_rows(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of interleaved pairs → the half-split form: ``(0, 1, 2, 3, ...)`` are element 0 of the
    first half, 0 of the second, 1 of the first, ...
    """
    num_rows, num_columns = rows.shape
    pairs = rows.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return pairs.transpose(1, 2).reshape(num_rows, num_columns)


def _stored(container: GGUFContainer, info: TensorInfo, shape: tuple[int, int]) -> WeightPart:
    """A view of the file. A vector is one row."""
    data = torch.frombuffer(
        container.data, dtype=torch.uint8, count=info.size_bytes, offset=info.offset
    )
    encoding = info.encoding.name
    if encoding in _DENSE:
        return data.view(_DENSE[encoding]).view(shape)
    if encoding not in GGMLType.__members__:
        raise WeightError(
            f"The tensor {info.name} in {container.path} is encoded as {encoding}, which is not "
            f"supported; supported: {', '.join(GGMLType.__members__)}."
        )
    return PackedTensor(data.view(shape[0], -1), GGMLType[encoding], shape[1])


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
