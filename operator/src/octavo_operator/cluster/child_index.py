"""The informers of all child kinds together: what the operator knows of its own objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from octavo_operator.cluster.informer import Informer, ServiceKey
from octavo_operator.cluster.interface import Cluster
from octavo_operator.cluster.troubles import Troubles
from octavo_operator.errors import UnavailableError
from octavo_operator.labels import (
    APP_NAME,
    COMPANION_NAME,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    MANAGED_BY,
)
from octavo_operator.manifests.kinds import CHILD_KINDS, CONFIG_MAP, POD, Kind, kind_of
from octavo_operator.reconcile.live_object import LiveObject

LIST_PATIENCE_S: Final = 5.0
"""How long a pass waits for the first lists; then it gives way, and comes back."""


class ChildIndex:
    """Children and pods by InferenceService, in the given namespaces (empty: all)."""

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Sequence[str],
        on_change: Callable[[ServiceKey], None],
    ) -> None:
        scopes: Sequence[str | None] = namespaces or (None,)
        child_labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_NAME: APP_NAME}
        troubles = {scope: Troubles(scope) for scope in scopes}

        def informers(kind: Kind, labels: Mapping[str, str]) -> list[Informer]:
            return [
                Informer(cluster, kind, scope, labels, on_change, troubles[scope])
                for scope in scopes
            ]

        self._children = [one for kind in CHILD_KINDS for one in informers(kind, child_labels)]
        # Pods are made by the Deployment from our template, which bears the selector's labels.
        self._pods = informers(POD, {LABEL_NAME: APP_NAME})
        self._companions = informers(POD, {LABEL_NAME: COMPANION_NAME})
        self._lists = informers(CONFIG_MAP, child_labels)
        self._all = (*self._children, *self._pods, *self._companions, *self._lists)

    def children_of(self, service: ServiceKey) -> tuple[LiveObject, ...]:
        return tuple(live for informer in self._children for live in informer.objects_of(service))

    def lists_of(self, service: ServiceKey) -> tuple[LiveObject, ...]:
        """ConfigMaps that tell new pods of their adapters."""
        return tuple(live for informer in self._lists for live in informer.objects_of(service))

    def pods_of(self, service: ServiceKey) -> tuple[LiveObject, ...]:
        return tuple(live for informer in self._pods for live in informer.objects_of(service))

    def companions_of(self, service: ServiceKey) -> tuple[LiveObject, ...]:
        """Pods that belong to the service and take no requests."""
        return tuple(live for informer in self._companions for live in informer.objects_of(service))

    def all_pods(self) -> tuple[LiveObject, ...]:
        return tuple(live for informer in self._pods for live in informer.all_objects())

    def oldest_contact_s(self, now: float) -> float:
        """How long ago, at `now` of the monotonic clock, the quietest watch heard of the server."""
        return max(self.contacts_s(now).values())

    def contacts_s(self, now: float) -> dict[str, float]:
        """The same for each kind, by its plural."""
        contacts: dict[str, float] = {}
        for informer in self._all:
            age_s, plural = now - informer.last_contact, informer.kind.plural
            contacts[plural] = max(age_s, contacts.get(plural, 0.0))
        return contacts

    def remember(self, live: LiveObject) -> None:
        """Take note of an object just written."""
        kind = kind_of(live)
        for informer in (*self._children, *self._lists):
            if informer.kind == kind and informer.covers(live["metadata"]["namespace"]):
                informer.remember(live)

    async def wait_listed(self, namespace: str) -> None:
        """Until every kind has been listed once there; deciding earlier would create what exists.

        UnavailableError where that takes long: a namespace that has gone, or that the operator may
        not look into, keeps nobody from the others.
        """
        informers = [informer for informer in self._all if informer.covers(namespace)]
        try:
            async with asyncio.timeout(LIST_PATIENCE_S):
                await asyncio.gather(*(informer.listed.wait() for informer in informers))
        except TimeoutError:
            unlisted = {one.kind.plural for one in informers if not one.listed.is_set()}
            what = ", ".join(sorted(unlisted))
            raise UnavailableError(f"{what} of namespace {namespace} cannot be listed") from None

    async def run(self) -> None:
        """Follow all kinds until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._all:
                tasks.create_task(informer.run(), name=f"informer {informer.kind.plural}")
