"""The real cluster: Kubernetes' own asyncio client, used for its connection and credentials only.

Requests are written here in full, because the generated methods neither know our kinds nor leave
objects as plain dicts. No call is ever repeated here: who asked decides when to try again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import config as client_config
from kubernetes.aio.client import ApiClient, Configuration

from octavo_operator.cluster.failures import network_error, response_error
from octavo_operator.cluster.interface import EventType, ObjectList, WatchEvent
from octavo_operator.errors import ClusterError, GoneError, NotFoundError, SettingsError
from octavo_operator.json_text import read_json
from octavo_operator.labels import FIELD_MANAGER, selector_string
from octavo_operator.manifests.kinds import OPTIONAL_KINDS, OWN_KINDS, Kind, kind_of
from octavo_operator.reconcile.live_object import LiveObject

WATCH_TIMEOUT_S: Final = 290
"""The server ends each watch after this time; a connection lost without a sign costs no more."""

WATCH_SILENCE_S: Final = 90
"""Bookmarks come about once a minute, but not where etcd tells its server of no progress and
nothing of the kind has changed since the watch began. So a longer silence, which a dead connection
makes too, ends a watch and is no failure."""

PAGE_SIZE: Final = 500


class KubernetesApi:
    """A `Cluster` over HTTP. Use as a context manager, inside a running event loop.

    `on_call` is told of each call: the method (WATCH for a watch), the status, None for no answer.
    """

    def __init__(
        self,
        configuration: Configuration,
        request_timeout_s: float,
        on_call: Callable[[str, int | None], None],
    ) -> None:
        self._client = ApiClient(configuration)
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s)
        self._on_call = on_call

    @classmethod
    async def connect(
        cls,
        request_timeout_s: float,
        *,
        is_in_cluster: bool,
        on_call: Callable[[str, int | None], None] = lambda method, status: None,
    ) -> Self:
        """With the pod's service account, or else KUBECONFIG; SettingsError when that fails."""
        configuration = Configuration()
        try:
            if is_in_cluster:
                client_config.load_incluster_config(client_configuration=configuration)
            else:
                await client_config.load_kube_config(client_configuration=configuration)
        except (client_config.ConfigException, yaml.YAMLError, OSError) as error:
            raise SettingsError(
                f"no way to a cluster: {' '.join(str(error).split())}; set KUBECONFIG, or run "
                f"inside a pod"
            ) from error
        return cls(configuration, request_timeout_s, on_call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def served_kinds(self) -> frozenset[Kind]:
        found = set()
        uncertain = OPTIONAL_KINDS | OWN_KINDS
        for group, version in sorted({(kind.group, kind.version) for kind in uncertain}):
            try:
                listed = await self._call("GET", f"/apis/{group}/{version}")
            except NotFoundError:
                continue
            names = {resource["name"] for resource in listed.get("resources", ())}
            found |= {kind for kind in uncertain if kind.group == group and kind.plural in names}
        return frozenset(found)

    async def get(self, kind: Kind, namespace: str, name: str) -> LiveObject:
        return await self._call("GET", kind.path(namespace, name))

    async def list_objects(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> ObjectList:
        items: list[LiveObject] = []
        query = {**_selector(labels), "limit": str(PAGE_SIZE)}
        while True:
            page = await self._call("GET", kind.path(namespace), query)
            # Items of a list come without their kind.
            named = {"apiVersion": kind.api_version, "kind": kind.kind}
            items += [{**named, **item} for item in page.get("items") or ()]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return ObjectList(tuple(items), str(metadata.get("resourceVersion", "")))
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        query = {
            **_selector(labels),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_TIMEOUT_S),
        }
        action = f"watch {kind.plural}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SILENCE_S)
        try:
            response = await self._request("GET", kind.path(namespace), query, timeout=timeout)
            try:
                if response.status != 200:
                    body = await response.read()
                    raise response_error(action, response.status, response.headers, body)
                with contextlib.suppress(TimeoutError):
                    async for line in response.content:
                        if line.strip():
                            yield _watch_event(action, line)
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise network_error(action, error) from error

    async def apply(self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER) -> LiveObject:
        metadata = manifest["metadata"]
        return await self._call(
            "PATCH",
            kind_of(manifest).path(metadata["namespace"], metadata["name"]),
            {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    async def create(self, manifest: Mapping[str, Any]) -> LiveObject:
        path = kind_of(manifest).path(manifest["metadata"]["namespace"])
        return await self._call("POST", path, {"fieldManager": FIELD_MANAGER}, body=manifest)

    async def update(self, manifest: Mapping[str, Any]) -> LiveObject:
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
        return await self._merge(path, manifest)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._call("DELETE", kind.path(namespace, name), body=options)
        except NotFoundError:
            return

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> LiveObject:
        return await self._merge(kind.path(namespace, name), patch)

    async def write_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        resource_version: str,
    ) -> LiveObject:
        patch = {"metadata": {"resourceVersion": resource_version}, "status": status}
        return await self._merge(kind.path(namespace, name, "status"), patch)

    async def _merge(self, path: str, patch: Mapping[str, Any]) -> LiveObject:
        return await self._call(
            "PATCH",
            path,
            {"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        action = f"{method} {path}"
        try:
            response = await self._request(
                method, path, query, body=body, content_type=content_type, timeout=self._timeout
            )
            async with response:
                data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise network_error(action, error) from error
        if not 200 <= response.status < 300:
            raise response_error(action, response.status, response.headers, data)
        try:
            parsed: dict[str, Any] = read_json(data)
        except ValueError as error:
            raise network_error(action, error) from error
        return parsed

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        timeout: aiohttp.ClientTimeout,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # Fills in the credentials, and renews a token that is about to expire.
        _, url, headers, body, _ = await self._client.param_serialize(
            method,
            path + (f"?{urlencode(query)}" if query else ""),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        status: int | None = None
        try:
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            response: aiohttp.ClientResponse = answer.response
            status = response.status
            return response
        finally:
            self._on_call("WATCH" if query and "watch" in query else method, status)


def _selector(labels: Mapping[str, str]) -> dict[str, str]:
    return {"labelSelector": selector_string(dict(labels))} if labels else {}


def _watch_event(action: str, line: bytes) -> WatchEvent:
    try:
        event = read_json(line)
        kind, live = event["type"], event["object"]
        if kind != "ERROR":
            return WatchEvent(EventType(kind), live)
    except (ValueError, TypeError, KeyError) as error:
        raise network_error(action, error) from error
    raise _watch_error(action, live)


def _watch_error(action: str, status: Mapping[str, Any]) -> ClusterError:
    if status.get("code") == 410:
        return GoneError(f"{action}: {status.get('message')}")
    body = json.dumps(status).encode()
    return response_error(action, int(status.get("code") or 500), {}, body)
