"""Which objects one InferenceService has, in the order they are applied.

Knows which builder is asked for when; what an object looks like is the builder's business
(`manifests/`), whether it is due is the planner's.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import ANNOTATION_REPLICAS_OWNER, ANNOTATION_STRIDE
from octavo_operator.manifests.deployment import deployment
from octavo_operator.manifests.inference_pool import inference_pool
from octavo_operator.manifests.kinds import INFERENCE_POOL, POD_MONITOR, PROMETHEUS_RULE, Kind
from octavo_operator.manifests.metadata import sealed
from octavo_operator.manifests.network_policy import network_policy
from octavo_operator.manifests.pod_disruption_budget import pod_disruption_budget
from octavo_operator.manifests.pod_monitor import pod_monitor
from octavo_operator.manifests.prometheus_rule import prometheus_rule
from octavo_operator.manifests.service import service_manifest
from octavo_operator.manifests.service_account import service_account
from octavo_operator.reconcile.rollback import Revision
from octavo_operator.reconcile.stride import Stride
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.worker_peers import WorkerPeers

OPERATOR: Final = "operator"
AUTOSCALER: Final = "autoscaler"


def wanted_children(
    service: InferenceService,
    revision: Revision,
    stride: Stride,
    served_kinds: frozenset[Kind],
    peers: WorkerPeers | None,
) -> list[dict[str, Any]]:
    """All children of `service` in a cluster that has `served_kinds`, each sealed with its hash.

    peers: who may reach the pods from outside their namespace; None leaves them open to all.
    """
    annotations = {
        **revision.annotations,
        ANNOTATION_REPLICAS_OWNER: OPERATOR if service.scaling is None else AUTOSCALER,
    }
    if stride.memory is not None:
        annotations[ANNOTATION_STRIDE] = stride.memory
    manifests = [
        service_account(service),
        service_manifest(service),
        deployment(service, revision.template, stride.rollout, annotations),
        pod_disruption_budget(service),
    ]
    if peers is not None:
        manifests.append(network_policy(service, peers))
    if service.monitoring.pod_monitor and POD_MONITOR in served_kinds:
        manifests.append(pod_monitor(service))
    if service.monitoring.alerts and PROMETHEUS_RULE in served_kinds:
        manifests.append(prometheus_rule(service))
    if service.inference_pool and INFERENCE_POOL in served_kinds:
        manifests.append(inference_pool(service))
    return [sealed(manifest) for manifest in manifests]
