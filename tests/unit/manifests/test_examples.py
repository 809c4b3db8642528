"""The examples are resources that a cluster accepts as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crd_rules import admission_errors
from crd_schema import REPOSITORY, crd_of_kind

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_every_example_is_there() -> None:
    assert [path.stem for path in EXAMPLES] == [
        *("autoscaled", "llama-405b-two-nodes", "llama-70b-auto", "llama-8b", "lora-adapter"),
        *("qwen-tensor-parallel", "smollm2"),
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_accepted(path: Path) -> None:
    for document in _documents(path):
        assert document["apiVersion"] == "serving.octavo.dev/v1alpha1"
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert admission_errors(crd_of_kind(document["kind"]), document) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_no_two_examples_have_the_same_name() -> None:
    """So that all of them can be applied to one namespace."""
    names = [
        (document["kind"], document["metadata"]["name"])
        for path in EXAMPLES
        for document in _documents(path)
    ]
    assert len(names) == len(set(names))


def test_adapter_example_brings_the_service_it_refers_to() -> None:
    documents = {d["kind"]: d for d in _documents(REPOSITORY / "examples" / "lora-adapter.yaml")}
    service, adapter = documents["InferenceService"], documents["LoRAAdapter"]
    assert adapter["spec"]["serviceRef"]["name"] == service["metadata"]["name"]
    assert "lora" in service["spec"]["engine"]


def test_first_example_needs_no_gpu_and_no_account() -> None:
    (document,) = _documents(REPOSITORY / "examples" / "smollm2.yaml")
    assert document["spec"] == {
        "model": {"uri": "demo://smollm2-135m-instruct", "servedName": "smollm2"},
        "replicas": 1,
        "accelerator": {"resource": "none"},
        "engine": {"maxModelLen": 2048},
    }
