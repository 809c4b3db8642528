"""Memory that is taken at the start, or refused with the numbers."""

from __future__ import annotations

import pytest
import torch

from octavo.engine import build
from octavo.errors import OutOfMemoryError
from octavo.kernels.adapters import AdapterStack
from octavo.models import registry
from octavo.models.decoder import projections_of
from tiny_models import tiny_config


def test_more_than_the_container_has_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    projections = projections_of(registry.resolve(tiny_config("llama")).config)
    stack = AdapterStack.allocate(projections, 1, 16, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(build, "memory_bytes_left", lambda: 12 * stack.slot_size)
    build._check_host_memory(3, stack)
    with pytest.raises(OutOfMemoryError, match=r"^There is no room for 4 .* lower --max-cpu-loras"):
        build._check_host_memory(4, stack)
    monkeypatch.setattr(build, "memory_bytes_left", lambda: None)
    build._check_host_memory(4, stack)
