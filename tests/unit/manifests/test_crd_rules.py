"""Every CEL rule and every bound, on samples that are accepted and samples that are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from celpy.evaluation import CELEvalError

from crd_rules import admission_errors, evaluate
from crd_schema import crd_of_kind, root_schema, walk, with_defaults
from octavo_operator.resources.inference_service import parse_inference_service

SERVICE = crd_of_kind("InferenceService")
ADAPTER = crd_of_kind("LoRAAdapter")
DIGEST = "@sha256:" + "a" * 64


def service(**changes: Any) -> dict[str, Any]:
    """A minimal InferenceService; ``changes`` by dotted path with ``__``, None removes."""
    return _changed({"model": {"uri": "hf://Qwen/Qwen3-8B"}, "replicas": 1}, changes, "chat")


def adapter(**changes: Any) -> dict[str, Any]:
    """A minimal LoRAAdapter; ``changes`` as in `service`."""
    spec = {
        "serviceRef": {"name": "chat"},
        "servedName": "chat-sql",
        "source": {"uri": "hf://org/adapter"},
    }
    return _changed(spec, changes, "sql")


def _changed(spec: dict[str, Any], changes: dict[str, Any], name: str) -> dict[str, Any]:
    name = changes.pop("name", name)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = spec
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return {"apiVersion": "serving.octavo.dev/v1alpha1", "metadata": {"name": name}, "spec": spec}


SCALED: dict[str, Any] = {"replicas": None, "scaling": {"maxReplicas": 4}}

ACCEPTED_SERVICES: list[dict[str, Any]] = [
    {},
    {"replicas": 0},
    SCALED,
    {**SCALED, "scaling__minReplicas": 4},
    {**SCALED, "scaling__minReplicas": 0},
    {**SCALED, "scaling__metric": {"type": "KVCacheUsage", "target": 100}},
    {**SCALED, "scaling__metric": {"target": 101}},
    {**SCALED, "scaling__cooldown": "10s"},
    {**SCALED, "scaling__cooldown": "24h"},
    *(
        {"model__uri": uri}
        for uri in (
            "hf://meta-llama/Llama-3.1-8B-Instruct",
            "pvc://models",
            "pvc://models/qwen3/8b",
            "oci://registry.example.com:5000/models/qwen:v1",
            f"oci://ghcr.io/org/model{DIGEST}",
            "s3://bucket/prefix/model",
            "file:///models/qwen",
            "file:///my models/qwen",
            "oci://Registry.example.com/models/qwen:v1",
            "demo://smollm2-135m-instruct",
        )
    ),
    {"model__revision": "refs/pr/1"},
    {"model__secretRef": {"name": "hf-token"}},
    {"model__uri": "s3://bucket/x", "model__secretRef": {"name": "aws"}},
    {"model__servedName": "org/name:v1"},
    {"parallelism__tensor": "Auto"},
    {"parallelism": {"tensor": 8, "pipeline": 2, "nodes": 2}},
    {"parallelism__tensor": 64},
    {"accelerator__resource": "none"},
    {"accelerator__resource": "none", "parallelism__tensor": "Auto"},
    {"accelerator__resource": "amd.com/gpu", "parallelism__tensor": 4},
    {"accelerator__resource": "gpu." * 63 + "x/" + "y" * 63},
    {"accelerator__resourceClaimTemplateName": "h100"},
    {"accelerator__nodeSelector": {"pool": "gpu"}},
    {"accelerator__memory": "80Gi"},
    {"accelerator__memory": "139.8Gi"},
    {"accelerator__memory": "0.5Ti"},
    {"accelerator__tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "yes"}]},
    {"engine__gpuMemoryUtilization": "1.0"},
    {"engine__gpuMemoryUtilization": "0.05"},
    {"engine__lora": {}},
    {
        "engine__lora": {
            "sources": [
                {"pvc": {"name": "adapters"}},
                {"image": {"reference": "r.io/a/sql:v1", "pullSecretRef": {"name": "pull"}}},
                {"secretRef": {"name": "token"}},
            ]
        }
    },
    {"engine__speculative": {"method": "NGram"}},
    {"engine__speculative": {"method": "Draft", "draftModel": {"uri": "hf://Qwen/Qwen3-0.6B"}}},
    {"engine__args": ["--seed=1", "--max-num-batched-tokens", "4096", "--hostname-like"]},
    {"cache__pvc": {"name": "models"}},
    {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
    {"auth__apiKeySecretRefs": [{"name": "a"}, {"name": "b"}]},
    {"image": f"ghcr.io/octavo/worker:0.1.0{DIGEST}"},
    {"template": {"spec": {"priorityClassName": "high", "anything": [1, {"deep": True}]}}},
    {"name": "a" * 52},
]

REFUSED_SERVICES: list[tuple[dict[str, Any], str]] = [
    ({"name": "a" * 53}, "metadata.name must be at most 52"),
    ({"name": "1chat"}, "start with a letter"),
    ({"name": "chat.v1"}, "metadata.name must be"),
    ({"replicas": None}, "Set exactly one of spec.replicas"),
    ({"scaling": {"maxReplicas": 2}}, "Set exactly one of spec.replicas"),
    ({**SCALED, "scaling__minReplicas": 5}, "minReplicas must not be larger"),
    (
        {**SCALED, "scaling__metric": {"type": "KVCacheUsage", "target": 101}},
        "percentage for KVCacheUsage",
    ),
    ({**SCALED, "scaling__cooldown": "9s"}, "cooldown must be between"),
    ({**SCALED, "scaling__cooldown": "25h"}, "cooldown must be between"),
    ({**SCALED, "scaling__cooldown": "5 min"}, "does not match"),
    ({"model__uri": "Qwen/Qwen3-8B"}, "model.uri must start with hf://"),
    ({"model__uri": "http://example.com/x"}, "model.uri must start with hf://"),
    ({"model__uri": "hf://Qwen3-8B"}, "must be hf://ORG/NAME"),
    ({"model__uri": "hf://Qwen/Qwen3-8B/main"}, "must be hf://ORG/NAME"),
    ({"model__uri": "pvc:///models"}, "must be pvc://CLAIM/PATH"),
    ({"model__uri": "oci://Just_A_Name"}, "must name an image with its registry"),
    ({"model__uri": "s3:///prefix"}, "must be s3://BUCKET/PREFIX"),
    ({"model__uri": "file://models/x"}, "must hold an absolute path"),
    ({"model__uri": "demo://Some/Model"}, "must name a demo model"),
    ({"model__uri": "pvc://models/../../etc"}, "must not contain '..'"),
    ({"model__uri": "hf://a/" + "b" * 512}, "is too long"),
    ({"model__uri": "pvc://models//x"}, "must be pvc://CLAIM/PATH"),
    ({"model__uri": "s3://bucket//x"}, "must be s3://BUCKET/PREFIX"),
    ({"model__uri": "s3://" + "b" * 64 + "/x"}, "must be s3://BUCKET/PREFIX"),
    ({"model__uri": "oci://-registry/x:v1"}, "must name an image with its registry"),
    ({"model__uri": "s3://bucket/x "}, "must not contain line breaks or end with a blank"),
    ({"model__uri": "file:///m\nx"}, "must not contain line breaks or end with a blank"),
    ({"model__secretRef": {"name": "HF_TOKEN"}}, "does not match"),
    ({"engine__lora": {"sources": [{"secretRef": {"name": "a b"}}]}}, "does not match"),
    (
        {"model__uri": "demo://smollm2-135m-instruct", "model__revision": "main"},
        "model.revision is for hf:// models only",
    ),
    (
        {"model__uri": "pvc://models/x", "model__secretRef": {"name": "s"}},
        "model.secretRef is for hf://, s3:// and oci://",
    ),
    ({"model__servedName": "-chat"}, "does not match"),
    ({"model__servedName": "a b"}, "does not match"),
    ({"parallelism__tensor": 0}, "tensor must be an integer from 1 to 64, or Auto"),
    ({"parallelism__tensor": 65}, "tensor must be an integer from 1 to 64, or Auto"),
    ({"parallelism__tensor": "auto"}, "tensor must be an integer from 1 to 64, or Auto"),
    ({"parallelism": {"tensor": 3, "nodes": 2}}, "parallelism.nodes must divide"),
    ({"parallelism": {"tensor": "Auto", "nodes": 2}}, "parallelism.nodes must divide"),
    ({"accelerator__resource": "none", "parallelism__tensor": 2}, "(CPU) serves with"),
    ({"accelerator__resource": "none", "parallelism__pipeline": 2}, "(CPU) serves with"),
    ({"accelerator__resource": "gpu"}, "must be an extended resource"),
    ({"accelerator": {"resource": "none", "product": "H100"}}, "none means CPU"),
    ({"accelerator": {"resource": "none", "memory": "80Gi"}}, "none means CPU"),
    ({"accelerator__memory": "80 GB"}, "memory"),
    ({"accelerator__memory": "0.0Gi"}, "accelerator.memory must be above 0"),
    (
        {"accelerator": {"resource": "none", "resourceClaimTemplateName": "h100"}},
        "none means CPU",
    ),
    (
        {"accelerator__tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "leave value out",
    ),
    ({"accelerator__tolerations": [{"value": "b"}]}, "without a key must have operator Exists"),
    ({"engine__gpuMemoryUtilization": "0.0"}, "gpuMemoryUtilization must be above 0"),
    ({"engine__gpuMemoryUtilization": "1.1"}, "does not match"),
    ({"engine__gpuMemoryUtilization": 0.9}, "is not of type 'string'"),
    ({"engine__maxModelLen": 15}, "less than the minimum"),
    ({"engine__dtype": "float8"}, "is not one of"),
    ({"engine__speculative": {"method": "Draft"}}, "draftModel is required with method Draft"),
    (
        {"engine__speculative": {"method": "NGram", "draftModel": {"uri": "hf://a/b"}}},
        "forbidden with method NGram",
    ),
    (
        {"engine__speculative": {"method": "Draft", "draftModel": {"uri": "Qwen/Qwen3"}}},
        "draftModel.uri must start with",
    ),
    (
        {
            "engine__speculative": {
                "method": "Draft",
                "draftModel": {"uri": "pvc://a/b", "revision": "main"},
            }
        },
        "draftModel.revision is for hf://",
    ),
    (
        {"engine__lora": {"sources": [{"pvc": {"name": "a"}, "secretRef": {"name": "b"}}]}},
        "exactly one of pvc, image and secretRef",
    ),
    ({"engine__lora": {"sources": [{}]}}, "exactly one of pvc, image and secretRef"),
    (
        {"engine__speculative": {"method": "NGram"}, "engine__lora": {}},
        "cannot be used together",
    ),
    ({"engine__args": ["--port=1"]}, "must not repeat a flag that the operator sets"),
    ({"engine__args": ["--api-key", "x"]}, "must not repeat a flag that the operator sets"),
    ({"engine__args": ["--no-enable-prefix-caching"]}, "must not repeat a flag"),
    ({"engine__args": ["x"] * 65}, "is too long"),
    ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "must not both be 0"),
    ({"rollout": {"maxSurge": 0}}, "must not both be 0"),
    ({"auth": {"apiKeySecretRefs": []}}, "should be non-empty"),
    ({"auth__apiKeySecretRefs": [{"name": "a"}, {"name": "a"}]}, "duplicate entries"),
    ({"cache": {}}, "'pvc' is a required property"),
    ({"replicas": -1}, "less than the minimum"),
    ({"replicas": 1001}, "greater than the maximum"),
    ({"engine__maxModelLength": 1}, "'maxModelLength' was unexpected"),
    ({"model": {}}, "'uri' is a required property"),
    ({"image": "not an image"}, "does not match"),
]

ACCEPTED_ADAPTERS: list[dict[str, Any]] = [
    {},
    {"placement__replicas": 3},
    {"placement__replicas": "All"},
    {"loadPolicy": "Lazy"},
    {"source": {"uri": "pvc://adapters/sql"}},
    {"source": {"uri": "s3://bucket/sql", "secretRef": {"name": "aws"}}},
    {"source": {"uri": "oci://ghcr.io/org/sql:v3"}},
    {"source": {"uri": "file:///adapters/sql"}},
    {"source__revision": "v3"},
]

REFUSED_ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"source__uri": "demo://sql-adapter"}, "source.uri must start with hf://"),
    ({"source__uri": "hf://adapter"}, "must be hf://ORG/NAME"),
    ({"source__uri": "pvc://adapters"}, "must be pvc://CLAIM/PATH"),
    ({"source__uri": "oci://nothing"}, "must name an image with its registry"),
    ({"source__uri": "s3://bucket"}, "must be s3://BUCKET/PREFIX"),
    ({"source__uri": "file://x/adapter"}, "must hold an absolute path"),
    ({"source__uri": "pvc://adapters//sql"}, "must be pvc://CLAIM/PATH"),
    ({"source__uri": "s3://bucket//sql"}, "must be s3://BUCKET/PREFIX"),
    ({"source__uri": "file:///sql\t"}, "must not contain line breaks or end with a blank"),
    ({"source__secretRef": {"name": "HF_TOKEN"}}, "does not match"),
    ({"source__uri": "hf://a/b..c"}, "must not contain '..'"),
    ({"source": {"uri": "pvc://a/b", "revision": "v1"}}, "source.revision is for hf://"),
    ({"source": {"uri": "pvc://a/b", "secretRef": {"name": "s"}}}, "source.secretRef is for"),
    ({"placement__replicas": 0}, "must be All, or an integer from 1 to 1000"),
    ({"placement__replicas": "Some"}, "must be All, or an integer from 1 to 1000"),
    ({"loadPolicy": "Never"}, "is not one of"),
    ({"servedName": None}, "'servedName' is a required property"),
    ({"serviceRef__namespace": "other"}, "'namespace' was unexpected"),
]


@pytest.mark.parametrize("changes", ACCEPTED_SERVICES, ids=str)
def test_service_is_accepted(changes: dict[str, Any]) -> None:
    """By the operator too: what it refuses after admission is found out late."""
    sample = service(**copy.deepcopy(changes))
    assert admission_errors(SERVICE, sample) == []
    named = {**sample, "kind": "InferenceService"}
    assert parse_inference_service(named).unknown_fields == ()


@pytest.mark.parametrize(("changes", "sentence"), REFUSED_SERVICES, ids=str)
def test_service_is_refused_for_one_reason_only(changes: dict[str, Any], sentence: str) -> None:
    errors = admission_errors(SERVICE, service(**copy.deepcopy(changes)))
    assert len(errors) == 1, errors
    assert sentence in errors[0]


@pytest.mark.parametrize("changes", ACCEPTED_ADAPTERS, ids=str)
def test_adapter_is_accepted(changes: dict[str, Any]) -> None:
    assert admission_errors(ADAPTER, adapter(**copy.deepcopy(changes))) == []


@pytest.mark.parametrize(("changes", "sentence"), REFUSED_ADAPTERS, ids=str)
def test_adapter_is_refused_for_one_reason_only(changes: dict[str, Any], sentence: str) -> None:
    errors = admission_errors(ADAPTER, adapter(**copy.deepcopy(changes)))
    assert len(errors) == 1, errors
    assert sentence in errors[0]


def test_names_of_an_adapter_cannot_be_changed() -> None:
    old = adapter()
    assert admission_errors(ADAPTER, adapter(loadPolicy="Lazy"), old) == []
    (error,) = admission_errors(ADAPTER, adapter(serviceRef={"name": "other"}), old)
    assert "serviceRef cannot be changed" in error
    (error,) = admission_errors(ADAPTER, adapter(servedName="other"), old)
    assert "servedName cannot be changed" in error


@pytest.mark.parametrize("kind", ["InferenceService", "LoRAAdapter"])
def test_every_rule_is_broken_by_some_sample(kind: str) -> None:
    refused = REFUSED_SERVICES if kind == "InferenceService" else REFUSED_ADAPTERS
    sentences = {sentence for _, sentence in refused} | {
        "servedName cannot be changed",
        "serviceRef cannot be changed",
    }
    untested = [
        rule["message"]
        for _, node in walk(root_schema(crd_of_kind(kind)))
        for rule in node.get("x-kubernetes-validations", ())
        if not any(sentence in rule["message"] for sentence in sentences)
    ]
    assert untested == []


def test_rule_that_cannot_be_evaluated_raises() -> None:
    with pytest.raises(CELEvalError):
        evaluate("self.nothing > 1", {"something": 1})


def test_replicas_is_not_defaulted_so_that_scaling_stays_possible() -> None:
    filled = with_defaults(service(**SCALED), root_schema(SERVICE))
    assert "replicas" not in filled["spec"]
    assert filled["spec"]["scaling"]["minReplicas"] == 1


def test_minimal_service_is_filled_in_whole() -> None:
    filled = with_defaults(service(), root_schema(SERVICE))["spec"]
    assert filled == {
        "model": {"uri": "hf://Qwen/Qwen3-8B"},
        "replicas": 1,
        "parallelism": {"tensor": 1, "pipeline": 1, "nodes": 1},
        "accelerator": {"resource": "nvidia.com/gpu"},
        "engine": {
            "dtype": "auto",
            "gpuMemoryUtilization": "0.9",
            "prefixCaching": True,
            "maxNumSeqs": 256,
        },
        "rollout": {
            "maxSurge": 1,
            "maxUnavailable": 0,
            "drainSeconds": 60,
            "paused": False,
            "progressDeadlineSeconds": 1800,
            "whenNoSpareGPU": "Replace",
        },
        "routing": {"inferencePool": False},
        "monitoring": {"podMonitor": True, "alerts": True},
    }


def test_minimal_adapter_is_filled_in_whole() -> None:
    filled = with_defaults(adapter(), root_schema(ADAPTER))["spec"]
    assert filled["placement"] == {"replicas": "All"}
    assert filled["loadPolicy"] == "Eager"
