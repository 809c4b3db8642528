"""What the operator asks of the API is what the chart's role allows, and the other way round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crd_schema import REPOSITORY
from eventually import eventually
from helm_binary import find_helm
from inference_services import conditions, inference_service
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.handlers.operator_run import run_operator
from octavo_operator.labels import API_VERSION
from octavo_operator.local.deployment_controller import new_pod
from octavo_operator.manifests.kinds import (
    CHILD_KINDS,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    LORA_ADAPTER,
    POD,
)
from octavo_operator.settings import OperatorSettings
from store_behind_kmock import StoreBehindKmock, name_cluster

pytestmark = pytest.mark.kmock(cls=StoreBehindKmock, limit=None)

Right = tuple[str, str, str]
"""API group, resource (with subresource), verb."""


HOME = "octavo-system"
"""The namespace of the operator itself."""


def granted(namespace: str = "models", name: str = "octavo-operator") -> set[Right]:
    """By the role that the chart gives, in a watched namespace or in the operator's own."""
    objects = find_helm().template(REPOSITORY / "charts" / "octavo", {"namespaces": ["models"]})
    (role,) = (
        item
        for item in objects
        if (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        == ("Role", namespace, name)
    )
    for rule in role["rules"]:
        # Whatever is more than making it is allowed by name, in the operator's own namespace.
        is_named = bool(rule.get("resourceNames"))
        assert namespace != HOME or is_named == (rule["verbs"] != ["create"])
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(requests: Any, namespace: str | None) -> set[Right]:
    """The rights that these requests need; an apply that makes its object needs `create` too."""
    rights: set[Right] = set()
    for request in requests:
        resource = request.resource
        if resource is None or not resource.plural or request.namespace != namespace:
            continue
        name = resource.plural + (f"/{request.subresource}" if request.subresource else "")
        method = request.method.name.lower()
        if method == "get":
            is_watch = request.params.get("watch") == "true"
            verb = "watch" if is_watch else "get" if request.name else "list"
        else:
            verb = {"post": "create", "put": "update"}.get(method, method)
        rights.add((resource.group, name, verb))
        if request.headers.get("Content-Type") == "application/apply-patch+yaml":
            rights.add((resource.group, name, "create"))
    return rights


@pytest.fixture
async def operator(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The operator at work in the namespace `models`."""
    async with _running(kmock, tmp_path, monkeypatch, namespaces=("models",)):
        yield


@asynccontextmanager
async def _running(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespaces: tuple[str, ...]
) -> AsyncIterator[None]:
    name_cluster(kmock.url, tmp_path, monkeypatch)
    logging.getLogger("kopf").setLevel(logging.ERROR)
    stop = asyncio.Event()
    settings = OperatorSettings(
        namespaces=namespaces, pod_namespace=HOME, pod_name="me", probe_port=0, metrics_port=0
    )
    task = asyncio.create_task(run_operator(settings, is_in_cluster=False, stop_flag=stop))
    yield
    stop.set()
    await asyncio.wait_for(task, 20)


async def _live_through(store: ObjectStore) -> None:
    """A service with everything, then with less; an adapter; a pod; each until it is reported."""

    async def reported(name: str, generation: int) -> None:
        async def is_reported() -> bool:
            live = await store.get(INFERENCE_SERVICE, "models", name)
            seen = (live.get("status") or {}).get("observedGeneration")
            return "Ready" in conditions(live) and seen == generation

        await eventually(is_reported)

    await store.create(
        inference_service(
            scaling={"minReplicas": 1, "maxReplicas": 2}, replicas=None, engine={"lora": {}}
        )
    )
    await reported("chat", 1)
    await store.merge(
        INFERENCE_SERVICE,
        "models",
        "chat",
        {"spec": {"scaling": None, "replicas": 1, "monitoring": {"podMonitor": False}}},
    )
    await reported("chat", 2)
    adapter = {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": "sql", "namespace": "models"},
        "spec": {
            "serviceRef": {"name": "chat"},
            "servedName": "sql",
            "source": {"uri": "hf://org/sql"},
        },
    }
    await store.create(adapter)

    async def is_told() -> bool:
        return bool((await store.get(LORA_ADAPTER, "models", "sql")).get("status"))

    await eventually(is_told)
    pod = new_pod(await store.get(DEPLOYMENT, "models", "chat"))
    pod["metadata"].pop("finalizers")
    created = await store.create(pod, "controller")
    place = (POD, "models", created["metadata"]["name"])
    container = {"name": "worker", "containerID": "c1", "ready": True, "started": True}
    await store.write_status(*place, {"containerStatuses": [container]}, None)

    async def is_listed() -> bool:
        listed = await store.list_objects(CONFIG_MAP, "models", {})
        return len(listed.items) == 1

    await eventually(is_listed)

    async def is_held() -> bool:
        return bool((await store.get(LORA_ADAPTER, "models", "sql"))["metadata"].get("finalizers"))

    await eventually(is_held)
    (live,) = (await store.list_objects(CONFIG_MAP, "models", {})).items
    unlabelled = {"metadata": {"labels": None}, "data": {"wanted.json": "?"}}
    await store.merge(CONFIG_MAP, "models", live["metadata"]["name"], unlabelled)

    async def is_put_right() -> bool:
        (now,) = (await store.list_objects(CONFIG_MAP, "models", {})).items
        return bool(now["data"] == live["data"])

    await eventually(is_put_right)


async def test_nodes_are_asked_for_where_a_cluster_role_allows_it_and_only_listed(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In named namespaces the operator has no such right, and so does not ask."""
    async with _running(kmock, tmp_path, monkeypatch, namespaces=()):
        await kmock.store.create(inference_service())

        async def is_reported() -> bool:
            live = await kmock.store.get(INFERENCE_SERVICE, "models", "chat")
            return "Ready" in conditions(live)

        await eventually(is_reported)
    assert {right for right in asked(kmock, None) if right[1] == "nodes"} == {("", "nodes", "list")}
    objects = find_helm().template(REPOSITORY / "charts" / "octavo", {})
    verbs = [
        rule["verbs"]
        for item in objects
        if item["kind"] == "ClusterRole" and item["metadata"]["name"] == "octavo-operator"
        for rule in item["rules"]
        if "nodes" in rule["resources"]
    ]
    assert verbs == [["list"]]


async def test_no_call_goes_beyond_the_role(kmock: Any, operator: None) -> None:
    await _live_through(kmock.store)
    needed = asked(kmock, "models")
    assert needed <= granted(), sorted(needed - granted())
    assert ("", "pods", "watch") in needed
    assert ("apps", "deployments", "create") in needed
    assert ("autoscaling", "horizontalpodautoscalers", "delete") in needed


async def test_role_grants_nothing_that_is_never_asked_for(kmock: Any, operator: None) -> None:
    """dynamo 8907: rights that are too wide.

    All kinds of child are granted alike; one that is not served here is left out.
    """
    await _live_through(kmock.store)
    needed = asked(kmock, "models")
    for verb in ("get", "list", "watch", "create", "patch", "delete"):
        seen = {(group, resource) for group, resource, asked_verb in needed if asked_verb == verb}
        assert any((kind.group, kind.plural) in seen for kind in CHILD_KINDS), verb
    children = {(kind.group, kind.plural) for kind in CHILD_KINDS}
    rest = {right for right in granted() if right[:2] not in children}
    spare = rest - needed
    # kopf and the operator write events only on what a user would want to know.
    spare -= {("", "events", "create"), ("", "events", "patch")}
    assert spare == set()


async def test_own_namespace_grants_what_the_lease_and_the_key_need(
    kmock: Any, operator: None
) -> None:
    """One Secret may be read: the key to workers' admin ports; users' Secrets never are."""
    await _live_through(kmock.store)
    needed, allowed = asked(kmock, HOME), granted(HOME, "octavo-operator-own")
    assert needed <= allowed, sorted(needed - allowed)
    # A Lease that was just made is renewed, by a patch, some seconds later.
    assert allowed - needed <= {("coordination.k8s.io", "leases", "patch")}
    assert {right for right in allowed if right[1] == "secrets"} == {
        ("", "secrets", "create"),
        ("", "secrets", "get"),
    }
    assert ("", "secrets", "create") in needed
    assert not [right for right in granted() if right[1] == "secrets"]
