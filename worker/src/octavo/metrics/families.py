"""How one metric is written down, and the histograms that are counted here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

Labels = Mapping[str, str]
_Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


class Histogram:
    """Counts of observations by upper bound; an observation costs a binary search."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, labels: Labels) -> Metric:
        """For the exposition."""
        return histogram(
            self.name, self.documentation, labels, self._bounds, self._counts, self._sum
        )


def info_gauge(name: str, documentation: str, facts: Labels) -> Metric:
    """A gauge that is always 1 and tells facts in its labels."""
    family = GaugeMetricFamily(name, documentation, labels=list(facts))
    family.add_metric(list(facts.values()), 1)
    return family


def one(
    family: _Family, name: str, documentation: str, labels: Labels, value: float
) -> CounterMetricFamily | GaugeMetricFamily:
    """A metric of one value."""
    metric = family(name, documentation, labels=list(labels))
    metric.add_metric(list(labels.values()), value)
    return metric


def by_label(
    name: str,
    documentation: str,
    labels: Labels,
    label: str,
    values: Mapping[str, float],
    family: _Family = CounterMetricFamily,
) -> Metric:
    """A metric with a value for each of a label's."""
    metric = family(name, documentation, labels=[*labels, label])
    for key, value in values.items():
        metric.add_metric([*labels.values(), key], value)
    return metric


def histogram(
    name: str,
    documentation: str,
    labels: Labels,
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
) -> Metric:
    """``counts``: of observations by upper bound, the last past all of them."""
    family = HistogramMetricFamily(name, documentation, labels=list(labels))
    buckets, running = [], 0
    for bound, count in zip([*map(_bound, bounds), "+Inf"], counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric(list(labels.values()), buckets, total)
    return family


def _bound(value: float) -> str:
    return str(float(value))
