"""A user applies a LoRAAdapter: it is served by every pod, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from adapters import MOUNT, adapter_files, config_map, pod_overlay
from cluster import Object, wait_for
from release import NAME as OPERATOR
from release import Release
from services import API_VERSION, START_S, Stage, condition, is_ready, uids
from traffic import Traffic

NAME = "adapters"
MODEL = "adapters-sql"
STRIKE_ONCE = """
import pathlib, shutil, signal, subprocess, sys, time
state, model, *command = sys.argv[1:]
struck, memory = pathlib.Path(state, "struck"), pathlib.Path(state, "adapters.json")
if not shutil.which(command[0]):
    command[:1] = [sys.executable, "-m", command[0]]
worker = subprocess.Popen(command)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: worker.send_signal(number))
while worker.poll() is None:
    time.sleep(0.2)
    if not struck.exists() and memory.exists() and model in memory.read_text():
        time.sleep(5)
        struck.touch()
        worker.kill()
sys.exit(128 - worker.returncode if worker.returncode < 0 else worker.returncode)
"""
"""Runs the worker and kills it once a pod, some seconds after the adapter is loaded; the kubelet
then restarts the container in place, and the pod's volume remembers that this has been done."""

STATE = "/var/lib/octavo"


@pytest.fixture
def adapted(stage: Stage) -> Stage:
    """A stage with the files of three adapters: two that fit, one of another base model."""
    if stage.environment.value_shape is None:
        pytest.skip("OCTAVO_E2E_VALUE_SHAPE does not tell what adapters of the model look like")
    stage.cluster.apply("configmaps", _files(stage))
    return stage


def _files(stage: Stage) -> Object:
    shape = stage.environment.value_shape
    assert shape is not None
    adapters = {
        "first": adapter_files(shape, 1),
        "second": adapter_files(shape, 2),
        "foreign": adapter_files(replace(shape, hidden=shape.hidden + 8), 3),
    }
    return config_map(NAME, stage.namespace, adapters)


def _service(stage: Stage, replicas: int, **overlay: Any) -> Object:
    manifest = stage.manifest(NAME, replicas=replicas, template=pod_overlay(_files(stage)))
    manifest["spec"]["engine"]["lora"] = {"maxAdapters": 2, "maxRank": 2}
    manifest["spec"]["template"]["spec"]["containers"][0] |= overlay
    return manifest


def _adapter(stage: Stage, folder: str) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": NAME, "namespace": stage.namespace},
        "spec": {
            "serviceRef": {"name": NAME},
            "servedName": MODEL,
            "source": {"uri": f"file://{MOUNT}/{folder}"},
        },
    }


def _wait_adapter(stage: Stage, status: str, reason: str, loaded: int) -> Object:
    """The LoRAAdapter once it says so of its present generation."""

    def holds(adapter: Object) -> bool:
        ready = condition(adapter, "Ready")
        return (
            ready is not None
            and (ready["status"], ready["reason"]) == (status, reason)
            and ready["observedGeneration"] == adapter["metadata"]["generation"]
            and adapter["status"]["loaded"] == loaded
        )

    def look() -> Object:
        return stage.cluster.get("loraadapters", stage.namespace, NAME)

    return wait_for(f"the adapter is {status} {reason} in {loaded} pods", look, holds, START_S)


def _texts(stage: Stage, pods: list[Object]) -> set[str]:
    """What the pods answer under the adapter's name; each must."""
    answers = [stage.complete(pod, MODEL, num_tokens=12) for pod in pods]
    assert [answer.status for answer in answers] == [200] * len(pods), answers
    return {answer.body["choices"][0]["text"] for answer in answers}


def test_adapter_is_served_replaced_and_taken_away_without_a_restart(adapted: Stage) -> None:
    stage = adapted
    stage.apply(_service(stage, replicas=2))
    stage.wait_rolled_out(NAME)
    pods = stage.ready_pods(NAME)
    stage.cluster.apply("loraadapters", _adapter(stage, "first"))
    adapter = _wait_adapter(stage, "True", "Loaded", 2)
    first = _texts(stage, pods)
    assert len(first) == 1
    assert {entry["uid"] for entry in adapter["status"]["pods"]} == uids(pods)
    columns, rows = stage.cluster.table("loraadapters", stage.namespace)
    shown = dict(zip(columns, rows[0], strict=True))
    assert (shown["Ready"], shown["Reason"]) == ("True", "Loaded")
    assert (shown["Loaded"], shown["Desired"]) == (2, 2)
    summary = wait_for(
        "the service tells of its adapter",
        lambda: stage.service(NAME)["status"]["summary"].get("adapters"),
        lambda text: text == "1/1",
    )
    assert summary == "1/1"

    with Traffic(stage, NAME, model=MODEL) as traffic:
        traffic.wait_answers(5)
        stage.cluster.apply("loraadapters", _adapter(stage, "foreign"))
        _wait_adapter(stage, "False", "AdapterRefused", 2)
        assert _texts(stage, pods) == first
        stage.cluster.apply("loraadapters", _adapter(stage, "second"))
        replaced = _wait_adapter(stage, "True", "Loaded", 2)
        traffic.wait_answers(5)
    assert traffic.failures == []
    assert replaced["status"]["resolvedDigest"] != adapter["status"]["resolvedDigest"]
    second = _texts(stage, pods)
    assert second != first
    assert len(second) == 1

    # A pod that comes has the adapter before it has any traffic.
    stage.cluster.delete("pods", stage.namespace, pods[0]["metadata"]["name"])
    (new,) = wait_for(
        "another pod is ready",
        lambda: [pod for pod in stage.ready_pods(NAME) if not uids([pod]) & uids(pods)],
        deadline_s=START_S,
    )
    assert _texts(stage, [new]) == second

    stage.cluster.delete("loraadapters", stage.namespace, NAME)
    stage.wait_gone("loraadapters", NAME)
    for pod in stage.ready_pods(NAME):
        assert stage.complete(pod, MODEL).status == 404
        assert stage.complete(pod, NAME).status == 200
    assert uids(stage.ready_pods(NAME)) == uids([new, pods[1]])


def test_adapter_survives_a_container_that_is_restarted_in_place(adapted: Stage) -> None:
    stage = adapted
    stage.cluster.apply("loraadapters", _adapter(stage, "first"))
    paused = _service(stage, replicas=0)
    stage.apply(paused)
    deployment = wait_for(
        "the Deployment is there",
        lambda: stage.cluster.find("deployments", stage.namespace, NAME),
    )
    (worker,) = deployment["spec"]["template"]["spec"]["containers"]
    command = ["python", "-c", STRIKE_ONCE, STATE, MODEL, *worker["command"]]
    stage.apply(_service(stage, replicas=1, command=command))

    def restarted() -> list[Object]:
        return [
            pod
            for pod in stage.ready_pods(NAME)
            if pod["status"]["containerStatuses"][0]["restartCount"] == 1
        ]

    (pod,) = wait_for("the container has been restarted", restarted, deadline_s=START_S)
    # Ready, and so it has the adapter: the worker remembers, whether the operator looks or not.
    assert len(_texts(stage, [pod])) == 1
    adapter = _wait_adapter(stage, "True", "Loaded", 1)
    (entry,) = adapter["status"]["pods"]
    wait_for(
        "the status tells of the present container",
        lambda: stage.cluster.get("loraadapters", stage.namespace, NAME)["status"]["pods"],
        lambda pods: (
            [(item["uid"], item["containerID"], item["state"]) for item in pods]
            == [
                (
                    pod["metadata"]["uid"],
                    pod["status"]["containerStatuses"][0]["containerID"],
                    "Loaded",
                )
            ]
        ),
    )
    assert entry["uid"] == pod["metadata"]["uid"]


@pytest.fixture
def no_operator(stage: Stage, release: Release) -> Iterator[Callable[[], None]]:
    """Call it to have no operator run; it does again afterwards."""

    def scale(replicas: int) -> None:
        body = {"spec": {"replicas": replicas}}
        stage.cluster.merge("deployments", release.namespace, OPERATOR, body)

    def run_none() -> None:
        scale(0)
        wait_for(
            "no operator runs",
            lambda: stage.cluster.list_all("pods", release.namespace),
            lambda pods: not pods,
        )

    deployment = stage.cluster.get("deployments", release.namespace, OPERATOR)
    yield run_none
    scale(deployment["spec"]["replicas"])


def test_new_pod_has_its_adapter_while_no_operator_runs(
    adapted: Stage, no_operator: Callable[[], None]
) -> None:
    stage = adapted
    stage.apply(_service(stage, replicas=1))
    stage.wait_rolled_out(NAME)
    stage.cluster.apply("loraadapters", _adapter(stage, "first"))
    _wait_adapter(stage, "True", "Loaded", 1)
    (old,) = stage.ready_pods(NAME)
    expected = _texts(stage, [old])
    no_operator()
    stage.cluster.delete("pods", stage.namespace, old["metadata"]["name"])
    (new,) = wait_for(
        "another pod is ready",
        lambda: [pod for pod in stage.ready_pods(NAME) if not uids([pod]) & uids([old])],
        deadline_s=START_S,
    )
    assert _texts(stage, [new]) == expected


def test_adapter_that_cannot_be_loaded_keeps_no_pod_out_of_service(adapted: Stage) -> None:
    stage = adapted
    stage.cluster.apply("loraadapters", _adapter(stage, "foreign"))
    stage.apply(_service(stage, replicas=1))
    stage.wait_ready(NAME)
    _wait_adapter(stage, "False", "AdapterRefused", 0)
    (pod,) = stage.pods(NAME)
    assert is_ready(pod)
    assert stage.complete(pod, NAME).status == 200
