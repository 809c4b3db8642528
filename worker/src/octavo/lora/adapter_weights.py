"""An adapter laid out for a model: which tensor goes where, everything checked before a copy.

Knows PEFT's tensor names and the model's projections. The result is one flat run of numbers (see
:class:`octavo.kernels.adapters.Packing`).
"""

from __future__ import annotations

import functools
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import AdapterError
from octavo.kernels.adapters import Packing, Projection, padded_rank, rows_of_parts
from octavo.kernels.stored_matrices import MatrixCopies, MatrixCopy, StoredTensor
from octavo.lora.adapter_config import PeftConfig
from octavo.lora.adapter_folder import AdapterFiles, parse_header

_WRAPPER = "base_model.model."
"""PEFT's own modules around the model."""
_TENSOR = re.compile(
    rf"(?:{re.escape(_WRAPPER)})?"
    r"(?P<prefix>[\w.]*?)layers\.(?P<layer>\d{1,5})\."
    r"(?P<module>\w+\.\w+)\.lora_(?P<side>[AB])\.weight"
)
_READ_IN_TRAINING = ".lora_velora_embed"
"""Ends the names of what VeLoRA (arXiv:2405.17991) keeps for its backward pass."""
_MAX_ALIKE = 8
"""Kinds of adapters of which one layout is kept."""
_PREFIXES = ("model.", "model.language_model.", "language_model.model.")
"""Where checkpoints keep the decoder, those that also see images included."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One adapted matrix of the model."""

    a: StoredTensor
    b: StoredTensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What an adapter's file holds for the model, and where each matrix of it goes."""

    packing: Packing
    copies: MatrixCopies
    """From the file to what the packing takes."""
    rank: int
    """The largest."""
    base_model: str | None


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter that fits the model, not copied yet."""

    layout: AdapterLayout
    file: mmap.mmap
    digest: str

    def copy_into(self, buffer: Tensor) -> None:
        """Fill what the packing takes; raises AdapterError for what is not finite."""
        buffer = buffer[: self.layout.packing.size]
        buffer.zero_()
        if not self.layout.copies.fill(buffer, self.file):
            raise AdapterError(
                f"The adapter holds numbers that are not finite as {buffer.dtype}; it is broken, "
                "or was trained in a wider format."
            )


def lay_out(
    files: AdapterFiles, projections: tuple[Projection, ...], max_rank: int
) -> AdapterWeights:
    """Check an adapter against a model.

    Raises AdapterError with the first thing that does not fit: rank, shape, layer or module.
    """
    layout = _layout_of(files.config, files.header, len(files.weights), projections, max_rank)
    return AdapterWeights(layout, files.weights, files.digest)


@functools.lru_cache(maxsize=_MAX_ALIKE)
def _layout_of(
    config: PeftConfig,
    header: bytes,
    num_bytes: int,
    projections: tuple[Projection, ...],
    max_rank: int,
) -> AdapterLayout:
    """Kept, as adapters that were trained alike have the same, and checking hundreds of matrices
    takes the interpreter for milliseconds: as long as a step of the engine's loop."""
    config.check_rank(max_rank)
    found = _parts(parse_header(header, num_bytes), projections, config)
    parts = tuple(
        tuple(found.pop((projection.layer, name), None) for name in projection.names)
        for projection in projections
    )
    assert not found, "every part belongs to a projection"
    ranks = (
        padded_rank(max((part.rank for part in own if part is not None), default=0))
        for own in parts
    )
    packing = Packing(projections, tuple(ranks))
    copies = MatrixCopies(list(_copies(packing, parts)))
    return AdapterLayout(packing, copies, config.largest_rank, config.base_model)


def _copies(packing: Packing, parts: Sequence[Sequence[_Part | None]]) -> Iterator[MatrixCopy]:
    """A of every part as it is, and B with its scaling, to where the packing has them."""
    run = torch.empty(packing.size, device="meta")
    for projection, own, (a, b) in zip(
        packing.projections, parts, packing.matrices(run), strict=True
    ):
        for part, own_a, own_b in zip(own, a, rows_of_parts(b, projection), strict=True):
            if part is not None:
                yield MatrixCopy(part.a, 1.0, int(own_a.storage_offset()), own_a.stride(0))
                yield MatrixCopy(part.b, part.scaling, int(own_b.storage_offset()), own_b.stride(0))


def _parts(
    tensors: Mapping[str, StoredTensor], projections: Sequence[Projection], config: PeftConfig
) -> dict[tuple[int, str], _Part]:
    shapes = {
        (projection.layer, name): (projection.in_features, out_features)
        for projection in projections
        for name, out_features in zip(projection.names, projection.out_features, strict=True)
    }
    sides: dict[tuple[int, str], dict[str, tuple[str, StoredTensor]]] = {}
    for name, tensor in tensors.items():
        if name.endswith(_READ_IN_TRAINING):
            continue
        place, side = _place(name, shapes, config)
        if side in sides.setdefault(place, {}):
            raise AdapterError(f"The adapter holds {name} twice, under another prefix.")
        sides[place][side] = (name, tensor)
    if not sides:
        raise AdapterError("The adapter holds no tensors; it was saved before it was trained.")
    return {place: _part(found, shapes[place], config) for place, found in sides.items()}


def _place(
    name: str, shapes: Mapping[tuple[int, str], object], config: PeftConfig
) -> tuple[tuple[int, str], str]:
    match = _TENSOR.fullmatch(name)
    if match is None or match["prefix"] not in _PREFIXES:
        what = "embeddings and the output head are not adapted" if _is_outer(name) else "unknown"
        raise AdapterError(
            f"The adapter holds {name!r:.200}, which is not served ({what}); served are the "
            f"layers' q, k, v, o, gate, up and down projections.{_remedy(name)}"
        )
    place = int(match["layer"]), match["module"]
    if place not in shapes:
        raise AdapterError(
            f"The adapter holds {name!r:.200}, but this model has no such module{_origin(config)}."
        )
    return place, match["side"]


def _is_outer(name: str) -> bool:
    return "embed_tokens" in name or "lm_head" in name


def _remedy(name: str) -> str:
    """PEFT saves embeddings that nobody trained where it cannot tell that they are the model's."""
    if not (_is_outer(name) and name.endswith((".embed_tokens.weight", ".lm_head.weight"))):
        return ""
    return " If it was not trained, save the adapter with save_embedding_layers=False."


def _part(
    found: Mapping[str, tuple[str, StoredTensor]],
    shape: tuple[int, int],
    config: PeftConfig,
) -> _Part:
    if len(found) != 2:
        (name, _) = next(iter(found.values()))
        raise AdapterError(f"The adapter holds {name!r:.200} without its other half.")
    (a_name, a), (b_name, b) = found["A"], found["B"]
    # As the model that was trained calls it, which patterns may name in full.
    full_name = a_name.removeprefix(_WRAPPER).removesuffix(".lora_A.weight")
    rank = config.rank_of(full_name)
    in_features, out_features = shape
    for name, tensor, expected in (
        (a_name, a, (rank, in_features)),
        (b_name, b, (out_features, rank)),
    ):
        if tensor.shape != expected:
            raise AdapterError(
                f"{name} has the shape {tensor.shape}; for this model and rank it must be "
                f"{expected}{_origin(config)}."
            )
    return _Part(a, b, config.scaling_of(full_name))


def _origin(config: PeftConfig) -> str:
    if config.base_model is None:
        return ""
    return f"; the adapter was made for {config.base_model!r:.200}"
