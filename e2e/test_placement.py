"""A model is looked at and placed before it is scheduled; what cannot fit gets no pods."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import wait_for
from services import Stage, condition

DEVICE = "octavo.dev/e2e-device"
"""Nodes need not have it: what is tested happens before the scheduler is asked."""


def _accelerator(memory: str) -> dict[str, Any]:
    return {"resource": DEVICE, "memory": memory}


def _look(stage: Stage, name: str) -> None:
    """Until the look at the model is over; skips where a kubelet tells no last words."""

    def ended() -> list[Any]:
        pods = stage.cluster.list_all("pods", stage.namespace, {"serving.octavo.dev/service": name})
        statuses = [
            item["state"]["terminated"]
            for pod in pods
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "inspection"
            for item in (pod.get("status") or {}).get("containerStatuses") or ()
            if "terminated" in item.get("state", {})
        ]
        known = (stage.service(name).get("status") or {}).get("model")
        return [{"message": "known"}] if known else statuses

    (last, *_) = wait_for("the model has been looked at", ended, bool)
    if last.get("exitCode") == 0 and not last.get("message"):
        pytest.skip("this kubelet reports no termination messages")


def test_auto_takes_one_device_for_a_small_model(stage: Stage) -> None:
    stage.apply(
        stage.manifest("placed", parallelism={"tensor": "Auto"}, accelerator=_accelerator("24Gi"))
    )
    _look(stage, "placed")
    service = stage.wait_condition("placed", "PlacementReady", "True", "Fits")
    assert service["status"]["placement"]["tensor"] == 1
    assert service["status"]["model"]["numLayers"] > 0
    deployment = stage.cluster.get("deployments", stage.namespace, "placed")
    (worker,) = deployment["spec"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {DEVICE: "1"}


def test_what_cannot_fit_is_refused_with_the_sum(stage: Stage) -> None:
    stage.apply(
        stage.manifest("too-large", parallelism={"tensor": "Auto"}, accelerator=_accelerator("1Gi"))
    )
    _look(stage, "too-large")
    service = stage.wait_condition("too-large", "Ready", "False", "DoesNotFit")
    assert "each GPU holds" in condition(service, "Ready")["message"]
    names = [
        item["metadata"]["name"] for item in stage.cluster.list_all("deployments", stage.namespace)
    ]
    assert "too-large" not in names
