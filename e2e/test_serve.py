"""A user applies an InferenceService and gets an endpoint that answers."""

from __future__ import annotations

from cluster import wait_for
from services import ADMIN_PORT, Stage, condition, is_ready

NAME = "serve"


def test_applied_model_answers(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    service = stage.wait_ready(NAME)

    assert service["status"]["url"] == f"http://{NAME}.{stage.namespace}.svc:8000"
    assert service["status"]["summary"]["replicas"] == "1/1"
    assert condition(service, "Progressing")["reason"] == "Complete"
    (pod,) = stage.ready_pods(NAME)
    answer = stage.complete(pod, NAME)
    assert answer.status == 200, answer
    assert answer.body["usage"]["completion_tokens"] >= 1
    listed = stage.ask(pod, "/v1/models")
    assert [model["id"] for model in listed.body["data"]][:1] == [NAME]


def test_metrics_and_administrators_have_a_port_of_their_own(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    (pod,) = stage.ready_pods(NAME)
    assert stage.ask(pod, "/metrics").status == 404
    assert stage.ask(pod, "/v1/requests").status == 404
    # A NetworkPolicy may keep this test off it; who gets through still needs the operator's key.
    page = stage.ask(pod, "/metrics", port=ADMIN_PORT)
    assert page.status in (None, 200)
    assert page.status is None or "octavo_requests_total" in page.body
    assert stage.ask(pod, "/v1/requests", port=ADMIN_PORT).status in (None, 401)
    # The operator itself is let in: it reads how long the start took, asking again if need be.
    wait_for(
        "the operator has read how long the start took",
        lambda: stage.service(NAME)["status"].get("startup", {}),
        lambda told: {"load", "warmup", "total"} <= told.keys(),
    )


def test_kubectl_shows_what_a_user_looks_for(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    columns, rows = stage.cluster.table("inferenceservices", stage.namespace)
    assert columns == ["Name", "Model", "Ready", "Reason", "Replicas", "Adapters", "URL", "Age"]
    (row,) = rows
    shown = dict(zip(columns, row, strict=True))
    assert (shown["Ready"], shown["Reason"], shown["Replicas"]) == ("True", "Serving", "1/1")
    assert shown["Model"] == stage.environment.model


def test_every_default_is_stored(stage: Stage) -> None:
    """So that a GitOps diff compares equal things."""
    stored = stage.apply(stage.manifest(NAME, engine=None, rollout=None))["spec"]
    assert stored["rollout"]["maxSurge"] == 1
    assert stored["parallelism"] == {"tensor": 1, "pipeline": 1, "nodes": 1}
    assert stored["monitoring"] == {"podMonitor": True, "alerts": True}


def test_service_selects_the_ready_pods(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_ready(NAME)
    service = stage.cluster.get("services", stage.namespace, NAME)
    selected = stage.cluster.list_all("pods", stage.namespace, service["spec"]["selector"])
    assert [is_ready(pod) for pod in selected] == [True]
    assert service["spec"]["trafficDistribution"] == "PreferClose"


def test_idle_service_is_left_alone(stage: Stage) -> None:
    """No write without a change: neither the resource nor its Deployment gets a new version."""
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)

    def versions() -> tuple[str, ...]:
        deployment = stage.cluster.get("deployments", stage.namespace, NAME)
        return tuple(
            item["metadata"]["resourceVersion"] for item in (stage.service(NAME), deployment)
        )

    looks = [versions()]

    def look() -> list[tuple[str, ...]]:
        looks.append(versions())
        return looks

    # The Deployment's watch may be ahead of the pods', which brings status.startup: one write more.
    wait_for("ten looks alike", look, lambda looks: len(looks) >= 10 and len(set(looks[-10:])) == 1)
    settled = len(looks)
    wait_for("sixty more looks", look, lambda looks: len(looks) >= settled + 60)
    assert set(looks[settled:]) == {looks[settled - 1]}


def test_what_others_change_is_put_back(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    stage.cluster.merge(
        "services", stage.namespace, NAME, {"spec": {"selector": {"app": "elsewhere"}}}
    )
    stage.cluster.delete("poddisruptionbudgets", stage.namespace, NAME)
    wait_for(
        "the Service's selector is put back",
        lambda: stage.cluster.get("services", stage.namespace, NAME)["spec"]["selector"],
        lambda selector: selector.get("serving.octavo.dev/service") == NAME,
    )
    wait_for(
        "the PodDisruptionBudget is back",
        lambda: stage.cluster.find("poddisruptionbudgets", stage.namespace, NAME),
        lambda found: found is not None,
    )
