"""How long a start took: what is read from the pod, what the worker tells, what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.cluster.admin_access import AdminAccess
from octavo_operator.cluster.startup_reports import StartupReports
from octavo_operator.errors import WorkerUnreachableError
from octavo_operator.reconcile.startup import startup_status
from octavo_operator.worker_client import WorkerClient, WorkerEndpoint

PHASES_S = {"files": 3.0, "weights": 12.25, "kv_cache": 1.0, "warmup": 2.5}


def pod(name: str = "chat-1", created: str = "10:00:00", **status: Any) -> dict[str, Any]:
    def when(kind: str, time: str) -> dict[str, str]:
        return {"type": kind, "status": "True", "lastTransitionTime": f"2026-01-01T{time}Z"}

    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": f"2026-01-01T{created}Z",
        },
        "status": {
            "podIP": "127.0.0.1",
            "conditions": [when("PodScheduled", "10:00:04"), when("Ready", "10:01:00")],
            "containerStatuses": [
                {"name": "worker", "state": {"running": {"startedAt": "2026-01-01T10:00:34Z"}}}
            ],
            **status,
        },
    }


def test_phases_add_up_from_pod_and_worker() -> None:
    assert startup_status([pod()], {"uid-chat-1": PHASES_S}, None) == {
        "pod": "chat-1",
        "schedule": "4.0s",
        "pull": "30.0s",
        "download": "3.0s",
        "load": "12.2s",
        "warmup": "3.5s",
        "total": "60.0s",
    }


def test_phases_of_a_gpu_and_of_adapters_are_told() -> None:
    phases_s = {
        "import": 3.0,
        "files": 0.5,
        "weights": 2.0,
        "kernels": 13.5,
        "kv_cache": 0.25,
        "graphs": 0.75,
        "adapter_memory": 6.0,
        "adapters": 22.5,
    }
    told = startup_status([pod()], {"uid-chat-1": phases_s}, None)
    assert told is not None
    assert (told["load"], told["warmup"], told["adapters"]) == ("5.0s", "14.5s", "28.5s")


def test_download_in_an_init_container_counts_as_download() -> None:
    ended = {"startedAt": "2026-01-01T10:00:10Z", "finishedAt": "2026-01-01T10:00:30Z"}
    init = [{"name": "fetch", "state": {"terminated": ended}}]
    told = startup_status([pod(initContainerStatuses=init)], {"uid-chat-1": PHASES_S}, None)
    assert told is not None
    assert (told["pull"], told["download"]) == ("6.0s", "23.0s")


def test_youngest_ready_pod_is_told_of() -> None:
    pods = [pod("chat-1"), pod("chat-2", "10:00:01"), pod("chat-3", "10:00:02", conditions=[])]
    told = startup_status(pods, {"uid-chat-1": PHASES_S, "uid-chat-2": PHASES_S}, None)
    assert told is not None
    assert told["pod"] == "chat-2"


def test_what_was_told_stays_while_nothing_newer_is_known() -> None:
    before = {"pod": "chat-0", "total": "1.0s"}
    assert startup_status([pod()], {}, before) == before
    assert startup_status([], {}, before) == before


def test_what_only_the_pod_before_told_is_taken_away_once() -> None:
    """Else the status would differ for ever from what is wanted, and be written at every pass."""
    before = {"pod": "chat-0", "download": "9.0s", "total": "1.0s"}
    phases_s = {"uid-chat-1": {"weights": 12.25}}
    told = startup_status([pod()], phases_s, before)
    assert told is not None
    assert told["download"] is None
    stored = {name: value for name, value in told.items() if value is not None}
    assert startup_status([pod()], phases_s, stored) == stored


class FlakyWorkers(WorkerClient):
    """Counts questions; answers from the second on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def startup_phases_s(self, worker: WorkerEndpoint) -> dict[str, float]:
        self.asked += 1
        if self.asked == 1:
            raise WorkerUnreachableError("no route")
        return PHASES_S


async def test_worker_is_asked_once_and_a_silent_one_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = FlakyWorkers()
    reports = StartupReports(workers, AdminAccess.for_this_run())
    assert await reports.of([pod()]) == {}
    assert await reports.of([pod()]) == {}
    assert workers.asked == 1
    monkeypatch.setattr("octavo_operator.cluster.startup_reports.time.monotonic", lambda: 1e12)
    assert await reports.of([pod()]) == {"uid-chat-1": PHASES_S}
    assert await reports.of([pod()]) == {"uid-chat-1": PHASES_S}
    assert workers.asked == 2


async def test_unreachable_worker_is_an_error_of_ours() -> None:
    with pytest.raises(WorkerUnreachableError, match="/health/load"):
        await WorkerClient(timeout_s=1.0).load(WorkerEndpoint("127.0.0.1", 1))
