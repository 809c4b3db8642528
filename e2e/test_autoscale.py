"""An autoscaler sets the number of pods, and the operator does not fight it."""

from __future__ import annotations

from cluster import wait_for
from services import Stage, condition, uids

NAME = "autoscale"
SCALING = {"minReplicas": 1, "maxReplicas": 3}


def _deployed(stage: Stage) -> int:
    live = stage.cluster.get("deployments", stage.namespace, NAME)
    return int(live["spec"]["replicas"])


def test_number_that_an_autoscaler_sets_stays(stage: Stage) -> None:
    """The part of the HPA is played here, since a cluster may serve no metrics."""
    stage.apply(stage.manifest(NAME, replicas=None, scaling=SCALING))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    hpa = stage.cluster.get("horizontalpodautoscalers", stage.namespace, NAME)["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (1, 3)
    assert hpa["scaleTargetRef"]["kind"] == "Deployment"

    if not stage.cluster.serves("custom.metrics.k8s.io"):
        told = stage.wait_condition(NAME, "FeaturesReady", "False", "MetricsAPIMissing")
        remedy = condition(told, "FeaturesReady")["message"]
        assert "helm upgrade --install prometheus-adapter" in remedy

    stage.cluster.merge("deployments", stage.namespace, NAME, {"spec": {"replicas": 2}}, "scale")
    wait_for("two pods are ready", lambda: stage.ready_pods(NAME), lambda pods: len(pods) == 2, 300)
    stage.wait_rolled_out(NAME)
    looks = []

    def look() -> int:
        looks.append(_deployed(stage))
        return len(looks)

    wait_for("sixty looks", look, lambda count: count >= 60)
    assert set(looks) == {2}
    assert before < uids(stage.pods(NAME))


def test_number_is_kept_when_scaling_is_handed_over(stage: Stage) -> None:
    stage.apply(stage.manifest(NAME, replicas=2))
    stage.wait_rolled_out(NAME)
    before = uids(stage.pods(NAME))
    stage.apply(stage.manifest(NAME, replicas=None, scaling=SCALING))
    wait_for(
        "the autoscaler is there",
        lambda: stage.cluster.find("horizontalpodautoscalers", stage.namespace, NAME),
        lambda found: found is not None,
    )
    stage.wait_rolled_out(NAME)
    assert _deployed(stage) == 2
    assert uids(stage.pods(NAME)) == before

    stage.apply(stage.manifest(NAME, replicas=1))
    stage.wait_gone("horizontalpodautoscalers", NAME)
    stage.wait_rolled_out(NAME)
    assert len(stage.pods(NAME)) == 1
