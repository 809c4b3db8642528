"""The kinds of Kubernetes object the operator deals with, and where the API serves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.labels import GROUP, VERSION


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A namespaced kind; `group` is empty for the core API."""

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        """The URL path of the collection (all namespaces when None), or of one object in it."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


INFERENCE_SERVICE: Final = Kind(GROUP, VERSION, "InferenceService", "inferenceservices")
LORA_ADAPTER: Final = Kind(GROUP, VERSION, "LoRAAdapter", "loraadapters")
DEPLOYMENT: Final = Kind("apps", "v1", "Deployment", "deployments")
POD: Final = Kind("", "v1", "Pod", "pods")
CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps")
"""Lists of adapters; the service's own pass knows nothing of them."""

SERVICE: Final = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("", "v1", "ServiceAccount", "serviceaccounts")
POD_DISRUPTION_BUDGET: Final = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
POD_MONITOR: Final = Kind("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors")
PROMETHEUS_RULE: Final = Kind("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules")

HORIZONTAL_POD_AUTOSCALER: Final = Kind(
    "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"
)
ENDPOINT_SLICE: Final = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
NETWORK_POLICY: Final = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
SCALED_OBJECT: Final = Kind("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects")
LEADER_WORKER_SET: Final = Kind(
    "leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet", "leaderworkersets"
)
INFERENCE_POOL: Final = Kind("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools")

JOB: Final = Kind("batch", "v1", "Job", "jobs")

LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")
EVENT: Final = Kind("", "v1", "Event", "events")
NODE: Final = Kind("", "v1", "Node", "nodes")
"""Not namespaced: asked for without a namespace."""

SECRET: Final = Kind("", "v1", "Secret", "secrets")
"""Of the operator's own namespace only, and only one of them is read."""

CHILD_KINDS: Final = (
    SERVICE_ACCOUNT,
    JOB,
    SERVICE,
    DEPLOYMENT,
    LEADER_WORKER_SET,
    POD_DISRUPTION_BUDGET,
    HORIZONTAL_POD_AUTOSCALER,
    ENDPOINT_SLICE,
    SCALED_OBJECT,
    NETWORK_POLICY,
    POD_MONITOR,
    PROMETHEUS_RULE,
    INFERENCE_POOL,
)
"""Kinds the operator creates, in the order they are applied."""

OPTIONAL_KINDS: Final = frozenset(
    {LEADER_WORKER_SET, SCALED_OBJECT, POD_MONITOR, PROMETHEUS_RULE, INFERENCE_POOL}
)
"""Kinds a cluster may lack."""

OWN_KINDS: Final = frozenset({INFERENCE_SERVICE, LORA_ADAPTER})
"""Those of our CustomResourceDefinitions, which others may install."""

ALL_KINDS: Final = (
    INFERENCE_SERVICE,
    LORA_ADAPTER,
    POD,
    CONFIG_MAP,
    LEASE,
    EVENT,
    NODE,
    SECRET,
    *CHILD_KINDS,
)


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The Kind of an object that carries apiVersion and kind; KeyError for a stranger."""
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]


_BY_NAME: Final = {(kind.api_version, kind.kind): kind for kind in ALL_KINDS}
