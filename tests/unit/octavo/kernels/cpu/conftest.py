"""Every test runs on each build of the C library that this machine can run, alone and in two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo.kernels.cpu import CpuKernels
from octavo.kernels.cpu.library import runnable_variants


@pytest.fixture(params=runnable_variants())
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    return CpuKernels(request.param)


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
