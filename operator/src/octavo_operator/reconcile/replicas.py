"""How many pods, where that is not a fixed number: who scales, how low, and to and from zero.

Between one pod and `maxReplicas` an autoscaler decides (KEDA where it is, else an HPA) and the
operator never writes the number. Zero is the operator's: it starts the first pod when somebody
calls, and stops the last when nobody has for the whole cooldown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.address import Address
from octavo_operator.labels import FIELD_MANAGER
from octavo_operator.manifests.workload_kind import workload_kind
from octavo_operator.reconcile.workload import Workload
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.scaling import Scaling

SWITCH_MANAGER: Final = f"{FIELD_MANAGER}-switch"
"""Field manager of `replicas` on the way to and from zero; the number is not kept in force."""

_SOONEST_LOOK_S: Final = 1.0
_WAITING_LOOK_S: Final = 30.0
"""When something else than callers keeps the pods, whose end makes an event most often."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of the callers of one service.

    num_held: calls that wait for a first pod. idle_s: for how long no pod has had a request; None
    when a pod could not be asked, or there is none. activator: who holds calls, None for nobody.
    """

    num_held: int = 0
    idle_s: float | None = None
    activator: Address | None = None


NO_DEMAND: Final = Demand()


def scales_to_zero(service: InferenceService) -> bool:
    """Whether the last pod may go."""
    return service.scaling is not None and service.scaling.min_replicas == 0


def scaling_floor(scaling: Scaling, workload: Workload, *, is_loading: bool) -> int:
    """The fewest pods an autoscaler may ask for.

    Pods that load have nothing to do yet, which looks like low demand; so none is taken away until
    all are up (kserve 1247).
    """
    floor = max(scaling.min_replicas, 1)
    if is_loading and workload.exists:
        floor = max(floor, min(workload.wanted, scaling.max_replicas))
    return floor


def switch(
    service: InferenceService, live: Mapping[str, Any] | None, workload: Workload, demand: Demand
) -> Mapping[str, Any] | None:
    """The workload's number of replicas to write, as a manifest; None to leave it to others."""
    if service.scaling is None or live is None:
        return None
    replicas = (live.get("spec") or {}).get("replicas", 1)
    if replicas == 0 and (not scales_to_zero(service) or demand.num_held):
        return replicas_manifest(service, max(service.scaling.min_replicas, 1))
    if replicas > 0 and scales_to_zero(service) and _is_idle(service.scaling, workload, demand):
        return replicas_manifest(service, 0)
    return None


def next_look_s(service: InferenceService, workload: Workload, demand: Demand) -> float | None:
    """When the pods may have been idle for long enough; None when that is not to be waited for."""
    if not scales_to_zero(service) or service.scaling is None or workload.ready == 0:
        return None
    remaining_s = service.scaling.cooldown_s - (demand.idle_s or 0.0)
    return max(remaining_s, _SOONEST_LOOK_S if remaining_s > 0 else _WAITING_LOOK_S)


def _is_idle(scaling: Scaling, workload: Workload, demand: Demand) -> bool:
    is_settled = 0 < workload.wanted == workload.ready == workload.total
    return (
        is_settled
        and demand.activator is not None
        and not demand.num_held
        and demand.idle_s is not None
        and demand.idle_s >= scaling.cooldown_s
    )


def replicas_manifest(service: InferenceService, replicas: int) -> dict[str, Any]:
    """The workload with nothing but its number of replicas, to be applied as such."""
    return {
        "apiVersion": workload_kind(service).api_version,
        "kind": workload_kind(service).kind,
        "metadata": {"name": service.name, "namespace": service.namespace},
        "spec": {"replicas": replicas},
    }
