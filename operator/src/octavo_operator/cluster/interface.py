"""What the operator asks of a cluster, whichever it is.

All methods raise `ClusterError`s only. Objects are plain dicts with apiVersion and kind filled in;
callers must not change them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from octavo_operator.labels import FIELD_MANAGER
from octavo_operator.manifests.kinds import Kind
from octavo_operator.reconcile.live_object import LiveObject


class EventType(Enum):
    """What a watch says has happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event; the object of a bookmark has a resource version only."""

    type: EventType
    object: LiveObject

    @property
    def resource_version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A consistent list, and the version from which a watch goes on."""

    items: tuple[LiveObject, ...]
    resource_version: str


class Cluster(Protocol):
    """A Kubernetes API, as far as the operator needs one."""

    async def served_kinds(self) -> frozenset[Kind]:
        """Which of the optional kinds, and of our own, the cluster has."""
        ...

    async def get(self, kind: Kind, namespace: str, name: str) -> LiveObject:
        """One object; NotFoundError when it is not there."""
        ...

    async def list_objects(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> ObjectList:
        """All objects with these labels, in one namespace or in all of them (None)."""
        ...

    def watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version`; ends now and then, and GoneError means: list again."""
        ...

    async def apply(self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER) -> LiveObject:
        """Server-side apply, taking over fields that others own."""
        ...

    async def create(self, manifest: Mapping[str, Any]) -> LiveObject:
        """A new object; ConflictError when the name is taken."""
        ...

    async def update(self, manifest: Mapping[str, Any]) -> LiveObject:
        """Write all fields of an object; ConflictError when it has left its resourceVersion."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete that very object in the background; one that is gone already is no error."""
        ...

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> LiveObject:
        """JSON merge patch; ConflictError when a resourceVersion in it is not the present one."""
        ...

    async def write_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        resource_version: str,
    ) -> LiveObject:
        """Merge `status` in; ConflictError when the object has left `resource_version`."""
        ...
