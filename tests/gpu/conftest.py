"""What all GPU tests need, said once; and their order.

What takes long begins first, spread over pytest-xdist's workers. Most of a test is compiling. Tests
of one kind that open engines find each other's programs in Triton's cache, so they follow each
other on one worker; so do neighbours among the small cases.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_LONG = ("test_llm_on_the_gpu", "test_tiny_models_on_the_gpu", "test_adapters")
_CAN_RUN = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark it; pytest calls this for the tests of this folder alone."""
    item.add_marker("gpu")
    if not _CAN_RUN:
        reason = "needs a CUDA device, and programs compiled for it (no TRITON_INTERPRET=1)"
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    is_ours = all(item.path.is_relative_to(Path(__file__).parent) for item in items)
    if num_workers == 1 or not is_ours:  # else other tests are run, which deselect these
        return
    long: dict[str, list[pytest.Item]] = {}
    for item in sorted(filter(_is_long, items), key=lambda item: _LONG.index(item.path.stem)):
        long.setdefault(_kind(item), []).append(item)
    short = [item for item in items if not _is_long(item)]
    # Work stealing begins with slices of these lengths.
    sizes = [(len(items) + worker) // num_workers for worker in range(num_workers)]
    shares: list[list[pytest.Item]] = [[] for _ in range(num_workers)]
    for place, tests in enumerate(long.values()):
        shares[place % num_workers] += tests
    for share, size in zip(shares, sizes, strict=True):
        room = max(size - len(share), 0)
        share += short[:room]
        del short[:room]
    items[:] = [item for share in [*shares, short] for item in share]


def _is_long(item: pytest.Item) -> bool:
    return item.path.stem in _LONG


def _kind(item: pytest.Item) -> str:
    """Tests that compile much the same."""
    is_case = item.path.stem == "test_adapters"
    return item.nodeid if is_case else item.nodeid.partition("[")[0]
