"""Which kind of object holds a service's pods: one of single pods, or one of groups of pods."""

from __future__ import annotations

from typing import Final

from octavo_operator.manifests.kinds import DEPLOYMENT, LEADER_WORKER_SET, Kind
from octavo_operator.resources.inference_service import InferenceService

WORKLOAD_KINDS: Final = (DEPLOYMENT, LEADER_WORKER_SET)


def workload_kind(service: InferenceService) -> Kind:
    """A replica that spans nodes is a group of pods, which a Deployment does not know."""
    return LEADER_WORKER_SET if service.parallelism.nodes > 1 else DEPLOYMENT
