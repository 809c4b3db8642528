"""`spec.rollout`: how pods are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.resources.fields import Fields

MAX_DRAIN_S: Final = 3600
REPLACE: Final = "Replace"
WAIT: Final = "Wait"


@dataclass(frozen=True, slots=True)
class Rollout:
    """Pods above and below the wanted number during a change, and the time to finish requests.

    drain_s: seconds a stopping pod may use to finish requests in flight.
    is_paused: keep the pods as they are, whatever the spec says.
    progress_deadline_s: seconds without progress after which a rollout counts as failed.
    replaces_in_place: where there is no room beside the running pods, stop one to make room, as
        long as another goes on serving; otherwise wait for room.
    """

    max_surge: int
    max_unavailable: int
    drain_s: int
    is_paused: bool
    progress_deadline_s: int
    replaces_in_place: bool


def parse_rollout(fields: Fields) -> Rollout:
    """`spec.rollout`; raises ResourceError."""
    rollout = Rollout(
        max_surge=fields.integer("maxSurge", 1, 0, 1000),
        max_unavailable=fields.integer("maxUnavailable", 0, 0, 1000),
        drain_s=fields.integer("drainSeconds", 60, 0, MAX_DRAIN_S),
        is_paused=fields.boolean("paused", False),
        progress_deadline_s=fields.integer("progressDeadlineSeconds", 1800, 60, 86_400),
        replaces_in_place=(fields.choice("whenNoSpareGPU", (REPLACE, WAIT)) or REPLACE) == REPLACE,
    )
    if rollout.max_surge == 0 and rollout.max_unavailable == 0:
        raise fields.error(
            "maxSurge",
            "and maxUnavailable are both 0, so no pod could ever be replaced",
            "set maxSurge: 1, or maxUnavailable: 1 where there is no spare GPU",
        )
    fields.note_unknown()
    return rollout
