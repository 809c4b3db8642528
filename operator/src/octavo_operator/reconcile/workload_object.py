"""Which live object is the workload: there are two while pods move from one kind to the other.

A model that comes to span nodes, or no longer does, changes the kind of its workload. The former
one serves until the new one does.
"""

from __future__ import annotations

from octavo_operator.labels import COMPONENT_FOLLOWER, LABEL_COMPONENT
from octavo_operator.manifests.kinds import kind_of
from octavo_operator.manifests.workload_kind import WORKLOAD_KINDS, workload_kind
from octavo_operator.reconcile.live_object import LiveObject, labels_of
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.workload import Workload, read_workload
from octavo_operator.resources.inference_service import InferenceService


def own_workloads(observed: Observed) -> tuple[LiveObject, ...]:
    """The workloads of exactly this resource."""
    name = observed.resource["metadata"]["name"]
    found = (observed.child(kind, name) for kind in WORKLOAD_KINDS)
    return tuple(live for live in found if live is not None and observed.is_owned(live))


def workload_of(service: InferenceService, present: tuple[LiveObject, ...]) -> LiveObject | None:
    """The workload of the kind that `service` asks for; None when it is not there."""
    wanted = workload_kind(service)
    return next((live for live in present if kind_of(live) == wanted), None)


def former_workload(
    service: InferenceService, present: tuple[LiveObject, ...], workload: Workload
) -> tuple[LiveObject, ...]:
    """The workload of the other kind, as long as it serves and `workload` does not; or none."""
    wanted = workload_kind(service)
    others = (live for live in present if kind_of(live) != wanted)
    return tuple(live for live in others if not workload.ready and read_workload(None, live).ready)


def followers(observed: Observed) -> tuple[LiveObject, ...]:
    """Pods that compute with one that serves."""
    found = observed.companions
    return tuple(pod for pod in found if labels_of(pod).get(LABEL_COMPONENT) == COMPONENT_FOLLOWER)
