"""Chooses the kernels for a device, once, at start.

Knows which implementations exist and what each needs; imports only the one it chooses.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from octavo.config import KERNELS
from octavo.errors import ConfigError
from octavo.kernels.adapters import Adapters, AdapterStack, TorchAdapters
from octavo.kernels.interface import Kernels, Linear, WidenableLinear

logger = logging.getLogger(__name__)

_MULTIPROCESSORS = 132
"""Of a card that is not here: an H100's. No program is compiled for their number."""
_fallbacks_logged: set[str] = set()


def select_kernels(
    device: torch.device, name: str | None = None, batch_invariant: bool = False
) -> Kernels:
    """The kernels of this name, or with None or "auto" the best ones for the device.

    ``batch_invariant``: those whose results for a token have the same bits whatever else is
    computed with it, in however many steps the tokens before it were computed: slower.

    Where the C library of the CPU kernels is missing, "auto" falls back to the reference
    kernels and says so once. Raises :class:`octavo.errors.ConfigError` for an unknown name, a
    device without kernels, or an explicit choice that cannot be had.
    """
    if batch_invariant:
        return _select_invariant(device, name)
    if name is None or name == "auto":
        return _select_for(device)
    if name not in KERNELS:
        raise ConfigError(f"kernels '{name}' do not exist: choose one of {', '.join(KERNELS)}")
    kernels = _load(name, device)
    logger.info("Kernels for %s: %s (asked for)", device.type, kernels.name)
    return kernels


def select_adapters(kernels: Kernels, stack: AdapterStack) -> Adapters:
    """What applies LoRA adapters beside these kernels."""
    if kernels.name == "triton":
        from octavo.kernels.triton import TritonKernels
        from octavo.kernels.triton.adapters import TritonAdapters

        assert isinstance(kernels, TritonKernels)
        return TritonAdapters(stack, kernels)
    if kernels.name == "cpu":
        from octavo.kernels.cpu import CpuKernels
        from octavo.kernels.cpu.adapters import CpuAdapters

        assert isinstance(kernels, CpuKernels)
        return CpuAdapters(stack, kernels)
    return TorchAdapters(stack, kernels)


def rows_for_adapters(linear: Linear, num_rows: int) -> Tensor | None:
    """Rows that are multiplied with the weights; None if this product has no such."""
    return linear.append_rows(num_rows) if isinstance(linear, WidenableLinear) else None


def select_absent_kernels(capability: tuple[int, int], batch_invariant: bool) -> Kernels:
    """Triton's kernels for a card that need not be here, on tensors without memory."""
    from octavo.kernels.triton import TritonKernels
    from octavo.kernels.triton.invariant import InvariantTritonKernels
    from octavo.kernels.triton.launch import Machine

    major = capability[0]
    device = torch.device("meta")
    machine = Machine.of(device, _MULTIPROCESSORS, major in (9, 10), can_overlap=major >= 9)
    return (InvariantTritonKernels if batch_invariant else TritonKernels)(device, machine)


def _select_invariant(device: torch.device, name: str | None) -> Kernels:
    if name is None or name == "auto":
        name = "triton" if device.type == "cuda" else "cpu"
    kernels: Kernels
    try:
        if name == "cpu":
            from octavo.kernels.cpu.invariant import InvariantCpuKernels

            kernels = InvariantCpuKernels()
        elif name == "triton":
            from octavo.kernels.triton.invariant import InvariantTritonKernels

            kernels = InvariantTritonKernels(device)
        else:
            raise ConfigError(
                f"the {name} kernels have no batch-invariant form: use --kernels cpu or triton, "
                "or leave --batch-invariant out"
            )
    except ImportError as error:
        raise ConfigError(f"the {name} kernels cannot be used here: {error}") from error
    logger.info("Kernels for %s: %s, batch-invariant", device.type, kernels.name)
    return kernels


def _select_for(device: torch.device) -> Kernels:
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"there are no kernels for device '{device.type}': choose 'cpu' or 'cuda', or ask "
            "for the slow 'reference' kernels"
        )
    if device.type == "cuda":
        kernels = _load("triton", device)
    else:
        try:
            kernels = _load("cpu", device)
        except ConfigError as error:
            kernels = _load("reference", device)
            _warn_once(f"Falling back to the slow reference kernels: {error}")
    logger.info("Kernels for %s: %s", device.type, kernels.name)
    return kernels


def _load(name: str, device: torch.device) -> Kernels:
    try:
        if name == "cpu":
            from octavo.kernels.cpu import CpuKernels

            return CpuKernels()
        if name == "triton":
            from octavo.kernels.triton import TritonKernels

            return TritonKernels(device)
        from octavo.kernels.reference import ReferenceKernels

        return ReferenceKernels()
    except ImportError as error:
        raise ConfigError(f"the {name} kernels cannot be used here: {error}") from error


def _warn_once(message: str) -> None:
    if message not in _fallbacks_logged:
        _fallbacks_logged.add(message)
        logger.warning(message)
