"""LoRAAdapter: an adapter to be loaded into the pods of an InferenceService."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.labels import ANNOTATION_RESOLVE, API_VERSION
from octavo_operator.resources.fields import Fields
from octavo_operator.resources.model import parse_served_name
from octavo_operator.resources.model_uri import DemoModel, ModelSource, parse_model_uri
from octavo_operator.resources.references import parse_secret_name

KIND: Final = "LoRAAdapter"
LOAD_POLICIES: Final = ("Eager", "Lazy")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LoRAAdapter:
    """A parsed LoRAAdapter.

    service: the InferenceService in the same namespace that serves it.
    digest: what its files must have, None for whatever is there.
    replicas: pods to load it into; None is all of them.
    request: value of the annotation that has the source looked up again, empty for none.
    is_eager: loaded before a pod takes traffic.
    """

    name: str
    namespace: str
    service: str
    served_name: str
    uri: str
    source: ModelSource
    revision: str | None
    digest: str | None
    secret: str | None
    replicas: int | None
    is_eager: bool
    request: str
    unknown_fields: tuple[str, ...]


def parse_lora_adapter(resource: Mapping[str, Any]) -> LoRAAdapter:
    """The LoRAAdapter in `resource`, a whole custom resource; raises ResourceError."""
    top = Fields(resource, "")
    api_version, kind = top.string("apiVersion"), top.string("kind")
    if (api_version, kind) != (API_VERSION, KIND):
        raise top.error("kind", f"is {kind} of {api_version}", f"expected {KIND} of {API_VERSION}")
    metadata, spec = top.section("metadata"), top.section("spec")
    name = metadata.required_object_name("name", "name the LoRAAdapter")
    reference, source = spec.section("serviceRef"), spec.section("source")
    placement = spec.section("placement")
    uri = source.required_string("uri", "say where the adapter is, such as hf://ORG/ADAPTER")
    return LoRAAdapter(
        name=name,
        namespace=metadata.object_name("namespace") or "default",
        service=reference.required_object_name("name", "name an InferenceService"),
        served_name=parse_served_name(spec) or name,
        uri=uri,
        source=_parse_source(source, uri),
        revision=source.string("revision", max_length=256),
        digest=_parse_digest(source),
        secret=source.optional_section("secretRef", parse_secret_name),
        replicas=_parse_placement(placement),
        is_eager=(spec.choice("loadPolicy", LOAD_POLICIES) or LOAD_POLICIES[0]) == "Eager",
        request=dict(metadata.string_map("annotations")).get(ANNOTATION_RESOLVE, ""),
        unknown_fields=_unknown(top, (reference, source, placement, spec)),
    )


def served_name_of(resource: Mapping[str, Any]) -> str:
    """As :func:`parse_lora_adapter` reads it, also of a resource that has something wrong."""
    return str((resource.get("spec") or {}).get("servedName") or resource["metadata"]["name"])


def _parse_source(fields: Fields, uri: str) -> ModelSource:
    source = parse_model_uri(fields.path_of("uri"), uri)
    if isinstance(source, DemoModel):
        remedy = "use hf://, pvc://, oci://, s3:// or file://"
        raise fields.error("uri", f"is {uri!r}, and there are no demo adapters", remedy)
    return source


def _parse_digest(fields: Fields) -> str | None:
    digest = fields.string("digest", max_length=80)
    if digest is not None and not _DIGEST.fullmatch(digest):
        remedy = "give it as status.resolvedDigest has it: sha256: and 64 hexadecimal digits"
        raise fields.error("digest", f"is {digest!r}", remedy)
    return digest


def _parse_placement(fields: Fields) -> int | None:
    if fields.raw("replicas") in (None, "All"):
        return None
    return fields.optional_integer("replicas", 1, 1000)


def _unknown(top: Fields, sections: tuple[Fields, ...]) -> tuple[str, ...]:
    for section in sections:
        section.note_unknown()
    return tuple(sorted(top.unknown))
