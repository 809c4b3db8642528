"""`spec.accelerator` and `spec.parallelism`: which devices a pod gets, and how many."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.resources.fields import Fields

DEFAULT_RESOURCE: Final = "nvidia.com/gpu"
NO_ACCELERATOR: Final = "none"
"""As `accelerator.resource`: the worker runs on the CPU and asks for no device."""

PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
MAX_TENSOR: Final = 64
MAX_PIPELINE: Final = 64
MAX_NODES: Final = 64
_EXTENDED_RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?")
_TOLERATION_FIELDS = frozenset({"key", "operator", "value", "effect", "tolerationSeconds"})


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Devices of one pod.

    resource: extended resource name, or None when the worker runs on the CPU.
    product: value of the node label `nvidia.com/gpu.product`, or None for any.
    memory_bytes: of one device; None leaves it to node labels and the table of products.
    tolerations: Kubernetes tolerations as they were written.
    claim_template: ResourceClaimTemplate (dynamic resource allocation); `resource` is then unused.
    """

    resource: str | None
    product: str | None
    memory_bytes: int | None
    node_selector: tuple[tuple[str, str], ...]
    tolerations: tuple[Mapping[str, Any], ...]
    claim_template: str | None

    @property
    def is_cpu(self) -> bool:
        return self.resource is None and self.claim_template is None

    @property
    def all_node_labels(self) -> dict[str, str]:
        """What nodes must carry: `node_selector` and the product's label."""
        labels = dict(self.node_selector)
        if self.product is not None:
            labels[PRODUCT_LABEL] = self.product
        return labels


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How one copy of the model is spread.

    tensor: devices that share each layer, on one node; None is `Auto`.
    pipeline: stages of layers; nodes: machines of one copy.
    """

    tensor: int | None
    pipeline: int
    nodes: int

    @property
    def gpus_per_pod(self) -> int:
        """A pod is what one node has of a replica; `Auto` counts as 1."""
        return (self.tensor or 1) * self.pipeline // self.nodes


def parse_accelerator(fields: Fields) -> Accelerator:
    """`spec.accelerator`; raises ResourceError."""
    claim_template = fields.object_name("resourceClaimTemplateName")
    resource = fields.string("resource", max_length=317) or DEFAULT_RESOURCE
    if resource != NO_ACCELERATOR and not _EXTENDED_RESOURCE.fullmatch(resource):
        raise fields.error(
            "resource",
            f"is {resource!r}, which names no extended resource",
            f'give DOMAIN/NAME such as {DEFAULT_RESOURCE}, or "{NO_ACCELERATOR}" for the CPU',
        )
    if resource == NO_ACCELERATOR:
        for name in ("product", "memory", "resourceClaimTemplateName"):
            if fields.has(name):
                raise fields.error(
                    name,
                    f"is {fields.raw(name)!r} beside resource {NO_ACCELERATOR} (CPU)",
                    "remove it, or name a GPU resource",
                )
    is_requested = claim_template is None and resource != NO_ACCELERATOR
    accelerator = Accelerator(
        resource=resource if is_requested else None,
        product=fields.string("product", max_length=63),
        memory_bytes=fields.size_bytes("memory"),
        node_selector=fields.string_map("nodeSelector"),
        tolerations=tuple(_parse_toleration(item) for item in fields.sections("tolerations")),
        claim_template=claim_template,
    )
    fields.note_unknown()
    return accelerator


def parse_parallelism(fields: Fields) -> Parallelism:
    """`spec.parallelism`; raises ResourceError."""
    tensor: int | None
    raw = fields.raw("tensor")
    if raw == "Auto":
        tensor = None
    elif isinstance(raw, str):
        raise fields.error("tensor", f"is {raw!r}", "give an integer (not quoted) or Auto")
    else:
        tensor = fields.integer("tensor", 1, 1, MAX_TENSOR)
    parallelism = Parallelism(
        tensor=tensor,
        pipeline=fields.integer("pipeline", 1, 1, MAX_PIPELINE),
        nodes=fields.integer("nodes", 1, 1, MAX_NODES),
    )
    devices = (tensor or 1) * parallelism.pipeline
    if devices % parallelism.nodes or (tensor is None and parallelism.nodes > 1):
        raise fields.error(
            "nodes",
            f"is {parallelism.nodes}, which does not divide tensor × pipeline = "
            f"{'Auto' if tensor is None else devices}",
            "choose a divisor, so that each node holds the same number of GPUs",
        )
    fields.note_unknown()
    return parallelism


def _parse_toleration(fields: Fields) -> Mapping[str, Any]:
    toleration = {name: fields.raw(name) for name in sorted(_TOLERATION_FIELDS)}
    fields.choice("operator", ("Exists", "Equal"))
    fields.choice("effect", ("NoSchedule", "PreferNoSchedule", "NoExecute"))
    fields.note_unknown()
    return {name: value for name, value in toleration.items() if value is not None}
