"""kopf handlers: a watch event of one of our kinds puts a service's name into a queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, LORA_ADAPTER, Kind


def register_events(
    registry: kopf.OperatorRegistry,
    add_service: Callable[[ServiceKey], None],
    add_adapter: Callable[[ServiceKey], None],
) -> None:
    """One handler a kind, for everything that can happen to it, the first listing included.

    Both are told the InferenceService that is concerned.
    """
    # Two lines for each event, in every operator, tell nobody anything.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    _register(registry, INFERENCE_SERVICE, add_service, lambda service: service["metadata"]["name"])
    _register(registry, LORA_ADAPTER, add_adapter, _service_of)


def _register(
    registry: kopf.OperatorRegistry,
    kind: Kind,
    add: Callable[[ServiceKey], None],
    service_of: Callable[[Mapping[str, Any]], str],
) -> None:
    seen: dict[tuple[str, str], object] = {}

    @kopf.on.event(
        kind.group, kind.version, kind.plural, id=f"see-{kind.plural}", registry=registry
    )
    async def see(event: Mapping[str, Any], **_: Any) -> None:
        metadata = event["object"]["metadata"]
        key = (str(metadata["namespace"]), str(metadata["name"]))
        service = (key[0], service_of(event["object"]))
        if event["type"] == "DELETED":
            seen.pop(key, None)
            add(service)
            return
        # Our own status writes come back as events; they are not worth a pass.
        relevant = _relevant(metadata)
        if event["type"] is None or seen.get(key) != relevant:
            seen[key] = relevant
            add(service)


def _service_of(adapter: Mapping[str, Any]) -> str:
    """The schema makes sure that there is one."""
    return str(adapter["spec"]["serviceRef"]["name"])


def _relevant(metadata: Mapping[str, Any]) -> object:
    """What a user or the cluster can change and the plan depends on, besides the status."""
    return (
        metadata.get("uid"),
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        tuple(sorted((metadata.get("annotations") or {}).items())),
    )
