"""Memory that is taken at the start, or refused with the numbers."""

from __future__ import annotations

import pytest
import torch

from octavo.engine import build
from octavo.errors import OutOfMemoryError
from octavo.kernels.adapters import AdapterStack
from octavo.lora import reading_turns
from octavo.lora.adapter_store import most_bytes_read
from octavo.models import registry
from octavo.models.decoder import projections_of
from tiny_models import tiny_config


def small_stack() -> AdapterStack:
    projections = projections_of(registry.resolve(tiny_config("llama")).config)
    return AdapterStack.allocate(projections, 1, 16, torch.float32, torch.device("cpu"))


def test_more_than_the_container_has_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 of the device a file is no larger than a slot; eight are read at a time."""
    stack = small_stack()
    slot_bytes = 4 * stack.slot_size
    monkeypatch.setattr(build, "memory_bytes_left", lambda: (3 + 8) * slot_bytes)
    build._check_host_memory(3, stack)
    with pytest.raises(OutOfMemoryError, match=r"^There is no room for 4 .* lower --max-cpu-loras"):
        build._check_host_memory(4, stack)
    monkeypatch.setattr(build, "memory_bytes_left", lambda: None)
    build._check_host_memory(4, stack)


@pytest.mark.parametrize(
    ("limit_in_slots", "num_read"), [(8, 8), (5, 5), (0.5, 1)], ids=["all", "some", "one alone"]
)
def test_files_are_counted_as_many_as_are_read_at_a_time(
    limit_in_slots: float, num_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = small_stack()
    slot_bytes = 4 * stack.slot_size
    monkeypatch.setattr(reading_turns, "LIMIT_BYTES", int(limit_in_slots * slot_bytes))
    assert most_bytes_read(stack) == num_read * slot_bytes
