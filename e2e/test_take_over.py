"""Two operators; the one that leads dies in the middle of a rollout, and nobody notices."""

from __future__ import annotations

from cluster import Object, wait_for
from history import History, frozen
from release import NAME as OPERATOR
from release import Release
from services import Stage, condition, uids
from traffic import Traffic

NAME = "takeover"
CHILDREN = ("services", "serviceaccounts", "poddisruptionbudgets", "networkpolicies")


def _holder(stage: Stage, release: Release) -> str:
    lease = stage.cluster.find("leases", release.namespace, OPERATOR)
    return str((lease or {}).get("spec", {}).get("holderIdentity") or "")


def _operators(stage: Stage, release: Release) -> list[Object]:
    labels = {"app.kubernetes.io/component": "operator"}
    return stage.cluster.list_all("pods", release.namespace, labels)


def _history(stage: Stage) -> History:
    def child(plural: str) -> str:
        live = stage.cluster.get(plural, stage.namespace, NAME)
        return frozen([live["metadata"]["uid"], live.get("spec")])

    def deployment() -> str:
        live = stage.cluster.get("deployments", stage.namespace, NAME)
        return frozen([live["metadata"]["uid"], live["spec"]])

    def readiness() -> str:
        found = condition(stage.service(NAME), "Ready")
        return frozen(found and [found["status"], found["reason"]])

    looks = {plural: lambda plural=plural: child(plural) for plural in CHILDREN}
    return History({**looks, "deployment": deployment, "ready": readiness})


def test_leader_that_dies_in_the_middle_of_a_rollout_is_not_missed(
    stage: Stage, release: Release
) -> None:
    first = wait_for("an operator leads", lambda: _holder(stage, release))
    assert len(_operators(stage, release)) == 2
    stage.apply(stage.manifest(NAME, replicas=2))
    stage.wait_rolled_out(NAME)
    before = uids(stage.ready_pods(NAME))
    changed = stage.manifest(NAME, replicas=2)
    changed["spec"]["engine"]["maxNumSeqs"] = 8

    with Traffic(stage, NAME) as traffic, _history(stage) as history:
        traffic.wait_answers(5)
        stage.apply(changed)
        wait_for(
            "a pod of the new template is there",
            lambda: uids(stage.pods(NAME)) - before,
        )
        assert before & uids(stage.pods(NAME)), "the rollout is over already"
        stage.cluster.delete("pods", release.namespace, first, gracePeriodSeconds=0)
        # Asked for while nobody leads.
        changed["spec"]["replicas"] = 3
        stage.apply(changed)
        second = wait_for(
            "another operator leads",
            lambda: _holder(stage, release),
            lambda holder: holder not in ("", first),
        )
        assert second in {pod["metadata"]["name"] for pod in _operators(stage, release)}
        stage.wait_rolled_out(NAME)
        traffic.wait_answers(5)

    assert traffic.failures == []
    after = stage.ready_pods(NAME)
    assert len(after) == 3
    assert not uids(after) & before
    assert history.flaps() == {}
    # The first template, the second, and one pod more; all others as they were made.
    assert len(history.states.pop("deployment")) == 3
    assert {name: len(states) for name, states in history.states.items()} == dict.fromkeys(
        (*CHILDREN, "ready"), 1
    )
    sets = stage.cluster.list_all(
        "replicasets", stage.namespace, {"serving.octavo.dev/service": NAME}
    )
    assert len(sets) == 2
