"""Every phase in which the worker says that it starts is part of what the operator tells."""

from __future__ import annotations

import re
from pathlib import Path

import octavo.engine
from octavo.cli.serve_display import DESCRIPTIONS
from octavo_operator.reconcile.startup import WORKER_PHASES


def test_each_phase_is_counted_once() -> None:
    counted = [phase for phases in WORKER_PHASES.values() for phase in phases]
    assert sorted(counted) == sorted(DESCRIPTIONS)


def test_each_phase_has_words_for_people() -> None:
    """That of a GPU too, which no test here starts."""
    told = set[str]()
    for path in Path(octavo.engine.__path__[0]).glob("*.py"):
        for call in re.findall(r"(?:phases|PhaseStarted)\(([^\n]*)", path.read_text()):
            told |= set(re.findall(r'(?:^| else )"(\w+)"', call))
    assert told >= {"import", "kernels", "graphs", "warmup", "adapter_memory"}
    assert told <= DESCRIPTIONS.keys()
