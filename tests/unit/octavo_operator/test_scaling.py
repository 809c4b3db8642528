"""Who decides the number of pods: an autoscaler from one up, the operator about zero."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from crd_schema import REPOSITORY
from eventually import eventually
from inference_services import condition_message, conditions, inference_service
from octavo_operator.address import Address
from octavo_operator.cluster.activator import Activator
from octavo_operator.errors import RejectedError
from octavo_operator.holding_proxy import HoldingProxy
from octavo_operator.manifests.horizontal_pod_autoscaler import METRIC_NAMES
from octavo_operator.manifests.kinds import (
    DEPLOYMENT,
    ENDPOINT_SLICE,
    HORIZONTAL_POD_AUTOSCALER,
    SCALED_OBJECT,
)
from octavo_operator.manifests.scaled_object import QUERIES
from octavo_operator.reconcile.features import ADAPTER_COMMAND
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import plan
from octavo_operator.reconcile.replicas import SWITCH_MANAGER, Demand
from planner_world import IMAGE, NOW, World, waiting

ACTIVATOR = Address("10.1.2.3", 9000)


class ScaledWorld(World):
    """Callers, and a Prometheus if there is one, are what the test says."""

    def __init__(self, scaling: dict[str, Any], **kwargs: Any) -> None:
        spec = kwargs.pop("spec", {})
        super().__init__(inference_service(replicas=None, scaling=scaling, **spec), **kwargs)
        self.demand = Demand(activator=ACTIVATOR)
        self.prometheus_url: str | None = None

    async def observe(self) -> Observed:
        seen = await super().observe()
        return replace(seen, demand=self.demand, prometheus_url=self.prometheus_url)

    async def replicas(self) -> int:
        return int((await self.deployment())["spec"].get("replicas", 1))

    async def scale(self, replicas: int) -> None:
        """Be the autoscaler."""
        patch = {"spec": {"replicas": replicas}}
        await self.store.merge(DEPLOYMENT, "models", "chat", patch, manager="hpa")

    async def autoscaler(self) -> LiveObject:
        return await self.store.get(HORIZONTAL_POD_AUTOSCALER, "models", "chat")

    async def slices(self) -> tuple[LiveObject, ...]:
        return (await self.store.list_objects(ENDPOINT_SLICE, "models", {})).items


async def test_scaling_renders_an_autoscaler_on_the_workers_metric() -> None:
    world = ScaledWorld(
        {
            "minReplicas": 2,
            "maxReplicas": 8,
            "metric": {"type": "KVCacheUsage", "target": 70},
            "cooldown": "90s",
        }
    )
    await world.settle()
    assert (await world.autoscaler())["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "minReplicas": 2,
        "maxReplicas": 8,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "octavo_kv_cache_usage_percent"},
                    "target": {"type": "AverageValue", "averageValue": "70"},
                },
            }
        ],
        "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": 0},
            "scaleDown": {"stabilizationWindowSeconds": 90},
        },
    }


async def test_cooldown_that_no_autoscaler_waits_for_is_said() -> None:
    world = ScaledWorld({"maxReplicas": 8, "cooldown": "2h"})
    service = await world.settle()
    behavior = (await world.autoscaler())["spec"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 3600
    assert "an autoscaler waits 1h at most" in condition_message(service, "FeaturesReady")


async def test_keda_takes_the_place_of_the_autoscaler_where_it_is() -> None:
    world = ScaledWorld({"maxReplicas": 8}, kinds=frozenset({SCALED_OBJECT}))
    await world.settle()
    assert await world.autoscaler()
    world.prometheus_url = "http://prometheus:9090"
    await world.settle()
    spec = (await world.store.get(SCALED_OBJECT, "models", "chat"))["spec"]
    assert spec["triggers"] == [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": "http://prometheus:9090",
                "query": 'sum(vllm:num_requests_waiting{namespace="models",'
                'serving_octavo_dev_service="chat"})',
                "threshold": "4",
            },
        }
    ]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 8)
    assert (await world.store.list_objects(HORIZONTAL_POD_AUTOSCALER, "models", {})).items == ()


async def test_former_autoscaler_goes_before_keda_is_asked_to_take_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KEDA's webhook: the workload is already managed by the hpa."""
    world = ScaledWorld({"maxReplicas": 8}, kinds=frozenset({SCALED_OBJECT}))
    await world.settle()
    await world.scale(5)
    world.prometheus_url = "http://prometheus:9090"
    apply = world.store.apply

    async def admit(manifest: Any, *rest: Any) -> LiveObject:
        if manifest["kind"] == "ScaledObject":
            others = await world.store.list_objects(HORIZONTAL_POD_AUTOSCALER, "models", {})
            if others.items:
                raise RejectedError("the workload 'chat' is already managed by the hpa 'chat'")
        return await apply(manifest, *rest)

    monkeypatch.setattr(world.store, "apply", admit)
    await world.settle()
    assert await world.store.get(SCALED_OBJECT, "models", "chat")
    assert await world.replicas() == 5


async def test_operator_never_fights_the_autoscaler() -> None:
    """LLMKube 484: 1 to 4 and back, forty-one times in fourteen minutes."""
    world = ScaledWorld({"maxReplicas": 8})
    await world.settle()
    for number in (4, 1, 7, 2):
        await world.scale(number)
        await world.report_pods(replicas=number, updatedReplicas=number, readyReplicas=number)
        for _ in range(10):
            todo = await world.step()
            assert DEPLOYMENT.kind not in [apply.manifest["kind"] for apply in todo.applies]
        assert await world.replicas() == number


async def test_pods_that_load_are_not_scaled_away() -> None:
    """kserve 1247: demand looks low while new pods load."""
    world = ScaledWorld({"maxReplicas": 8})
    await world.settle()
    await world.all_ready(1)
    await world.scale(5)
    await world.report_pods(replicas=5, updatedReplicas=5, readyReplicas=1)
    await world.settle()
    assert (await world.autoscaler())["spec"]["minReplicas"] == 5
    await world.all_ready(5)
    await world.settle()
    assert (await world.autoscaler())["spec"]["minReplicas"] == 1


async def test_pods_that_crash_do_not_hold_the_number_up() -> None:
    world = ScaledWorld({"maxReplicas": 8})
    await world.settle()
    await world.scale(5)
    await world.report_pods(replicas=5, updatedReplicas=5, readyReplicas=1)
    world.pods = (waiting("CrashLoopBackOff", exitCode=1),)
    await world.settle()
    assert (await world.autoscaler())["spec"]["minReplicas"] == 1


@pytest.mark.parametrize(
    ("said", "reason", "remedy"),
    [
        (
            "unable to get metric octavo_waiting_requests: unable to fetch metrics from custom "
            "metrics API: no custom metrics API (custom.metrics.k8s.io) registered",
            "MetricsAPIMissing",
            "helm upgrade --install prometheus-adapter",
        ),
        (
            "unable to get metric octavo_waiting_requests: no metrics returned from custom metrics "
            "API",
            "MetricMissing",
            "needs the rule for octavo_waiting_requests",
        ),
        ("x" * 5000, "MetricMissing", "needs the rule for octavo_waiting_requests"),
    ],
    ids=["api", "metric", "long"],
)
async def test_autoscaler_without_its_metric_is_said_until_it_has_it(
    said: str, reason: str, remedy: str
) -> None:
    async def autoscaler_says(status: str, word: str, message: str) -> None:
        condition = {"type": "ScalingActive", "status": status, "reason": word, "message": message}
        told = {"conditions": [condition]}
        await world.store.write_status(HORIZONTAL_POD_AUTOSCALER, "models", "chat", told, None)

    world = ScaledWorld({"maxReplicas": 8})
    await world.settle()
    await autoscaler_says("False", "FailedGetPodsMetric", said)
    service = await world.settle()
    assert conditions(service)["FeaturesReady"] == ("False", reason)
    assert remedy in condition_message(service, "FeaturesReady")
    assert len(condition_message(service, "FeaturesReady")) < 1024
    await autoscaler_says("True", "ValidMetricFound", "the HPA was able to compute the count")
    assert conditions(await world.settle())["FeaturesReady"] == ("True", "AllInEffect")


async def test_autoscaler_that_is_off_at_zero_lacks_nothing() -> None:
    world = ScaledWorld({"maxReplicas": 8})
    await world.settle()
    condition = {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled"}
    status = {"conditions": [condition]}
    await world.store.write_status(HORIZONTAL_POD_AUTOSCALER, "models", "chat", status, None)
    assert conditions(await world.settle())["FeaturesReady"] == ("True", "AllInEffect")


def test_adapters_rules_serve_the_metrics_that_autoscalers_read() -> None:
    values = yaml.safe_load(
        (REPOSITORY / "charts" / "octavo" / "files" / "prometheus-adapter.yaml").read_text()
    )
    rules = {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}
    assert rules.keys() == set(METRIC_NAMES.values())
    for kind, name in METRIC_NAMES.items():
        series = rules[name]["seriesQuery"].partition("{")[0]
        assert series in QUERIES[kind]
        assert set(rules[name]["resources"]["overrides"]) == {"namespace", "pod"}
    path = "charts/octavo/files/prometheus-adapter.yaml"
    assert path in ADAPTER_COMMAND
    assert path in (REPOSITORY / "docs" / "scaling.md").read_text()


async def sleeping() -> ScaledWorld:
    """A service that nobody has called for its whole cooldown."""
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 4, "cooldown": "60s"})
    await world.settle()
    await world.all_ready(1)
    world.demand = Demand(idle_s=60.0, activator=ACTIVATOR)
    await world.settle()
    assert await world.replicas() == 0
    await world.all_ready(0)
    world.demand = Demand(activator=ACTIVATOR)
    return world


async def test_idle_service_goes_to_zero_and_says_that_it_sleeps() -> None:
    world = await sleeping()
    service = await world.settle()
    assert conditions(service)["Ready"] == ("False", "Sleeping")
    assert conditions(service)["WorkloadReady"] == ("True", "ScaledToZero")
    (only,) = await world.slices()
    assert only["metadata"]["labels"]["kubernetes.io/service-name"] == "chat"
    assert only["endpoints"] == [{"addresses": ["10.1.2.3"], "conditions": {"ready": True}}]
    assert only["ports"] == [{"name": "http", "port": 9000, "protocol": "TCP"}]


async def test_call_starts_the_first_pod_and_the_activator_leaves_when_it_serves() -> None:
    world = await sleeping()
    await world.settle()
    world.demand = Demand(num_held=1, activator=ACTIVATOR)
    await world.settle()
    assert await world.replicas() == 1
    await world.report_pods(replicas=1, updatedReplicas=1, readyReplicas=0)
    world.demand = Demand(activator=ACTIVATOR)
    await world.settle()
    assert await world.replicas() == 1, "a caller that gave up must not stop the pod that loads"
    assert len(await world.slices()) == 1
    await world.all_ready(1)
    await world.settle()
    assert await world.slices() == ()
    owners = (await world.deployment())["metadata"]["managedFields"]
    assert SWITCH_MANAGER in {owner["manager"] for owner in owners}


@pytest.mark.parametrize(
    ("demand", "ready"),
    [
        (Demand(idle_s=59.0, activator=ACTIVATOR), 1),
        (Demand(idle_s=None, activator=ACTIVATOR), 1),
        (Demand(idle_s=100.0, num_held=1, activator=ACTIVATOR), 1),
        (Demand(idle_s=100.0, activator=None), 1),
        (Demand(idle_s=100.0, activator=ACTIVATOR), 0),
    ],
    ids=["too-soon", "unknown", "called", "nobody-would-hold-calls", "loading"],
)
async def test_pod_stays_when(demand: Demand, ready: int) -> None:
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 4, "cooldown": "60s"})
    await world.settle()
    await world.report_pods(replicas=1, updatedReplicas=1, readyReplicas=ready)
    world.demand = demand
    await world.settle()
    assert await world.replicas() == 1


async def test_service_without_an_activator_says_that_zero_means_one() -> None:
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 4})
    world.demand = Demand()
    service = await world.settle()
    assert "0 means 1" in condition_message(service, "FeaturesReady")


async def test_service_that_may_no_longer_sleep_wakes() -> None:
    world = await sleeping()
    world.resource["spec"]["scaling"]["minReplicas"] = 2
    await world.settle()
    assert await world.replicas() == 2
    world.resource["spec"].pop("scaling")
    world.resource["spec"]["replicas"] = 3
    await world.settle()
    assert await world.replicas() == 3


async def test_next_look_is_when_the_cooldown_may_be_over() -> None:
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 4, "cooldown": "60s"})
    await world.settle()
    await world.all_ready(1)
    world.demand = Demand(idle_s=45.0, activator=ACTIVATOR)
    await world.settle()
    todo = plan(await world.observe(), IMAGE, NOW)
    assert (todo.is_empty, todo.look_again_s) == (True, 15.0)


@pytest.mark.parametrize(
    ("demand", "total"),
    [
        (Demand(idle_s=1e4, activator=None), 1),
        (Demand(idle_s=1e4, activator=ACTIVATOR), 2),
        (Demand(idle_s=1e4, num_held=1, activator=ACTIVATOR), 1),
    ],
    ids=["nobody-holds-calls", "rollout-without-room", "held-call"],
)
async def test_idle_pods_that_must_stay_are_not_looked_at_all_the_time(
    demand: Demand, total: int
) -> None:
    """Each look asks every pod how long it has been idle."""
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 4, "cooldown": "60s"})
    await world.settle()
    await world.report_pods(replicas=total, updatedReplicas=1, readyReplicas=1)
    world.demand = demand
    await world.settle()
    todo = plan(await world.observe(), IMAGE, NOW)
    assert (todo.is_empty, todo.look_again_s) == (True, 30.0)


_DEMANDS = st.builds(
    Demand,
    num_held=st.integers(0, 2),
    idle_s=st.one_of(st.none(), st.sampled_from([0.0, 10.0, 1e6])),
    activator=st.one_of(st.none(), st.just(ACTIVATOR)),
)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    looks=st.lists(
        st.tuples(_DEMANDS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=4
    )
)
async def test_scaling_plan_comes_to_an_end_from_anywhere(
    looks: list[tuple[Demand, int, int, int]],
) -> None:
    world = ScaledWorld({"minReplicas": 0, "maxReplicas": 3})
    await world.settle()
    for demand, replicas, ready, minimum in looks:
        world.demand = demand
        world.resource["spec"]["scaling"]["minReplicas"] = minimum
        await world.scale(replicas)
        total = max(replicas, ready)
        await world.report_pods(replicas=total, updatedReplicas=total, readyReplicas=ready)
        await world.settle()
        assert await world.replicas() >= min(minimum, 1)


class OneWorker:
    """A worker on a port of its own that answers every request alike, when it is started."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = Address("127.0.0.1", probe.getsockname()[1])
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
            await writer.drain()
            writer.close()

        self._server = await asyncio.start_server(answer, self.address.host, self.address.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


async def test_held_calls_are_answered_by_the_first_pod() -> None:
    worker, calls = OneWorker(), []
    ready: list[Address] = []
    proxy = HoldingProxy(
        "127.0.0.1", 0, lambda: tuple(ready), hold_s=60.0, on_call=lambda: calls.append(1)
    )
    await proxy.start()
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{proxy.port}/v1/models"
        asking = [asyncio.create_task(client.get(url)) for _ in range(3)]
        await eventually(lambda: proxy.num_held == 3)
        assert len(calls) == 3
        await worker.start()
        ready.append(worker.address)
        assert [(await answer).text for answer in asking] == ["hi"] * 3
    assert proxy.num_held == 0
    proxy.close()
    await proxy.finish()
    await worker.stop()


@pytest.mark.parametrize("size", [0, 100, 1_000_000], ids=["silent", "short", "long"])
async def test_caller_that_has_left_is_not_held_whatever_it_had_sent(size: int) -> None:
    proxy = HoldingProxy("127.0.0.1", 0, lambda: (), hold_s=3600.0)
    await proxy.start()
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await eventually(lambda: proxy.num_held == 1)
    writer.write(bytes(size))
    await writer.drain()
    writer.close()
    await eventually(lambda: proxy.num_held == 0)
    proxy.close()
    await proxy.finish()


async def test_pod_gets_all_that_a_caller_sent_while_it_waited() -> None:
    said, ready = bytes(range(256)) * 4_000, []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(said)))
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = HoldingProxy("127.0.0.1", 0, lambda: tuple(ready), hold_s=3600.0)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await eventually(lambda: proxy.num_held == 1)
    writer.write(said[:600_000])
    await writer.drain()
    ready.append(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
    writer.write(said[600_000:])
    assert await reader.read() == said
    writer.close()
    server.close()
    proxy.close()
    await proxy.finish()


async def test_call_that_is_held_for_too_long_is_told_when_to_come_back() -> None:
    proxy = HoldingProxy("127.0.0.1", 0, lambda: (), hold_s=0.05)
    await proxy.start()
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"http://127.0.0.1:{proxy.port}/v1/completions", json={})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert answer.json()["error"]["code"] == "no_ready_worker"
    proxy.close()
    await proxy.finish()


async def test_no_more_calls_are_held_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("octavo_operator.holding_proxy.MAX_HELD", 1)
    proxy = HoldingProxy("127.0.0.1", 0, lambda: (), hold_s=60.0)
    await proxy.start()
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{proxy.port}/v1/models"
        first = asyncio.create_task(client.get(url))
        await eventually(lambda: proxy.num_held == 1)
        assert (await client.get(url)).status_code == 503
        first.cancel()
    proxy.close()
    await proxy.finish()


async def test_connections_past_the_bound_are_closed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held or not: each takes files that the operator needs itself."""
    monkeypatch.setattr("octavo_operator.holding_proxy.MAX_CONNECTIONS", 1)
    proxy = HoldingProxy("127.0.0.1", 0, lambda: (), hold_s=60.0)
    await proxy.start()
    _, first = await asyncio.open_connection("127.0.0.1", proxy.port)
    await eventually(lambda: proxy.num_held == 1)
    reader, second = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await reader.read() == b""
    assert proxy.num_held == 1
    first.close()
    second.close()
    proxy.close()
    await proxy.finish()


async def test_each_service_has_a_port_of_its_own_that_stays() -> None:
    calls: list[tuple[str, str]] = []
    activator = Activator("127.0.0.1", range(0), 60.0, pods=lambda key: (), on_call=calls.append)
    one, two = ("models", "one"), ("models", "two")
    first, second = await activator.open(one), await activator.open(two)
    assert first is not None
    assert second is not None
    assert first != second
    assert await activator.open(one) == first
    _, writer = await asyncio.open_connection(second.host, second.port)
    await eventually(lambda: activator.num_held(two) == 1)
    assert (calls, activator.num_held(one)) == ([two], 0)
    writer.close()
    await activator.close(two)
    assert activator.num_held(two) == 0
    await activator.close_all()


async def test_calls_go_on_when_their_service_no_longer_scales_to_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user who raises minReplicas cuts nobody off: neither who waits nor who is answered."""
    worker, service = OneWorker(), ("models", "chat")
    monkeypatch.setattr("octavo_operator.cluster.activator.WORKER_PORT", worker.address.port)
    status = {"podIP": worker.address.host, "conditions": [{"type": "Ready", "status": "True"}]}
    ready: list[LiveObject] = []
    activator = Activator(
        "127.0.0.1", range(0), 60.0, pods=lambda key: tuple(ready), on_call=lambda key: None
    )
    place = await activator.open(service)
    assert place is not None
    async with httpx.AsyncClient(timeout=60) as client:
        asking = asyncio.create_task(client.get(f"http://{place.host}:{place.port}/v1/models"))
        await eventually(lambda: activator.num_held(service) == 1)
        await activator.close(service)
        await worker.start()
        ready.append({"metadata": {}, "status": status})
        assert (await asking).text == "hi"
    await activator.close_all()
    await worker.stop()


async def test_activator_without_a_free_port_is_no_activator() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        activator = Activator(
            "127.0.0.1", range(port, port + 1), 1.0, pods=lambda key: (), on_call=lambda key: None
        )
        assert await activator.open(("models", "chat")) is None
