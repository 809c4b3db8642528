"""The operator's own metrics, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from octavo_operator.errors import ClusterError, SettingsError
from octavo_operator.reconcile.observed import LiveObject

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class OperatorMetrics:
    """A registry of its own, so that tests and restarts in one process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "octavo_operator_reconcile_seconds",
            "Time of one pass over one InferenceService, API calls included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "octavo_operator_reconcile_errors",
            "Passes that must be tried again, by kind of error.",
            ["error"],
            registry=self.registry,
        )

    def note_reconcile(self, seconds: float, error: ClusterError | None) -> None:
        """Count one pass."""
        self._seconds.observe(seconds)
        if error is not None:
            self._errors.labels(type(error).__name__).inc()

    def watch_pods(self, pods: Callable[[], Iterable[LiveObject]]) -> None:
        """Export the number of worker pods by state, counted when asked."""
        self.registry.register(_PodStates(pods))

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


class _PodStates(Collector):
    def __init__(self, pods: Callable[[], Iterable[LiveObject]]) -> None:
        self._pods = pods

    def collect(self) -> Iterable[GaugeMetricFamily]:
        tally = Tally(_state(pod) for pod in list(self._pods()))
        gauge = GaugeMetricFamily("octavo_operator_pods", "Worker pods by state.", labels=["state"])
        for state in ("pending", "starting", "ready", "stopping", "failed"):
            gauge.add_metric([state], tally[state])
        yield gauge


def _state(pod: LiveObject) -> str:
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "stopping"
    if status.get("phase") == "Failed":
        return "failed"
    if status.get("phase") != "Running":
        return "pending"
    conditions = status.get("conditions") or ()
    is_ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return "ready" if is_ready else "starting"
