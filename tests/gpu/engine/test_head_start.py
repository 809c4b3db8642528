"""What a start begins early is done where it counts: on the card, before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import ctypes, sys
from octavo.engine.head_start import learn_compiler, open_card, open_products
open_card()
assert "torch" not in sys.modules
flags, is_active = ctypes.c_uint(), ctypes.c_int()
driver = ctypes.CDLL("libcuda.so.1")
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(is_active)) == 0
assert is_active.value == 1
import torch
open_products()
assert torch.cuda.is_initialized()
import triton
from triton.runtime.cache import triton_key
learn_compiler()
assert triton_key.cache_info().currsize == 1
"""


def test_the_card_the_products_and_the_compiler_are_met_early() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
