"""The engine's process with a runner that hangs for ever at a prompt that begins with token 7."""

from __future__ import annotations

import sys
import time

from octavo.batch import BatchPlan, StepHandle
from octavo.engine import core_process
from octavo.runner.model_runner import ModelRunner

HANGS_AT = 7


def _hang() -> None:
    run = ModelRunner.execute

    def execute(self: ModelRunner, plan: BatchPlan) -> StepHandle:
        if any(admission.token_ids[0] == HANGS_AT for admission in plan.admissions):
            time.sleep(1e6)
        return run(self, plan)

    ModelRunner.execute = execute  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    _hang()
    sys.exit(core_process.main())
