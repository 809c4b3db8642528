"""A worker pod as the planner of adapters sees it: what it can load, and whether it is held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.json_text import read_shallow
from octavo_operator.labels import WORKER_CONTAINER
from octavo_operator.manifests.worker_command import ENABLE_LORA, LORA_MODULES
from octavo_operator.reconcile.live_object import LiveObject, has_ended, is_going, labels_of

_TEMPLATE_LABEL = "pod-template-hash"


@dataclass(frozen=True, slots=True)
class WorkerPod:
    """One pod that is not on its way out.

    template: pods with the same one have the same volumes and credentials.
    is_started: the worker's model is loaded; is_ready: it takes requests.
    takes_adapters: it was started with room for them.
    own_adapters: those of its command line, which are nobody else's to unload.
    claims, images: where volumes are mounted, by claim and image reference.
    secrets: those of which it has keys as variables.
    """

    name: str
    uid: str
    container_id: str
    template: str
    is_started: bool
    is_ready: bool
    takes_adapters: bool
    own_adapters: frozenset[str]
    claims: Mapping[str, str]
    images: Mapping[str, str]
    secrets: frozenset[str]


def worker_pods(pods: Iterable[LiveObject]) -> tuple[WorkerPod, ...]:
    """Those of `pods` that stay, by name."""
    alive = [pod for pod in pods if not is_going(pod)]
    read = [_read_pod(pod) for pod in sorted(alive, key=lambda pod: str(pod["metadata"]["name"]))]
    return tuple(pod for pod in read if pod is not None)


def pod_of_template(template: Mapping[str, Any]) -> WorkerPod | None:
    """A pod to come, as far as its template tells."""
    return _read_pod({"metadata": {"name": "", "uid": ""}, "spec": template["spec"]})


def takes_adapters(pod: LiveObject) -> bool:
    """Whether a pod was started with room for adapters."""
    return ENABLE_LORA in _words(_named(pod["spec"].get("containers")))


def _read_pod(pod: LiveObject) -> WorkerPod | None:
    spec, status = pod["spec"], pod.get("status") or {}
    container = _named(spec.get("containers"))
    running = _named(status.get("containerStatuses"))
    metadata = pod["metadata"]
    if has_ended(pod):
        return None
    return WorkerPod(
        name=str(metadata["name"]),
        uid=str(metadata["uid"]),
        container_id=str(running.get("containerID") or ""),
        template=labels_of(pod).get(_TEMPLATE_LABEL, ""),
        is_started=bool(running.get("started") or running.get("ready")),
        is_ready=bool(running.get("ready")),
        takes_adapters=ENABLE_LORA in _words(container),
        own_adapters=_own_adapters(_words(container)),
        claims=_mounts(spec, container, "persistentVolumeClaim", "claimName"),
        images=_mounts(spec, container, "image", "reference"),
        secrets=_secrets(container),
    )


def _named(items: Any) -> Mapping[str, Any]:
    return next((item for item in items or () if item.get("name") == WORKER_CONTAINER), {})


def _words(container: Mapping[str, Any]) -> list[str]:
    return [*(container.get("command") or ()), *(container.get("args") or ())]


def _own_adapters(words: list[str]) -> frozenset[str]:
    """Names in `--lora-modules NAME=PATH ...`, whose values may be JSON objects as well."""
    names, is_value = set(), False
    for word in words:
        flag, _, value = word.partition("=")
        if word.startswith("--"):
            is_value, word = flag == LORA_MODULES, value
        if is_value and word:
            names.add(_module_name(word))
    return frozenset(names)


def _module_name(word: str) -> str:
    try:
        return str(read_shallow(word)["name"])
    except (ValueError, TypeError, KeyError):
        return word.partition("=")[0]


def _mounts(
    spec: Mapping[str, Any], container: Mapping[str, Any], kind: str, key: str
) -> Mapping[str, str]:
    sources = {
        volume["name"]: volume[kind][key]
        for volume in spec.get("volumes") or ()
        if (volume.get(kind) or {}).get(key)
    }
    return {
        sources[mount["name"]]: str(mount["mountPath"])
        for mount in container.get("volumeMounts") or ()
        if mount.get("name") in sources and not mount.get("subPath")
    }


def _secrets(container: Mapping[str, Any]) -> frozenset[str]:
    whole = [(item.get("secretRef") or {}) for item in container.get("envFrom") or ()]
    single = [
        ((item.get("valueFrom") or {}).get("secretKeyRef") or {})
        for item in container.get("env") or ()
    ]
    return frozenset(str(item["name"]) for item in (*whole, *single) if item.get("name"))
