"""A live copy of all objects of one kind that the operator made, kept up to date by a watch.

Selected by label on the server, listed again when the watch falls behind, stripped of managed
fields to stay small. Tells a callback which object changed; decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from octavo_operator.cluster.interface import Cluster, EventType
from octavo_operator.cluster.troubles import Troubles
from octavo_operator.errors import ClusterError, ForbiddenError, GoneError, NotFoundError
from octavo_operator.labels import LABEL_SERVICE
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, OPTIONAL_KINDS, Kind
from octavo_operator.reconcile.live_object import LiveObject, labels_of

logger = logging.getLogger(__name__)

ServiceKey = tuple[str, str]
"""Namespace and name of an InferenceService."""

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
ABSENT_KIND_PAUSE_S: Final = 300.0


class Informer:
    """Follows `kind` in `namespace` (None: everywhere); `on_change` gets the service concerned.

    `troubles` are those of all informers of the namespace, if there are others.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        on_change: Callable[[ServiceKey], None],
        troubles: Troubles | None = None,
    ) -> None:
        self.kind = kind
        self._cluster = cluster
        self._namespace = namespace
        self._labels = labels
        self._on_change = on_change
        self._troubles = troubles if troubles is not None else Troubles(namespace)
        self._objects: dict[ServiceKey, dict[str, LiveObject]] = {}
        self._filed: dict[tuple[str, str], ServiceKey] = {}
        """Under which service an object is kept, by its namespace and name: labels may change."""

        self._told_of = 0
        """The version up to which the server has told of everything."""

        self.last_contact = time.monotonic()
        """When the server was last heard of."""

        self.listed = asyncio.Event()
        """Set once the first list is in, or the kind is known to be absent."""

    def covers(self, namespace: str) -> bool:
        """Whether objects of `namespace` are followed."""
        return self._namespace in (None, namespace)

    def objects_of(self, service: ServiceKey) -> tuple[LiveObject, ...]:
        """Objects that carry the label of `service`, by name."""
        return tuple(value for _, value in sorted(self._objects.get(service, {}).items()))

    def all_objects(self) -> tuple[LiveObject, ...]:
        """All of them; may be asked from another thread, hence the copies."""
        return tuple(
            live for objects in list(self._objects.values()) for live in list(objects.values())
        )

    def remember(self, live: LiveObject) -> None:
        """Take note of an object just written, before the watch tells of it.

        One that the watch has been past and that is not there has been deleted since.
        """
        is_past = 0 < _version(live) <= self._told_of
        if self._known_version(live) or not is_past:
            self._keep_newer(live)

    async def run(self) -> None:
        """List and watch until cancelled; failures are waited out, with growing pauses."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                version = await self._list()
                pause_s = FIRST_PAUSE_S
                self._troubles.end(self)
                await self._watch(version)
            except NotFoundError:
                self._troubles.end(self)
                await self._do_without()
            except GoneError as error:
                logger.info("%s; listing again", error)
                # A server that says so to every list must not be asked without a pause.
                await asyncio.sleep(FIRST_PAUSE_S)
            except ClusterError as error:
                self._troubles.begin(self, self.kind.plural, error)
                if isinstance(error, ForbiddenError) and self.kind in OPTIONAL_KINDS:
                    # A cluster that has the kind, and a role made before it came.
                    await self._do_without()
                    continue
                await asyncio.sleep(max(error.retry_after_s or 0.0, pause_s))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _do_without(self) -> None:
        """The kind is not there, or not ours to see; it may come."""
        self.last_contact = time.monotonic()
        self._forget_all()
        self.listed.set()
        await asyncio.sleep(ABSENT_KIND_PAUSE_S)

    async def _list(self) -> str:
        listed = await self._cluster.list_objects(self.kind, self._namespace, self._labels)
        self.last_contact = time.monotonic()
        self._told_of = _number(listed.resource_version)
        before = self._versions()
        self._clear()
        for live in listed.items:
            self._keep(live)
        after = self._versions()
        self.listed.set()
        for service, _ in {*(before.items() - after.items()), *(after.items() - before.items())}:
            self._on_change(service[:2])
        return listed.resource_version

    async def _watch(self, version: str) -> None:
        while True:
            async for event in self._cluster.watch(
                self.kind, self._namespace, self._labels, version
            ):
                version = event.resource_version
                self._told_of = _number(version)
                self.last_contact = time.monotonic()
                if event.type is EventType.BOOKMARK:
                    continue
                service = service_of(event.object)
                former = self._filed.get(_identity(event.object), service)
                if event.type is EventType.DELETED:
                    self._drop(event.object)
                else:
                    # An event may be older than what was written meanwhile.
                    self._keep_newer(event.object)
                for concerned in {former, service}:
                    self._on_change(concerned)
            self.last_contact = time.monotonic()
            # The server ends a watch every few minutes; a pause keeps a broken one from spinning.
            await asyncio.sleep(0.1)

    def _keep_newer(self, live: LiveObject) -> None:
        if self._known_version(live) <= _version(live):
            self._keep(live)

    def _known_version(self, live: LiveObject) -> int:
        """Of the object as it is known; 0 where it is not."""
        service = self._filed.get(_identity(live))
        return _version(self._objects[service][live["metadata"]["name"]]) if service else 0

    def _keep(self, live: LiveObject) -> None:
        metadata = {
            key: live["metadata"][key] for key in live["metadata"] if key != "managedFields"
        }
        slim = {
            **live,
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "metadata": metadata,
        }
        self._drop(live)
        service = self._filed[_identity(live)] = service_of(live)
        self._objects.setdefault(service, {})[metadata["name"]] = slim

    def _drop(self, live: LiveObject) -> None:
        service = self._filed.pop(_identity(live), None)
        if service is None:
            return
        objects = self._objects[service]
        del objects[live["metadata"]["name"]]
        if not objects:
            del self._objects[service]

    def _clear(self) -> None:
        self._objects.clear()
        self._filed.clear()

    def _forget_all(self) -> None:
        self._told_of = 0
        services = list(self._objects)
        self._clear()
        for service in services:
            self._on_change(service)

    def _versions(self) -> dict[tuple[str, str, str], str]:
        return {
            (*service, name): str(live["metadata"].get("resourceVersion", ""))
            for service, objects in self._objects.items()
            for name, live in objects.items()
        }


def service_of(live: LiveObject) -> ServiceKey:
    """The InferenceService that owns a child, whatever has become of its labels, or that a pod
    says it belongs to; no name where there is none."""
    metadata = live["metadata"]
    kind = (INFERENCE_SERVICE.api_version, INFERENCE_SERVICE.kind)
    owners = metadata.get("ownerReferences") or ()
    names = (item["name"] for item in owners if (item["apiVersion"], item["kind"]) == kind)
    name = next(names, None) or labels_of(live).get(LABEL_SERVICE, "")
    return metadata.get("namespace", ""), str(name)


def _identity(live: LiveObject) -> tuple[str, str]:
    return live["metadata"].get("namespace", ""), live["metadata"]["name"]


def _version(live: LiveObject) -> int:
    """Resource versions of one kind may be compared as integers (guaranteed since 1.35)."""
    return _number(str(live["metadata"].get("resourceVersion", "")))


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
