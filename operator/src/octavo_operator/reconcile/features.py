"""What a valid InferenceService asks for that is not in effect, said aloud.

What this version does not do is told apart from what the cluster lacks, which comes into effect
when somebody installs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.address import Address
from octavo_operator.manifests.horizontal_pod_autoscaler import LONGEST_WINDOW_S, METRIC_NAMES
from octavo_operator.manifests.kinds import INFERENCE_POOL, POD_MONITOR, PROMETHEUS_RULE, Kind
from octavo_operator.reconcile.live_object import LiveObject, conditions_of
from octavo_operator.reconcile.replicas import scales_to_zero
from octavo_operator.resources.inference_service import InferenceService

_ADAPTER_VALUES: Final = (
    "https://raw.githubusercontent.com/octavo-serving/octavo/main/charts/octavo/files/"
    "prometheus-adapter.yaml"
)
ADAPTER_COMMAND: Final = (
    "helm upgrade --install prometheus-adapter prometheus-adapter "
    "--repo https://prometheus-community.github.io/helm-charts "
    "--namespace monitoring --create-namespace --set prometheus.url=http://PROMETHEUS "
    f"--values {_ADAPTER_VALUES}"
)
WORKER_QUANTIZATIONS: Final = frozenset({"auto", "none", "gguf"})
"""What the worker of this version serves."""

_NO_METRICS_API: Final = "no custom metrics API"
"""How the autoscaler says so, in client-go's words."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What the cluster does not have: a stable reason, and a sentence with the remedy."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """Sentences, empty where there is nothing to say.

    missing: what is left out; lacks: what waits for the cluster; notes: what needs no action.
    """

    missing: tuple[str, ...]
    lacks: tuple[Lack, ...]
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
        missing=_missing(service),
        lacks=(*_kinds(service, served_kinds), *_scaling(service, autoscaler, activator)),
        notes=_notes(service, served_kinds),
    )


def _missing(service: InferenceService) -> tuple[str, ...]:
    sentences = []
    parallelism = service.parallelism
    if (parallelism.tensor or 1) * parallelism.pipeline > 1:
        sentences.append(
            f"spec.parallelism: the worker of this version refuses to split a model (tensor "
            f"{parallelism.tensor}, pipeline {parallelism.pipeline}), so its pods will not "
            f"come up; name an image that can in spec.image, or a model that one GPU holds"
        )
    quantization = service.engine.quantization
    if quantization is not None and quantization not in WORKER_QUANTIZATIONS:
        sentences.append(
            f"spec.engine.quantization: the worker of this version does not know {quantization}, "
            f"so its pods will not come up; name an image that does in spec.image, or remove it"
        )
    if service.engine.speculative:
        sentences.append("spec.engine.speculative: not in effect yet; remove it")
    if service.unknown_fields:
        sentences.append(f"fields unknown to this operator: {', '.join(service.unknown_fields)}")
    return tuple(sentences)


def _kinds(service: InferenceService, served_kinds: frozenset[Kind]) -> tuple[Lack, ...]:
    if not service.inference_pool or INFERENCE_POOL in served_kinds:
        return ()
    message = (
        "spec.routing.inferencePool: this cluster has no InferencePool kind; install the CRDs of "
        "the Gateway API inference extension (inference.networking.k8s.io/v1)"
    )
    return (Lack("KindMissing", message),)


def _scaling(
    service: InferenceService, autoscaler: LiveObject | None, activator: Address | None
) -> tuple[Lack, ...]:
    lacks = []
    if scales_to_zero(service) and activator is None:
        message = (
            "spec.scaling.minReplicas: 0 means 1, since this operator has no activator to hold "
            "calls for a service without pods (chart value activator.enabled)"
        )
        lacks.append(Lack("ActivatorMissing", message))
    if service.scaling is None:
        return tuple(lacks)
    active = conditions_of(autoscaler).get("ScalingActive", {})
    if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
        name = METRIC_NAMES[service.scaling.metric.type]
        lacks.append(_metric_lack(name, str(active.get("message"))))
    return tuple(lacks)


def _metric_lack(name: str, said: str) -> Lack:
    """Told from what the autoscaler itself says, which asks every few seconds, so that the lack is
    gone as soon as the metric is served."""
    if _NO_METRICS_API in said:
        return Lack(
            "MetricsAPIMissing",
            f"spec.scaling: the number of pods stays as it is, since this cluster serves no custom "
            f"metrics, {name} among them; install an adapter: {ADAPTER_COMMAND}. Or install KEDA "
            f"and set the chart's prometheusUrl",
        )
    return Lack(
        "MetricMissing",
        f"spec.scaling: the number of pods stays as it is, since the autoscaler cannot read "
        f"{name} ({said[:300]}); pods must be scraped (docs/monitoring.md), and the adapter needs "
        f"the rule for {name} in {_ADAPTER_VALUES}",
    )


def _notes(service: InferenceService, served_kinds: frozenset[Kind]) -> tuple[str, ...]:
    notes = []
    if service.scaling is not None and service.scaling.cooldown_s > LONGEST_WINDOW_S:
        notes.append(
            "an autoscaler waits 1h at most, so a longer cooldown is for the last pod only"
        )
    if service.monitoring.pod_monitor and POD_MONITOR not in served_kinds:
        notes.append("this cluster has no PodMonitor kind, so none is created")
    if service.monitoring.alerts and PROMETHEUS_RULE not in served_kinds:
        notes.append("this cluster has no PrometheusRule kind, so none is created")
    return tuple(notes)
