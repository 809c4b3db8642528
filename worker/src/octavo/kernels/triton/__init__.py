"""Hand-fused Triton kernels: what an NVIDIA GPU runs.

One file per kernel: the program, and the function that launches it. Programs know shapes and
pointers; launch functions choose tile sizes from tables, never by trying at run time, and take
every grid from what the host knows, so that a CUDA graph can capture each of them. Nothing here
knows of requests or models. Under ``TRITON_INTERPRET=1`` the same programs run on CPU tensors.
"""

from octavo.kernels.triton.backend import TritonKernels

__all__ = ["TritonKernels"]
