"""What the operator tells Prometheus of itself: whether it leads, keeps up, and is heard.

Services and adapters are `metrics.py`'s business. Collectors are asked from the thread that answers
Prometheus, so they read what can be read there: copies of dicts and single values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Queue(Protocol):
    """As `cluster.work_queue.WorkQueue`."""

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_failing(self) -> int: ...

    def longest_wait_s(self, now: float) -> float: ...


class OperationMetrics:
    """Metrics in `registry`, which may hold others too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._seconds = Histogram(
            "octavo_operator_reconcile_seconds",
            "Time of one pass over one resource, API calls included.",
            ["resource", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "octavo_operator_reconcile_errors",
            "Passes that must be tried again, by the kind of error.",
            ["resource", "reason"],
            registry=registry,
        )
        self._calls = Counter(
            "octavo_operator_api_calls",
            "Calls to the Kubernetes API by method and HTTP status (unreachable: no answer).",
            ["method", "code"],
            registry=registry,
        )
        self._leader = Gauge(
            "octavo_operator_leader",
            "1 in the operator that works, 0 in one that stands by.",
            registry=registry,
        )

    def note_pass(self, resource: str, seconds: float, error: Exception | None) -> None:
        """Count one pass over a resource of that kind."""
        outcome = "success" if error is None else "error"
        self._seconds.labels(resource, outcome).observe(seconds)
        if error is not None:
            self._errors.labels(resource, type(error).__name__).inc()

    def note_call(self, method: str, status: int | None) -> None:
        """Count one call of the API; None where there was no answer."""
        self._calls.labels(method, "unreachable" if status is None else str(status)).inc()

    def set_leader(self, is_leader: bool) -> None:
        """Whether this operator works."""
        self._leader.set(is_leader)

    def watch_queues(self, queues: Callable[[], Mapping[str, Queue]]) -> None:
        """Export the queues that are worked on, by the resource they hold."""
        self._registry.register(_Queues(queues))

    def watch_watches(self, contacts_s: Callable[[float], Mapping[str, float]]) -> None:
        """Export how long ago each watch heard of the server; `contacts_s` tells it for a time of
        the monotonic clock, by resource, and nothing while nothing is watched."""
        self._registry.register(_Watches(contacts_s))


class _Queues(Collector):
    def __init__(self, queues: Callable[[], Mapping[str, Queue]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[GaugeMetricFamily]:
        length = GaugeMetricFamily(
            "octavo_operator_queue_length",
            "Resources that wait for their pass.",
            labels=["resource"],
        )
        age = GaugeMetricFamily(
            "octavo_operator_queue_oldest_seconds",
            "How long the one that waits longest has waited so far; 0 when none does.",
            labels=["resource"],
        )
        failing = GaugeMetricFamily(
            "octavo_operator_queue_failing",
            "Resources whose latest pass failed, and which are tried again.",
            labels=["resource"],
        )
        for resource, queue in self._queues().items():
            length.add_metric([resource], queue.num_waiting)
            age.add_metric([resource], queue.longest_wait_s(time.monotonic()))
            failing.add_metric([resource], queue.num_failing)
        yield from (length, age, failing)


class _Watches(Collector):
    def __init__(self, contacts_s: Callable[[float], Mapping[str, float]]) -> None:
        self._contacts_s = contacts_s

    def collect(self) -> Iterable[GaugeMetricFamily]:
        age = GaugeMetricFamily(
            "octavo_operator_watch_age_seconds",
            "How long ago the quietest watch of this resource heard of the server.",
            labels=["resource"],
        )
        for resource, seconds in self._contacts_s(time.monotonic()).items():
            age.add_metric([resource], seconds)
        yield age
