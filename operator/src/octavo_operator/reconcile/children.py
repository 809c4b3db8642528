"""Which objects one InferenceService has, in the order they are applied.

Knows which builder is asked for when; what an object looks like is the builder's business
(`manifests/`), whether it is due is the planner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.labels import (
    ANNOTATION_PLACEMENT,
    ANNOTATION_REPLICAS_OWNER,
    ANNOTATION_STRIDE,
    LABEL_ADMIN_PORT,
)
from octavo_operator.manifests.deployment import deployment
from octavo_operator.manifests.endpoint_slice import activator_slice
from octavo_operator.manifests.horizontal_pod_autoscaler import horizontal_pod_autoscaler
from octavo_operator.manifests.inference_pool import inference_pool
from octavo_operator.manifests.inspection_job import inspection_job
from octavo_operator.manifests.kinds import (
    INFERENCE_POOL,
    LEADER_WORKER_SET,
    POD_MONITOR,
    PROMETHEUS_RULE,
    SCALED_OBJECT,
)
from octavo_operator.manifests.leader_worker_set import leader_worker_set
from octavo_operator.manifests.metadata import sealed
from octavo_operator.manifests.network_policy import network_policy
from octavo_operator.manifests.pod_disruption_budget import pod_disruption_budget
from octavo_operator.manifests.pod_monitor import pod_monitor
from octavo_operator.manifests.prometheus_rule import prometheus_rule
from octavo_operator.manifests.scaled_object import scaled_object
from octavo_operator.manifests.service import service_manifest
from octavo_operator.manifests.service_account import service_account
from octavo_operator.manifests.workload_kind import workload_kind
from octavo_operator.reconcile.live_object import labels_of
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.placing import Placed
from octavo_operator.reconcile.replicas import scales_to_zero, scaling_floor
from octavo_operator.reconcile.rollback import Revision
from octavo_operator.reconcile.stride import Stride
from octavo_operator.reconcile.workload import Workload
from octavo_operator.resources.inference_service import InferenceService

OPERATOR: Final = "operator"
AUTOSCALER: Final = "autoscaler"


def wanted_children(
    service: InferenceService,
    revision: Revision,
    stride: Stride,
    workload: Workload,
    observed: Observed,
    placement: str | None,
    *,
    is_loading: bool,
) -> list[dict[str, Any]]:
    """All lasting children of `service` in the cluster as `observed`, each sealed with its hash.

    placement: what the workload must remember of it.
    is_loading: pods are still coming up, so that none of them may be scaled away.
    """
    served_kinds, peers = observed.served_kinds, observed.worker_peers
    annotations = {
        **revision.annotations,
        ANNOTATION_REPLICAS_OWNER: OPERATOR if service.scaling is None else AUTOSCALER,
    }
    if placement is not None:
        annotations[ANNOTATION_PLACEMENT] = placement
    if stride.memory is not None:
        annotations[ANNOTATION_STRIDE] = stride.memory
    manifests = [
        service_account(service),
        service_manifest(service),
        _workload(service, revision, stride, annotations, workload.wanted),
        pod_disruption_budget(service),
    ]
    manifests += _scaling(service, workload, observed, is_loading=is_loading)
    has_single = any(
        LABEL_ADMIN_PORT not in labels_of(pod) for pod in (revision.template, *observed.pods)
    )
    if peers is not None:
        manifests.append(network_policy(service, peers, has_single_port=has_single))
    if service.monitoring.pod_monitor and POD_MONITOR in served_kinds:
        manifests.append(pod_monitor(service, has_single_port=has_single))
    if service.monitoring.alerts and PROMETHEUS_RULE in served_kinds:
        manifests.append(prometheus_rule(service))
    if service.inference_pool and INFERENCE_POOL in served_kinds:
        manifests.append(inference_pool(service))
    return [sealed(manifest) for manifest in manifests]


def _workload(
    service: InferenceService,
    revision: Revision,
    stride: Stride,
    annotations: Mapping[str, str],
    num_groups: int,
) -> dict[str, Any]:
    template, rollout = revision.template, stride.rollout
    if workload_kind(service) == LEADER_WORKER_SET:
        return leader_worker_set(service, template, rollout, annotations, num_groups)
    return deployment(service, template, rollout, annotations)


def inspection_children(
    service: InferenceService, template: Mapping[str, Any], placed: Placed
) -> list[dict[str, Any]]:
    """What it takes to look at the model; empty when nobody wants to know."""
    if not placed.wants_inspection:
        return []
    job = inspection_job(service, template, placed.inspection_key)
    return [sealed(service_account(service)), sealed(job)]


def _scaling(
    service: InferenceService, workload: Workload, observed: Observed, *, is_loading: bool
) -> list[dict[str, Any]]:
    """The autoscaler, and the endpoint that holds calls while there is no pod."""
    if service.scaling is None:
        return []
    floor = scaling_floor(service.scaling, workload, is_loading=is_loading)
    url = observed.prometheus_url
    # KEDA would want to have zero for itself; there the activator knows of callers at once.
    if SCALED_OBJECT in observed.served_kinds and url and not scales_to_zero(service):
        return [scaled_object(service, service.scaling, floor, url)]
    manifests = [horizontal_pod_autoscaler(service, service.scaling, floor)]
    activator = observed.demand.activator
    if scales_to_zero(service) and activator is not None and not workload.ready:
        manifests.append(activator_slice(service, activator))
    return manifests
