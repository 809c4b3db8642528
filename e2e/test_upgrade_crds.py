"""CRDs are updated by helm, and no resource is lost or changed by it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster import ApiError
from release import CHART, Release
from services import Stage, uids

NAME = "crds"
CRD = "inferenceservices.serving.octavo.dev"


@pytest.fixture
def older_chart(tmp_path: Path) -> Path:
    """The chart as it would have been before `routing` came into the schema."""
    folder = tmp_path / "octavo"
    shutil.copytree(CHART, folder)
    path = folder / "files" / "crds" / "serving.octavo.dev_inferenceservices.yaml"
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    (version,) = crd["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["routing"]
    path.write_text(yaml.safe_dump(crd, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture
def restored(release: Release) -> Iterator[Release]:
    yield release
    release.install()


def test_crds_are_upgraded_under_running_services(
    stage: Stage, restored: Release, older_chart: Path
) -> None:
    restored.changed({}, older_chart).install()
    with pytest.raises(ApiError, match="routing"):
        stage.apply(stage.manifest(NAME, routing={"inferencePool": False}))
    stage.apply(stage.manifest(NAME))
    stage.wait_rolled_out(NAME)
    before, pods = stage.service(NAME), uids(stage.pods(NAME))

    restored.install()

    crd = stage.cluster.get("customresourcedefinitions", None, CRD)
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert "routing" in spec["properties"]
    stage.apply(stage.manifest(NAME, routing={"inferencePool": False}))
    after = stage.service(NAME)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    stage.wait_rolled_out(NAME)
    assert uids(stage.pods(NAME)) == pods


def test_rules_of_the_crd_are_enforced_with_sentences(stage: Stage) -> None:
    """A few of those that `tests/unit/manifests` evaluates; here a real API server judges."""
    wrong = [
        (stage.manifest(NAME, replicas=None), "exactly one of spec.replicas"),
        (
            stage.manifest(NAME, rollout={"maxSurge": 0, "maxUnavailable": 0}),
            "no pod could ever be replaced",
        ),
        (
            stage.manifest(NAME, parallelism={"tensor": 2}, accelerator={"resource": "none"}),
            "parallelism.tensor 1",
        ),
        (stage.manifest(NAME, engine={"args": ["--port=1"]}), "must not repeat a flag"),
        (stage.manifest("0-starts-with-a-digit"), "start with a letter"),
    ]
    for manifest, sentence in wrong:
        with pytest.raises(ApiError) as refused:
            stage.apply(manifest)
        assert refused.value.status in (400, 422)
        assert sentence in " ".join(refused.value.body.split())


def test_misspelt_field_is_refused(stage: Stage) -> None:
    """By server-side apply with HTTP 500 (Kubernetes 1.36), by other writes with 400."""
    with pytest.raises(ApiError, match="replicaz"):
        stage.apply(stage.manifest(NAME, replicaz=1))
    with pytest.raises(ApiError, match="replicaz"):
        stage.cluster.create("inferenceservices", stage.namespace, stage.manifest(NAME, replicaz=1))
    assert stage.cluster.find("inferenceservices", stage.namespace, NAME) is None
