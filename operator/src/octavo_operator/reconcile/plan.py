"""From one look at the cluster to the writes that bring it closer to the spec.

Level-based: the plan depends on what is there, not on what happened. Applying a plan and planning
again gives an empty plan, unless the cluster has moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.labels import ANNOTATION_REPLICAS_OWNER, FIELD_MANAGER
from octavo_operator.manifests.kinds import (
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    JOB,
    SCALED_OBJECT,
    Kind,
    kind_of,
)
from octavo_operator.manifests.workload_kind import workload_kind
from octavo_operator.placement.decision import Standing
from octavo_operator.reconcile.children import OPERATOR, inspection_children, wanted_children
from octavo_operator.reconcile.drift import is_applied
from octavo_operator.reconcile.features import report_features
from octavo_operator.reconcile.inspection import inspection_jobs
from octavo_operator.reconcile.live_object import LiveObject, annotations_of, is_going
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.pinning import pin_template, worker_image
from octavo_operator.reconcile.placing import LOOK_AGAIN_S, Placed, place
from octavo_operator.reconcile.pod_problems import PodProblem, pod_problems
from octavo_operator.reconcile.replicas import (
    SWITCH_MANAGER,
    Demand,
    next_look_s,
    replicas_manifest,
    switch,
)
from octavo_operator.reconcile.rollback import choose_revision
from octavo_operator.reconcile.startup import startup_status
from octavo_operator.reconcile.status import (
    Findings,
    Obstacle,
    invalid_status,
    is_same_status,
    service_status,
)
from octavo_operator.reconcile.stride import choose_stride
from octavo_operator.reconcile.workload import Workload, read_workload
from octavo_operator.reconcile.workload_object import (
    followers,
    former_workload,
    own_workloads,
    workload_of,
)
from octavo_operator.resources.inference_service import InferenceService, parse_inference_service

HANDOVER_MANAGER: Final = f"{FIELD_MANAGER}-handover"
"""Second field manager, used once per hand-over of `replicas` to an autoscaler."""

_AUTOSCALERS: Final = (HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT)


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a manifest under `manager`."""

    manifest: Mapping[str, Any]
    manager: str = FIELD_MANAGER


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly one object, known by its uid."""

    kind: Kind
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Writes, in order; `status` is None when the present one is right.

    look_again_s: when time alone may change what is due; None when only events can.
    wants_nodes: a plan that knew the cluster's nodes might be another.
    """

    applies: tuple[Apply, ...] = ()
    deletes: tuple[Delete, ...] = ()
    status: Mapping[str, Any] | None = None
    look_again_s: float | None = None
    wants_nodes: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.applies and not self.deletes and self.status is None


def plan(
    observed: Observed,
    default_image: str,
    now: datetime,
    obstacle: Obstacle | None = None,
) -> Plan:
    """The writes that are due. A resource on its way out gets none: its children follow it.

    `obstacle` is what the API said when the last plan was carried out; it goes into the status.
    """
    if is_going(observed.resource):
        return Plan()
    name = observed.resource["metadata"]["name"]
    present = own_workloads(observed)
    live = present[0] if present else None
    try:
        said = parse_inference_service(observed.resource)
        placed = place(said, observed, present)
        service = placed.service
        live = workload_of(service, present)
        workload = read_workload(service, live)
        pinned = pin_template(said, service, live, default_image, observed.admin_key_sha256)
    except ResourceError as error:
        workload = read_workload(None, live)
        return _with_status(
            observed, Plan(), invalid_status(observed.resource, workload, str(error), now)
        )
    autoscaler = observed.child(HORIZONTAL_POD_AUTOSCALER, name)
    features = report_features(
        service, observed.served_kinds, autoscaler, observed.demand.activator
    )
    obstacle = obstacle or _namesake(observed, service) or _missing_kind(service, observed)
    former = former_workload(service, present, workload)
    problems = pod_problems(service, (*observed.pods, *followers(observed)))
    lacks_room = any(problem.is_lack_of_room for problem in problems)
    revision = choose_revision(pinned, live, workload, _failure(placed, workload, problems))
    stride = choose_stride(
        service.rollout,
        live,
        workload,
        revision.digest,
        observed.pods,
        lacks_room=lacks_room,
    )
    findings = Findings(
        service=service,
        placed=placed,
        workload=workload,
        features=features,
        problem=problems[0] if problems else None,
        obstacle=obstacle,
        newer=pinned.newer,
        image=worker_image(revision.template),
        refusal=None if placed.is_blocked else revision.refusal,
        stride=stride,
        has_activator=observed.demand.activator is not None,
        startup=startup_status(
            observed.pods,
            observed.startup_phases_s,
            (observed.resource.get("status") or {}).get("startup"),
        ),
    )
    writes = Plan()
    inspection = inspection_children(service, pinned.template, placed)
    reports = inspection_jobs(observed, placed.inspection_key) if placed.keeps_inspection else ()
    if obstacle is None and placed.is_blocked:
        writes = _blocked(inspection, placed, observed, (*former, *reports))
    elif obstacle is None:
        is_loading = (
            workload.ready < workload.wanted and not problems and not workload.deadline_message
        )
        wanted = wanted_children(
            service, revision, stride, workload, observed, placed.memory, is_loading=is_loading
        )
        wanted += [child for child in inspection if child not in wanted]
        if lacks_room and service.rollout.replaces_in_place:
            former = ()
        deletes = _leftovers(wanted, observed, (*former, *reports))
        writes = Plan(
            applies=(
                *_handover(service, live),
                *_switch(service, live, workload, observed.demand),
                *_one_autoscaler_at_a_time(_due(wanted, observed), deletes),
            ),
            deletes=deletes,
            look_again_s=next_look_s(service, workload, observed.demand),
        )
    writes = replace(writes, wants_nodes=placed.wants_nodes)
    return _with_status(observed, writes, service_status(observed.resource, findings, now))


def _blocked(
    inspection: list[dict[str, Any]],
    placed: Placed,
    observed: Observed,
    needed: tuple[LiveObject, ...],
) -> Plan:
    """Nothing but the look at the model; pods of an earlier spec go on serving."""
    leftovers = _leftovers(inspection, observed, needed)
    if not placed.is_withdrawn:
        leftovers = tuple(item for item in leftovers if item.kind == JOB)
    return Plan(
        applies=_due(inspection, observed),
        deletes=leftovers,
        look_again_s=None if placed.is_waiting else LOOK_AGAIN_S,
    )


def _failure(placed: Placed, workload: Workload, problems: tuple[PodProblem, ...]) -> str | None:
    """Why a rollout will not come up; lack of room is waited out, since it says nothing of it."""
    if placed.decision.standing is Standing.REFUSED:
        return placed.decision.message
    if workload.deadline_message is None or (problems and problems[0].is_lack_of_room):
        return None
    return problems[0].message if problems else workload.deadline_message


def _with_status(observed: Observed, writes: Plan, status: Mapping[str, Any]) -> Plan:
    if is_same_status(observed.resource.get("status"), status):
        return writes
    return replace(writes, status=status)


def _due(wanted: list[dict[str, Any]], observed: Observed) -> tuple[Apply, ...]:
    due = []
    for manifest in wanted:
        live = observed.child(kind_of(manifest), manifest["metadata"]["name"])
        if live is None or not is_applied(manifest, live):
            due.append(Apply(manifest))
    return tuple(due)


def _leftovers(
    wanted: list[dict[str, Any]], observed: Observed, needed: tuple[LiveObject, ...]
) -> tuple[Delete, ...]:
    """Children of ours that are no longer wanted; those that are still `needed` stay."""
    present = (*wanted, *needed)
    keep = {(kind_of(item), item["metadata"]["name"]) for item in present}
    leftovers = []
    for child in observed.children:
        metadata = child["metadata"]
        if not observed.is_owned(child) or is_going(child):
            continue
        if (kind_of(child), metadata["name"]) not in keep:
            leftovers.append(
                Delete(kind_of(child), metadata["namespace"], metadata["name"], metadata["uid"])
            )
    return tuple(leftovers)


def _one_autoscaler_at_a_time(
    applies: tuple[Apply, ...], deletes: tuple[Delete, ...]
) -> tuple[Apply, ...]:
    """One that takes another's place is made in the next pass: KEDA refuses a workload that an
    autoscaler still has, and a refused apply ends the pass before anything is deleted."""
    if not any(delete.kind in _AUTOSCALERS for delete in deletes):
        return applies
    return tuple(apply for apply in applies if kind_of(apply.manifest) not in _AUTOSCALERS)


def _namesake(observed: Observed, service: InferenceService) -> Obstacle | None:
    for child in observed.children:
        if child["metadata"]["name"] == service.name and not observed.is_owned(child):
            return Obstacle(
                "NameConflict",
                f"{child['kind']} {service.name} exists and belongs to somebody else; delete it, "
                f"or give the InferenceService another name",
            )
    return None


def _missing_kind(service: InferenceService, observed: Observed) -> Obstacle | None:
    if workload_kind(service) in (DEPLOYMENT, *observed.served_kinds):
        return None
    return Obstacle(
        "LeaderWorkerSetMissing",
        f"a replica over {service.parallelism.nodes} nodes is a LeaderWorkerSet, and this cluster "
        f"has no such kind: install LeaderWorkerSet 0.6 or later (https://lws.sigs.k8s.io), or "
        f"choose a split that one node holds",
    )


def _switch(
    service: InferenceService, live: LiveObject | None, workload: Workload, demand: Demand
) -> tuple[Apply, ...]:
    manifest = switch(service, live, workload, demand)
    return () if manifest is None else (Apply(manifest, SWITCH_MANAGER),)


def _handover(service: InferenceService, live: LiveObject | None) -> tuple[Apply, ...]:
    """Keep the present number of pods while `replicas` passes to an autoscaler.

    Dropping a field that only we own would remove it, and the server would put back its default
    of 1; so another manager owns it first. Source: "Transferring ownership" in the Kubernetes
    documentation of server-side apply.
    """
    if service.scaling is None or live is None:
        return ()
    if annotations_of(live).get(ANNOTATION_REPLICAS_OWNER) != OPERATOR:
        return ()
    replicas = (live.get("spec") or {}).get("replicas", 1)
    return (Apply(replicas_manifest(service, replicas), HANDOVER_MANAGER),)
