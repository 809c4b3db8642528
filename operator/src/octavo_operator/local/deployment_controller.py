"""The Deployment controller of this machine: pods with the latest template, replaced gently.

Follows `maxSurge`, `maxUnavailable` and the progress deadline as Kubernetes does. Pods belong to
the Deployment itself: there are no ReplicaSets, since nothing here rolls back by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ClusterError, NotFoundError
from octavo_operator.local.pod_runtime import POD_FINALIZER
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.manifests.kinds import DEPLOYMENT, POD, Kind
from octavo_operator.reconcile.live_object import LiveObject, conditions_of, is_going, is_ready_pod

TEMPLATE_HASH_LABEL: Final = "pod-template-hash"
DEFAULT_PROGRESS_DEADLINE_S: Final = 600
DEADLINE_POLL_S: Final = 1.0


def seconds() -> float:
    """The clock of progress deadlines."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """How many pods to start, and which to stop, right now."""

    num_to_start: int
    to_stop: tuple[str, ...]


def next_step(deployment: LiveObject, pods: tuple[LiveObject, ...]) -> RolloutStep:
    """The next step towards `replicas` pods of the latest template. Pure.

    `pods` are all of the Deployment's; those on their way out count neither as there nor as free.
    """
    spec = deployment["spec"]
    wanted = spec.get("replicas", 1)
    rolling = spec["strategy"]["rollingUpdate"]
    latest = template_hash(deployment)
    alive = [pod for pod in pods if not is_going(pod)]
    new = [pod for pod in alive if pod["metadata"]["labels"][TEMPLATE_HASH_LABEL] == latest]
    old = [pod for pod in alive if pod["metadata"]["labels"][TEMPLATE_HASH_LABEL] != latest]
    surplus = max(len(new) - wanted, 0)
    # Unready pods go first: stopping them takes nothing away.
    to_stop = sorted(new, key=is_ready_pod)[:surplus]
    if spec.get("paused"):
        new_room = max(wanted - len(alive), 0)
        return RolloutStep(new_room if not old else 0, _names(to_stop))
    room = wanted + rolling["maxSurge"] - len(alive)
    num_to_start = max(min(wanted - len(new), room), 0)
    num_ready = sum(map(is_ready_pod, alive)) - sum(map(is_ready_pod, to_stop))
    spare = max(num_ready - (wanted - rolling["maxUnavailable"]), 0)
    for pod in sorted(old, key=is_ready_pod):
        if not is_ready_pod(pod):
            to_stop.append(pod)
        elif spare > 0:
            to_stop.append(pod)
            spare -= 1
    return RolloutStep(num_to_start, _names(to_stop))


def template_hash(deployment: LiveObject) -> str:
    """Ten digits that change when the pod template does."""
    return manifest_digest(deployment["spec"]["template"])[:10]


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """How far a rollout was at `since_s` of a monotonic clock, when it last moved."""

    counts: tuple[object, ...]
    since_s: float

    def moved_to(self, counts: tuple[object, ...], now_s: float) -> RolloutProgress:
        return self if counts == self.counts else RolloutProgress(counts, now_s)


def rollout_counts(deployment: LiveObject, pods: tuple[LiveObject, ...]) -> dict[str, int]:
    """The numbers in the status of a Deployment."""
    latest = template_hash(deployment)
    alive = [pod for pod in pods if not is_going(pod)]
    ready = sum(map(is_ready_pod, alive))
    return {
        "replicas": len(alive),
        "updatedReplicas": sum(
            pod["metadata"]["labels"][TEMPLATE_HASH_LABEL] == latest for pod in alive
        ),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def progress_condition(
    deployment: LiveObject, counts: dict[str, int], waited_s: float
) -> dict[str, str]:
    """The condition Progressing, for a rollout that has not moved for `waited_s`."""
    spec = deployment["spec"]
    if set(counts.values()) == {spec.get("replicas", 1)}:
        return {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    if spec.get("paused"):
        return {"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused"}
    # A pod that is lost after the rollout does not begin it anew.
    before = conditions_of(deployment).get("Progressing", {})
    is_done = before.get("reason") == "NewReplicaSetAvailable"
    if is_done and counts["updatedReplicas"] == counts["replicas"]:
        return {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    limit_s = spec.get("progressDeadlineSeconds", DEFAULT_PROGRESS_DEADLINE_S)
    if waited_s > limit_s:
        name = deployment["metadata"]["name"]
        return {
            "type": "Progressing",
            "status": "False",
            "reason": "ProgressDeadlineExceeded",
            "message": f"Deployment {name} has made no progress for {limit_s} s",
        }
    return {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}


class DeploymentController:
    """Carries out `next_step` for every Deployment in the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._changed = asyncio.Event()
        self._progress: dict[str, RolloutProgress] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind in (DEPLOYMENT, POD):
                tasks.create_task(self._follow(kind))
            tasks.create_task(self._act())
            tasks.create_task(self._look_now_and_then())

    async def _look_now_and_then(self) -> None:
        """A deadline passes without any event."""
        while True:
            await asyncio.sleep(DEADLINE_POLL_S)
            self._changed.set()

    async def _follow(self, kind: Kind) -> None:
        async for _ in self._store.watch(kind, None, {}, "0"):
            self._changed.set()

    async def _act(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            listed = await self._store.list_objects(DEPLOYMENT, None, {})
            for deployment in listed.items:
                # A conflict or a deletion meanwhile comes with an event, and so with another turn.
                with contextlib.suppress(ClusterError):
                    await self._step(deployment)

    async def _step(self, deployment: LiveObject) -> None:
        pods = await self._pods_of(deployment)
        step = next_step(deployment, pods)
        for name in step.to_stop:
            await self._store.delete(POD, deployment["metadata"]["namespace"], name)
        for _ in range(step.num_to_start):
            await self._store.create(new_pod(deployment), "deployment-controller")
        await self._write_status(deployment, await self._pods_of(deployment))

    async def _pods_of(self, deployment: LiveObject) -> tuple[LiveObject, ...]:
        metadata = deployment["metadata"]
        labels = deployment["spec"]["selector"]["matchLabels"]
        listed = await self._store.list_objects(POD, metadata["namespace"], labels)
        return listed.items

    async def _write_status(self, deployment: LiveObject, pods: tuple[LiveObject, ...]) -> None:
        metadata, counts = deployment["metadata"], rollout_counts(deployment, pods)
        now_s = seconds()
        place = (template_hash(deployment), *counts.values())
        before = self._progress.get(metadata["uid"], RolloutProgress((), now_s))
        progress = self._progress[metadata["uid"]] = before.moved_to(place, now_s)
        condition = progress_condition(deployment, counts, now_s - progress.since_s)
        status = {
            "observedGeneration": metadata["generation"],
            **counts,
            "conditions": [condition],
        }
        with contextlib.suppress(NotFoundError):
            await self._store.write_status(
                DEPLOYMENT, metadata["namespace"], metadata["name"], status, None
            )


def new_pod(deployment: LiveObject) -> dict[str, Any]:
    """A pod of the latest template, not yet stored."""
    metadata, template = deployment["metadata"], deployment["spec"]["template"]
    latest = template_hash(deployment)
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "metadata": {
            **template["metadata"],
            "generateName": f"{metadata['name']}-{latest}-",
            "namespace": metadata["namespace"],
            "labels": {**template["metadata"]["labels"], TEMPLATE_HASH_LABEL: latest},
            "finalizers": [POD_FINALIZER],
            "ownerReferences": [
                {
                    "apiVersion": DEPLOYMENT.api_version,
                    "kind": DEPLOYMENT.kind,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": template["spec"],
    }


def _names(pods: list[LiveObject]) -> tuple[str, ...]:
    return tuple(pod["metadata"]["name"] for pod in pods)
