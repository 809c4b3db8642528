"""`spec.scaling`: bounds for an autoscaler. Who scales is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.resources.fields import Fields

METRIC_TYPES: Final = (
    "WaitingRequests",
    "RunningRequests",
    "KVCacheUsage",
)
DEFAULT_COOLDOWN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class ScalingMetric:
    """The figure to hold at `target` per replica: requests, or per cent for KVCacheUsage."""

    type: str
    target: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """Replica bounds, the metric, and how long to wait before going down."""

    min_replicas: int
    max_replicas: int
    metric: ScalingMetric
    cooldown_s: float


def parse_scaling(fields: Fields) -> Scaling:
    """`spec.scaling`; raises ResourceError."""
    maximum = fields.optional_integer("maxReplicas", 1, 1000)
    if maximum is None:
        raise fields.error("maxReplicas", "is missing", "say how many replicas there may be")
    minimum = fields.integer("minReplicas", 1, 0, 1000)
    if minimum > maximum:
        raise fields.error(
            "minReplicas",
            f"is {minimum}, above maxReplicas {maximum}",
            "lower it or raise the other",
        )
    metric = fields.section("metric")
    scaling = Scaling(
        min_replicas=minimum,
        max_replicas=maximum,
        metric=ScalingMetric(
            type=metric.choice("type", METRIC_TYPES) or METRIC_TYPES[0],
            target=metric.integer("target", 4, 1, 100_000),
        ),
        cooldown_s=fields.duration_s("cooldown", DEFAULT_COOLDOWN_S, 10, 86_400),
    )
    if scaling.metric.type == "KVCacheUsage" and scaling.metric.target > 100:
        raise metric.error("target", f"is {scaling.metric.target}", "give 1 to 100 per cent")
    metric.note_unknown()
    fields.note_unknown()
    return scaling
