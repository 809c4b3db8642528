"""Reading the file of `-f`: one InferenceService, its LoRAAdapters, and Secrets if need be."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo_operator.errors import LocalError, ResourceError
from octavo_operator.local.resource_yaml import parse_documents
from octavo_operator.resources.inference_service import (
    KIND,
    InferenceService,
    parse_inference_service,
)
from octavo_operator.resources.lora_adapter import KIND as ADAPTER_KIND
from octavo_operator.resources.lora_adapter import parse_lora_adapter

_SECRET: Final = "Secret"
_SECRET_KEY: Final = re.compile(r"[-._A-Za-z0-9]{1,253}")

Secrets = Mapping[str, Mapping[str, str]]
"""Values by name of the Secret and key."""


@dataclass(frozen=True, slots=True)
class ResourceFile:
    """What the file says; `ignored` are kinds that local mode does nothing with."""

    resource: Mapping[str, Any]
    adapters: tuple[Mapping[str, Any], ...]
    secrets: Secrets
    ignored: tuple[str, ...]


def read_resource_file(path: Path) -> ResourceFile:
    """Raises LocalError or ResourceError with one sentence that names the file or the field.

    Unknown fields are refused here: no schema stands behind the file that would point them out.
    """
    documents = _documents(path)
    services = [document for document in documents if document["kind"] == KIND]
    if len(services) != 1:
        raise LocalError(
            f"{path} holds {len(services)} InferenceServices; local mode runs exactly one"
        )
    resource = _with_namespace(services[0])
    service = parse_inference_service(resource)
    if service.unknown_fields:
        raise ResourceError(
            service.unknown_fields[0], "is not a field of InferenceService", "correct or remove it"
        )
    known = (KIND, ADAPTER_KIND, _SECRET)
    _refuse_namesakes(path, [document for document in documents if document["kind"] in known])
    adapters = tuple(
        _read_adapter(path, document, service)
        for document in documents
        if document["kind"] == ADAPTER_KIND
    )
    secrets = {
        _name(document): _secret_values(path, document)
        for document in documents
        if document["kind"] == _SECRET
    }
    ignored = [
        f"{document['kind']} {_name(document)}".rstrip()
        for document in documents
        if document["kind"] not in known
    ]
    return ResourceFile(resource, adapters, secrets, tuple(ignored))


def explain_ignored(entry: str) -> str:
    """Why an ignored document is ignored."""
    return f"{entry} is ignored: local mode knows InferenceService, LoRAAdapter and Secret only"


def _refuse_namesakes(path: Path, documents: list[dict[str, Any]]) -> None:
    """Of two resources of a name the second would replace the first."""
    counts = Counter((document["kind"], _name(document)) for document in documents)
    for (kind, name), count in counts.items():
        if not name:
            raise LocalError(f"{path} holds a {kind} without metadata.name; name it")
        if count > 1:
            raise LocalError(f"{path} holds {count} {kind}s named {name}; rename all but one")


def _name(document: Mapping[str, Any]) -> str:
    """Empty where there is none."""
    metadata = document.get("metadata")
    return str(metadata.get("name") or "") if isinstance(metadata, Mapping) else ""


def _read_adapter(
    path: Path, document: Mapping[str, Any], service: InferenceService
) -> Mapping[str, Any]:
    resource = _with_namespace(document)
    try:
        adapter = parse_lora_adapter(resource)
    except ResourceError as error:  # there may be several
        raise LocalError(f"{path}: LoRAAdapter {_name(document)}: {error}") from error
    if adapter.unknown_fields:
        raise LocalError(
            f"{path}: LoRAAdapter {adapter.name}: {adapter.unknown_fields[0]} is not a field of "
            "LoRAAdapter; correct or remove it"
        )
    if adapter.service != service.name:
        raise LocalError(
            f"{path}: LoRAAdapter {adapter.name} is for {adapter.service}, but the service of this "
            f"file is {service.name}; correct its spec.serviceRef.name"
        )
    if adapter.namespace != service.namespace:
        raise LocalError(
            f"{path}: LoRAAdapter {adapter.name} is in namespace {adapter.namespace}, but the "
            f"service of this file is in {service.namespace}; give both one metadata.namespace"
        )
    return resource


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise LocalError(f"{path} cannot be read: {reason}") from error
    try:
        documents = parse_documents(text)
    except ValueError as problem:
        raise LocalError(f"{path} is not valid YAML: {problem}") from problem
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise LocalError(f"{path} holds a document without a kind; give Kubernetes resources")
    return documents


def _with_namespace(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = resource.get("metadata")
    if not isinstance(metadata, Mapping):
        raise ResourceError("metadata", "is missing", "name the resource")
    return {
        **resource,
        "metadata": {**metadata, "namespace": metadata.get("namespace") or "default"},
    }


def _secret_values(path: Path, document: Mapping[str, Any]) -> dict[str, str]:
    where = f"{path}: Secret {_name(document)}"
    try:
        values = {
            key: base64.b64decode(encoded, validate=True).decode()
            for key, encoded in _texts(where, document, "data").items()
        }
    except ValueError as error:
        raise LocalError(
            f"{where}: a value of its data is not base64; use stringData for plain text"
        ) from error
    return {**values, **_texts(where, document, "stringData")}


def _texts(where: str, document: Mapping[str, Any], field: str) -> Mapping[str, str]:
    found = document.get(field) or {}
    if not isinstance(found, Mapping):
        raise LocalError(f"{where}: {field} is no mapping; give keys with their values")
    for key, value in found.items():
        if not _SECRET_KEY.fullmatch(key):
            raise LocalError(
                f"{where}: {key!r} cannot be a key; use letters, digits, '-', '_', '.'"
            )
        if not isinstance(value, str):
            raise LocalError(f"{where}: {field}.{key} is no text; quote its value")
    return found
