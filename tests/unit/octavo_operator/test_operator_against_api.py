"""The whole operator, kopf included, against an API server over HTTP with faults."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import kmock as kmock_package
import pytest

from eventually import eventually
from inference_services import condition_message, conditions, inference_service
from octavo_operator.cluster.interface import WatchEvent
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import KindsGoneError, NotFoundError
from octavo_operator.handlers.operator_run import run_operator
from octavo_operator.labels import API_VERSION
from octavo_operator.manifests.kinds import (
    CHILD_KINDS,
    DEPLOYMENT,
    INFERENCE_SERVICE,
    LEASE,
    LORA_ADAPTER,
    OPTIONAL_KINDS,
    POD_MONITOR,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.settings import OperatorSettings
from store_behind_kmock import StoreBehindKmock, name_cluster

pytestmark = [
    pytest.mark.kmock(cls=StoreBehindKmock, limit=None),
]

WRITING = {"POST", "PUT", "PATCH", "DELETE"}


@pytest.fixture
async def operator(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Call to start the operator; it is stopped at the end."""
    name_cluster(kmock.url, tmp_path, monkeypatch)
    monkeypatch.setattr("octavo_operator.cluster.work_queue.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("octavo_operator.cluster.failures.DEFAULT_OUTAGE_S", 0.05)
    logging.getLogger("kopf").setLevel(logging.ERROR)
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def start(
        probe_port: int = 0,
        metrics_port: int = 0,
        namespaces: tuple[str, ...] = ("models",),
        **more: Any,
    ) -> None:
        settings = OperatorSettings(
            **more,
            namespaces=namespaces,
            worker_image="worker:1",
            probe_port=probe_port,
            metrics_port=metrics_port,
        )
        tasks.append(
            asyncio.create_task(run_operator(settings, is_in_cluster=False, stop_flag=stop))
        )

    yield start
    stop.set()
    for task in tasks:
        await asyncio.wait_for(task, 20)


async def settled(kmock: Any) -> int:
    """The number of requests that change something, once there have been none for a while."""
    count, quiet = -1, 0
    while quiet < 10:
        await asyncio.sleep(0.05)
        now = len(writes(kmock))
        quiet = quiet + 1 if now == count else 0
        count = now
    return count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def metrics_page(port: int) -> str:
    """What the operator tells Prometheus."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


def writes(kmock: Any) -> list[Any]:
    """Requests that change something, events apart."""
    changing = [request for request in kmock if request.method.name.upper() in WRITING]
    return [request for request in changing if not request.url.path.endswith("/events")]


async def read_service(store: ObjectStore) -> LiveObject:
    return await store.get(INFERENCE_SERVICE, "models", "chat")


async def children(store: ObjectStore) -> dict[str, LiveObject]:
    found = {}
    for kind in CHILD_KINDS:
        if kind in OPTIONAL_KINDS - {POD_MONITOR}:
            continue
        for live in (await store.list_objects(kind, "models", {})).items:
            found[kind.kind] = live
    return found


async def is_reported(store: ObjectStore) -> bool:
    return "Ready" in conditions(await read_service(store))


async def mark_ready(store: ObjectStore) -> None:
    """Be the Deployment controller: one pod, ready."""
    live = await store.get(DEPLOYMENT, "models", "chat")
    status = {
        "observedGeneration": live["metadata"]["generation"],
        "replicas": 1,
        "updatedReplicas": 1,
        "readyReplicas": 1,
        "availableReplicas": 1,
    }
    await store.write_status(DEPLOYMENT, "models", "chat", status, None)


async def test_create_makes_all_children_and_reports(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()

    async def is_created() -> bool:
        return len(await children(kmock.store)) == 6 and await is_reported(kmock.store)

    await eventually(is_created)
    service = await read_service(kmock.store)
    assert conditions(service)["Ready"] == ("False", "PodsStarting")
    await mark_ready(kmock.store)

    async def is_serving() -> bool:
        return conditions(await read_service(kmock.store))["Ready"] == ("True", "Serving")

    await eventually(is_serving)
    status = (await read_service(kmock.store))["status"]
    assert status["url"] == "http://chat.models.svc:8000"
    assert status["image"] == "worker:1"
    assert status["summary"] == {"replicas": "1/1"}
    for live in (await children(kmock.store)).values():
        assert live["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]


@pytest.mark.parametrize("depth", [900, 5000])
async def test_resource_nested_too_deeply_stops_nobody_else(
    kmock: Any, operator: Any, depth: int
) -> None:
    """A user of one namespace can write it, since the API server takes it."""
    spec = '"spec":{"template":' + '{"a":' * depth + "1" + "}" * depth + "}"
    named = '"metadata":{"name":"deep","namespace":"models","uid":"u","resourceVersion":"1"}'
    chat = json.dumps(await kmock.store.create(inference_service()))
    listed = f'{{"metadata":{{"resourceVersion":"1"}},"items":[{{{named},{spec}}},{chat}]}}'
    event = f'{{"type":"ADDED","object":{{{named},{spec}}}}}\n'
    headers = kmock_package.headers({"Content-Type": "application/json"})
    kmock[kmock_package.action.LIST, "inferenceservices"] << listed.encode() << headers
    path = "/apis/serving.octavo.dev/v1alpha1/namespaces/models/inferenceservices"
    kmock[f"get {path}", {"watch": "true"}] << event.encode()
    await operator()
    await eventually(lambda: is_reported(kmock.store))

    def is_watched_on() -> bool:
        watches = [r for r in kmock if r.url.path == path and "watch" in r.params]
        return len(watches) > 2

    await eventually(is_watched_on)


async def test_resource_itself_is_never_written_but_for_its_status(
    kmock: Any, operator: Any
) -> None:
    created = await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    service = await read_service(kmock.store)
    for key in ("labels", "annotations", "finalizers"):
        assert service["metadata"].get(key) == created["metadata"].get(key)
    assert service["metadata"]["generation"] == 1
    paths = [r.url.path for r in writes(kmock) if "inferenceservices" in r.url.path]
    assert paths
    assert all(path.endswith("/status") for path in paths)


async def test_noop_reconcile_writes_nothing(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    before = await settled(kmock)
    versions = {
        kind: live["metadata"]["resourceVersion"]
        for kind, live in (await children(kmock.store)).items()
    }
    # An annotation that means nothing to the operator makes it look again.
    patch = {"metadata": {"annotations": {"example.org/note": "hello"}}}
    reads = len(kmock)
    await kmock.store.merge(INFERENCE_SERVICE, "models", "chat", patch)

    async def has_looked() -> bool:
        return len(kmock) > reads

    await eventually(has_looked)
    assert await settled(kmock) == before
    assert versions == {
        kind: live["metadata"]["resourceVersion"]
        for kind, live in (await children(kmock.store)).items()
    }


async def test_update_changes_the_deployment_only(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    before = await settled(kmock)
    patch = {"spec": {"replicas": 3, "engine": {"maxModelLen": 4096}}}
    await kmock.store.merge(INFERENCE_SERVICE, "models", "chat", patch)

    async def is_updated() -> bool:
        live = await kmock.store.get(DEPLOYMENT, "models", "chat")
        return bool(live["spec"]["replicas"] == 3)

    await eventually(is_updated)
    await settled(kmock)
    command = (await kmock.store.get(DEPLOYMENT, "models", "chat"))["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    assert command[command.index("--max-model-len") + 1] == "4096"
    assert {request.url.path for request in writes(kmock)[before:]} == {
        "/apis/apps/v1/namespaces/models/deployments/chat",
        "/apis/serving.octavo.dev/v1alpha1/namespaces/models/inferenceservices/chat/status",
    }


async def test_edit_by_somebody_else_is_put_right(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    patch: dict[str, Any] = {"spec": {"selector": {"serving.octavo.dev/service": "other"}}}
    await kmock.store.merge(SERVICE, "models", "chat", patch)

    async def is_right() -> bool:
        live = await kmock.store.get(SERVICE, "models", "chat")
        return bool(live["spec"]["selector"]["serving.octavo.dev/service"] == "chat")

    await eventually(is_right)


async def test_deleted_child_comes_back(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    await kmock.store.delete(SERVICE_ACCOUNT, "models", "chat")

    async def is_back() -> bool:
        return "ServiceAccount" in await children(kmock.store)

    await eventually(is_back)


async def test_delete_leaves_nothing_and_no_finalizer(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    await kmock.store.delete(INFERENCE_SERVICE, "models", "chat")
    await settled(kmock)
    assert await children(kmock.store) == {}


async def test_pod_monitor_goes_when_it_is_no_longer_wanted(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    patch = {"spec": {"monitoring": {"podMonitor": False}}}
    await kmock.store.merge(INFERENCE_SERVICE, "models", "chat", patch)

    async def is_gone() -> bool:
        return POD_MONITOR.kind not in await children(kmock.store)

    await eventually(is_gone)


@pytest.mark.parametrize("code", [429, 500, 503, 409])
async def test_transient_failure_of_an_apply_is_waited_out(
    kmock: Any, operator: Any, code: int
) -> None:
    await kmock.store.create(inference_service())
    headers = {"Retry-After": "0.2"}
    failing = kmock["patch /apis/apps/v1/namespaces/models/deployments/chat"][:2]
    failing << code << kmock_package.headers(headers)
    await operator()

    async def is_created() -> bool:
        return "Deployment" in await children(kmock.store)

    await eventually(is_created)
    patches = [r for r in writes(kmock) if r.url.path.endswith("/deployments/chat")]
    assert len(patches) == 3


async def test_conflict_on_status_reads_again_and_writes(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    path = "/apis/serving.octavo.dev/v1alpha1/namespaces/models/inferenceservices/chat/status"
    kmock[f"patch {path}"][:1] << 409
    await operator()
    await eventually(lambda: is_reported(kmock.store))


async def test_webhook_that_does_not_answer_is_reported_and_waited_for(
    kmock: Any, operator: Any
) -> None:
    await kmock.store.create(inference_service())
    said = (
        'Internal error occurred: failed calling webhook "policy.example.com": failed to call '
        'webhook: Post "https://policy.example.com/x?timeout=10s": connection refused'
    )
    path = "/apis/apps/v1/namespaces/models/deployments/chat"
    down = kmock[f"patch {path}"]
    down << 500 << {"kind": "Status", "message": said}
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    service = await read_service(kmock.store)
    assert conditions(service)["Ready"] == ("False", "WebhookFailed")
    assert "policy.example.com" in condition_message(service, "Ready")
    await eventually(lambda: len([one for one in kmock if one.url.path.endswith(path)]) > 2)


async def test_rejected_object_is_reported_and_not_hammered(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    path = "/apis/apps/v1/namespaces/models/deployments/chat"
    refusal = {"kind": "Status", "message": "spec.template.spec.nodeNmae: unknown field"}
    kmock[f"patch {path}"] << 422 << refusal
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    count = await settled(kmock)
    service = await read_service(kmock.store)
    assert conditions(service)["Ready"] == ("False", "ApplyRejected")
    assert conditions(service)["WorkloadReady"] == ("False", "ApplyRejected")
    assert "nodeNmae: unknown field" in condition_message(service, "Ready")
    assert await settled(kmock) == count


async def test_strangers_object_of_the_same_name_is_left_alone(kmock: Any, operator: Any) -> None:
    stranger = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": "models"},
        "spec": {"selector": {"app": "shop"}},
    }
    before = await kmock.store.create(stranger, "kubectl")
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    service = await read_service(kmock.store)
    assert conditions(service)["Ready"] == ("False", "NameConflict")
    assert await kmock.store.get(SERVICE, "models", "chat") == before


async def test_invalid_spec_is_reported_and_pods_are_left(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    before = await children(kmock.store)
    patch = {"spec": {"model": {"uri": "ftp://org/name"}}}
    await kmock.store.merge(INFERENCE_SERVICE, "models", "chat", patch)

    async def is_refused() -> bool:
        return conditions(await read_service(kmock.store))["Ready"] == ("False", "InvalidSpec")

    await eventually(is_refused)
    assert "spec.model.uri is 'ftp://org/name'" in condition_message(
        await read_service(kmock.store), "ModelReady"
    )
    assert await children(kmock.store) == before


async def test_watch_that_fell_behind_lists_again(kmock: Any, operator: Any) -> None:
    kmock.store.forget_history()
    await kmock.store.create(inference_service())
    kmock.store.forget_history()
    await operator()
    await eventually(lambda: is_reported(kmock.store))


async def test_lora_adapter_without_a_service_is_told_so_and_can_be_deleted(
    kmock: Any, operator: Any
) -> None:
    adapter = {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": "sql", "namespace": "models"},
        "spec": {
            "serviceRef": {"name": "chat"},
            "servedName": "chat-sql",
            "source": {"uri": "hf://org/adapter"},
        },
    }
    await kmock.store.create(adapter)
    await operator()

    async def is_told() -> bool:
        live = await kmock.store.get(LORA_ADAPTER, "models", "sql")
        return conditions(live).get("Ready") == ("False", "ServiceNotFound")

    await eventually(is_told)
    # The status alone: there are no pods to wait for when it is deleted.
    assert await settled(kmock) == 1
    await kmock.store.delete(LORA_ADAPTER, "models", "sql")

    async def is_gone() -> bool:
        return not (await kmock.store.list_objects(LORA_ADAPTER, None, {})).items

    await eventually(is_gone)


async def test_absent_object_is_not_found(kmock: Any) -> None:
    with pytest.raises(NotFoundError):
        await kmock.store.get(DEPLOYMENT, "models", "chat")


async def test_healthz_tells_of_watches_and_passes(
    kmock: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    await kmock.store.create(inference_service())
    await operator(probe_port=port)
    await eventually(lambda: is_reported(kmock.store))
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/healthz")
        assert answer.status_code == 200
        assert answer.json()["loop"] is True
        assert answer.json()["watches"]["oldest_contact_s"] < 60


async def test_healthz_fails_when_a_pass_is_stuck(
    kmock: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.handlers.liveness.STUCK_AFTER_S", -1.0)
    port = free_port()
    await kmock.store.create(inference_service())
    await operator(probe_port=port)
    await eventually(lambda: is_reported(kmock.store))
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 500


async def test_own_status_write_causes_no_further_pass(kmock: Any, operator: Any) -> None:
    await kmock.store.create(inference_service())
    await operator()
    await eventually(lambda: is_reported(kmock.store))
    await settled(kmock)
    path = "/apis/serving.octavo.dev/v1alpha1/namespaces/models/inferenceservices/chat"
    passes = [request for request in kmock if request.url.path == path]
    status = (await read_service(kmock.store))["status"]
    note = {**status, "summary": {**status["summary"], "adapters": "0/0"}}
    await kmock.store.write_status(INFERENCE_SERVICE, "models", "chat", note, None)
    await settled(kmock)
    assert [request for request in kmock if request.url.path == path] == passes


async def test_events_of_resources_are_no_lines_in_the_log(
    kmock: Any, operator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each status that is written comes back as one, to every operator."""
    await kmock.store.create(inference_service())
    await operator()
    with caplog.at_level(logging.INFO, "kopf"):
        await eventually(lambda: is_reported(kmock.store))
        await settled(kmock)
    names = {record.name for record in caplog.records}
    assert "kopf.activities.authentication" in names
    assert not [name for name in names if name.startswith("kopf.objects")]


async def test_kinds_that_come_after_the_operator_are_served(
    kmock: Any, operator: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With rights in some namespaces only, nobody tells kopf of them."""
    monkeypatch.setattr("octavo_operator.cluster.own_kinds.PAUSE_S", 0.05)
    name = f"{API_VERSION}/{INFERENCE_SERVICE.plural}"
    definition = kmock.resources[name]
    del kmock.resources[name]
    await operator()
    told = "nothing is done before this cluster has the kinds InferenceService; apply"
    await eventually(lambda: told in caplog.text)
    kmock.resources[name] = definition
    await kmock.store.create(inference_service())
    await eventually(lambda: is_reported(kmock.store))
    assert caplog.text.count(told) == 1


async def test_operator_ends_in_plain_words_when_its_kinds_go(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends at once: with its Lease given back, and not killed by kopf for taking too long."""
    name_cluster(kmock.url, tmp_path, monkeypatch)
    are_gone, watch = asyncio.Event(), kmock.store.watch

    async def until_gone(kind: Kind, *rest: Any) -> AsyncIterator[WatchEvent]:
        if kind == LORA_ADAPTER:
            await are_gone.wait()
            return
        async for event in watch(kind, *rest):
            yield event

    monkeypatch.setattr(kmock.store, "watch", until_gone)
    await kmock.store.create(inference_service())
    settings = OperatorSettings(
        namespaces=("models",), pod_namespace="system", probe_port=0, metrics_port=0
    )
    running = asyncio.create_task(run_operator(settings, is_in_cluster=False))
    await eventually(lambda: is_reported(kmock.store))
    kmock[f"get /apis/{API_VERSION}/namespaces/models/{LORA_ADAPTER.plural}"] << 404
    are_gone.set()
    with pytest.raises(KindsGoneError, match="no longer has the kinds InferenceService and"):
        await asyncio.wait_for(running, 20)
    assert "Traceback" not in caplog.text
    lease = await kmock.store.get(LEASE, "system", "octavo-operator")
    assert lease["spec"]["holderIdentity"] == ""


async def test_namespace_that_is_gone_keeps_nobody_from_the_others(
    kmock: Any, operator: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its role goes with it, so that every call there is refused: for ever."""
    kopf_settings = "octavo_operator.handlers.kopf_settings"
    monkeypatch.setattr(f"{kopf_settings}.GROWING_PAUSES_S", (0.01,) * 5)
    monkeypatch.setattr(f"{kopf_settings}.LONGEST_PAUSE_S", 0.05)
    kmock[kmock_package.namespace("gone")] << 403
    await kmock.store.create(inference_service())
    await operator(namespaces=("gone", "models"), resync_s=0.1)
    await eventually(lambda: is_reported(kmock.store))

    def num_lists(namespace: str) -> int:
        path = f"/namespaces/{namespace}/inferenceservices"
        lists = [one for one in kmock if one.url.path.endswith(path)]
        return len([one for one in lists if "watch" not in one.params])

    # By kopf in vain, and with each resync.
    await eventually(lambda: num_lists("gone") > 20)
    assert num_lists("models") > 3
    kinds = [kind for kind in (INFERENCE_SERVICE, LORA_ADAPTER) if kind.plural in caplog.text]
    told = [line for line in caplog.messages if line.startswith("Request attempt #")]
    assert len(told) == len(kinds) == 2
    await kmock.store.delete(SERVICE, "models", "chat")

    async def is_back() -> bool:
        return "Service" in await children(kmock.store)

    await eventually(is_back)


async def test_second_operator_takes_over_when_the_first_one_goes(
    kmock: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_operator.cluster.leader_lease.RENEW_PERIOD_S", 0.05)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    lease["metadata"] = {"name": "octavo-operator", "namespace": "system"}  # type: ignore[assignment]
    lease["spec"] = {  # type: ignore[assignment]
        "holderIdentity": "another",
        "leaseDurationSeconds": 1,
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }
    await kmock.store.create(lease, "another")
    await kmock.store.create(inference_service())
    port = free_port()
    await operator(pod_name="me", pod_namespace="system", metrics_port=port)

    async def is_waiting() -> bool:
        reads = [
            request for request in kmock if request.url.path.endswith("/leases/octavo-operator")
        ]
        return len(reads) > 2

    await eventually(is_waiting)
    assert await children(kmock.store) == {}
    page = await metrics_page(port)
    assert "octavo_operator_leader 0.0" in page
    # A standby hears nothing, and what kopf tells it waits: neither is worth an alert.
    assert "octavo_operator_watch_age_seconds{" not in page
    assert "octavo_operator_queue_oldest_seconds{" not in page
    await eventually(lambda: is_reported(kmock.store))
    page = await metrics_page(port)
    assert "octavo_operator_leader 1.0" in page
    assert 'octavo_operator_watch_age_seconds{resource="pods"}' in page
    assert 'octavo_operator_queue_length{resource="InferenceService"}' in page
    told = r'octavo_operator_reconcile_seconds_count\{outcome="success",resource="\w+"\} [1-9]'

    async def is_counted() -> bool:
        return re.search(told, await metrics_page(port)) is not None

    # The status is there before the pass has ended.
    await eventually(is_counted)
    assert re.search(r'octavo_operator_api_calls_total\{code="200",method="WATCH"\} [1-9]', page)
    # That the Lease was not there at first, nor the children.
    assert re.search(r'octavo_operator_api_calls_total\{code="404",method="GET"\} [1-9]', page)
    held = await kmock.store.get(LEASE, "system", "octavo-operator")
    assert held["spec"]["holderIdentity"] == "me"
    assert held["spec"]["leaseTransitions"] == 1
