"""One look at the adapters of an InferenceService: the resources, its pods, and what those list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from octavo_operator.reconcile.adapter_facts import Attempt, AttemptKey, ListedAdapter
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.worker_pod import WorkerPod

Place = tuple[str, str, str]
"""A name in a container: pod uid, container id, served name. One call at a time concerns it."""


@dataclass(frozen=True, slots=True)
class AdapterWorld:
    """What the planner of adapters sees.

    name: of the InferenceService. service: None when there is none of that name.
    adapters: LoRAAdapters that refer to it, also those on their way out.
    pods: its pods that stay. listings: what pods that answered list, by pod uid; silences: why
    others did not answer. held: uids of pods that take no traffic before they are told that no
    adapter is missing. going_since: when an adapter that is being deleted was first seen so, by
    its uid; of our own clock, as the server's may be another.
    attempts: how loads and unloads have gone. busy: where one is under way, and what of.
    now_s: of the monotonic clock, for pauses; now: for deadlines that are in resources.
    template: what pods to come are like, None when there is no workload. list_: the list that they
    read, None when there is none that belongs to the service.
    """

    name: str
    service: LiveObject | None
    adapters: tuple[LiveObject, ...]
    pods: tuple[WorkerPod, ...]
    listings: Mapping[str, Mapping[str, ListedAdapter]]
    silences: Mapping[str, str]
    attempts: Mapping[AttemptKey, Attempt]
    busy: Mapping[Place, AttemptKey]
    now_s: float
    now: datetime
    held: frozenset[str] = frozenset()
    going_since: Mapping[str, datetime] = field(default_factory=dict)
    template: WorkerPod | None = None
    list_: LiveObject | None = None

    def listed(self, pod: WorkerPod, name: str) -> ListedAdapter | None:
        """What `pod` says of `name`; None too when it did not answer."""
        return self.listings.get(pod.uid, {}).get(name)

    def has_answered(self, pod: WorkerPod) -> bool:
        return pod.uid in self.listings

    def attempt(self, pod: WorkerPod, name: str, source: str) -> Attempt | None:
        return self.attempts.get(AttemptKey(pod.uid, pod.container_id, name, source))

    def busy_with(self, pod: WorkerPod, name: str) -> AttemptKey | None:
        """The call under way about `name` in the present container of `pod`."""
        return self.busy.get((pod.uid, pod.container_id, name))
