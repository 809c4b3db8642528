"""The kinds of GPU that nodes say they have, read from the labels of GPU feature discovery.

For a resource `nvidia.com/gpu` these are `nvidia.com/gpu.product`, `.memory` (MiB) and `.count`;
a MIG slice such as `nvidia.com/mig-3g.40gb` has its own of the same form. A card that pods share by
time-slicing may be asked for more often than it is counted, and its product ends with `-SHARED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from octavo_operator.placement.gpu_kind import GpuKind
from octavo_operator.placement.gpu_products import product_memory_bytes
from octavo_operator.placement.taints import takes_pods
from octavo_operator.resources.accelerator import Accelerator
from octavo_operator.resources.quantity import parse_quantity

_MIB = 1 << 20


def gpu_kinds(
    accelerator: Accelerator,
    nodes: Iterable[Mapping[str, Any]] | None,
    more_tolerations: Sequence[Mapping[str, Any]] = (),
) -> tuple[GpuKind, ...]:
    """What a pod with this accelerator could get; empty when that is not known.

    `nodes` is None when they may not be looked at. What the spec says of the memory wins over the
    nodes, and they over the table of products. `more_tolerations`: those that pods have beside the
    accelerator's.
    """
    found = _on_nodes(accelerator, nodes or (), (*accelerator.tolerations, *more_tolerations))
    product = accelerator.product
    memory_bytes = accelerator.memory_bytes
    if memory_bytes is None and not found and product is not None:
        memory_bytes = product_memory_bytes(product)
    if memory_bytes is None:
        return found
    largest = max(found, key=lambda kind: kind.most_per_node, default=None)
    if largest is None:
        is_slice = _is_slice(accelerator.resource, product)
        return (GpuKind(product, memory_bytes, is_slice=is_slice, is_shared=_is_shared(product)),)
    return (replace(largest, product=product, memory_bytes=memory_bytes),)


def _on_nodes(
    accelerator: Accelerator,
    nodes: Iterable[Mapping[str, Any]],
    tolerations: Sequence[Mapping[str, Any]],
) -> tuple[GpuKind, ...]:
    resource = accelerator.resource
    if resource is None:
        return ()
    wanted = accelerator.all_node_labels
    counts: dict[tuple[str | None, int, bool], list[int]] = {}
    opened: set[tuple[str | None, int, bool]] = set()
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        memory = str(labels.get(f"{resource}.memory", ""))
        if not memory.isdecimal() or any(labels.get(key) != wanted[key] for key in wanted):
            continue
        count = _count(node, resource, labels)
        if count > 0 and int(memory):
            product = labels.get(f"{resource}.product")
            is_shared = _is_shared(product) or count > _labelled_count(resource, labels, count)
            key = (product, int(memory) * _MIB, is_shared)
            counts.setdefault(key, []).append(count)
            if takes_pods(node, resource, tolerations):
                opened.add(key)
    kinds = [
        GpuKind(
            product,
            memory_bytes,
            max(found),
            found.count(max(found)),
            is_slice=_is_slice(resource, product),
            is_shared=is_shared,
            is_closed=(product, memory_bytes, is_shared) not in opened,
        )
        for (product, memory_bytes, is_shared), found in counts.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (kind.memory_bytes, kind.name)))


def _count(node: Mapping[str, Any], resource: str, labels: Mapping[str, str]) -> int:
    """GPUs of a node: those that may be asked for, else those that are in it."""
    allocatable = ((node.get("status") or {}).get("allocatable") or {}).get(resource)
    if allocatable is None:
        return _labelled_count(resource, labels, 0)
    try:
        return int(parse_quantity(str(allocatable)))
    except ValueError:
        return 0


def _labelled_count(resource: str, labels: Mapping[str, str], default: int) -> int:
    text = str(labels.get(f"{resource}.count", ""))
    return int(text) if text.isdecimal() else default


def _is_slice(resource: str | None, product: str | None) -> bool:
    """By the resource, or by the product where all cards of a node are cut alike."""
    return "/mig-" in (resource or "") or "-MIG-" in (product or "")


def _is_shared(product: str | None) -> bool:
    return (product or "").endswith("-SHARED")
