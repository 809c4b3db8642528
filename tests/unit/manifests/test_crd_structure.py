"""The CRDs are what an API server accepts and what `kubectl explain` can explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crd_rules import rule_errors
from crd_schema import (
    CRD_FILES,
    Schema,
    crd_of_kind,
    load_crd,
    root_schema,
    structural_errors,
    walk,
)

# What `kubectl apply` may store in its last-applied annotation.
APPLY_LIMIT_BYTES = 262_144
REASONS = {
    "FieldValueInvalid",
    "FieldValueForbidden",
    "FieldValueRequired",
    "FieldValueDuplicate",
}

crds = pytest.mark.parametrize("path", CRD_FILES, ids=lambda path: path.stem)


def test_both_kinds_are_defined() -> None:
    kinds = {load_crd(path)["spec"]["names"]["kind"] for path in CRD_FILES}
    assert kinds == {"InferenceService", "LoRAAdapter"}


@crds
def test_names_agree_with_each_other_and_with_the_file(path: Path) -> None:
    crd = load_crd(path)
    spec, names = crd["spec"], crd["spec"]["names"]
    assert crd["apiVersion"] == "apiextensions.k8s.io/v1"
    assert crd["metadata"]["name"] == f"{names['plural']}.{spec['group']}"
    assert path.name == f"{spec['group']}_{names['plural']}.yaml"
    assert names["singular"] == names["kind"].lower()
    assert names["plural"] == names["singular"] + "s"
    assert names["listKind"] == names["kind"] + "List"
    assert spec["scope"] == "Namespaced"
    assert [v["name"] for v in spec["versions"] if v["served"] and v["storage"]] == ["v1alpha1"]


@crds
def test_schema_is_structural(path: Path) -> None:
    assert structural_errors(load_crd(path)) == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"type": "number"}, "type 'number' is missing or unknown"),
        ({"type": None}, "type None is missing or unknown"),
        ({"type": "array"}, "an array needs it"),
        ({"$ref": "#/x"}, "keyword $ref is not allowed"),
        ({"required": ["nothing"]}, "required field nothing"),
        ({"default": {"unknown": 1}}, "'unknown' was unexpected"),
        ({"x-kubernetes-list-type": "map"}, "list type map needs list-map-keys"),
    ],
)
def test_structural_checker_sees_damage(damage: dict[str, Any], complaint: str) -> None:
    crd = crd_of_kind("LoRAAdapter")
    spec = root_schema(crd)["properties"]["spec"]
    spec["properties"]["placement"].update(damage)
    assert any(complaint in error for error in structural_errors(crd))


@crds
def test_crd_stays_far_below_what_plain_apply_can_store(path: Path) -> None:
    """kserve 3487: a CRD that embeds a PodSpec is too large for `kubectl apply`."""
    as_applied = json.dumps(load_crd(path), separators=(",", ":"))
    assert len(as_applied.encode()) < APPLY_LIMIT_BYTES / 4


@crds
def test_every_field_is_explained(path: Path) -> None:
    silent = [
        where
        for where, node in walk(root_schema(load_crd(path)))
        if where not in {"", ".metadata"}
        and not where.endswith(("[]", "{}"))
        and not node.get("description", "").endswith(".")
    ]
    assert silent == []


@crds
def test_every_value_a_user_writes_is_bounded(path: Path) -> None:
    spec = root_schema(load_crd(path))["properties"]["spec"]
    assert [where for where, node in walk(spec) if not _is_bounded(node)] == []


def _is_bounded(node: Schema) -> bool:
    if node.get("x-kubernetes-int-or-string"):
        return "maxLength" in node
    bounds = {
        "string": {"maxLength"} if "enum" not in node else set(),
        "integer": {"minimum", "maximum", "format"},
        "array": {"maxItems", "x-kubernetes-list-type"},
        "object": {"maxProperties"} if "additionalProperties" in node else set(),
        "boolean": set(),
    }
    return bounds[node["type"]] <= set(node)


@crds
def test_every_optional_scalar_of_an_object_that_has_a_default_states_it_or_is_truly_absent(
    path: Path,
) -> None:
    """A field without a default is one whose absence means something; the list is kept here."""
    absent_means_something = {
        "InferenceService": {
            *(".model.revision", ".model.servedName", ".replicas", ".image"),
            *(".accelerator.product", ".accelerator.memory"),
            ".accelerator.resourceClaimTemplateName",
            *(".accelerator.tolerations[].key", ".accelerator.tolerations[].value"),
            *(".accelerator.tolerations[].effect", ".accelerator.tolerations[].tolerationSeconds"),
            *(".engine.maxModelLen", ".engine.quantization"),
            ".engine.speculative.draftModel.revision",
        },
        "LoRAAdapter": {".source.revision", ".source.digest"},
    }
    crd = load_crd(path)
    missing = set()
    for where, node in walk(root_schema(crd)["properties"]["spec"]):
        for name, child in node.get("properties", {}).items():
            is_scalar = child.get("type") not in {"object", "array"}
            if is_scalar and "default" not in child and name not in node.get("required", ()):
                missing.add(f"{where}.{name}")
    assert missing == absent_means_something[crd["spec"]["names"]["kind"]]


@crds
def test_rules_speak_in_sentences_and_point_at_fields(path: Path) -> None:
    for where, node in walk(root_schema(load_crd(path))):
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"].endswith("."), where
            assert "\n" not in rule["message"], where
            assert rule.get("reason", "FieldValueInvalid") in REASONS, where
            field = rule.get("fieldPath", "").lstrip(".")
            assert not field or field in node["properties"], (where, field)


@crds
def test_defaults_keep_the_rules_before_nested_defaults_are_filled_in(path: Path) -> None:
    """The API server checks a default as it stands when the CRD is created."""
    for where, node in walk(root_schema(load_crd(path))):
        if "default" in node:
            assert list(rule_errors(node["default"], node)) == [], where


@crds
def test_an_explicit_default_repeats_the_defaults_of_its_fields(path: Path) -> None:
    for where, node in walk(root_schema(load_crd(path))):
        if node.get("type") == "object" and node.get("default"):
            of_fields = {
                name: child["default"]
                for name, child in node["properties"].items()
                if "default" in child
            }
            assert node["default"] == of_fields, where


def test_inference_service_columns_tell_what_a_user_asks_first() -> None:
    (version,) = crd_of_kind("InferenceService")["spec"]["versions"]
    shown = [c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")]
    assert shown == ["Model", "Ready", "Reason", "Replicas", "Adapters", "URL", "Age"]


@crds
def test_columns_and_subresources_read_fields_that_exist(path: Path) -> None:
    crd = load_crd(path)
    (version,) = crd["spec"]["versions"]
    assert version["subresources"]["status"] == {}
    fields = {where for where, _ in walk(root_schema(crd))} | {".metadata.creationTimestamp"}
    for column in version["additionalPrinterColumns"]:
        plain = column["jsonPath"].replace('[?(@.type=="Ready")]', "[]")
        assert plain in fields, column["name"]
    for read in version["subresources"].get("scale", {}).values():
        assert read in fields


def test_scale_subresource_carries_the_selector_an_autoscaler_needs() -> None:
    (version,) = crd_of_kind("InferenceService")["spec"]["versions"]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


def test_pod_overlay_is_open_and_everything_else_is_closed() -> None:
    open_nodes = [
        where
        for kind in ("InferenceService", "LoRAAdapter")
        for where, node in walk(root_schema(crd_of_kind(kind)))
        if node.get("x-kubernetes-preserve-unknown-fields")
    ]
    assert open_nodes == [".spec.template"]
