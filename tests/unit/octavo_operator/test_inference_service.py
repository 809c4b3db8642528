"""Parsing InferenceServices: what is understood, and what is said about the rest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from adapter_stage import lora_adapter
from inference_services import inference_service
from octavo_operator.errors import ResourceError
from octavo_operator.resources.duration import parse_duration_s
from octavo_operator.resources.inference_service import parse_inference_service
from octavo_operator.resources.lora_adapter import parse_lora_adapter
from octavo_operator.resources.lora_capacity import AdapterImage
from octavo_operator.resources.model_uri import (
    BucketModel,
    DemoModel,
    FileModel,
    HubModel,
    ImageModel,
    ModelSource,
    VolumeModel,
    parse_model_uri,
)
from octavo_operator.resources.quantity import is_same_quantity, parse_quantity

SCALING = {"maxReplicas": 4}


def test_defaults_are_those_of_the_schema() -> None:
    service = parse_inference_service(inference_service())
    assert service.model.served_name == "chat"
    assert service.accelerator.resource == "nvidia.com/gpu"
    assert (service.parallelism.tensor, service.parallelism.pipeline) == (1, 1)
    assert service.engine.gpu_memory_utilization == Decimal("0.9")
    assert (service.engine.dtype, service.engine.max_num_seqs) == ("auto", 256)
    assert service.engine.prefix_caching
    assert service.rollout.max_surge == 1
    assert service.rollout.max_unavailable == 0
    assert service.rollout.drain_s == 60
    assert service.rollout.progress_deadline_s == 1800
    assert service.monitoring.pod_monitor
    assert service.monitoring.alerts
    assert service.unknown_fields == ()


def test_resource_filled_in_by_the_schema_is_the_same_as_a_bare_one() -> None:
    """An object read back from an API server has every default written out."""
    filled = inference_service(
        parallelism={"tensor": 1, "pipeline": 1, "nodes": 1},
        accelerator={"resource": "nvidia.com/gpu"},
        engine={
            "dtype": "auto",
            "gpuMemoryUtilization": "0.9",
            "prefixCaching": True,
            "maxNumSeqs": 256,
        },
        rollout={
            "maxSurge": 1,
            "maxUnavailable": 0,
            "drainSeconds": 60,
            "paused": False,
            "progressDeadlineSeconds": 1800,
        },
        routing={"inferencePool": False},
        monitoring={"podMonitor": True, "alerts": True},
    )
    assert parse_inference_service(filled) == parse_inference_service(inference_service())


def test_every_field_is_read() -> None:
    service = parse_inference_service(
        inference_service(
            replicas=None,
            scaling={
                "minReplicas": 0,
                "maxReplicas": 8,
                "metric": {"type": "RunningRequests", "target": 9},
                "cooldown": "1h30m",
            },
            model={
                "uri": "hf://org/name",
                "revision": "main",
                "servedName": "fine",
                "secretRef": {"name": "hub"},
            },
            parallelism={"tensor": "Auto"},
            accelerator={
                "product": "H100",
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [{"key": "a", "operator": "Exists"}],
                "resourceClaimTemplateName": "claim",
            },
            engine={"lora": {"maxAdapters": 2}, "args": ["--seed=1"], "maxModelLen": 8192},
            cache={"pvc": {"name": "models"}},
            auth={"apiKeySecretRefs": [{"name": "keys"}]},
            image="worker:2",
            template={"spec": {"priorityClassName": "high"}},
        )
    )
    assert service.scaling is not None
    assert service.scaling.cooldown_s == 5400.0
    assert service.scaling.metric.target == 9
    assert service.model.secret == "hub"
    assert service.parallelism.tensor is None
    assert service.accelerator.resource is None
    assert service.accelerator.claim_template == "claim"
    assert service.accelerator.node_selector == (("pool", "gpu"),)
    assert service.accelerator.tolerations == ({"key": "a", "operator": "Exists"},)
    assert service.engine.lora is not None
    assert (service.engine.lora.max_adapters, service.engine.lora.max_rank) == (2, 16)
    assert service.cache_claim == "models"
    assert service.api_keys == ("keys",)
    assert service.image == "worker:2"


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"model": None}, "spec.model.uri", "is missing"),
        ({"model": {"uri": 5}}, "spec.model.uri", "is 5"),
        ({"model": {"uri": "name"}}, "spec.model.uri", "has no scheme"),
        ({"model": {"uri": "ftp://a/b"}}, "spec.model.uri", "scheme is unknown"),
        ({"model": {"uri": "hf://name"}}, "spec.model.uri", "names no hub repository"),
        ({"model": {"uri": "hf://a/b/c"}}, "spec.model.uri", "names no hub repository"),
        ({"model": {"uri": "hf://a/..b"}}, "spec.model.uri", "names no hub repository"),
        ({"model": {"uri": "pvc://"}}, "spec.model.uri", "names no PersistentVolumeClaim"),
        ({"model": {"uri": "pvc://claim/../x"}}, "spec.model.uri", "leaves its root"),
        ({"model": {"uri": "oci://image"}}, "spec.model.uri", "names no image"),
        ({"model": {"uri": "s3://B"}}, "spec.model.uri", "names no bucket"),
        ({"model": {"uri": "file://relative"}}, "spec.model.uri", "not absolute"),
        ({"model": {"uri": "demo://other"}}, "spec.model.uri", "no demo model"),
        (
            {"model": {"uri": "file:///m", "revision": "main"}},
            "spec.model.revision",
            "has no revisions",
        ),
        ({"model": {"uri": "hf://a/b", "revision": "-x"}}, "spec.model.revision", "is '-x'"),
        ({"model": {"uri": "hf://a/b", "servedName": "a b"}}, "spec.model.servedName", "'a b'"),
        (
            {"model": {"uri": "hf://a/b", "secretRef": {"name": "A"}}},
            "spec.model.secretRef.name",
            "cannot be the name",
        ),
        ({"replicas": None}, "spec.replicas", "is missing"),
        ({"scaling": SCALING}, "spec.replicas", "is 1 beside scaling"),
        ({"replicas": -1}, "spec.replicas", "is -1"),
        ({"replicas": "2"}, "spec.replicas", "is '2'"),
        ({"replicas": True}, "spec.replicas", "is True"),
        ({"replicas": None, "scaling": {}}, "spec.scaling.maxReplicas", "is missing"),
        (
            {"replicas": None, "scaling": {"minReplicas": 5, "maxReplicas": 4}},
            "spec.scaling.minReplicas",
            "is 5, above maxReplicas 4",
        ),
        (
            {"replicas": None, "scaling": {**SCALING, "cooldown": "5"}},
            "spec.scaling.cooldown",
            "is '5', which is not a duration",
        ),
        (
            {"replicas": None, "scaling": {**SCALING, "cooldown": "2s"}},
            "spec.scaling.cooldown",
            "give 10 to 86400 seconds",
        ),
        (
            {
                "replicas": None,
                "scaling": {**SCALING, "metric": {"type": "KVCacheUsage", "target": 101}},
            },
            "spec.scaling.metric.target",
            "is 101",
        ),
        ({"parallelism": {"tensor": 0}}, "spec.parallelism.tensor", "is 0"),
        ({"parallelism": {"tensor": "auto"}}, "spec.parallelism.tensor", "is 'auto'"),
        ({"parallelism": {"tensor": 3, "nodes": 2}}, "spec.parallelism.nodes", "does not divide"),
        (
            {"parallelism": {"tensor": 2}, "accelerator": {"resource": "none"}},
            "spec.parallelism",
            "splits the model (tensor 2, pipeline 1) on a CPU",
        ),
        ({"accelerator": {"resource": "gpu"}}, "spec.accelerator.resource", "is 'gpu'"),
        (
            {"accelerator": {"resource": "none", "product": "H100"}},
            "spec.accelerator.product",
            "beside resource none",
        ),
        (
            {"accelerator": {"resource": "none", "memory": "80Gi"}},
            "spec.accelerator.memory",
            "beside resource none",
        ),
        ({"accelerator": {"memory": 80}}, "spec.accelerator.memory", "is 80, which is not a str"),
        ({"accelerator": {"memory": "80 GB"}}, "spec.accelerator.memory", "is not a quantity"),
        ({"accelerator": {"memory": "0Gi"}}, "spec.accelerator.memory", "is '0Gi'"),
        ({"accelerator": {"memory": "1e999"}}, "spec.accelerator.memory", "the limit is"),
        (
            {"accelerator": {"tolerations": [{"operator": "Is"}]}},
            "spec.accelerator.tolerations[0].operator",
            "is 'Is'",
        ),
        ({"engine": []}, "spec.engine", "is []"),
        ({"engine": {"maxModelLen": 8}}, "spec.engine.maxModelLen", "is 8"),
        ({"engine": {"dtype": "int8"}}, "spec.engine.dtype", "is 'int8'"),
        (
            {"engine": {"gpuMemoryUtilization": 0.9}},
            "spec.engine.gpuMemoryUtilization",
            "is 0.9, which is not a string",
        ),
        (
            {"engine": {"gpuMemoryUtilization": "1.1"}},
            "spec.engine.gpuMemoryUtilization",
            "is '1.1'",
        ),
        (
            {"engine": {"gpuMemoryUtilization": "NaN"}},
            "spec.engine.gpuMemoryUtilization",
            "is 'NaN'",
        ),
        ({"engine": {"args": "--seed"}}, "spec.engine.args", "is '--seed'"),
        (
            {"engine": {"args": ["--seed=1", "--max_model_len=4"]}},
            "spec.engine.args[1]",
            "the operator sets itself",
        ),
        (
            {"engine": {"lora": {}, "speculative": {"method": "NGram"}}},
            "spec.engine.speculative",
            "beside engine.lora",
        ),
        ({"engine": {"lora": {"maxRank": 512}}}, "spec.engine.lora.maxRank", "is 512"),
        (
            {"engine": {"lora": {"sources": [{"pvc": {"name": "a"}, "secretRef": {"name": "b"}}]}}},
            "spec.engine.lora.sources",
            "has an item with pvc and secretRef",
        ),
        ({"engine": {"lora": {"sources": [{}]}}}, "spec.engine.lora.sources", "with none"),
        (
            {"engine": {"lora": {"sources": [{"image": {"reference": "sql"}}]}}},
            "spec.engine.lora.sources[0].image.reference",
            "names no image",
        ),
        ({"rollout": {"maxSurge": 0}}, "spec.rollout.maxSurge", "are both 0"),
        ({"rollout": {"drainSeconds": 5000}}, "spec.rollout.drainSeconds", "is 5000"),
        ({"cache": {"pvc": {}}}, "spec.cache.pvc.name", "is missing"),
        ({"auth": {"apiKeySecretRefs": []}}, "spec.auth.apiKeySecretRefs", "is empty"),
        ({"image": " worker"}, "spec.image", "is ' worker'"),
        ({"template": "x"}, "spec.template", "is 'x'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_mistake_is_named_with_field_and_value(
    spec: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        parse_inference_service(inference_service(**spec))
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["Chat", "1chat", "chat-", "a.b", "c" * 53])
def test_name_that_no_service_can_bear_is_refused(name: str) -> None:
    with pytest.raises(ResourceError, match=r"^metadata\.name is"):
        parse_inference_service(inference_service(name))


@pytest.mark.parametrize(("levels", "is_taken"), [(64, True), (65, False), (900, False)])
def test_template_may_only_be_so_deep(levels: int, is_taken: bool) -> None:
    """The API server takes any depth there, and whoever walks through it calls himself."""
    template: Any = []
    for _ in range(levels - 1):
        template = {"a": template}
    if is_taken:
        assert parse_inference_service(inference_service(template=template)).template == template
        return
    with pytest.raises(ResourceError, match=r"spec\.template has .* more than 64 levels"):
        parse_inference_service(inference_service(template=template))


def test_other_kind_is_refused() -> None:
    with pytest.raises(ResourceError, match="kind is Pod of serving"):
        parse_inference_service({**inference_service(), "kind": "Pod"})


def test_unknown_fields_are_found_at_every_level_with_a_guess() -> None:
    service = parse_inference_service(
        inference_service(
            engine={"maxModelLn": 4},
            rolout={},
            auth={"apiKeySecretRefs": [{"name": "k", "key": "x"}]},
        )
    )
    assert service.unknown_fields == (
        "spec.auth.apiKeySecretRefs[0].key",
        "spec.engine.maxModelLn (did you mean maxModelLen?)",
        "spec.rolout (did you mean rollout?)",
    )


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("hf://org/name", HubModel("org/name")),
        ("pvc://claim/a/b", VolumeModel("claim", "a/b")),
        ("pvc://claim", VolumeModel("claim", "")),
        ("oci://reg.io:5000/a/b:v1", ImageModel("reg.io:5000/a/b:v1")),
        ("s3://bucket/a", BucketModel("bucket", "a")),
        ("oci://Registry.example.com/a:v1", ImageModel("Registry.example.com/a:v1")),
        ("file:///models/a", FileModel("/models/a")),
        ("demo://smollm2-135m-instruct", DemoModel("smollm2-135m-instruct")),
    ],
)
def test_model_uri(uri: str, source: ModelSource) -> None:
    assert parse_model_uri("uri", uri) == source


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5m3", "-5m", "5 m"])
def test_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("left", "right"),
    [("1Gi", "1024Mi"), ("0.5", "500m"), (1, "1"), ("1e3", "1k"), ("1.5Gi", "1536Mi")],
)
def test_same_quantity_in_other_words(left: str, right: str) -> None:
    assert is_same_quantity(left, right)


@pytest.mark.parametrize(("left", "right"), [("1G", "1Gi"), ("1", "1m"), ("x", "x"), (None, "1")])
def test_different_quantities(left: object, right: object) -> None:
    assert not is_same_quantity(left, right)


@pytest.mark.parametrize("text", ["", "Gi", "1gi", "1 Gi", True])
def test_wrong_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


def test_lora_adapter() -> None:
    adapter = parse_lora_adapter(
        {
            "apiVersion": "serving.octavo.dev/v1alpha1",
            "kind": "LoRAAdapter",
            "metadata": {"name": "sql"},
            "spec": {
                "serviceRef": {"name": "chat"},
                "servedName": "chat-sql",
                "source": {"uri": "hf://org/a", "revision": "v3", "secretRef": {"name": "hub"}},
                "placement": {"replicas": 2},
                "loadPolicy": "Lazy",
                "odd": 1,
            },
        }
    )
    assert (adapter.service, adapter.served_name, adapter.replicas) == ("chat", "chat-sql", 2)
    assert (adapter.source, adapter.revision) == (HubModel("org/a"), "v3")
    assert not adapter.is_eager
    assert adapter.unknown_fields == ("spec.odd",)


def test_sources_of_adapters_are_read_each_once() -> None:
    image = {"reference": "r.io/a/sql:v1", "pullSecretRef": {"name": "pull"}}
    sources = [{"pvc": {"name": "a"}}, {"image": image}, {"secretRef": {"name": "key"}}]
    service = parse_inference_service(
        inference_service(engine={"lora": {"sources": [*sources, *sources]}})
    )
    lora = service.engine.lora
    assert lora is not None
    assert (lora.claims, lora.secrets) == (("a",), ("key",))
    assert lora.images == (AdapterImage("r.io/a/sql:v1", "pull"),)
    assert service.unknown_fields == ()


def test_digest_of_an_adapter_is_one() -> None:
    with pytest.raises(ResourceError, match=r"spec\.source\.digest is 'abc'"):
        parse_lora_adapter(lora_adapter(digest="abc"))


def test_there_are_no_demo_adapters() -> None:
    with pytest.raises(ResourceError, match="there are no demo adapters"):
        parse_lora_adapter(lora_adapter(uri="demo://smollm2-135m-instruct"))
