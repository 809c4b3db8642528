"""Finds, loads and binds the compiled kernels.

Knows the file names of the variants, CPU features and calling convention; knows nothing of
tensors. The C side of the binding is ``csrc/python_face.c``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIANTS = {4: "x86_64_v4", 3: "x86_64_v3", 0: "generic"}
"""Names of the builds by the CPU level they need, the best first."""

FOLDER = Path(__file__).parent

KernelFunction = Callable[..., int]
"""A C function of integers (pointers among them) and floats; returns 0."""


class LibraryMissingError(ImportError):
    """No compiled kernels beside this package, or none that loads here."""


class _MethodDefinition(ctypes.Structure):
    """CPython's PyMethodDef, part of its stable ABI."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels as callables. Arguments of each: the comments in ``csrc/python_face.c``."""

    variant: str
    lanes: int
    """Floats in a vector."""
    linear: KernelFunction
    rows: KernelFunction
    pack: KernelFunction
    advise: KernelFunction
    rms_norm: KernelFunction
    gated: KernelFunction
    rope_and_cache: KernelFunction
    paged_attention: KernelFunction
    sample: KernelFunction
    adapters: KernelFunction
    copy_matrices: KernelFunction
    philox: KernelFunction
    read_all: KernelFunction
    multiply_add: KernelFunction


@functools.cache
def load_library(variant: str | None = None) -> Library:
    """The named variant, or the best one for this machine.

    Raises :class:`LibraryMissingError` when it was not built or cannot be loaded.
    """
    if variant is None:
        variant = runnable_variants()[0]
    handle = _open(variant)
    lanes = ctypes.c_int.in_dll(handle, "octavo_cpu_lanes").value
    return Library(variant=variant, lanes=lanes, **_bind(handle))


def runnable_variants() -> list[str]:
    """The variants that are built and that this machine can run, the best first."""
    level: int = _open("generic").octavo_cpu_level()
    return [
        name for needed, name in VARIANTS.items() if needed <= level and library_path(name).exists()
    ]


def library_path(variant: str) -> Path:
    return FOLDER / f"liboctavo_cpu_{variant}.so"


def _open(variant: str) -> ctypes.PyDLL:
    path = library_path(variant)
    if not path.exists():
        raise LibraryMissingError(
            f"the CPU kernels are not built ({path.name} is missing); install octavo with pip, "
            "or run `python setup.py build_ext --inplace` in worker/"
        )
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        raise LibraryMissingError(
            f"the CPU kernels cannot be loaded: {error}; build them on this machine with "
            "`python setup.py build_ext --inplace` in worker/"
        ) from error


def _bind(handle: ctypes.PyDLL) -> dict[str, KernelFunction]:
    """Wrap each entry of the library's function table into a built-in function object."""
    wrap = ctypes.pythonapi.PyCFunction_NewEx
    wrap.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    wrap.restype = ctypes.py_object
    entry_size = ctypes.sizeof(_MethodDefinition)
    address = ctypes.addressof(ctypes.c_char.in_dll(handle, "octavo_cpu_functions"))
    functions: dict[str, KernelFunction] = {}
    while name := _MethodDefinition.from_address(address).name:
        functions[name.decode()] = wrap(address, None, None)
        address += entry_size
    return functions
