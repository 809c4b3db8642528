"""Where one adapter stands in one pod, and what is to be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from octavo_operator.reconcile.adapter_facts import (
    Attempt,
    AttemptKey,
    Failure,
    ListedAdapter,
)
from octavo_operator.reconcile.adapter_resolution import Resolution, Target, lookup_key, target_key
from octavo_operator.reconcile.adapter_source import adapter_path, obstacle_to
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.live_object import LiveObject
from octavo_operator.reconcile.worker_pod import WorkerPod
from octavo_operator.resources.lora_adapter import LoRAAdapter


class PodState(StrEnum):
    """`status.pods[].state`."""

    PENDING = "Pending"
    LOADING = "Loading"
    LOADED = "Loaded"
    KNOWN = "Known"
    FAILED = "Failed"
    UNLOADING = "Unloading"


@dataclass(frozen=True, slots=True)
class Load:
    """One call: have `pod` load `name` from `path`.

    digest: refuse files that have another; None for whatever is there. is_lazy: only make the name
    known. num_failures: how often it has failed before.
    """

    key: AttemptKey
    pod: WorkerPod
    path: str
    revision: str | None
    digest: str | None
    is_lazy: bool
    num_failures: int


@dataclass(frozen=True, slots=True)
class Standing:
    """An adapter in a pod.

    digest: what the pod serves under the name now, or is to serve. is_loaded: that is what it
    should serve. failure: what is wrong, if anything. load: the call that is due now.
    retry_at_s: when to look at a failed one again, by the monotonic clock.
    """

    pod: WorkerPod
    state: PodState
    digest: str | None = None
    is_loaded: bool = False
    failure: Failure | None = None
    load: Load | None = None
    retry_at_s: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether waiting brings nothing more."""
        is_hopeless = self.failure is not None and self.failure.is_permanent
        return self.is_loaded or (is_hopeless and self.load is None)


def stand(
    adapter: LoRAAdapter,
    resource: LiveObject,
    resolution: Resolution,
    pod: WorkerPod,
    world: AdapterWorld,
) -> Standing:
    """Where `adapter` stands in `pod`, one of those chosen for it."""
    if not world.has_answered(pod):
        return _unheard(resource, resolution, pod, world)
    listed = world.listed(pod, adapter.served_name)
    digest = listed.digest if listed is not None else None
    target, key = resolution.target, lookup_key(adapter)
    is_loaded = target is not None and _is_target(adapter, listed, target, pod)
    attempt = world.attempt(pod, adapter.served_name, key)
    if resolution.canary == pod:
        load = _load(adapter, pod, key, attempt, path=adapter_path(adapter.source, pod))
        return _toward(load, pod, digest, attempt, world, is_loaded=is_loaded)
    if not resolution.is_resolved and attempt is not None and attempt.failure is not None:
        # It tried what is new, in vain; meanwhile it shall have what the others have.
        other = None
        if target is not None and not is_loaded:
            other = _toward_target(adapter, target, listed, pod, world)
        due = other.load if other is not None else None
        return Standing(pod, PodState.FAILED, digest, is_loaded, attempt.failure, due)
    if is_loaded:
        assert listed is not None
        state = PodState.LOADED if listed.state == "ready" else PodState.KNOWN
        return Standing(pod, state, digest, is_loaded=True)
    if target is None:
        return Standing(pod, PodState.PENDING, digest, failure=resolution.failure)
    return _toward_target(adapter, target, listed, pod, world)


def _toward_target(
    adapter: LoRAAdapter,
    target: Target,
    listed: ListedAdapter | None,
    pod: WorkerPod,
    world: AdapterWorld,
) -> Standing:
    digest, path = listed.digest if listed is not None else None, adapter_path(target.source, pod)
    obstacle = obstacle_to(adapter, pod)
    if path is None or obstacle is not None:
        standing = Standing(pod, PodState.PENDING, digest, failure=obstacle)
        if listed is None:
            standing = _toward_name(standing, adapter, target, path or target.uri, world)
        return standing
    if _is_failed_at_request(adapter, listed, target, path):
        # The worker itself tries again at the next request; no call of ours would change that.
        assert listed is not None
        return Standing(pod, PodState.FAILED, digest, failure=Failure("LoadFailed", listed.message))
    key = target_key(target)
    attempt = world.attempt(pod, adapter.served_name, key)
    load = _load(adapter, pod, key, attempt, path=path, target=target, listed=listed)
    return _toward(load, pod, digest, attempt, world, is_loaded=False)


def _toward_name(
    standing: Standing, adapter: LoRAAdapter, target: Target, path: str, world: AdapterWorld
) -> Standing:
    """Have a pod that cannot load it know that there is such an adapter: it then answers 503, and
    who tries again comes to another pod, rather than 404."""
    pod, key = standing.pod, target_key(target)
    attempt = world.attempt(pod, adapter.served_name, key)
    lazy = replace(adapter, is_eager=False)
    load = _load(lazy, pod, key, attempt, path=path, target=target)
    way = _toward(load, pod, standing.digest, attempt, world, is_loaded=False)
    return replace(standing, load=way.load, retry_at_s=way.retry_at_s)


def _toward(
    load: Load,
    pod: WorkerPod,
    digest: str | None,
    attempt: Attempt | None,
    world: AdapterWorld,
    *,
    is_loaded: bool,
) -> Standing:
    """On the way to what `load` is for: under way, due, or waiting after a failure.

    A load that has failed counts as failed until one succeeds, so that retries are no news.
    """
    failure = _what_is_wrong(attempt, load, is_loaded=is_loaded)
    state = PodState.LOADING if failure is None else PodState.FAILED
    if world.busy_with(pod, load.key.name) is not None:
        return Standing(pod, state, digest, is_loaded, failure)
    if attempt is None or attempt.is_due(world.now_s):
        return Standing(pod, state, digest, is_loaded, failure, load)
    retry_at_s = None if failure is not None and failure.is_permanent else attempt.retry_at_s
    return Standing(pod, state, digest, is_loaded, failure, retry_at_s=retry_at_s)


def _what_is_wrong(attempt: Attempt | None, load: Load, *, is_loaded: bool) -> Failure | None:
    if attempt is None:
        return None
    if attempt.failure is None and attempt.count > 1 and not is_loaded:
        said = f"pod {load.pod.name} says that it has loaded {load.key.name}, and does not list it"
        return Failure("LoadFailed", said)
    return attempt.failure


def _load(
    adapter: LoRAAdapter,
    pod: WorkerPod,
    source: str,
    attempt: Attempt | None,
    *,
    path: str | None,
    target: Target | None = None,
    listed: ListedAdapter | None = None,
) -> Load:
    assert path is not None
    # Where another version is in memory, a name that is merely made known would keep it.
    is_lazy = not adapter.is_eager and target is not None
    has_other = listed is not None and listed.state == "ready"
    return Load(
        key=AttemptKey(pod.uid, pod.container_id, adapter.served_name, source),
        pod=pod,
        path=path,
        revision=adapter.revision if target is None else target.revision,
        digest=adapter.digest if target is None else target.digest,
        is_lazy=is_lazy and not has_other,
        num_failures=0 if attempt is None or attempt.failure is None else attempt.count,
    )


def _is_target(
    adapter: LoRAAdapter, listed: ListedAdapter | None, target: Target, pod: WorkerPod
) -> bool:
    if listed is None:
        return False
    if adapter.is_eager:
        return listed.state == "ready" and listed.digest == target.digest
    if listed.digest is not None:
        return listed.state in ("ready", "known", "loading") and listed.digest == target.digest
    is_there = listed.path == adapter_path(target.source, pod)
    return is_there and listed.state in ("known", "loading")


def _is_failed_at_request(
    adapter: LoRAAdapter, listed: ListedAdapter | None, target: Target, path: str
) -> bool:
    if adapter.is_eager or listed is None or listed.state != "failed":
        return False
    return listed.path == path and listed.digest in (None, target.digest)


def _unheard(
    resource: LiveObject, resolution: Resolution, pod: WorkerPod, world: AdapterWorld
) -> Standing:
    """A pod that did not answer: as it stood, if it is well otherwise; a glitch is no news."""
    before = _before(resource, pod)
    if pod.is_ready and before is not None:
        failure = (
            Failure(str(before["reason"]), str(before.get("message", "")))
            if before.get("reason")
            else None
        )
        digest = before.get("digest")
        target = resolution.target
        is_loaded = before["state"] in (PodState.LOADED, PodState.KNOWN) and (
            digest is None or (target is not None and target.digest == digest)
        )
        return Standing(pod, PodState(before["state"]), digest, is_loaded, failure)
    why = world.silences.get(pod.uid, "it has no address")
    silence = Failure("PodUnreachable", f"pod {pod.name} does not answer the operator: {why}")
    return Standing(pod, PodState.PENDING, failure=silence)


def _before(resource: LiveObject, pod: WorkerPod) -> Mapping[str, Any] | None:
    status: Mapping[str, Any] = resource.get("status") or {}
    for entry in status.get("pods") or ():
        if (entry.get("uid"), entry.get("containerID", "")) == (pod.uid, pod.container_id):
            return dict(entry)
    return None
