"""What a start on a GPU waits for late, begun early: in threads, beside imports and weights.

A context on the card, the library of products and what Triton knows its compiler by take a second
together, most of it in calls that do not hold the interpreter. Nothing here can fail a start:
whoever needs what a thread did not do does it then.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

from octavo.config import EngineConfig

_GPU = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""


class HeadStart:
    """Threads, each of which does one thing and ends."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def begin(self, work: Callable[[], object]) -> None:
        """Do it beside; what it raises is lost."""

        def run() -> None:
            with contextlib.suppress(Exception):
                work()

        # Not a daemon: a start that fails must not end the process within a call of the driver.
        thread = threading.Thread(target=run, name=f"head-start-{work.__name__}")
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Until all that was begun has ended."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()


def may_use_gpu(config: EngineConfig) -> bool:
    """Whether the engine will probably have a GPU; told without torch."""
    return config.device != "cpu" and _GPU.exists()


def open_card() -> None:
    """Make the context that torch will use, on the first card it will see; without torch.

    Source: "Primary Context Management" in NVIDIA's CUDA Driver API.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    context, card = ctypes.c_void_p(), ctypes.c_int()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(card), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), card)


def open_products() -> None:
    """Load the library of products, which its first product does otherwise."""
    import torch

    one = torch.ones(16, 16, dtype=torch.bfloat16, device="cuda")
    torch.nn.functional.linear(one, one)


def learn_compiler() -> None:
    """Let Triton digest its compiler, hundreds of megabytes, which names all it compiles. Begun
    when Triton is imported: two that import it at once find it half imported."""
    from triton.runtime.cache import triton_key

    triton_key()
