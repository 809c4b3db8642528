"""Writes to LoRAAdapters: the finalizer that holds one, and its status with the events of it.

What is written is `reconcile.adapters`'s to say. One that has gone meanwhile is no failure.
"""

from __future__ import annotations

import contextlib

from octavo_operator.cluster.announcer import Announcer
from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import NotFoundError
from octavo_operator.labels import FINALIZER
from octavo_operator.manifests.kinds import LORA_ADAPTER, Kind
from octavo_operator.reconcile.adapter_departure import Departure
from octavo_operator.reconcile.adapters import Report
from octavo_operator.reconcile.events import Announcement
from octavo_operator.reconcile.live_object import LiveObject


class AdapterWriter:
    """For one pass, whose resources were read before it: every write is a conflict when somebody
    else has written since; what it has written itself is not somebody else's."""

    def __init__(self, cluster: Cluster, announcer: Announcer) -> None:
        self._cluster = cluster
        self._announcer = announcer
        self._versions: dict[str, str] = {}

    async def hold(self, resource: LiveObject) -> None:
        """Set the finalizer; others' stay."""
        finalizers = [*(resource["metadata"].get("finalizers") or ()), FINALIZER]
        with contextlib.suppress(NotFoundError):
            await self._set_finalizers(resource, finalizers)

    async def release(self, departure: Departure) -> None:
        """Take the finalizer off, and tell of pods that may still have the adapter."""
        resource = departure.resource
        finalizers = [
            name for name in resource["metadata"].get("finalizers") or () if name != FINALIZER
        ]
        if departure.late:
            message = f"it goes, though pods may still have it: {', '.join(departure.late)}"
            warning = Announcement("Warning", "UnloadTimedOut", message)
            await self._announcer.post(LORA_ADAPTER, resource, warning)
        with contextlib.suppress(NotFoundError):
            await self._set_finalizers(resource, finalizers)

    async def report(self, report: Report) -> None:
        """Write the status, then the events of what is new in it."""
        version = self._version(report.resource)
        with contextlib.suppress(NotFoundError):
            self._note(
                await self._cluster.write_status(*_place(report.resource), report.status, version)
            )
            await self._announcer.announce(LORA_ADAPTER, report.resource, report.status)

    async def _set_finalizers(self, resource: LiveObject, finalizers: list[str]) -> None:
        metadata = {"finalizers": finalizers, "resourceVersion": self._version(resource)}
        self._note(await self._cluster.merge(*_place(resource), {"metadata": metadata}))

    def _version(self, resource: LiveObject) -> str:
        metadata = resource["metadata"]
        return self._versions.get(metadata["uid"]) or str(metadata["resourceVersion"])

    def _note(self, written: LiveObject) -> None:
        metadata = written["metadata"]
        self._versions[metadata["uid"]] = metadata["resourceVersion"]


def _place(resource: LiveObject) -> tuple[Kind, str, str]:
    metadata = resource["metadata"]
    return LORA_ADAPTER, metadata["namespace"], metadata["name"]
