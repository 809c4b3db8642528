"""What the operator tells Prometheus of services and adapters."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from octavo_operator.cluster.informer import ServiceKey, service_of
from octavo_operator.errors import SettingsError
from octavo_operator.handlers.operation_metrics import OperationMetrics
from octavo_operator.labels import WORKER_CONTAINER
from octavo_operator.reconcile.conditions import READY
from octavo_operator.reconcile.live_object import LiveObject, is_going, is_true

_LOAD_SECONDS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0)

_SERVICE_LABELS: Final = ("inferenceservice_namespace", "inferenceservice")
"""Named so that they do not clash with the labels Prometheus gives to a target."""

POD_STATES: Final = ("pending", "starting", "ready", "stopping", "crashing", "failed")


class OperatorMetrics:
    """A registry of its own, so that tests and restarts in one process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.operation = OperationMetrics(self.registry)
        self._load_seconds = Histogram(
            "octavo_operator_adapter_load_seconds",
            "Time of one load of one adapter into one pod that worked, its download included.",
            buckets=_LOAD_SECONDS,
            registry=self.registry,
        )
        self._load_failures = Counter(
            "octavo_operator_adapter_load_failures",
            "Loads of one adapter into one pod that did not work, by reason.",
            ["reason"],
            registry=self.registry,
        )

    def note_load(self, seconds: float, reason: str | None) -> None:
        """Count one load of an adapter; reason: why it failed, None for success."""
        if reason is None:
            self._load_seconds.observe(seconds)
        else:
            self._load_failures.labels(reason).inc()

    def watch_pods(
        self,
        pods: Callable[[], Iterable[LiveObject]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Export the worker pods of each InferenceService by state, counted when asked."""
        self.registry.register(_ServicePods(pods, clock))

    def watch_adapters(self, adapters: Callable[[], Iterable[LiveObject]]) -> None:
        """Export on how many pods each LoRAAdapter is wanted, loaded and failed."""
        self.registry.register(_AdapterPods(adapters))

    def serve(self, port: int) -> WSGIServer:
        """Answer on `port` from a thread until closed; SettingsError when it is taken."""
        try:
            server, _ = start_http_server(port, registry=self.registry)
        except OSError as error:
            raise SettingsError(
                f"--metrics-port {port} cannot be listened on: {error.strerror}; choose another, "
                f"or 0 for none"
            ) from error
        return server


class _ServicePods(Collector):
    """Pods by InferenceService and state, and how long the slowest start has lasted."""

    def __init__(
        self, pods: Callable[[], Iterable[LiveObject]], clock: Callable[[], datetime]
    ) -> None:
        self._pods = pods
        self._clock = clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        counts = GaugeMetricFamily(
            "octavo_operator_service_pods",
            "Worker pods by InferenceService and state.",
            labels=[*_SERVICE_LABELS, "state"],
        )
        starts = GaugeMetricFamily(
            "octavo_operator_service_longest_start_seconds",
            "How long the pod that has been starting longest has taken so far; 0 when none is.",
            labels=_SERVICE_LABELS,
        )
        by_service: dict[ServiceKey, list[LiveObject]] = {}
        for pod in list(self._pods()):
            by_service.setdefault(service_of(pod), []).append(pod)
        for service, pods in sorted(by_service.items()):
            tally = Tally(pod_state(pod) for pod in pods)
            for state in POD_STATES:
                counts.add_metric([*service, state], tally[state])
            starts.add_metric(service, max(start_seconds(pod, self._clock()) for pod in pods))
        yield counts
        yield starts


class _AdapterPods(Collector):
    """What the status of each LoRAAdapter says of its pods."""

    def __init__(self, adapters: Callable[[], Iterable[LiveObject]]) -> None:
        self._adapters = adapters

    def collect(self) -> Iterable[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "octavo_operator_adapter_pods",
            "Pods that should hold a LoRAAdapter, do, or failed to load it.",
            labels=[*_SERVICE_LABELS, "loraadapter", "state"],
        )
        for adapter in list(self._adapters()):
            status = adapter.get("status") or {}
            metadata = adapter["metadata"]
            service = adapter["spec"]["serviceRef"]["name"]
            for state in ("desired", "loaded", "failed"):
                labels = [metadata["namespace"], service, metadata["name"], state]
                gauge.add_metric(labels, status.get(state) or 0)
        yield gauge


def pod_state(pod: LiveObject) -> str:
    """One of POD_STATES. Crashing: ended with an error since it was last ready."""
    status = pod.get("status") or {}
    if is_going(pod):
        return "stopping"
    if status.get("phase") == "Failed":
        return "failed"
    if is_true(pod, READY):
        return "ready"
    if any(_has_crashed(container) for container in _containers(pod)):
        return "crashing"
    return "starting" if status.get("phase") == "Running" else "pending"


def start_seconds(pod: LiveObject, now: datetime) -> float:
    """Seconds since this start of a pod began; 0 for one that is ready, stopping or was ready."""
    if pod_state(pod) not in ("pending", "starting", "crashing"):
        return 0.0
    worker = next(
        (item for item in _containers(pod) if item.get("name") == WORKER_CONTAINER),
        {},
    )
    if worker.get("started"):
        return 0.0
    begun = pod["metadata"].get("creationTimestamp")
    if worker.get("restartCount"):
        begun = ((worker.get("state") or {}).get("running") or {}).get("startedAt")
    if begun is None:
        return 0.0
    return max(0.0, (now - datetime.fromisoformat(begun)).total_seconds())


def _containers(pod: LiveObject) -> tuple[Mapping[str, Any], ...]:
    status = pod.get("status") or {}
    return (
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    )


def _has_crashed(container: Mapping[str, Any]) -> bool:
    if container.get("started"):
        return False
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        if (state.get("terminated") or {}).get("exitCode", 0) != 0:
            return True
    waiting = (container.get("state") or {}).get("waiting") or {}
    return waiting.get("reason") == "CrashLoopBackOff"
