"""The sizes of a model, as `octavo inspect --json` tells them and `status.model` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from octavo_operator.json_text import read_shallow

MAX_INT64: Final = (1 << 63) - 1
"""What a status can hold."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A whole model, as one GPU would hold it.

    dtype: of weights, activations, keys and values. weights_bytes: in memory, both tables
    included; table_bytes: the embedding table, of which there are two unless `is_tied`.
    kv_bytes_per_token: over all layers, keys and values.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_len: int
    is_tied: bool
    dtype: str
    weights_bytes: int
    table_bytes: int
    kv_bytes_per_token: int

    @property
    def tables_bytes(self) -> int:
        """Embedding and output head."""
        return self.table_bytes * (1 if self.is_tied else 2)

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 2


_STATUS_NAMES: Final[Mapping[str, str]] = {
    field.name: "".join(
        part if index == 0 else part.capitalize()
        for index, part in enumerate(field.name.removeprefix("is_").split("_"))
    )
    for field in fields(ModelShape)
}
"""Our name → the one in `status.model`."""


def read_report(text: str) -> ModelShape | None:
    """What a container left as its last words; None when that is no shape."""
    try:
        values = read_shallow(text)
    except ValueError:
        return None
    return _shape(values, {name: name for name in _STATUS_NAMES})


def read_status(values: object) -> ModelShape | None:
    """The shape in `status.model`; None when there is none, or somebody has scribbled on it."""
    return _shape(values, _STATUS_NAMES)


def to_status(shape: ModelShape) -> dict[str, Any]:
    """The fields of `status.model`."""
    return {theirs: getattr(shape, ours) for ours, theirs in _STATUS_NAMES.items()}


def _shape(values: object, names: Mapping[str, str]) -> ModelShape | None:
    if not isinstance(values, Mapping):
        return None
    found = {ours: values.get(theirs) for ours, theirs in names.items()}
    kinds = {"architecture": str, "dtype": str, "is_tied": bool}
    for name, value in found.items():
        if type(value) is not kinds.get(name, int):
            return None
        if type(value) is int and not 1 <= value <= MAX_INT64:
            return None
    return ModelShape(**found)  # type: ignore[arg-type]
