"""A Kubernetes API, as a test needs it: objects as dicts, waits with deadlines, nothing cached."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from kubernetes import config

FIELD_MANAGER = "octavo-e2e"
POLL_S = 0.3

Object = dict[str, Any]
_T = TypeVar("_T")

PATHS: Mapping[str, str] = {
    "inferenceservices": "/apis/serving.octavo.dev/v1alpha1",
    "loraadapters": "/apis/serving.octavo.dev/v1alpha1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
    "customresourcedefinitions": "/apis/apiextensions.k8s.io/v1",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1",
    "subjectaccessreviews": "/apis/authorization.k8s.io/v1",
}
"""Where a plural that is not of the core API is served."""


class ApiError(Exception):
    """The API said no."""

    def __init__(self, action: str, status: int, body: str) -> None:
        super().__init__(f"{action}: HTTP {status}: {body[:2000]}")
        self.status = status
        self.body = body


class NeverHappenedError(AssertionError):
    """A deadline passed; the text says what was waited for and what was there instead."""


class Cluster:
    """Calls as the user of a context."""

    def __init__(self, context: str) -> None:
        self.context = context
        self._api = config.new_client_from_config(context=context)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> str:
        """The text of the answer; ApiError unless it is 2xx."""
        url = path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": accept, "Content-Type": content_type}
        if content_type.endswith("yaml"):
            # JSON is YAML; the client itself encodes JSON only.
            body = json.dumps(body)
        serialized = self._api.param_serialize(
            method, url, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = self._api.call_api(*serialized, _request_timeout=timeout_s)
        text = response.read().decode(errors="replace")
        if not 200 <= response.status < 300:
            raise ApiError(f"{method} {path}", response.status, text)
        return text

    def serves(self, group: str) -> bool:
        """Whether the cluster has an API group."""
        groups = self._json("GET", "/apis")["groups"]
        return group in {item["name"] for item in groups}

    def get(self, plural: str, namespace: str | None, name: str, subresource: str = "") -> Object:
        return self._json("GET", path_of(plural, namespace, name, subresource))

    def find(self, plural: str, namespace: str | None, name: str) -> Object | None:
        """One object, or None when it is not there."""
        try:
            return self.get(plural, namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list_all(
        self, plural: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        query = {"labelSelector": selector} if selector else None
        listed = self._json("GET", path_of(plural, namespace), query=query)
        return list(listed.get("items") or ())

    def table(self, plural: str, namespace: str) -> tuple[list[str], list[list[Any]]]:
        """What `kubectl get` shows without `-o wide`: names of the columns, and rows."""
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        table = json.loads(self.call("GET", path_of(plural, namespace), accept=accept))
        definitions = table["columnDefinitions"]
        shown = [place for place, item in enumerate(definitions) if not item["priority"]]
        columns = [definitions[place]["name"] for place in shown]
        return columns, [[row["cells"][place] for place in shown] for row in table["rows"]]

    def create(self, plural: str, namespace: str | None, body: Object) -> Object:
        query = {"fieldValidation": "Strict"}
        return self._json("POST", path_of(plural, namespace), body, query=query)

    def apply(self, plural: str, body: Object, manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply, as `kubectl apply --server-side` does it, unknown fields refused."""
        metadata = body["metadata"]
        return self._json(
            "PATCH",
            path_of(plural, metadata.get("namespace"), metadata["name"]),
            body,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
        )

    def merge(
        self, plural: str, namespace: str | None, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        """JSON merge patch."""
        return self._json(
            "PATCH",
            path_of(plural, namespace, name, subresource),
            patch,
            content_type="application/merge-patch+json",
            query={"fieldManager": FIELD_MANAGER},
        )

    def delete(self, plural: str, namespace: str | None, name: str, **options: Any) -> None:
        """Delete in the background; one that is gone is no error."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            **options,
        }
        try:
            self.call("DELETE", path_of(plural, namespace, name), body)
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, namespace: str, pod: str, container: str, **query: str) -> str:
        """The text of a container's log, or why there is none."""
        try:
            return self.call(
                "GET",
                path_of("pods", namespace, pod, "log"),
                accept="*/*",
                query={"container": container, **query},
            )
        except ApiError as error:
            return f"(no log: {error})"

    def _json(self, method: str, path: str, body: Any = None, **options: Any) -> Object:
        parsed: Object = json.loads(self.call(method, path, body, **options))
        return parsed


def path_of(
    plural: str, namespace: str | None, name: str | None = None, subresource: str = ""
) -> str:
    """The URL path of a collection or an object."""
    parts = [PATHS.get(plural, "/api/v1")]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(plural)
    if name is not None:
        parts.append(name)
    if subresource:
        parts.append(subresource)
    return "/".join(parts)


def wait_for(
    what: str,
    look: Callable[[], _T],
    is_there: Callable[[_T], bool] = bool,
    deadline_s: float = 120,
) -> _T:
    """What `look` returns once `is_there` holds of it; NeverHappenedError after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        found = look()
        if is_there(found):
            return found
        if time.monotonic() > end:
            shown = json.dumps(found, indent=1, default=str)
            raise NeverHappenedError(
                f"not within {deadline_s:.0f} s: {what}; the last look gave {shown[:4000]}"
            )
        time.sleep(POLL_S)
