"""Weights of a folder of safetensors files, one or many.

Files are mapped and read tensor by tensor, when the model asks. Knows the container and its
index; refuses encodings that are not plain floats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.errors import ModelLoadError, WeightError
from octavo.kernels.interface import WeightPart
from octavo.loading.model_folder import file_inside
from octavo.loading.used_tensors import UsedTensors

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")
_OTHER_WEIGHTS = ("consolidated", "adapter_model", "optimizer")
"""Beginnings of files that hold the weights a second time, or not a model's."""


class SafetensorsSource:
    """A :class:`octavo.models.interface.WeightSource` over a folder."""

    def __init__(self, folder: Path) -> None:
        """Open every file and check the index against them.

        Raises ModelLoadError for absent, broken or unsafe files, and WeightError where the
        index names tensors that are not there.
        """
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        index = _read_index(folder)
        for file_name in sorted(set(index.values())) if index else weight_files(folder):
            self._open(file_name)
        _check_index(folder, index, self._file_of)
        self._used = UsedTensors(str(folder), self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """A small dense tensor as float32, in memory of its own."""
        return self._read(name, shape).to(torch.float32, copy=True)

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightPart:
        """A matrix in the dtype it is stored in, backed by the mapped file."""
        return self._read(name, shape)

    def check_all_used(self, can_ignore: Callable[[str], bool]) -> None:
        """Raises WeightError when the model left tensors that it may not ignore."""
        self._used.check_all(can_ignore)

    def _read(self, name: str, shape: Sequence[int]) -> Tensor:
        self._used.take(name)
        file = self._files[self._file_of[name]]
        stored = file.get_slice(name)
        self._used.check_shape(name, stored.get_shape(), shape)
        dtype = stored.get_dtype()
        if dtype not in _DTYPES:
            raise WeightError(
                f"The tensor {name} in {self._folder} is stored as {dtype}, which is not "
                f"supported; supported: {', '.join(_DTYPES)}. Use an unquantised checkpoint or a "
                "GGUF file."
            )
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def _open(self, file_name: str) -> None:
        path = file_inside(self._folder, file_name)
        try:
            file: Any = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as exc:
            raise ModelLoadError(
                f"{path} cannot be read as safetensors ({exc}); download it again."
            ) from exc
        self._files[file_name] = file
        for name in file.keys():  # noqa: SIM118 -- not a mapping
            other = self._file_of.setdefault(name, file_name)
            if other != file_name:
                raise WeightError(
                    f"The tensor {name} is in both {other} and {file_name} of {self._folder}; "
                    "remove the files that do not belong to the model."
                )


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the model's weights, without help from an index.

    Raises ModelLoadError when there are none.
    """
    if (folder / _SINGLE_NAME).exists():
        return [_SINGLE_NAME]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    names = [name for name in names if not name.startswith(_OTHER_WEIGHTS)]
    if names:
        return names
    pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
    hint = "it has pickled weights, which are never loaded: " if pickles else ""
    raise ModelLoadError(
        f"{folder} holds no safetensors files; {hint}convert the model to safetensors or GGUF, or "
        "use --load-format dummy for random weights."
    )


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name → file name; empty when there is no index."""
    if not (folder / INDEX_NAME).exists():
        return {}
    path = file_inside(folder, INDEX_NAME)
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelLoadError(f"{path} cannot be read as JSON ({exc}); download it again.") from exc
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{path} has no weight_map; download it again.")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors"):
            raise ModelLoadError(
                f"{path} says that {name} is in {file_name!r:.80}, which is no safetensors file."
            )
    return weight_map


def _check_index(folder: Path, index: Mapping[str, str], file_of: Mapping[str, str]) -> None:
    wrong = sorted(name for name, file in index.items() if file_of.get(name) != file)
    if wrong:
        raise WeightError(
            f"{folder / INDEX_NAME} says that {wrong[0]} is in {index[wrong[0]]}, which does not "
            "hold it; the files are of different downloads, fetch them again."
        )
