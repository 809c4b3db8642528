"""The page that Prometheus gets, and what stands on it beside choices and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.metrics.families import Labels, by_label, one


class MetricsPage:
    """The text behind ``/metrics``: what ``source`` yields, then this process's own use."""

    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Source(source))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)


def request_outcomes(
    outcomes: Mapping[str, int], refusals: Mapping[str, int], num_open: int, labels: Labels
) -> Iterator[Metric]:
    """How requests ended, each counted once, and how many have not yet."""
    yield by_label("octavo_requests", "Requests by how they ended.", labels, "outcome", outcomes)
    yield by_label(
        "octavo_requests_refused",
        "Requests refused, by the code of the error.",
        labels,
        "code",
        refusals,
    )
    yield one(GaugeMetricFamily, "octavo_requests_open", "Requests under way.", labels, num_open)


def startup_seconds(
    phases: Mapping[str, float], ready_s: float | None, labels: Labels
) -> Iterator[Metric]:
    """How long each phase of loading took, and all of it from the process's start."""
    yield by_label(
        "octavo_startup_phase_seconds",
        "Duration of each phase of loading.",
        labels,
        "phase",
        phases,
        GaugeMetricFamily,
    )
    if ready_s is not None:
        yield one(
            GaugeMetricFamily,
            "octavo_startup_seconds",
            "From process start until requests were taken.",
            labels,
            ready_s,
        )


class _Source(Collector):
    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source()
