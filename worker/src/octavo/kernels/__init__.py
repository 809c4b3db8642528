"""The device operations every model is made of.

One contract (:class:`octavo.kernels.interface.Kernels`), three implementations:
``reference`` (plain torch, the truth the others are tested against), ``cpu`` (C, through
ctypes) and ``triton`` (CUDA devices; Triton's interpreter runs it without one).
``select`` chooses once, at start, and logs the choice.
"""
