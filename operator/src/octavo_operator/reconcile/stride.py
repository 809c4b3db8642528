"""How far a rollout may go at a time: the spec's way, or in place where there is no spare room.

With the defaults a new pod must be ready before an old one goes. Where no node has room for it the
rollout would wait for ever, so pods are replaced in place instead, one at a time, while at least
one goes on serving. The choice is remembered on the Deployment until the rollout is complete: as
soon as an old pod has gone the new one is scheduled, and the reason to go on like this is no longer
to be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from octavo_operator.labels import ANNOTATION_STRIDE
from octavo_operator.reconcile.live_object import (
    LiveObject,
    annotations_of,
    has_ended,
    is_going,
    labels_of,
)
from octavo_operator.reconcile.workload import Workload
from octavo_operator.resources.rollout import Rollout

_LEAST_SERVING: Final = 1
_TEMPLATE_LABELS: Final = (
    "pod-template-hash",
    "leaderworkerset.sigs.k8s.io/template-revision-hash",
)


@dataclass(frozen=True, slots=True)
class Stride:
    """`rollout` as it is in force. memory: what the Deployment remembers, None for nothing.

    note: what a user who sees a pod without a place should know, empty for nothing.
    """

    rollout: Rollout
    memory: str | None
    note: str


def choose_stride(
    rollout: Rollout,
    live: LiveObject | None,
    workload: Workload,
    template_digest: str,
    pods: Iterable[LiveObject],
    *,
    lacks_room: bool,
) -> Stride:
    """The stride for the template with that digest; `lacks_room` tells that one of `pods` finds no
    node. It may be known before the workload's controller has counted it."""
    remembered = _remembered(live, template_digest)
    if remembered is not None and not workload.has_completed:
        return _in_place(rollout, remembered, template_digest)
    has_old_pods = workload.has_old_pods or _are_of_several_templates(pods)
    if not lacks_room or not has_old_pods or rollout.max_unavailable > 0:
        return Stride(rollout, None, "")
    if not rollout.replaces_in_place:
        advice = "the update waits for room; rollout.whenNoSpareGPU: Replace would make it"
        return Stride(rollout, None, advice)
    if workload.ready <= _LEAST_SERVING:
        advice = (
            "the update waits for room, since stopping the only pod that serves would be an "
            "outage; set rollout.maxUnavailable: 1 to allow that"
        )
        return Stride(rollout, None, advice)
    return _in_place(rollout, max(1, workload.wanted - workload.ready + 1), template_digest)


def _are_of_several_templates(pods: Iterable[LiveObject]) -> bool:
    """By the labels of the controllers of both kinds of workload; what has ended does not count."""
    alive = [pod for pod in pods if not (is_going(pod) or has_ended(pod))]
    labels = [labels_of(pod) for pod in alive]
    return len({tuple(each.get(name) for name in _TEMPLATE_LABELS) for each in labels}) > 1


def _in_place(rollout: Rollout, max_unavailable: int, template_digest: str) -> Stride:
    return Stride(
        replace(rollout, max_surge=0, max_unavailable=max_unavailable),
        f"{template_digest}:{max_unavailable}",
        "the update goes on by replacing pods in place, one at a time",
    )


def _remembered(live: LiveObject | None, template_digest: str) -> int | None:
    digest, _, number = annotations_of(live).get(ANNOTATION_STRIDE, "").partition(":")
    return int(number) if digest == template_digest and number.isdecimal() else None
