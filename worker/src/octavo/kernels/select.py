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


def select_kernels(
    device: torch.device, name: str = "auto", batch_invariant: bool = False
) -> Kernels:
    """The kernels of this name, or with "auto" the best ones for the device.

    ``batch_invariant``: those whose results for a token have the same bits whatever else is
    computed with it, in however many steps the tokens before it were computed: slower.

    Where the C library of the CPU kernels is missing, "auto" falls back to the reference kernels
    and says so. Raises :class:`octavo.errors.ConfigError` for an unknown name, a device without
    kernels, or a choice that cannot be had.
    """
    if name not in KERNELS:
        raise ConfigError(f"kernels '{name}' do not exist: choose one of {', '.join(KERNELS)}")
    if name == "auto":
        kernels = _load_best(device, batch_invariant)
    else:
        kernels = _load(name, device, batch_invariant)
    form = ", batch-invariant" if batch_invariant else ""
    logger.info("Kernels for %s: %s%s", device.type, kernels.name, form)
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


def _load_best(device: torch.device, batch_invariant: bool) -> Kernels:
    if device.type == "cuda":
        return _load("triton", device, batch_invariant)
    if device.type != "cpu":
        raise ConfigError(
            f"there are no kernels for device '{device.type}': choose 'cpu' or 'cuda', or ask "
            "for the slow 'reference' kernels"
        )
    try:
        return _load("cpu", device, batch_invariant)
    except ConfigError as error:
        if batch_invariant:
            raise
        logger.warning("Falling back to the slow reference kernels: %s", error)
        return _load("reference", device, batch_invariant)


def _load(name: str, device: torch.device, batch_invariant: bool) -> Kernels:
    try:
        match name, batch_invariant:
            case "cpu", False:
                from octavo.kernels.cpu import CpuKernels

                return CpuKernels()
            case "cpu", True:
                from octavo.kernels.cpu.invariant import InvariantCpuKernels

                return InvariantCpuKernels()
            case "triton", False:
                from octavo.kernels.triton import TritonKernels

                return TritonKernels(device)
            case "triton", True:
                from octavo.kernels.triton.invariant import InvariantTritonKernels

                return InvariantTritonKernels(device)
            case _, False:
                from octavo.kernels.reference import ReferenceKernels

                return ReferenceKernels()
    except ImportError as error:
        raise ConfigError(f"the {name} kernels cannot be used here: {error}") from error
    raise ConfigError(
        f"the {name} kernels have no batch-invariant form: use --kernels cpu or triton, or leave "
        "--batch-invariant out"
    )
