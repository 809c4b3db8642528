"""LeaderWorkerSet: replicas that span nodes, each a group of one pod a node.

The leader of a group serves; its followers compute with it, and take no requests. If one of them
restarts, the whole group does: what was computed is spread over all of them.

Source: leaderworkerset.x-k8s.io/v1, api/leaderworkerset/v1 of kubernetes-sigs/lws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.labels import (
    COMPANION_NAME,
    COMPONENT_FOLLOWER,
    LABEL_ADMIN_PORT,
    LABEL_COMPONENT,
    LABEL_NAME,
    WORKER_CONTAINER,
)
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.manifests.worker_command import FOLLOWER_FLAG
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.rollout import Rollout

FOLLOWER: Final = "follower"
"""Where a remembered pod template keeps that of the followers."""

_LEADERS_ALONE: Final = frozenset({"topologySpreadConstraints"})
_SERVERS_ALONE: Final = frozenset({"ports", "startupProbe", "readinessProbe", "livenessProbe"})

_LONGEST_LABEL: Final = 63
_REVISION_HASH: Final = len("-4294967295")
"""What a StatefulSet appends to its name for the label controller-revision-hash of its pods."""


def check_group_name(service: InferenceService) -> None:
    """Followers come from a StatefulSet called after the service and the number of their group, and
    carry its name in a label; raises ResourceError for one that would be too long for that."""
    scaling = service.scaling
    num_groups = scaling.max_replicas if scaling is not None else service.replicas or 1
    last = str(num_groups + service.rollout.max_surge - 1)
    limit = _LONGEST_LABEL - _REVISION_HASH - len(f"-{last}")
    if len(service.name) > limit:
        raise ResourceError(
            "metadata.name",
            f"is {service.name!r}, whose {len(service.name)} characters are too many for labels of "
            f"pods in groups 0 to {last} of {service.parallelism.nodes} nodes",
            f"use at most {limit}, or keep a replica on one node",
        )


def with_follower(template: Mapping[str, Any]) -> dict[str, Any]:
    """The leader's pod template with that of its followers in it, to be remembered as one."""
    return {**template, FOLLOWER: _follower(template)}


def leader_worker_set(
    service: InferenceService,
    template: Mapping[str, Any],
    rollout: Rollout,
    annotations: Mapping[str, str],
    num_groups: int,
) -> dict[str, Any]:
    """The set around pod templates that were rendered before, changed the way of `rollout`.

    num_groups: how many there are; a pause holds all of them back. Each group has a name of its
    own in the DNS, since the set's is that of the Service. `replicas` is left out while an
    autoscaler owns it.
    """
    leader = {key: template[key] for key in template if key != FOLLOWER}
    spec: dict[str, Any] = {
        "leaderWorkerTemplate": {
            "size": service.parallelism.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": template.get(FOLLOWER) or _follower(leader),
        },
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {
                "maxSurge": rollout.max_surge,
                "maxUnavailable": rollout.max_unavailable,
                "partition": num_groups if rollout.is_paused else 0,
            },
        },
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
    }
    if service.replicas is not None:
        spec["replicas"] = service.replicas
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": child_metadata(service, annotations),
        "spec": spec,
    }


def leading_template(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The template of those pods of a workload, of either kind, that serve."""
    spec = workload["spec"]
    template: Mapping[str, Any] = spec.get("leaderWorkerTemplate", {}).get("leaderTemplate")
    return template or spec["template"]


def _follower(template: Mapping[str, Any]) -> dict[str, Any]:
    metadata, spec = template["metadata"], template["spec"]
    labels = {key: metadata["labels"][key] for key in metadata["labels"] if key != LABEL_ADMIN_PORT}
    labels |= {LABEL_NAME: COMPANION_NAME, LABEL_COMPONENT: COMPONENT_FOLLOWER}
    return {
        "metadata": {**metadata, "labels": labels},
        "spec": {
            **{key: spec[key] for key in spec if key not in _LEADERS_ALONE},
            "containers": [_container(container) for container in spec["containers"]],
        },
    }


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    if container["name"] != WORKER_CONTAINER:
        return dict(container)
    kept = {key: container[key] for key in container if key not in _SERVERS_ALONE}
    return {**kept, "command": [*container["command"], FOLLOWER_FLAG]}
