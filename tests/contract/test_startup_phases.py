"""Every phase in which the worker says that it starts is part of what the operator tells."""

from __future__ import annotations

from octavo.cli.serve_display import DESCRIPTIONS
from octavo_operator.reconcile.startup import WORKER_PHASES


def test_each_phase_is_counted_once() -> None:
    counted = [phase for phases in WORKER_PHASES.values() for phase in phases]
    assert sorted(counted) == sorted(DESCRIPTIONS)
