"""What an overlay on the pod template must leave as it is, since the operator itself reads it.

The form of all else is the API server's to judge, which knows every field of a pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.labels import WORKER_CONTAINER

_SPEC: Final = "spec.template.spec"
_NAMED_LISTS: Final = ("containers", "initContainers", "volumes")


def check_overlaid(template: Mapping[str, Any], pod_labels: Mapping[str, str]) -> None:
    """Raises ResourceError for a pod template that can serve nobody; `pod_labels` find its pods."""
    labels = _mapping(template, "metadata", "spec.template").get("labels")
    for key, value in pod_labels.items():
        found = labels.get(key) if isinstance(labels, Mapping) else None
        if found != value:
            raise ResourceError(
                f"spec.template.metadata.labels[{key}]",
                f"is {found!r}, but the Deployment finds its pods by {value!r}",
                "remove it from the overlay",
            )
    spec = _mapping(template, "spec", "spec.template")
    for field in _NAMED_LISTS:
        _check_named(spec.get(field, []), f"{_SPEC}.{field}")
    workers = [item for item in spec.get("containers", []) if item["name"] == WORKER_CONTAINER]
    if len(workers) != 1:
        problem = "has more than one" if workers else "takes away the"
        raise ResourceError(
            f"{_SPEC}.containers",
            f"{problem} container {WORKER_CONTAINER!r}",
            f"keep one container {WORKER_CONTAINER!r}; it is the one that serves the model",
        )
    _check_worker(workers[0], f"{_SPEC}.containers[{WORKER_CONTAINER}]")


def _check_worker(worker: Mapping[str, Any], path: str) -> None:
    image, command = worker.get("image"), worker.get("command")
    if not isinstance(image, str) or not image:
        remedy = "leave it to spec.image, or name an image"
        raise ResourceError(f"{path}.image", f"is {image!r}", remedy)
    if not (isinstance(command, list) and command and all(isinstance(w, str) for w in command)):
        remedy = "leave it as it is and use spec.engine.args, or give a list of strings"
        raise ResourceError(f"{path}.command", f"is {command!r}", remedy)
    _check_named(worker.get("volumeMounts", []), f"{path}.volumeMounts")


def _check_named(items: object, path: str) -> None:
    if not isinstance(items, list):
        raise ResourceError(path, f"is {items!r}", "give a list")
    for index, item in enumerate(items):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise ResourceError(f"{path}[{index}]", f"is {item!r}", "give an object with a name")


def _mapping(value: Mapping[str, Any], field: str, path: str) -> Mapping[str, Any]:
    found = value.get(field)
    if not isinstance(found, Mapping):
        raise ResourceError(f"{path}.{field}", f"is {found!r}", "leave it in, as an object")
    return found
