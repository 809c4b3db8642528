"""Two operators, one Lease: one works at a time, and the other takes over when it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from faulty_cluster import FaultyCluster
from octavo_operator.cluster.leader_lease import (
    DURATION_S,
    RENEW_DEADLINE_S,
    RENEW_PERIOD_S,
    LeaderLease,
)
from octavo_operator.cluster.object_store import ObjectStore
from octavo_operator.errors import ConflictError, LeaseLostError, UnavailableError
from octavo_operator.manifests.kinds import LEASE
from octavo_operator.reconcile.live_object import LiveObject


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


def lease(cluster: FaultyCluster, identity: str, clock: Clock) -> LeaderLease:
    return LeaderLease(cluster, "system", "octavo", identity, clock=clock, sleep=clock.sleep)


@pytest.fixture
def cluster() -> FaultyCluster:
    return FaultyCluster(ObjectStore(seed=1))


async def holder(cluster: FaultyCluster) -> str:
    return str((await cluster.get(LEASE, "system", "octavo"))["spec"]["holderIdentity"])


async def test_first_leads_and_second_waits_until_the_first_is_gone(
    cluster: FaultyCluster,
) -> None:
    clock = Clock()
    first, second = lease(cluster, "one", clock), lease(cluster, "two", clock)
    await first.acquire()
    started_s = clock.now_s
    await second.acquire()
    assert clock.now_s - started_s > DURATION_S
    assert await holder(cluster) == "two"
    assert (await cluster.get(LEASE, "system", "octavo"))["spec"]["leaseTransitions"] == 1


async def test_second_waits_for_as_long_as_the_first_renews(cluster: FaultyCluster) -> None:
    clock = Clock()
    first, second = lease(cluster, "one", clock), lease(cluster, "two", clock)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire())
    while clock.now_s < 100 + 20 * DURATION_S:
        await asyncio.sleep(0)
    assert not waiting.done()
    assert await holder(cluster) == "one"
    keeping.cancel()
    await waiting
    assert await holder(cluster) == "two"
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        await first.keep()


async def test_leader_whose_lease_another_has_stops_at_once(cluster: FaultyCluster) -> None:
    clock = Clock()
    first = lease(cluster, "one", clock)
    await first.acquire()
    patch = {"spec": {"holderIdentity": "two"}}
    await cluster.store.merge(LEASE, "system", "octavo", patch)
    with pytest.raises(LeaseLostError, match="taken by another"):
        await first.keep()
    assert await holder(cluster) == "two"


async def test_released_lease_is_taken_at_once(cluster: FaultyCluster) -> None:
    clock = Clock()
    first, second = lease(cluster, "one", clock), lease(cluster, "two", clock)
    await first.acquire()
    await first.release()
    started_s = clock.now_s
    await second.acquire()
    assert clock.now_s == started_s
    await first.release()
    assert await holder(cluster) == "two"


async def test_leader_that_cannot_renew_stops_before_another_may_lead(
    cluster: FaultyCluster,
) -> None:
    clock = Clock()
    first = lease(cluster, "one", clock)
    await first.acquire()
    cluster.always = UnavailableError("no route")
    started_s = clock.now_s
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        await first.keep()
    assert clock.now_s - started_s < DURATION_S


class SlowCluster(FaultyCluster):
    """Whose next write never ends, or ends when `late_s` have passed."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(ObjectStore(seed=1))
        self.clock = clock
        self.hangs = False
        self.late_s = 0.0

    async def update(self, manifest: Mapping[str, Any]) -> LiveObject:
        if self.hangs and not self.faults:
            await asyncio.Event().wait()
        done = await super().update(manifest)
        self.clock.now_s += self.late_s
        return done


async def test_call_that_never_ends_does_not_outlast_the_right_to_lead() -> None:
    """After ten seconds of failures there is next to no time left for a call, not ten seconds."""
    clock = Clock()
    cluster = SlowCluster(clock)
    first = lease(cluster, "one", clock)
    await first.acquire()
    cluster.faults = [UnavailableError("no route")] * 3
    cluster.hangs = True
    clock.now_s += RENEW_DEADLINE_S - 3 * RENEW_PERIOD_S - RENEW_PERIOD_S - 0.01
    async with asyncio.timeout(RENEW_DEADLINE_S / 2):
        with pytest.raises(LeaseLostError, match="could not be renewed"):
            await first.keep()


async def test_leader_counts_from_when_it_asked_not_from_when_it_was_told() -> None:
    """Others count from when the renewal reached the server."""
    clock = Clock()
    cluster = SlowCluster(clock)
    first = lease(cluster, "one", clock)
    await first.acquire()
    cluster.late_s = 0.9 * RENEW_DEADLINE_S
    keeping = asyncio.create_task(first.keep())
    while clock.now_s == 100.0 or not cluster.calls["update Lease"]:
        await asyncio.sleep(0)
    renewed_s = 100.0 + RENEW_PERIOD_S
    cluster.always = UnavailableError("no route")
    with pytest.raises(LeaseLostError):
        await keeping
    assert clock.now_s - renewed_s < DURATION_S


async def test_renewal_is_one_call(cluster: FaultyCluster) -> None:
    clock = Clock()
    first = lease(cluster, "one", clock)
    await first.acquire()
    cluster.calls.clear()
    for _ in range(30):
        assert await first._try_take()
    assert cluster.calls == {"update Lease": 30}


@pytest.mark.parametrize("is_deleted", [False, True], ids=["edited", "deleted"])
async def test_lease_that_somebody_touches_is_read_again_and_kept(
    cluster: FaultyCluster, is_deleted: bool
) -> None:
    clock = Clock()
    first = lease(cluster, "one", clock)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    if is_deleted:
        await cluster.store.delete(LEASE, "system", "octavo")
    else:
        await cluster.store.merge(LEASE, "system", "octavo", {"metadata": {"labels": {"a": "b"}}})
    until_s = clock.now_s + 10 * DURATION_S
    while clock.now_s < until_s:
        await asyncio.sleep(0)
    assert not keeping.done()
    assert await holder(cluster) == "one"
    keeping.cancel()


async def test_short_outage_costs_no_leadership(cluster: FaultyCluster) -> None:
    clock = Clock()
    first = lease(cluster, "one", clock)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    for _ in range(5):
        cluster.faults.append(UnavailableError("no route"))
        for _ in range(20):
            await asyncio.sleep(0)
    assert not keeping.done()
    keeping.cancel()


async def test_of_two_that_ask_at_once_one_gets_it(cluster: FaultyCluster) -> None:
    clock = Clock()
    names = ("one", "two", "three")
    tasks = [asyncio.create_task(lease(cluster, name, clock).acquire()) for name in names]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    for task in pending:
        task.cancel()
    leader = lease(cluster, await holder(cluster), clock)
    cluster.faults = [None, ConflictError("somebody was faster")]
    assert await leader._try_take() is False
