"""InferenceService: one model served by a set of worker pods.

Knows the whole `spec`; knows nothing of the Kubernetes objects made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.labels import ANNOTATION_UPGRADE, API_VERSION
from octavo_operator.resources.accelerator import (
    Accelerator,
    Parallelism,
    parse_accelerator,
    parse_parallelism,
)
from octavo_operator.resources.engine import Engine, parse_engine
from octavo_operator.resources.fields import Fields
from octavo_operator.resources.model import Model, parse_model
from octavo_operator.resources.references import parse_claim_name, parse_secret_name
from octavo_operator.resources.rollout import Rollout, parse_rollout
from octavo_operator.resources.scaling import Scaling, parse_scaling

KIND: Final = "InferenceService"
MAX_NAME_LENGTH: Final = 52
"""Leaves room for what a Deployment appends to the names of its pods."""

_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Whether the pods are announced to Prometheus, and whether alerts are made for them."""

    pod_monitor: bool
    alerts: bool


@dataclass(frozen=True, slots=True)
class InferenceService:
    """A parsed InferenceService.

    replicas: how many pods; None when an autoscaler decides (then `scaling` is set).
    cache_claim: PersistentVolumeClaim that keeps downloads; None for a folder per pod.
    api_keys: Secrets whose every value is an accepted key; empty means no authentication.
    image: worker image the user asked for; None leaves it to the operator.
    template: pod overlay, merged into the pod the operator makes.
    upgrade: value of the upgrade annotation, or None.
    unknown_fields: paths nobody knows, which the operator did not act upon.
    """

    name: str
    namespace: str
    uid: str
    model: Model
    replicas: int | None
    scaling: Scaling | None
    parallelism: Parallelism
    accelerator: Accelerator
    engine: Engine
    cache_claim: str | None
    rollout: Rollout
    inference_pool: bool
    api_keys: tuple[str, ...]
    monitoring: Monitoring
    image: str | None
    template: Mapping[str, Any]
    upgrade: str | None
    unknown_fields: tuple[str, ...]


def parse_inference_service(resource: Mapping[str, Any]) -> InferenceService:
    """The InferenceService in `resource`, a whole custom resource; raises ResourceError."""
    top = Fields(resource, "")
    _check_kind(top)
    metadata = top.section("metadata")
    name = _parse_name(metadata)
    if not top.has("spec"):
        raise top.error("spec", "is missing", "say at least spec.model.uri and spec.replicas")
    spec = top.section("spec")
    replicas, scaling = _parse_size(spec)
    cache = spec.section("cache")
    routing = spec.section("routing")
    service = InferenceService(
        name=name,
        namespace=metadata.object_name("namespace") or "default",
        uid=metadata.string("uid") or "",
        model=parse_model(spec.section("model"), name),
        replicas=replicas,
        scaling=scaling,
        parallelism=parse_parallelism(spec.section("parallelism")),
        accelerator=parse_accelerator(spec.section("accelerator")),
        engine=parse_engine(spec.section("engine")),
        cache_claim=cache.optional_section("pvc", parse_claim_name),
        rollout=parse_rollout(spec.section("rollout")),
        inference_pool=routing.boolean("inferencePool", False),
        api_keys=_parse_auth(spec.section("auth")),
        monitoring=_parse_monitoring(spec.section("monitoring")),
        image=spec.string("image", max_length=512),
        template=spec.opaque("template"),
        upgrade=_parse_upgrade(metadata),
        unknown_fields=(),
    )
    _check_combinations(service)
    for fields in (cache, routing, spec):
        fields.note_unknown()
    return replace(service, unknown_fields=tuple(sorted(top.unknown)))


def _check_combinations(service: InferenceService) -> None:
    parallelism, tensor = service.parallelism, service.parallelism.tensor or 1
    if service.accelerator.is_cpu and (tensor > 1 or parallelism.pipeline > 1):
        raise ResourceError(
            "spec.parallelism",
            f"splits the model (tensor {tensor}, pipeline {parallelism.pipeline}) on a CPU",
            "set both to 1, or name a GPU in spec.accelerator.resource",
        )
    if service.engine.lora is not None and service.engine.speculative:
        raise ResourceError(
            "spec.engine.speculative",
            "is set beside engine.lora, but drafts would come from a model without the adapter",
            "remove one of the two",
        )


def _check_kind(top: Fields) -> None:
    api_version, kind = top.string("apiVersion"), top.string("kind")
    if (api_version, kind) != (API_VERSION, KIND):
        raise top.error(
            "kind",
            f"is {kind} of {api_version}",
            f"this operator serves {KIND} of {API_VERSION}",
        )


def _parse_name(metadata: Fields) -> str:
    name = metadata.required_string("name", "name the InferenceService")
    if len(name) > MAX_NAME_LENGTH or not _SERVICE_NAME.fullmatch(name):
        raise metadata.error(
            "name",
            f"is {name!r}, which cannot be the name of a Service",
            f"start with a letter and use at most {MAX_NAME_LENGTH} lower-case letters, digits "
            f"and '-'",
        )
    return name


def _parse_size(spec: Fields) -> tuple[int | None, Scaling | None]:
    replicas = spec.optional_integer("replicas", 0, 1000)
    scaling = spec.optional_section("scaling", parse_scaling)
    if replicas is not None and scaling is not None:
        raise spec.error(
            "replicas",
            f"is {replicas} beside scaling",
            "give one of the two: a fixed number, or bounds for an autoscaler",
        )
    if replicas is None and scaling is None:
        raise spec.error("replicas", "is missing", "give replicas (such as 1) or scaling")
    return replicas, scaling


def _parse_auth(fields: Fields) -> tuple[str, ...]:
    keys = tuple(parse_secret_name(item) for item in fields.sections("apiKeySecretRefs"))
    if fields.has("apiKeySecretRefs") and not keys:
        raise fields.error(
            "apiKeySecretRefs", "is empty", "name a Secret, or remove spec.auth to let all in"
        )
    fields.note_unknown()
    return keys


def _parse_monitoring(fields: Fields) -> Monitoring:
    monitoring = Monitoring(
        pod_monitor=fields.boolean("podMonitor", True), alerts=fields.boolean("alerts", True)
    )
    fields.note_unknown()
    return monitoring


def _parse_upgrade(metadata: Fields) -> str | None:
    return dict(metadata.string_map("annotations")).get(ANNOTATION_UPGRADE)
