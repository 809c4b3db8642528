"""An adapter's two files, read at one moment.

Both are read whole, so that what was hashed is what is served: a mapped file that somebody
replaces or cuts meanwhile would end the process. Only safetensors; pickles are never opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from octavo.errors import (
    AdapterError,
    ModelLoadError,
    SourceForbiddenError,
    SourceUnreachableError,
)
from octavo.kernels.stored_matrices import StoredTensor
from octavo.loading.model_folder import file_inside
from octavo.lora.adapter_config import PeftConfig, parse_peft_config
from octavo.lora.adapter_source import CONFIG_NAME, WEIGHTS_NAME

_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
"""Four times what hundreds of layers take. Who parses it keeps the interpreter from the engine's
loop: for 30 ms at most, where 16 MB took it for a second."""
_MAX_DIMENSIONS = 8
"""Of a tensor: of few lengths the product is a number of few digits."""
_MAX_NAMED = 8
"""Folders that an error tells."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What was read."""

    config: PeftConfig
    header: bytes
    """Of the weights: what they hold, and where."""
    weights: mmap.mmap
    """The whole file."""
    digest: str
    """``sha256:`` and hexadecimal, of both files' contents: names an adapter whatever its path."""


def weight_bytes(folder: Path) -> int:
    """What reading the adapter takes; 0 where that cannot be told, as :func:`read_adapter` will."""
    try:
        return (folder / WEIGHTS_NAME).stat().st_size
    except OSError:
        return 0


def read_adapter(
    folder: Path,
    max_weight_bytes: int,
    max_rank: int,
    check_digest: Callable[[str], None] = lambda digest: None,
) -> AdapterFiles:
    """Read both files. ``max_weight_bytes``: tensors beyond that cannot be for this model; of the
    usual reason for that, a rank above ``max_rank``, the configuration tells before.

    ``check_digest`` is called with the digest before anything is made of the contents.

    Raises ModelLoadError for files that are missing, one of its kinds for those that cannot be
    read, AdapterError for contents that are not an adapter: clients are told of these, so they name
    no folder.
    """
    config_bytes, config = _read_config(folder, max_rank)
    weights = _read(folder, WEIGHTS_NAME, max_weight_bytes + _MAX_HEADER_BYTES)
    digest = hashlib.sha256()
    for content in (config_bytes, weights):
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    named = f"sha256:{digest.hexdigest()}"
    check_digest(named)
    return AdapterFiles(config, _header_of(weights), weights, named)


def check_folder(folder: Path, max_rank: int) -> None:
    """Raise what :func:`read_adapter` would, as far as that can be told without the weights."""
    _read_config(folder, max_rank)
    _check_is_there(folder, WEIGHTS_NAME)


def _read_config(folder: Path, max_rank: int) -> tuple[mmap.mmap, PeftConfig]:
    """The file, and what it says: an adapter that is served, as far as it tells."""
    if _is_pickled(folder):
        raise AdapterError(
            "The adapter is in adapter_model.bin, a pickle, which is never loaded; save it with "
            "safe_serialization=True."
        )
    config_bytes = _read(folder, CONFIG_NAME, _MAX_CONFIG_BYTES)
    try:
        values = json.loads(config_bytes[:])
    except (ValueError, RecursionError) as exc:
        raise AdapterError(f"{CONFIG_NAME} cannot be read as JSON ({exc}).") from exc
    if not isinstance(values, dict):
        raise AdapterError(f"{CONFIG_NAME} must hold a JSON object.")
    config = parse_peft_config(values)
    config.check_rank(max_rank)
    return config_bytes, config


def _is_pickled(folder: Path) -> bool:
    try:
        return not (folder / WEIGHTS_NAME).exists() and (folder / "adapter_model.bin").exists()
    except PermissionError as exc:
        raise SourceForbiddenError(f"{folder} may not be read ({exc}); change its mode.") from exc


def _header_of(data: mmap.mmap) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise AdapterError(
            f"{WEIGHTS_NAME} is not a safetensors file, or was cut short; copy it again."
        )
    if length > _MAX_HEADER_BYTES:
        raise AdapterError(
            f"{WEIGHTS_NAME} has a header of {length} bytes; at most {_MAX_HEADER_BYTES} are "
            "read, save the adapter without metadata."
        )
    return data[8 : 8 + length]


def parse_header(header: bytes, num_bytes: int) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file of so many bytes. Raises AdapterError.

    Source: huggingface.co/docs/safetensors, format. The library's own way to read from memory
    copies everything while it holds the interpreter, and with it the engine's steps.
    """
    begin = 8 + len(header)
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as exc:
        raise _damaged(f"its header is no JSON ({exc})") from exc
    if not isinstance(entries, dict):
        raise _damaged("its header is no JSON object")
    entries.pop("__metadata__", None)
    return {key: _tensor(num_bytes, begin, key, entry) for key, entry in entries.items()}


def _tensor(size: int, begin: int, key: str, entry: object) -> StoredTensor:
    """``begin``: of the tensors, in a file of ``size`` bytes."""
    name, entry = f"{key!r:.200}", entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(part) for part in ("dtype", "shape", "data_offsets"))
    kind = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        raise AdapterError(
            f"{name} is stored as {dtype!r:.80}; save the adapter in one of {', '.join(_DTYPES)}."
        )
    if not _are_integers(shape, range(_MAX_DIMENSIONS + 1)) or min(shape, default=1) < 1:
        raise _damaged(f"{name} has no shape of at most {_MAX_DIMENSIONS} lengths from 1 on")
    if not _are_integers(offsets, (2,)):
        raise _damaged(f"{name} has no place of two offsets")
    first, last = offsets
    is_inside = 0 <= first <= last <= size - begin
    if not is_inside or last - first != math.prod(shape) * kind.itemsize:
        raise _damaged(
            f"{name} of the shape {shape!s:.120} lies at {offsets!s:.80}, which does not fit that "
            "or the file"
        )
    return StoredTensor(begin + first, kind, tuple(shape))


def _are_integers(values: object, lengths: Container[int]) -> TypeGuard[list[int]]:
    """Whether they are a list of so many."""
    if not isinstance(values, list) or len(values) not in lengths:
        return False
    return all(type(value) is int for value in values)


def _damaged(what: str) -> AdapterError:
    return AdapterError(f"{WEIGHTS_NAME} is damaged: {what}; copy it again.")


def _check_is_there(folder: Path, name: str) -> None:
    """Who has named a folder above those of adapters is told which; of others nothing is told."""
    if os.path.lexists(folder / name):
        return
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    more = [f"{len(found) - _MAX_NAMED} more"] if len(found) > _MAX_NAMED else []
    there = f"; adapters are in {', '.join(found[:_MAX_NAMED] + more)} below it" if found else ""
    raise ModelLoadError(
        f"{folder} holds no {name}{there}. Name the folder in which PEFT has saved the adapter, or "
        "save it again."
    )


def _read(folder: Path, name: str, max_bytes: int) -> mmap.mmap:
    """The file's contents in memory of their own, which the system clears page by page.

    A bytearray is cleared at once; for 84 MB that kept the engine's loop from running for 70 ms.
    In large pages it takes a fifth of the time of small ones, at which threads wait for each other.
    """
    _check_is_there(folder, name)
    path = file_inside(folder, name)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # of what is read, should it be replaced now
            if size > max_bytes:
                raise AdapterError(
                    f"{path.name} has {size} bytes; at most {max_bytes} are read, which is more "
                    "than an adapter of --max-lora-rank takes."
                )
            if not size:
                raise AdapterError(f"{path.name} is empty; copy it again.")
            data = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # not Linux, or built without
                data.madvise(mmap.MADV_HUGEPAGE)
            if file.readinto(data) != size:
                raise SourceUnreachableError(f"{path} changed while it was read; try again.")
    except PermissionError as exc:
        raise SourceForbiddenError(f"{path} may not be read ({exc}); change its mode.") from exc
    except OSError as exc:
        raise SourceUnreachableError(f"{path} cannot be read ({exc}); try again.") from exc
    return data
