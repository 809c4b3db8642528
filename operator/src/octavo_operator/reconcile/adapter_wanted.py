"""What pods to come shall have: the list that they read at their start, and whether it is true.

Only files that a digest stands for are in it, as only those are asked of more pods than one
(`adapter_resolution`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from octavo_operator.manifests.adapter_list import WantedAdapter, adapter_list
from octavo_operator.manifests.worker_command import ADAPTER_LIST_KEY
from octavo_operator.reconcile.adapter_claims import Claims
from octavo_operator.reconcile.adapter_placement import Placed
from octavo_operator.reconcile.adapter_source import adapter_path, obstacle_to
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.worker_pod import WorkerPod


def due_list(
    world: AdapterWorld, claims: Claims, placed: Iterable[Placed]
) -> Mapping[str, Any] | None:
    """The list to write; None where it is there already, or nobody would read it."""
    service, template = claims.service, world.template
    if service is None or template is None or not template.takes_adapters:
        return None
    wanted = () if claims.obstacle is not None else placed
    found = (_wanted(one, template) for one in wanted)
    manifest = adapter_list(service, (each for each in found if each is not None))
    present = (world.list_ or {}).get("data") or {}
    # What somebody has put beside it, nobody reads.
    is_there = present.get(ADAPTER_LIST_KEY) == manifest["data"][ADAPTER_LIST_KEY]
    return None if is_there else manifest


def _wanted(one: Placed, template: WorkerPod) -> WantedAdapter | None:
    target = one.resolution.target
    if target is None:
        return None
    path = adapter_path(target.source, template)
    is_out_of_reach = path is None or obstacle_to(one.adapter, template) is not None
    return WantedAdapter(
        name=one.adapter.served_name,
        path=path or target.uri,
        revision=target.revision,
        digest=target.digest,
        # Which pods hold one that few hold is chosen when they are there.
        is_lazy=is_out_of_reach or not one.adapter.is_eager or one.adapter.replicas is not None,
    )
