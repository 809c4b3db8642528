"""Which pod template a Deployment gets: the one it has, unless the user asked for another.

A new version of the operator may render pods differently or bring a newer worker image. Neither
restarts a running model: the template is kept as it was rendered, in an annotation of the
Deployment, and is rendered anew only when the user's own words about pods change or the user opts
into the upgrade. The default image stays the one of the first apply even then, until the opt-in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from octavo_operator.json_text import read_shallow
from octavo_operator.labels import (
    ANNOTATION_GOOD_TEMPLATE,
    ANNOTATION_PINNED_IMAGE,
    ANNOTATION_POD_TEMPLATE,
    ANNOTATION_REFUSED_TEMPLATE,
    ANNOTATION_TEMPLATE_INPUTS,
    ANNOTATION_UPGRADE,
    ANNOTATION_UPGRADED_BY,
    API_VERSION,
    WORKER_CONTAINER,
)
from octavo_operator.manifests.digest import canonical_json, manifest_digest
from octavo_operator.manifests.pod_template import pod_template
from octavo_operator.reconcile.live_object import LiveObject, annotations_of
from octavo_operator.resources.inference_service import (
    KIND,
    InferenceService,
    parse_inference_service,
)

UPGRADE_ALWAYS: Final = "auto"
_POD_FIELDS: Final = (
    "model",
    "parallelism",
    "accelerator",
    "engine",
    "cache_claim",
    "rollout",
    "api_keys",
    "image",
    "template",
)


@dataclass(frozen=True, slots=True)
class PinnedTemplate:
    """The template to apply and the annotations that remember it.

    newer: in words, what an upgrade would change; None when there is nothing newer.
    """

    template: Mapping[str, Any]
    annotations: Mapping[str, str]
    newer: str | None


def worker_image(template: Mapping[str, Any]) -> str:
    """The image of the worker container, whatever the overlay made of it."""
    containers = template["spec"]["containers"]
    return str(next(item["image"] for item in containers if item["name"] == WORKER_CONTAINER))


def pin_template(
    said: InferenceService,
    service: InferenceService,
    live: LiveObject | None,
    default_image: str,
    admin_key_sha256: str,
) -> PinnedTemplate:
    """The template for `service`, given its own workload as it is now (None: not there yet).

    `said` is the service in the user's words, `service` the same with its placement worked out.

    Raises ResourceError when the user's overlay cannot be merged.
    """
    memory = annotations_of(live)
    upgraded_by = memory.get(ANNOTATION_UPGRADED_BY)
    is_upgrading = service.upgrade == UPGRADE_ALWAYS or (
        service.upgrade is not None and service.upgrade != upgraded_by
    )
    is_fresh = live is None or is_upgrading
    pinned_image = (not is_fresh and memory.get(ANNOTATION_PINNED_IMAGE)) or default_image
    inputs = template_inputs(said)
    newest = pod_template(service, service.image or default_image, admin_key_sha256)
    template: Mapping[str, Any] | None = None
    if not is_fresh and memory.get(ANNOTATION_TEMPLATE_INPUTS) == inputs:
        template = remembered_template(memory.get(ANNOTATION_POD_TEMPLATE))
    if template is None:
        template = pod_template(service, service.image or pinned_image, admin_key_sha256)
    annotations = {
        ANNOTATION_POD_TEMPLATE: canonical_json(template),
        ANNOTATION_TEMPLATE_INPUTS: inputs,
        ANNOTATION_PINNED_IMAGE: pinned_image,
    }
    if service.upgrade is not None and is_fresh:
        upgraded_by = service.upgrade
    if upgraded_by is not None:
        annotations[ANNOTATION_UPGRADED_BY] = upgraded_by
    return PinnedTemplate(template, annotations, _newer(service, template, newest, default_image))


def template_inputs(service: InferenceService) -> str:
    """A hash of everything the user said that decides the pod.

    Values equal to the default are left out, so that a field that a later version adds, with a
    default, does not look like a change made by the user.
    """
    said = _pod_inputs(service)
    unsaid = _pod_inputs(_silent_service(service.name))
    return manifest_digest({key: said[key] for key in said if said[key] != unsaid.get(key)})


def _pod_inputs(service: InferenceService) -> dict[str, Any]:
    values = asdict(service)
    values["rollout"] = {"drain_s": service.rollout.drain_s}
    flat: dict[str, Any] = {}
    for name in _POD_FIELDS:
        _flatten(name, values[name], flat)
    flat["model.source"] = type(service.model.source).__name__
    return flat


def _flatten(path: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            _flatten(f"{path}.{key}", item, flat)
    else:
        flat[path] = json.loads(json.dumps(value, default=str))


def _silent_service(name: str) -> InferenceService:
    return parse_inference_service(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"model": {"uri": "hf://default/default"}, "replicas": 1},
        }
    )


def remembered_template(text: str | None) -> Mapping[str, Any] | None:
    """The pod template in an annotation; None when it is absent, or scribbled over by somebody."""
    try:
        template = read_shallow(text or "")
        labels, containers = template["metadata"]["labels"], template["spec"]["containers"]
        names = [container["name"] for container in containers if container["image"]]
    except (ValueError, TypeError, KeyError):
        return None
    is_whole = isinstance(labels, Mapping) and WORKER_CONTAINER in names
    return dict(template) if is_whole else None


def template_in_force(memory: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The template that a workload with these annotations was applied with."""
    is_rolled_back = ANNOTATION_REFUSED_TEMPLATE in memory
    name = ANNOTATION_GOOD_TEMPLATE if is_rolled_back else ANNOTATION_POD_TEMPLATE
    return remembered_template(memory.get(name))


def _newer(
    service: InferenceService,
    template: Mapping[str, Any],
    newest: Mapping[str, Any],
    default_image: str,
) -> str | None:
    if canonical_json(template) == canonical_json(newest):
        return None
    images = [container.get("image") for container in template["spec"]["containers"]]
    what = (
        "a newer pod template"
        if service.image is not None or default_image in images
        else f"the worker image {default_image}"
    )
    return (
        f"this operator brings {what}; set the annotation {ANNOTATION_UPGRADE} to a new value, "
        f'such as a date, to restart the pods on it once, or to "{UPGRADE_ALWAYS}" to follow '
        f"every new version"
    )
