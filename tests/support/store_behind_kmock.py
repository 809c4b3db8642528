"""A kmock server that answers from an ObjectStore: HTTP and faults from kmock, semantics ours.

kmock alone has no resource versions, server-side apply, status isolation or label selectors. Faults
are put before it as with any kmock: `kmock['patch', ...] << 409`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import kmock
import pytest
import yaml

from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import (
    ClusterError,
    ConflictError,
    GoneError,
    NotFoundError,
    RejectedError,
)
from octavo_operator.manifests.kinds import ALL_KINDS, OPTIONAL_KINDS, POD_MONITOR, Kind

_CODES: Mapping[type[ClusterError], int] = {
    NotFoundError: 404,
    ConflictError: 409,
    GoneError: 410,
    RejectedError: 422,
}
_ABSENT = frozenset(kind.plural for kind in OPTIONAL_KINDS - {POD_MONITOR})


class StoreBehindKmock(kmock.KubernetesScaffold):  # type: ignore[misc]  # kmock has no types here
    """Use as `cls` of the kmock fixture; `store` is the cluster."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.store = ObjectStore(optional_kinds={POD_MONITOR}, seed=1)
        for kind in ALL_KINDS:
            if kind.plural not in _ABSENT:
                self._declare(kind.api_version, kind.plural, kind.kind)
        self._declare("apiextensions.k8s.io/v1", "customresourcedefinitions", "CRD")
        self._declare("v1", "namespaces", "Namespace")
        for action, answer in (
            (kmock.action.LIST, self._list),
            (kmock.action.WATCH, self._watch),
            (kmock.action.FETCH, self._fetch),
            (kmock.action.CREATE, self._create),
            (kmock.action.UPDATE, self._update),
            (kmock.action.DELETE, self._delete),
        ):
            self.fallback[action] << answer

    def _declare(self, api_version: str, plural: str, kind: str) -> None:
        self.resources[f"{api_version}/{plural}"] = {
            "kind": kind,
            "singular": kind.lower(),
            "namespaced": kind not in ("CRD", "Namespace"),
            "verbs": {"get", "list", "watch", "create", "patch", "delete"},
            "shortnames": (),
            "categories": (),
            "subresources": {"status"},
        }

    async def _list(self, request: kmock.Request) -> Any:
        kind = _kind(request)
        if kind is None:
            return {"metadata": {"resourceVersion": "1"}, "items": []}
        found = await _answer(self.store.list_objects(kind, request.namespace, _labels(request)))
        items = [
            {key: item[key] for key in item if key not in ("apiVersion", "kind")}
            for item in found.items
        ]
        return {"metadata": {"resourceVersion": found.resource_version}, "items": items}

    async def _watch(self, request: kmock.Request) -> AsyncIterator[Any]:
        yield b""
        _check_watch_timeout(request)
        kind = _kind(request)
        if kind is None:
            return
        version = request.params.get("resourceVersion") or "0"
        async for event in self.store.watch(kind, request.namespace, _labels(request), version):
            yield {"type": event.type.value, "object": event.object}

    async def _fetch(self, request: kmock.Request) -> Any:
        kind = _known(request)
        return await _answer(self.store.get(kind, request.namespace, request.name))

    async def _create(self, request: kmock.Request) -> Any:
        if _kind(request) is None:
            return request.data
        return await _answer(self.store.create(request.data, "client"))

    async def _update(self, request: kmock.Request) -> Any:
        kind = _known(request)
        body = json.loads(request.body)
        if request.headers["Content-Type"] == "application/apply-patch+yaml":
            manager = request.params["fieldManager"]
            force = request.params.get("force") == "true"
            return await _answer(self.store.apply(body, manager, force=force))
        return await _answer(
            self.store.merge(
                kind,
                request.namespace,
                request.name,
                body,
                subresource=request.subresource or "",
                manager=request.params.get("fieldManager", "client"),
            )
        )

    async def _delete(self, request: kmock.Request) -> Any:
        kind = _known(request)
        await _answer(self.store.get(kind, request.namespace, request.name))
        uid = ((request.data or {}).get("preconditions") or {}).get("uid")
        await _answer(self.store.delete(kind, request.namespace, request.name, uid))
        return {"kind": "Status", "status": "Success"}


async def _answer(work: Any) -> Any:
    try:
        return await work
    except ClusterError as error:
        code = _CODES[type(error)]
        raise kmock.KubernetesError(
            status=code, reason=type(error).__name__, message=str(error)
        ) from error


def _kind(request: kmock.Request) -> Kind | None:
    for kind in ALL_KINDS:
        if (kind.group, kind.version, kind.plural) == (
            request.resource.group,
            request.resource.version,
            request.resource.plural,
        ):
            return kind
    return None


def _known(request: kmock.Request) -> Kind:
    kind = _kind(request)
    if kind is None or request.namespace is None or request.name is None:
        raise kmock.KubernetesError(status=404, reason="NotFound", message=str(request.url))
    return kind


def _check_watch_timeout(request: kmock.Request) -> None:
    """As a real server does: a whole number or HTTP 400."""
    text = request.params.get("timeoutSeconds", "0")
    if not text.isdecimal():
        raise kmock.KubernetesError(
            status=400, reason="BadRequest", message=f"not a number: {text}"
        )


def _labels(request: kmock.Request) -> dict[str, str]:
    selector = request.params.get("labelSelector", "")
    return dict(term.split("=") for term in selector.split(",") if term)


def name_cluster(url: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a kubeconfig in `folder` name the server as the cluster to use."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": str(url)}}],
        "users": [{"name": "test", "user": {"token": "secret"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(path))
    for module in ("kubernetes.config", "kubernetes.aio.config"):
        monkeypatch.setattr(f"{module}.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
