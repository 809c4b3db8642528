"""Which LoRAAdapters of a service may be loaded at all, and why the others may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.errors import ResourceError
from octavo_operator.reconcile.adapter_status import Verdict
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.live_object import LiveObject, is_going
from octavo_operator.resources.inference_service import InferenceService, parse_inference_service
from octavo_operator.resources.lora_adapter import LoRAAdapter, parse_lora_adapter, served_name_of

REFUSALS: Final = frozenset({"InvalidSpec", "DuplicateName", "LoRANotEnabled", "ServiceInvalid"})
"""Reasons that only a user can do away with."""


@dataclass(frozen=True, slots=True)
class Claims:
    """accepted: adapters that may be loaded, each with its served name to itself. refused: others.

    obstacle: why none of the accepted can be in any pod, None where they can.
    service: as it was parsed, None where there is none, or none that is valid.
    kept_names: served names that refused ones have, and may be in pods from before.
    """

    accepted: tuple[tuple[LiveObject, LoRAAdapter], ...]
    refused: tuple[tuple[LiveObject, Verdict], ...]
    obstacle: Verdict | None
    service: InferenceService | None
    kept_names: frozenset[str]


def read_claims(world: AdapterWorld) -> Claims:
    """Of the adapters in `world` that stay, oldest first, since the first has the name."""
    service, obstacle = _read_service(world)
    taken: dict[str, str] = {}
    if service is not None:
        taken[service.model.served_name] = f"the model of InferenceService {service.name}"
    accepted: list[tuple[LiveObject, LoRAAdapter]] = []
    refused: list[tuple[LiveObject, Verdict]] = []
    kept: set[str] = set()
    for resource in sorted(world.adapters, key=_age):
        if is_going(resource):
            continue
        try:
            adapter = parse_lora_adapter(resource)
        except ResourceError as error:
            refused.append((resource, Verdict("InvalidSpec", str(error))))
            # A slip in an edit must not take away what is served.
            kept.add(served_name_of(resource))
            continue
        own = f"LoRAAdapter {adapter.name}"
        holder = taken.setdefault(adapter.served_name, own)
        if holder == own:
            accepted.append((resource, adapter))
        else:
            refused.append((resource, _duplicate(adapter, holder)))
    return Claims(tuple(accepted), tuple(refused), obstacle, service, frozenset(kept))


def _read_service(world: AdapterWorld) -> tuple[InferenceService | None, Verdict | None]:
    if world.service is None or is_going(world.service):
        sentence = (
            f"there is no InferenceService {world.name}; create it, or delete this LoRAAdapter and "
            f"create one with another serviceRef"
        )
        return None, Verdict("ServiceNotFound", sentence)
    try:
        service = parse_inference_service(world.service)
    except ResourceError as error:
        if any(pod.takes_adapters for pod in world.pods):
            # The pods of the last valid spec serve on, and so do their adapters.
            return None, None
        return None, Verdict("ServiceInvalid", f"InferenceService {world.name}: {error}")
    if service.engine.lora is None:
        sentence = (
            f"InferenceService {service.name} takes no adapters; add spec.engine.lora: {{}} to it, "
            f"which restarts its pods once"
        )
        return service, Verdict("LoRANotEnabled", sentence)
    return service, None


def _duplicate(adapter: LoRAAdapter, holder: str) -> Verdict:
    return Verdict(
        "DuplicateName",
        f"{holder} is served as {adapter.served_name} already; delete this LoRAAdapter, or create "
        f"it anew with another servedName",
    )


def _age(resource: LiveObject) -> tuple[str, str]:
    metadata = resource["metadata"]
    return str(metadata.get("creationTimestamp", "")), str(metadata["name"])
