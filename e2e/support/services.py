"""InferenceServices in the cluster under test: made, waited for, asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from cluster import ApiError, Cluster, Object, path_of, wait_for
from environment import Environment

API_VERSION = "serving.octavo.dev/v1alpha1"
WORKER_PORT = 8000
ADMIN_PORT = 8001
START_S = 300
"""A start with a download on a slow machine."""


@dataclass(frozen=True)
class Answer:
    """status is None when there was no HTTP answer; `error` then says why."""

    status: int | None
    body: Any
    error: str = ""


class Stage:
    """One namespace, and what a story does in it."""

    def __init__(self, cluster: Cluster, environment: Environment, namespace: str) -> None:
        self.cluster = cluster
        self.environment = environment
        self.namespace = namespace

    def manifest(self, name: str, **spec: Any) -> Object:
        """A small InferenceService; keywords replace fields of the spec, None removes them."""
        is_cpu = self.environment.accelerator == "none"
        args = ["--kv-cache-memory-bytes=64MiB"] if is_cpu else []
        wanted: dict[str, Any] = {
            "model": {"uri": self.environment.model, "servedName": name},
            "replicas": 1,
            "accelerator": {"resource": self.environment.accelerator},
            "engine": {"maxModelLen": 256, "args": args},
            "rollout": {"drainSeconds": 30},
            **spec,
        }
        return {
            "apiVersion": API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {key: value for key, value in wanted.items() if value is not None},
        }

    def apply(self, manifest: Object) -> Object:
        return self.cluster.apply("inferenceservices", manifest)

    def service(self, name: str) -> Object:
        return self.cluster.get("inferenceservices", self.namespace, name)

    def pods(self, name: str) -> list[Object]:
        """The worker pods of a service that are not on their way out, by name."""
        labels = {
            "app.kubernetes.io/name": "octavo-worker",
            "serving.octavo.dev/service": name,
        }
        found = self.cluster.list_all("pods", self.namespace, labels)
        alive = [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["name"]))

    def ready_pods(self, name: str) -> list[Object]:
        return [pod for pod in self.pods(name) if is_ready(pod)]

    def wait_condition(
        self,
        name: str,
        kind: str,
        status: str,
        reason: str | None = None,
        deadline_s: float = START_S,
    ) -> Object:
        """The service once a condition is so for its present generation."""

        def holds(service: Object) -> bool:
            found = condition(service, kind)
            return (
                found is not None
                and found["status"] == status
                and (reason is None or found["reason"] == reason)
                and found["observedGeneration"] == service["metadata"]["generation"]
            )

        what = f"condition {kind} of {name} is {status} {reason or ''}"
        return wait_for(what, lambda: self.service(name), holds, deadline_s)

    def wait_ready(self, name: str, deadline_s: float = START_S) -> Object:
        return self.wait_condition(name, "Ready", "True", "Serving", deadline_s)

    def wait_rolled_out(self, name: str, deadline_s: float = START_S) -> Object:
        return self.wait_condition(name, "Progressing", "False", "Complete", deadline_s)

    def wait_gone(self, plural: str, name: str, deadline_s: float = 120) -> None:
        wait_for(
            f"{plural}/{name} is gone",
            lambda: self.cluster.find(plural, self.namespace, name),
            lambda found: found is None,
            deadline_s,
        )

    def ask(
        self,
        pod: Object,
        path: str,
        body: Mapping[str, Any] | None = None,
        port: int = WORKER_PORT,
    ) -> Answer:
        """One request to one pod: straight to its IP, or through the API server."""
        if self._is_direct(pod):
            return _ask_directly(f"{pod['status']['podIP']}:{port}", path, body)
        name = f"{pod['metadata']['name']}:{port}"
        proxied = path_of("pods", self.namespace, name, f"proxy{path}")
        try:
            text = self.cluster.call("POST" if body else "GET", proxied, body)
        except ApiError as error:
            return Answer(error.status, error.body)
        return Answer(200, _parsed(text))

    def complete(self, pod: Object, name: str, num_tokens: int = 4) -> Answer:
        """A completion of a few tokens."""
        body = {"model": name, "prompt": "Hello", "max_tokens": num_tokens, "temperature": 0}
        return self.ask(pod, "/v1/completions", body)

    def _is_direct(self, pod: Object) -> bool:
        reach = self.environment.reach
        if reach != "auto":
            return reach == "direct"
        return is_reachable(pod["status"]["podIP"], WORKER_PORT)


def condition(resource: Object, kind: str) -> Object | None:
    """One condition of a resource."""
    for item in (resource.get("status") or {}).get("conditions") or ():
        if item["type"] == kind:
            found: Object = item
            return found
    return None


def is_ready(pod: Object) -> bool:
    """Whether the Service would send requests to a pod."""
    found = condition(pod, "Ready")
    return (
        found is not None
        and found["status"] == "True"
        and not pod["metadata"].get("deletionTimestamp")
    )


def is_reachable(host: str, port: int) -> bool:
    """Whether a connection can be made from here."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def uids(pods: list[Object]) -> set[str]:
    return {str(pod["metadata"]["uid"]) for pod in pods}


def _ask_directly(address: str, path: str, body: Mapping[str, Any] | None) -> Answer:
    url = f"http://{address}{path}"
    try:
        response = httpx.request("POST" if body else "GET", url, json=body, timeout=60)
    except httpx.HTTPError as error:
        return Answer(None, None, f"{type(error).__name__}: {error}")
    return Answer(response.status_code, _parsed(response.text))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
