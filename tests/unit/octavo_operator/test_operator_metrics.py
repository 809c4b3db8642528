"""What the operator tells Prometheus of pods and adapters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from octavo_operator.handlers.metrics import OperatorMetrics, pod_state, start_seconds
from octavo_operator.labels import LABEL_SERVICE

LABELS = ("inferenceservice_namespace", "inferenceservice", "loraadapter", "state")
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
READY = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
ERROR = {"terminated": {"exitCode": 1}}


def stamp(minutes_ago: float) -> str:
    return (NOW - timedelta(minutes=minutes_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(status: dict[str, Any], service: str = "chat", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "models",
            "name": "p",
            "labels": {LABEL_SERVICE: service},
            "creationTimestamp": stamp(10),
            **metadata,
        },
        "status": status,
    }


def running(**container: Any) -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [{"name": "worker", **container}]}


CASES: list[tuple[str, dict[str, Any], str, float]] = [
    ("new", pod({}), "pending", 600),
    ("unscheduled", pod({"phase": "Pending"}), "pending", 600),
    ("loading", pod(running(started=False)), "starting", 600),
    ("ready", pod(READY), "ready", 0),
    ("ready-after-crash", pod({**running(started=True, lastState=ERROR), **READY}), "ready", 0),
    ("not-ready-any-more", pod(running(started=True)), "starting", 0),
    ("stopping", pod(READY, deletionTimestamp=stamp(1)), "stopping", 0),
    ("evicted", pod({"phase": "Failed"}), "failed", 0),
    ("just-crashed", pod(running(state=ERROR)), "crashing", 600),
    (
        "waiting-to-be-restarted",
        pod(
            running(
                restartCount=3, lastState=ERROR, state={"waiting": {"reason": "CrashLoopBackOff"}}
            )
        ),
        "crashing",
        0,
    ),
    (
        "restarted-in-place",
        pod(running(restartCount=1, lastState=ERROR, state={"running": {"startedAt": stamp(2)}})),
        "crashing",
        120,
    ),
    (
        "init-container-fails",
        pod(
            {
                "phase": "Pending",
                "initContainerStatuses": [{"name": "download", "lastState": ERROR}],
            }
        ),
        "crashing",
        600,
    ),
]


@pytest.mark.parametrize(
    ("value", "state", "seconds"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_pod_is_counted_by_what_keeps_it(value: dict[str, Any], state: str, seconds: float) -> None:
    assert pod_state(value) == state
    assert start_seconds(value, NOW) == seconds


def samples(metrics: OperatorMetrics, name: str) -> dict[tuple[str, ...], float]:
    page = generate_latest(metrics.registry).decode()
    return {
        tuple(sample.labels[key] for key in LABELS if key in sample.labels): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def test_pods_are_told_apart_by_service() -> None:
    metrics = OperatorMetrics()
    pods = [pod(READY), pod(READY), pod(running(started=False)), pod(READY, service="other")]
    metrics.watch_pods(lambda: pods, lambda: NOW)
    found = samples(metrics, "octavo_operator_service_pods")
    assert {key: value for key, value in found.items() if value} == {
        ("models", "chat", "ready"): 2,
        ("models", "chat", "starting"): 1,
        ("models", "other", "ready"): 1,
    }
    assert len(found) == 12
    assert samples(metrics, "octavo_operator_service_longest_start_seconds") == {
        ("models", "chat"): 600,
        ("models", "other"): 0,
    }


def test_loads_are_timed_and_failures_counted_by_reason() -> None:
    metrics = OperatorMetrics()
    metrics.note_load(0.4, None)
    metrics.note_load(3.0, None)
    for reason in ("SourceUnreachable", "SourceUnreachable", "AdapterRefused"):
        metrics.note_load(9.0, reason)
    page = generate_latest(metrics.registry).decode()
    assert "octavo_operator_adapter_load_seconds_sum 3.4" in page
    assert "octavo_operator_adapter_load_seconds_count 2.0" in page
    failures = "octavo_operator_adapter_load_failures_total"
    assert f'{failures}{{reason="SourceUnreachable"}} 2.0' in page
    assert f'{failures}{{reason="AdapterRefused"}} 1.0' in page


def test_adapters_are_told_by_their_status() -> None:
    metrics = OperatorMetrics()
    metrics.watch_adapters(
        lambda: [
            {
                "metadata": {"namespace": "models", "name": "sql"},
                "spec": {"serviceRef": {"name": "chat"}},
                "status": {"desired": 2, "loaded": 1, "failed": 1},
            },
            {
                "metadata": {"namespace": "models", "name": "new"},
                "spec": {"serviceRef": {"name": "chat"}},
            },
        ]
    )
    assert samples(metrics, "octavo_operator_adapter_pods") == {
        ("models", "chat", "sql", "desired"): 2,
        ("models", "chat", "sql", "loaded"): 1,
        ("models", "chat", "sql", "failed"): 1,
        ("models", "chat", "new", "desired"): 0,
        ("models", "chat", "new", "loaded"): 0,
        ("models", "chat", "new", "failed"): 0,
    }
