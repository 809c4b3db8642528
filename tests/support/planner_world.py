"""A cluster in memory in which plans are carried out, without HTTP, kopf or processes.

`World` holds one InferenceService; `ControlledWorld` has a Deployment controller, a scheduler with
a number of GPUs, and pods that come up at once or never, as the test says.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.labels import ADMIN_PORT_NAME, ANNOTATION_POD_TEMPLATE, LABEL_ADMIN_PORT
from octavo_operator.local.deployment_controller import (
    new_pod,
    next_step,
    progress_condition,
    rollout_counts,
)
from octavo_operator.manifests.digest import canonical_json
from octavo_operator.manifests.kinds import (
    CHILD_KINDS,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    OPTIONAL_KINDS,
    POD,
    Kind,
)
from octavo_operator.manifests.worker_command import NO_ADMIN_KEY
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import Plan, plan
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = "worker:1"


class World:
    """A cluster in memory that plans are carried out in, without HTTP, kopf or processes."""

    def __init__(self, resource: dict[str, Any], kinds: frozenset[Kind] = frozenset()) -> None:
        self.store = ObjectStore(optional_kinds=kinds, seed=1, clock=lambda: NOW)
        self.kinds = kinds
        self.resource = resource
        self.pods: tuple[LiveObject, ...] = ()
        self.companions: tuple[LiveObject, ...] = ()
        self.nodes: tuple[LiveObject, ...] | None = None
        self.worker_peers: WorkerPeers | None = NAMESPACE_ONLY
        self.admin_key_sha256 = NO_ADMIN_KEY
        self.told: list[Mapping[str, Any]] = []

    async def observe(self) -> Observed:
        live = await self.store.apply(self.resource, "user")
        children: list[LiveObject] = []
        for kind in CHILD_KINDS:
            if kind not in OPTIONAL_KINDS or kind in self.kinds:
                children += (await self.store.list_objects(kind, "models", {})).items
        return Observed(
            live,
            tuple(children),
            self.pods,
            self.kinds,
            self.worker_peers,
            companions=self.companions,
            nodes=self.nodes,
            admin_key_sha256=self.admin_key_sha256,
        )

    async def step(self, image: str = IMAGE, now: datetime = NOW) -> Plan:
        """Plan once and carry it out; what is told then is of what came of it."""
        todo = plan(await self.observe(), image, now)
        for apply in todo.applies:
            await self.store.apply(apply.manifest, apply.manager)
        for delete in todo.deletes:
            await self.store.delete(delete.kind, delete.namespace, delete.name, delete.uid)
        if todo.applies or todo.deletes:
            todo = replace(todo, status=plan(await self.observe(), image, now).status)
        if todo.status is not None:
            self.told.append(todo.status)
            await self.store.write_status(INFERENCE_SERVICE, "models", "chat", todo.status, None)
        return todo

    async def settle(self, image: str = IMAGE, now: datetime = NOW) -> LiveObject:
        """Plan until there is nothing to do; returns the resource."""
        for _ in range(4):
            if (await self.step(image, now)).is_empty:
                return await self.service()
        raise AssertionError("the plan does not come to an end")

    def told_of(self, condition: str) -> list[str]:
        """The reasons that the condition has had one after another, of all statuses written."""
        reasons = [
            next(item["reason"] for item in status["conditions"] if item["type"] == condition)
            for status in self.told
        ]
        return [reason for reason, _ in itertools.groupby(reasons)]

    async def service(self) -> LiveObject:
        return await self.store.get(INFERENCE_SERVICE, "models", "chat")

    async def deployment(self) -> LiveObject:
        return await self.store.get(DEPLOYMENT, "models", "chat")

    async def report_pods(self, **counts: Any) -> None:
        """Be the Deployment controller: write its status."""
        live = await self.deployment()
        status = {"observedGeneration": live["metadata"]["generation"], **counts}
        await self.store.write_status(DEPLOYMENT, "models", "chat", status, None)

    async def all_ready(self, count: int = 1) -> None:
        await self.report_pods(
            replicas=count, updatedReplicas=count, readyReplicas=count, availableReplicas=count
        )


class ControlledWorld(World):
    """`num_gpus` None is any number; `is_broken` tells whether a pod of that template crashes."""

    def __init__(
        self,
        resource: dict[str, Any],
        *,
        num_gpus: int | None = None,
        is_broken: Callable[[Mapping[str, Any]], bool] = lambda pod: False,
    ) -> None:
        super().__init__(resource)
        self.num_gpus = num_gpus
        self.is_broken = is_broken
        self.is_past_deadline = False
        self.fewest_serving = 10**9

    async def turn(self, image: str = IMAGE) -> bool:
        """Passes of the operator, also over what no controller has seen yet, and one of each
        controller; whether anything has happened."""
        before = self.store.writes
        await self.step(image)
        await self.step(image)
        await self.let_pods_run()
        await self._report()
        return self.store.writes > before

    async def let_pods_run(self) -> None:
        """A pass of the controllers, before that of Deployments has told of it."""
        await self._control_deployment()
        for pod in await self._live_pods():
            await self._run_pod(pod)
        self.pods = await self._live_pods()

    async def come_to_rest(self, image: str = IMAGE) -> LiveObject:
        """Turns until nothing happens any more; returns the resource."""
        for _ in range(60):
            if not await self.turn(image):
                return await self.service()
        raise AssertionError("the world does not come to rest")

    async def _live_pods(self) -> tuple[LiveObject, ...]:
        return (await self.store.list_objects(POD, "models", {})).items

    async def _control_deployment(self) -> None:
        live = await self.deployment()
        step = next_step(live, await self._live_pods())
        for name in step.to_stop:
            await self.store.delete(POD, "models", name)
        for _ in range(step.num_to_start):
            pod = new_pod(live)
            pod["metadata"].pop("finalizers")
            await self.store.create(pod, "controller")

    async def _run_pod(self, pod: LiveObject) -> None:
        name = pod["metadata"]["name"]
        if "status" in pod and pod["status"]["phase"] == "Running":
            return
        used = [other for other in await self._live_pods() if _is_placed(other)]
        if self.num_gpus is not None and sum(map(_gpus, used)) + _gpus(pod) > self.num_gpus:
            status = unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")[
                "status"
            ]
        elif self.is_broken(pod):
            status = {**waiting("CrashLoopBackOff", exitCode=1, message="no such model")["status"]}
            status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        else:
            ready = {"type": "Ready", "status": "True"}
            status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready]}
        await self.store.write_status(POD, "models", name, status, None)

    async def _report(self) -> None:
        live = await self.deployment()
        counts = rollout_counts(live, self.pods)
        self.fewest_serving = min(self.fewest_serving, counts["readyReplicas"])
        waited_s = 1e9 if self.is_past_deadline else 0.0
        await self.report_pods(**counts, conditions=[progress_condition(live, counts, waited_s)])


def _is_placed(pod: LiveObject) -> bool:
    return bool((pod.get("status") or {}).get("phase") == "Running")


def _gpus(pod: LiveObject) -> int:
    resources = pod["spec"]["containers"][0].get("resources", {})
    return int(resources.get("limits", {}).get("nvidia.com/gpu", 0))


def worker_of(deployment: LiveObject) -> Mapping[str, Any]:
    """The worker container in the template of a Deployment."""
    containers: list[Mapping[str, Any]] = deployment["spec"]["template"]["spec"]["containers"]
    return containers[0]


def pod_of(deployment: LiveObject) -> LiveObject:
    """A pod made from the template of a Deployment, about which nothing is known yet."""
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "chat-1", "namespace": "models"}
    return {"metadata": metadata, "spec": template["spec"], "status": {}}


def without_admin_port(live: LiveObject) -> dict[str, Any]:
    """The Deployment `live` as an operator without admin ports would have applied it."""
    template = json.loads(json.dumps(live["spec"]["template"]))
    del template["metadata"]["labels"][LABEL_ADMIN_PORT]
    worker = template["spec"]["containers"][0]
    worker["ports"] = [port for port in worker["ports"] if port["name"] != ADMIN_PORT_NAME]
    start = worker["command"].index("--admin-host")
    del worker["command"][start : worker["command"].index("--metrics-on-admin-port") + 1]
    metadata = {
        "name": live["metadata"]["name"],
        "namespace": live["metadata"]["namespace"],
        "labels": live["metadata"]["labels"],
        "ownerReferences": live["metadata"]["ownerReferences"],
        "annotations": {
            **live["metadata"]["annotations"],
            ANNOTATION_POD_TEMPLATE: canonical_json(template),
        },
    }
    spec = {**live["spec"], "template": template}
    return {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "metadata": metadata,
        "spec": spec,
    }


def broken_pod(**status: Any) -> LiveObject:
    """A pod with that status."""
    return {"metadata": {"name": "chat-1", "namespace": "models"}, "status": status}


def waiting(reason: str, /, **last: Any) -> LiveObject:
    """A pod whose worker waits for that reason; keywords tell how it ended before."""
    container = {
        "name": "worker",
        "image": "worker:1",
        "state": {"waiting": {"reason": reason, "message": "because"}},
        "lastState": {"terminated": last} if last else {},
    }
    return broken_pod(phase="Running", containerStatuses=[container])


def unschedulable(message: str) -> LiveObject:
    """A pod that the scheduler has found no node for."""
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    return broken_pod(phase="Pending", conditions=[condition])
