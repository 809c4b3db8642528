"""The CPU backend: every kernel in C, weights repacked into panels, quantised ones kept packed.

``csrc/`` is compiled once per instruction set when the package is built (``worker/setup.py``);
``library`` picks the best one this machine runs; ``linear`` and ``backend`` are its Python face.
"""

from octavo.kernels.cpu.backend import CpuKernels
from octavo.kernels.cpu.library import LibraryMissingError

__all__ = ["CpuKernels", "LibraryMissingError"]
