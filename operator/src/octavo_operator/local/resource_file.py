"""Reading the file of `-f`: one InferenceService, its LoRAAdapters, and Secrets if need be."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo_operator.errors import LocalError, ResourceError
from octavo_operator.resources.inference_service import KIND, parse_inference_service
from octavo_operator.resources.lora_adapter import KIND as ADAPTER_KIND
from octavo_operator.resources.lora_adapter import parse_lora_adapter

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
    services = [document for document in documents if document.get("kind") == KIND]
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
    adapters = tuple(
        _read_adapter(path, document, service.name)
        for document in documents
        if document["kind"] == ADAPTER_KIND
    )
    secrets = {
        document["metadata"]["name"]: _secret_values(path, document)
        for document in documents
        if document.get("kind") == "Secret"
    }
    ignored = [
        f"{document['kind']} {(document.get('metadata') or {}).get('name', '')}"
        for document in documents
        if document.get("kind") not in (KIND, ADAPTER_KIND, "Secret")
    ]
    return ResourceFile(resource, adapters, secrets, tuple(ignored))


def explain_ignored(entry: str) -> str:
    """Why an ignored document is ignored."""
    return f"{entry} is ignored: local mode knows InferenceService, LoRAAdapter and Secret only"


def _read_adapter(path: Path, document: Mapping[str, Any], service: str) -> Mapping[str, Any]:
    resource = _with_namespace(document)
    adapter = parse_lora_adapter(resource)
    if adapter.unknown_fields:
        raise ResourceError(
            adapter.unknown_fields[0], "is not a field of LoRAAdapter", "correct or remove it"
        )
    if adapter.service != service:
        raise LocalError(
            f"{path}: LoRAAdapter {adapter.name} is for {adapter.service}, but the service of this "
            f"file is {service}; correct its spec.serviceRef.name"
        )
    return resource


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise LocalError(f"{path} cannot be read: {reason}") from error
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise LocalError(f"{path} is not valid YAML: {_one_line(error)}") from error
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise LocalError(f"{path} holds a document without a kind; give Kubernetes resources")
    return documents


def _with_namespace(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = resource.get("metadata")
    if not isinstance(metadata, Mapping):
        raise ResourceError("metadata", "is missing", "name the resource")
    return {**resource, "metadata": {**metadata, "namespace": metadata.get("namespace", "default")}}


def _secret_values(path: Path, document: Mapping[str, Any]) -> dict[str, str]:
    values = {}
    try:
        for key, encoded in (document.get("data") or {}).items():
            values[str(key)] = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise LocalError(
            f"{path}: a value of Secret {document['metadata']['name']} is not base64; "
            f"use stringData for plain text"
        ) from error
    values.update(
        {str(key): str(value) for key, value in (document.get("stringData") or {}).items()}
    )
    return values


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} at line {mark.line + 1}" if mark is not None else str(problem)
