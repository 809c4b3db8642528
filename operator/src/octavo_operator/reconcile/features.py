"""What a valid InferenceService asks for that this version does not do, said aloud.

Two kinds: without a *blocking* feature the model cannot be served, so nothing is created; a
*missing* one leaves a working service with less than was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.address import Address
from octavo_operator.manifests.kinds import INFERENCE_POOL, POD_MONITOR, PROMETHEUS_RULE, Kind
from octavo_operator.reconcile.observed import LiveObject
from octavo_operator.reconcile.replicas import scales_to_zero
from octavo_operator.resources.inference_service import InferenceService


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """Sentences, empty where there is nothing to say.

    blocking: why nothing can be created; missing: what is left out; notes: what needs no action.
    """

    blocking: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def report_features(
    service: InferenceService,
    served_kinds: frozenset[Kind],
    autoscaler: LiveObject | None,
    activator: Address | None,
) -> FeatureReport:
    """What of `service` is not in effect, in a cluster that has `served_kinds`.

    `autoscaler` is its HorizontalPodAutoscaler as it is now, `activator` who holds its calls.
    """
    return FeatureReport(
        blocking=_blocking(service),
        missing=(*_missing(service, served_kinds), *_scaling(service, autoscaler, activator)),
        notes=_notes(service, served_kinds),
    )


def _blocking(service: InferenceService) -> tuple[str, ...]:
    sentences = []
    parallelism = service.parallelism
    if parallelism.pipeline > 1 or parallelism.nodes > 1:
        sentences.append(
            f"spec.parallelism: pipeline {parallelism.pipeline} over {parallelism.nodes} nodes is "
            f"not possible yet; use tensor within one node"
        )
    return tuple(sentences)


def _missing(service: InferenceService, served_kinds: frozenset[Kind]) -> tuple[str, ...]:
    sentences = []
    if service.parallelism.tensor is None:
        sentences.append("spec.parallelism.tensor: Auto means 1 for now; give a number")
    if service.engine.speculative:
        sentences.append("spec.engine.speculative: not in effect yet; remove it")
    if service.inference_pool and INFERENCE_POOL not in served_kinds:
        sentences.append(
            "spec.routing.inferencePool: this cluster has no InferencePool kind; install the CRDs "
            "of the Gateway API inference extension (inference.networking.k8s.io/v1)"
        )
    if service.unknown_fields:
        sentences.append(f"fields unknown to this operator: {', '.join(service.unknown_fields)}")
    return tuple(sentences)


def _scaling(
    service: InferenceService, autoscaler: LiveObject | None, activator: Address | None
) -> tuple[str, ...]:
    sentences = []
    if scales_to_zero(service) and activator is None:
        sentences.append(
            "spec.scaling.minReplicas: 0 means 1, since this operator has no activator to hold "
            "calls for a service without pods (chart value activator.enabled)"
        )
    for item in ((autoscaler or {}).get("status") or {}).get("conditions") or ():
        is_off = item.get("reason") == "ScalingDisabled"
        if item.get("type") == "ScalingActive" and item.get("status") == "False" and not is_off:
            sentences.append(
                f"spec.scaling: the autoscaler cannot read its metric ({item.get('message')}); "
                f"serve it as docs/scaling.md says"
            )
    return tuple(sentences)


def _notes(service: InferenceService, served_kinds: frozenset[Kind]) -> tuple[str, ...]:
    notes = []
    if service.monitoring.pod_monitor and POD_MONITOR not in served_kinds:
        notes.append("this cluster has no PodMonitor kind, so none is created")
    if service.monitoring.alerts and PROMETHEUS_RULE not in served_kinds:
        notes.append("this cluster has no PrometheusRule kind, so none is created")
    return tuple(notes)
