"""Where an InferenceService is to run, given what is known so far; and what is still to be found.

A placement that fits is remembered on the workload, so that neither new nodes nor a newer operator
move a running model: it is decided anew only when the user's words that it follows from change.
What pods have proved by serving is not doubted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo_operator.json_text import read_shallow
from octavo_operator.labels import (
    ANNOTATION_GOOD_TEMPLATE,
    ANNOTATION_PLACEMENT,
    ANNOTATION_POD_TEMPLATE,
    ANNOTATION_REFUSED_TEMPLATE,
    ANNOTATION_TEMPLATE_INPUTS,
)
from octavo_operator.manifests.digest import canonical_json, manifest_digest
from octavo_operator.placement.decision import Decision, Standing, decide
from octavo_operator.placement.footprint import Split
from octavo_operator.placement.gpu_kind import GpuKind
from octavo_operator.placement.model_shape import ModelShape, read_status, to_status
from octavo_operator.placement.node_gpus import gpu_kinds
from octavo_operator.reconcile.inspection import Inspection, inspection_key, read_inspection
from octavo_operator.reconcile.live_object import LiveObject, annotations_of
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.pinning import remembered_template, template_inputs
from octavo_operator.reconcile.rollback import has_served
from octavo_operator.reconcile.workload import read_workload
from octavo_operator.resources.accelerator import Parallelism
from octavo_operator.resources.inference_service import InferenceService

LOOK_AGAIN_S: Final = 60.0
"""How often nodes are looked at while none is known that holds the model."""


@dataclass(frozen=True, slots=True)
class Placed:
    """service: with numbers where the user said Auto; a single GPU while none are chosen.

    memory: what the workload must remember, None for nothing.
    shape: the model's, None while it is not known. wants_inspection: the model is to be looked at;
    keeps_inspection: what was found is not in the status yet. wants_nodes: nodes would help.
    is_withdrawn: this very spec cannot come up, so nothing of it is to be there.
    """

    service: InferenceService
    decision: Decision
    memory: str | None
    shape: ModelShape | None
    inspection_key: str
    wants_inspection: bool
    keeps_inspection: bool
    wants_nodes: bool
    is_withdrawn: bool

    @property
    def is_blocked(self) -> bool:
        """Whether nothing can be made, now or ever."""
        return self.decision.split is None

    @property
    def is_waiting(self) -> bool:
        """Whether only time is needed."""
        return self.is_blocked and self.decision.reason == "Inspecting"

    def model_status(self) -> dict[str, Any] | None:
        """`status.model`; None while the shape is not known."""
        if self.shape is None:
            return None
        uri = self.service.model.uri
        return {"uri": uri, "key": self.inspection_key, **to_status(self.shape)}

    def placement_status(self) -> dict[str, Any] | None:
        """`status.placement`; None while there is none."""
        split = self.decision.split
        if split is None:
            return None
        # Every field always, since a merge of statuses takes none away.
        product = self.service.accelerator.product or ""
        numbers = {"tensor": split.tensor, "pipeline": split.pipeline, "nodes": split.nodes}
        return {**numbers, "product": product}


def place(said: InferenceService, observed: Observed, present: tuple[LiveObject, ...]) -> Placed:
    """The placement of `said`, whose workloads are `present` now: one, none, or two in transit."""
    inputs, key = _inputs(said), inspection_key(said)
    past = _recall(said, present, inputs)
    told = _told_shape(said, observed)
    seen = read_inspection(said, observed, key) if told is None else Inspection(told)
    is_open = past.is_open_for(said)
    kinds = (
        gpu_kinds(said.accelerator, observed.nodes, _overlaid_tolerations(said)) if is_open else ()
    )
    decision = _decide_after(past, said, seen, kinds, observed)
    is_refused = decision.standing is Standing.REFUSED
    is_useful = _is_split(said) or bool(kinds)
    return Placed(
        service=_resolved(said, decision),
        decision=decision,
        memory=_to_remember(said, decision, inputs),
        shape=seen.shape,
        inspection_key=key,
        wants_inspection=(is_open and is_useful and observed.can_inspect and seen.shape is None),
        keeps_inspection=told is None and seen.shape is not None,
        wants_nodes=is_open and observed.nodes is None,
        is_withdrawn=is_refused and past.is_alone and not past.has_fallback,
    )


@dataclass(frozen=True, slots=True)
class _Past:
    """What the workload tells of earlier passes.

    kept: the placement that it was made with, None where the user's words have changed since.
    is_same_pod: it was made for these very words; has_served: and has served with them.
    has_fallback: it knows of a template that served before. is_alone: no pods but those of these
    words can be there.
    """

    kept: Decision | None
    is_same_pod: bool
    has_served: bool
    has_fallback: bool
    is_alone: bool

    def is_open_for(self, said: InferenceService) -> bool:
        """Whether the placement is to be found out, or a number of the user's to be checked."""
        is_proved = self.has_served and said.parallelism.tensor is not None
        return self.kept is None and not is_proved and not said.accelerator.is_cpu


def _recall(said: InferenceService, present: tuple[LiveObject, ...], inputs: str) -> _Past:
    pod_inputs = template_inputs(said)
    live = _latest(present, pod_inputs)
    memory, workload = annotations_of(live), read_workload(said, live)
    is_same_pod = memory.get(ANNOTATION_TEMPLATE_INPUTS) == pod_inputs
    is_rolled_back = ANNOTATION_REFUSED_TEMPLATE in memory
    in_force = remembered_template(memory.get(ANNOTATION_POD_TEMPLATE))
    return _Past(
        kept=_remembered(memory, inputs) or _from_before(said, memory, is_same_pod=is_same_pod),
        is_same_pod=is_same_pod,
        has_served=(is_same_pod and not is_rolled_back and has_served(in_force, memory, workload)),
        has_fallback=ANNOTATION_GOOD_TEMPLATE in memory,
        is_alone=live is None or is_same_pod,
    )


def _decide_after(
    past: _Past,
    said: InferenceService,
    seen: Inspection,
    kinds: tuple[GpuKind, ...],
    observed: Observed,
) -> Decision:
    if past.kept is not None:
        return past.kept
    decision = _decide(said, seen, kinds, observed)
    if past.has_served and decision.standing is not Standing.FITS:
        return _proved(said, decision)
    if decision.standing is Standing.REFUSED and past.is_same_pod and past.has_fallback:
        # Not blocked: the rollout goes on backwards, to what served before.
        return replace(decision, split=_said_split(said))
    return decision


def _decide(
    said: InferenceService, seen: Inspection, kinds: tuple[GpuKind, ...], observed: Observed
) -> Decision:
    if said.accelerator.is_cpu:
        return decide(said, None, ())
    if seen.shape is None and not observed.can_inspect and said.parallelism.tensor is None:
        return Decision(
            Standing.REFUSED,
            "GPUMemoryUnknown",
            "spec.parallelism.tensor is Auto, which only a cluster can work out: give a number",
        )
    if seen.shape is None and not _is_split(said) and not kinds:
        return Decision(
            Standing.UNPROVED,
            "GPUMemoryUnknown",
            "whether the model fits is not checked, since how much memory its GPU has is not "
            "known: name accelerator.product or accelerator.memory to have it checked",
            _said_split(said),
        )
    return decide(said, seen.shape, kinds, seen.failure)


def _proved(said: InferenceService, decision: Decision) -> Decision:
    split = decision.split or _said_split(said)
    return Decision(Standing.FITS, "Proved", "the pods that serve have proved that it fits", split)


def _from_before(
    said: InferenceService, memory: Mapping[str, str], *, is_same_pod: bool
) -> Decision | None:
    """Operators that knew no placement took Auto for 1; their pods are not moved either."""
    if said.parallelism.tensor is not None or said.accelerator.is_cpu or not is_same_pod:
        return None
    message = "1 GPU, as an earlier operator placed it; any change of the spec places it anew"
    return Decision(Standing.FITS, "Fits", message, Split(1, said.parallelism.pipeline))


def _overlaid_tolerations(said: InferenceService) -> tuple[Mapping[str, Any], ...]:
    """Those of `spec.template`, as far as they are any."""
    spec = said.template.get("spec")
    found = spec.get("tolerations") if isinstance(spec, Mapping) else None
    items = found if isinstance(found, list) else ()
    return tuple(item for item in items if isinstance(item, Mapping))


def _is_split(said: InferenceService) -> bool:
    split = said.parallelism
    return split.tensor is None or split.tensor * split.pipeline > 1


def _said_split(said: InferenceService) -> Split:
    split = said.parallelism
    return Split(split.tensor or 1, split.pipeline, split.nodes)


def _resolved(said: InferenceService, decision: Decision) -> InferenceService:
    split = decision.split or _said_split(said)
    accelerator = said.accelerator
    if decision.product is not None:
        accelerator = replace(accelerator, product=decision.product)
    parallelism = Parallelism(split.tensor, split.pipeline, split.nodes)
    return replace(said, parallelism=parallelism, accelerator=accelerator)


def _told_shape(said: InferenceService, observed: Observed) -> ModelShape | None:
    known = (observed.resource.get("status") or {}).get("model")
    if not isinstance(known, Mapping) or known.get("key") != inspection_key(said):
        return None
    return read_status(known)


def _inputs(said: InferenceService) -> str:
    """A hash of the user's words that the placement follows from; what is not said is left out, so
    that fields which a later operator knows change nothing."""
    accelerator, engine = said.accelerator, said.engine
    words = {
        "model": inspection_key(said),
        "tensor": said.parallelism.tensor or "Auto",
        "pipeline": said.parallelism.pipeline,
        "nodes": said.parallelism.nodes,
        "resource": accelerator.resource,
        "product": accelerator.product,
        "memory": accelerator.memory_bytes,
        "selector": list(map(list, accelerator.node_selector)),
        "claim": accelerator.claim_template,
        "length": engine.max_model_len,
        "quantization": engine.quantization,
        "utilization": str(engine.gpu_memory_utilization),
        "requests": engine.max_num_seqs,
        "lora": [engine.lora.max_adapters, engine.lora.max_rank] if engine.lora else None,
        "tokens": engine.argument("--max-num-batched-tokens"),
    }
    return manifest_digest({name: word for name, word in words.items() if word})


def _to_remember(said: InferenceService, decision: Decision, inputs: str) -> str | None:
    """What was worked out, or what pods have proved of numbers that the user gave."""
    is_settled = decision.reason == "Fits" or (
        decision.reason == "Proved" and said.parallelism.tensor is not None
    )
    split = decision.split
    if split is None or not is_settled or said.accelerator.is_cpu:
        return None
    return canonical_json(
        {
            "inputs": inputs,
            "split": [split.tensor, split.pipeline, split.nodes],
            "product": decision.product,
            "reason": decision.reason,
            "message": decision.message,
        }
    )


def _remembered(memory: Mapping[str, str], inputs: str) -> Decision | None:
    try:
        kept = read_shallow(memory.get(ANNOTATION_PLACEMENT, ""))
        if kept["inputs"] != inputs:
            return None
        split = Split(*map(int, kept["split"]))
        # Earlier operators remembered nothing but what fits.
        reason = str(kept.get("reason", "Fits"))
        return Decision(Standing.FITS, reason, str(kept["message"]), split, kept["product"])
    except (ValueError, TypeError, KeyError):
        return None


def _latest(present: tuple[LiveObject, ...], pod_inputs: str) -> LiveObject | None:
    """The workload that was made for these very words, if there is one."""
    for live in present:
        if annotations_of(live).get(ANNOTATION_TEMPLATE_INPUTS) == pod_inputs:
            return live
    return present[0] if present else None
