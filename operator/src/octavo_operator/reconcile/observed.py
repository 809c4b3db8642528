"""What the planner sees: one InferenceService, its children, its pods, and what the cluster has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo_operator.manifests.kinds import Kind, kind_of
from octavo_operator.manifests.worker_command import NO_ADMIN_KEY
from octavo_operator.reconcile.live_object import LiveObject, is_owned_by
from octavo_operator.reconcile.replicas import NO_DEMAND, Demand
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the cluster.

    resource: the InferenceService as it was read.
    children: objects that bear this service's labels, or a name that a child of it needs.
    pods: pods that bear this service's labels.
    served_kinds: those of the optional kinds that the cluster has.
    startup_phases_s: what a pod's worker says of its start, by the pod's uid; pods that were not
        asked, or did not answer, are absent.
    demand: what is known of the callers.
    prometheus_url: where autoscalers may ask for metrics, None where there is no Prometheus.
    companions: pods of this service that take no requests, such as those of an inspection.
    nodes: the cluster's nodes, None while they were not looked at, or may not be.
    can_inspect: whether a Job would be run here.
    worker_peers: who in the cluster may reach workers of other namespaces; None for everybody.
    admin_key_sha256: what pods are told of the operator's key to them.
    """

    resource: LiveObject
    children: tuple[LiveObject, ...]
    pods: tuple[LiveObject, ...]
    served_kinds: frozenset[Kind]
    worker_peers: WorkerPeers | None = NAMESPACE_ONLY
    startup_phases_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    demand: Demand = NO_DEMAND
    prometheus_url: str | None = None
    companions: tuple[LiveObject, ...] = ()
    nodes: tuple[LiveObject, ...] | None = None
    can_inspect: bool = True
    admin_key_sha256: str = NO_ADMIN_KEY

    @property
    def uid(self) -> str:
        return str(self.resource["metadata"]["uid"])

    def is_owned(self, child: LiveObject) -> bool:
        """Whether `child` belongs to exactly this resource, not to a namesake that is gone."""
        return is_owned_by(child, self.uid)

    def child(self, kind: Kind, name: str) -> LiveObject | None:
        """The child of that kind and name, whoever owns it."""
        for child in self.children:
            if child["metadata"]["name"] == name and kind_of(child) == kind:
                return child
        return None
