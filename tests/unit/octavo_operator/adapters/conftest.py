"""LoRAAdapters in the pods of a service: what users complain about elsewhere, each as a story.

The reconciling core is the real one, against a cluster and workers in memory
(`adapter_stage`). Pods and containers come and go as the test says; nothing is judged by the time
it takes.
"""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cluster.work_queue.FIRST_RETRY_S",
        "cluster.work_queue.LONGEST_RETRY_S",
        "cluster.informer.FIRST_PAUSE_S",
        "cluster.informer.LONGEST_PAUSE_S",
        "cluster.adapter_keeper.SETTLE_S",
    ):
        monkeypatch.setattr(f"octavo_operator.{name}", 0.002)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads that may be tried again are, at once."""
    for name in ("FIRST_RETRY_S", "LONGEST_RETRY_S"):
        monkeypatch.setattr(f"octavo_operator.reconcile.adapter_facts.{name}", 0.0)
