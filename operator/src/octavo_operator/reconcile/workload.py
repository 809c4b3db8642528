"""How far the workload is, in numbers and yes or no.

Knows the status of a Deployment and of a LeaderWorkerSet, whose groups count as pods; problems of
single pods are read in `pod_problems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.labels import ANNOTATION_SERVED_TEMPLATE
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.manifests.kinds import LEADER_WORKER_SET
from octavo_operator.reconcile.live_object import (
    LiveObject,
    annotations_of,
    conditions_of,
    is_true,
    message_when,
)
from octavo_operator.reconcile.pinning import template_in_force
from octavo_operator.resources.inference_service import InferenceService


@dataclass(frozen=True, slots=True)
class Workload:
    """Counts of pods, and what the workload says of itself.

    exists: the workload is there. is_current: its controller has seen its latest template.
    wanted: pods asked for; total: pods there are; updated: those with the latest template.
    deadline_message, create_failure: the workload's own complaints, None when it has none.
    was_completed: the workload says that its latest template was once fully rolled out.
    """

    exists: bool
    is_current: bool
    wanted: int
    total: int
    ready: int
    updated: int
    available: int
    deadline_message: str | None
    create_failure: str | None
    was_completed: bool = False

    @property
    def has_completed(self) -> bool:
        """Whether the latest template was once fully rolled out, however its pods are now."""
        return self.is_rolled_out or (self.is_current and self.was_completed)

    @property
    def serves_in_full(self) -> bool:
        """Whether the latest template serves now, in all pods and one at least."""
        return self.is_rolled_out and self.wanted > 0

    @property
    def has_old_pods(self) -> bool:
        """Whether pods of an earlier template are still there."""
        return self.total > self.updated

    @property
    def is_rolled_out(self) -> bool:
        """Whether all wanted pods, and no others, run the latest template and are available."""
        return (
            self.exists
            and (self.is_current or self.wanted == 0)
            and self.total == self.updated == self.available == self.wanted
        )


def read_workload(service: InferenceService | None, live: LiveObject | None) -> Workload:
    """The workload in the object `live`; `service` says how many pods are wanted, if it can."""
    fixed = service.replicas if service is not None else None
    if live is None:
        return Workload(False, False, fixed or 0, 0, 0, 0, 0, None, None)
    status: Mapping[str, Any] = live.get("status") or {}
    generation = live["metadata"].get("generation") or 0
    wanted = fixed if fixed is not None else (live.get("spec") or {}).get("replicas", 1)
    if live.get("kind") == LEADER_WORKER_SET.kind:
        return _read_groups(live, status, generation, wanted)
    is_observed = (status.get("observedGeneration") or 0) >= generation
    progressing = conditions_of(live).get("Progressing", {})
    return Workload(
        exists=True,
        is_current=is_observed or _is_noted(live),
        wanted=wanted,
        total=status.get("replicas") or 0,
        ready=status.get("readyReplicas") or 0,
        updated=status.get("updatedReplicas") or 0,
        available=status.get("availableReplicas") or 0,
        # What is said of an earlier spec must not be held against this one.
        deadline_message=message_when(live, "Progressing", "False") if is_observed else None,
        create_failure=message_when(live, "ReplicaFailure", "True") if is_observed else None,
        was_completed=progressing.get("reason") == "NewReplicaSetAvailable",
    )


def _read_groups(
    live: LiveObject, status: Mapping[str, Any], generation: int, wanted: int
) -> Workload:
    """Of a LeaderWorkerSet, which knows no deadline; older ones tell no observed generation."""
    ready = status.get("readyReplicas") or 0
    is_observed = status.get("observedGeneration", generation) >= generation
    # A group that is lost takes away what the controller says of a rollout that is done.
    is_done = is_true(live, "Available") and not is_true(live, "UpdateInProgress")
    return Workload(
        exists=True,
        is_current=bool(status) and (is_observed or _is_noted(live)),
        wanted=wanted,
        total=status.get("replicas") or 0,
        ready=ready,
        updated=status.get("updatedReplicas") or 0,
        available=ready,
        deadline_message=None,
        create_failure=None,
        was_completed=is_done or (is_observed and _is_noted(live)),
    )


def _is_noted(live: LiveObject) -> bool:
    """Whether its template is noted as the last that served, so that its controller knows it.

    A generation alone does not tell: annotations of a Deployment count, the note itself among
    them, and so does how it is rolled out.
    """
    memory = annotations_of(live)
    template = template_in_force(memory)
    noted = memory.get(ANNOTATION_SERVED_TEMPLATE)
    return template is not None and noted == manifest_digest(template)
