"""Which pods hold an adapter, and what the others have of it.

A Service does not know who holds what, so every pod that could load an adapter knows its name: one
that is not chosen to hold it loads it when a request comes, and answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from octavo_operator.reconcile.adapter_resolution import Resolution, resolve
from octavo_operator.reconcile.adapter_standing import Standing, stand
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import LoRAAdapter

_HOLDING: Final = ("Loading", "Loaded", "Known")
"""States in a status of pods that are as they should be."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An adapter that may be loaded, and where it stands in each pod that is chosen for it.

    others: where it stands in the rest, which know its name and load it when a request comes.
    """

    resource: LiveObject
    adapter: LoRAAdapter
    resolution: Resolution
    standings: tuple[Standing, ...]
    others: tuple[Standing, ...]

    @property
    def everywhere(self) -> tuple[Standing, ...]:
        return (*self.standings, *self.others)

    def keeps_out(self, standing: Standing) -> bool:
        """Whether its pod shall not serve yet: what it is to hold is loading, or it has not been
        told a name that it could load."""
        if standing.is_settled:
            return False
        if self.adapter.is_eager and standing in self.standings:
            return True
        return self.resolution.target is not None and standing.failure is None


def place_adapter(
    resource: LiveObject, adapter: LoRAAdapter, pods: tuple[WorkerPod, ...], world: AdapterWorld
) -> Placed:
    """Choose among `pods`, and tell what is due in each."""
    chosen = _choose_pods(adapter, resource, pods, world)
    resolution = resolve(adapter, resource, chosen, world)
    standings = tuple(stand(adapter, resource, resolution, pod, world) for pod in chosen)
    # A Service leads requests to any pod.
    on_request = replace(adapter, is_eager=False)
    others = tuple(
        stand(on_request, resource, resolution, pod, world) for pod in pods if pod not in chosen
    )
    return Placed(resource, adapter, resolution, standings, others)


def _choose_pods(
    adapter: LoRAAdapter,
    resource: LiveObject,
    pods: tuple[WorkerPod, ...],
    world: AdapterWorld,
) -> tuple[WorkerPod, ...]:
    """The pods that shall hold it, in the order in which they are asked first.

    Those that hold it stay, above all those that were chosen before: others may hold it because a
    request came to them. The rest come in an order of their own for each adapter, so that adapters
    that need few pods are spread over all. (Rendezvous hashing, Thaler and Ravishankar.)
    """
    entries = (resource.get("status") or {}).get("pods") or ()
    before = {entry.get("uid") for entry in entries if entry.get("state") in _HOLDING}

    def rank(pod: WorkerPod) -> tuple[bool, bool, bytes]:
        seed = f"{adapter.served_name}\n{pod.uid}".encode()
        listed, was_chosen = world.listed(pod, adapter.served_name), pod.uid in before
        # A pod that did not answer is taken for what it was.
        is_ready = listed is not None and listed.state == "ready"
        is_holder = is_ready if world.has_answered(pod) else was_chosen
        return not is_holder, not was_chosen, hashlib.blake2b(seed, digest_size=8).digest()

    ordered = sorted(pods, key=rank)
    return tuple(ordered if adapter.replicas is None else ordered[: adapter.replicas])
