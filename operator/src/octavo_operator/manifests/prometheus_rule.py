"""PrometheusRule: what is worth waking somebody for, each alert with a page that says what to do.

Knows the names of the worker's metrics and of the operator's own. An alert names one
InferenceService; thresholds are constants here, so that a page and a rule cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.labels import LABEL_SERVICE, prometheus_label
from octavo_operator.manifests.metadata import child_metadata
from octavo_operator.resources.inference_service import InferenceService

RUNBOOKS: Final = "https://github.com/octavo-serving/octavo/blob/main/docs/runbooks"
STALLED_S: Final = 60
"""An engine step takes milliseconds; work that waits this long for one waits for ever."""

QUEUE_LENGTH: Final = 8
"""Requests waiting per pod, all the while, before a queue counts as one that grows."""

KV_FULL: Final = 0.95
_SLOW_START_SHARE: Final = 2
"""A start is slow after this part (1/2) of rollout.progressDeadlineSeconds."""


@dataclass(frozen=True, slots=True)
class _Alert:
    """page: its runbook; wait: how long the expression must hold; the last two are for people."""

    name: str
    page: str
    severity: str
    wait: str
    expression: str
    summary: str
    description: str


def prometheus_rule(service: InferenceService) -> dict[str, Any]:
    """The PrometheusRule, with one group; needs the PodMonitor's series, and the operator's own."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": child_metadata(service),
        "spec": {
            "groups": [
                {
                    "name": f"octavo.{service.namespace}.{service.name}",
                    "rules": [_rule(alert, service) for alert in _alerts(service)],
                }
            ]
        },
    }


def _alerts(service: InferenceService) -> tuple[_Alert, ...]:
    worker = f'namespace="{service.namespace}",{prometheus_label(LABEL_SERVICE)}="{service.name}"'
    ours = f'inferenceservice_namespace="{service.namespace}",inferenceservice="{service.name}"'
    slow_s = service.rollout.progress_deadline_s // _SLOW_START_SHARE
    return (
        _Alert(
            "OctavoUpButNotServing",
            "up-but-not-serving",
            "critical",
            "2m",
            f"octavo_last_progress_age_seconds{{{worker}}} > {STALLED_S}\n"
            f'or (sum by (pod) (rate(octavo_requests_total{{{worker},outcome="failed"}}[5m]))'
            f" > 0 unless sum by (pod) "
            f'(rate(octavo_requests_total{{{worker},outcome="finished"}}[5m])) > 0)',
            "A pod is up but answers nothing",
            f"Pod {{{{ $labels.pod }}}} of {service.name} is up, yet has made no step for "
            f"{STALLED_S} s while requests wait, or fails every request.",
        ),
        _Alert(
            "OctavoQueueGrowing",
            "queue-growing",
            "warning",
            "5m",
            f"min_over_time(vllm:num_requests_waiting{{{worker}}}[10m]) > {QUEUE_LENGTH}\n"
            f"and deriv(vllm:num_requests_waiting{{{worker}}}[10m]) > 0",
            "More requests come than are answered",
            f"Pod {{{{ $labels.pod }}}} of {service.name} has had more than {QUEUE_LENGTH} "
            f"requests waiting for 10 minutes, and the queue grows.",
        ),
        _Alert(
            "OctavoKVCacheFull",
            "kv-cache-full",
            "warning",
            "5m",
            f"min_over_time(vllm:kv_cache_usage_perc{{{worker}}}[5m]) > {KV_FULL}\n"
            f"and (vllm:num_requests_waiting{{{worker}}} > 0 "
            f"or rate(vllm:num_preemptions_total{{{worker}}}[5m]) > 0)",
            "The KV cache is full and holds requests up",
            f"Pod {{{{ $labels.pod }}}} of {service.name} has used more than {KV_FULL:.0%} of its "
            f"KV cache for 5 minutes, and requests wait or are preempted for it.",
        ),
        _Alert(
            "OctavoAdapterMissing",
            "adapter-missing",
            "warning",
            "5m",
            f'octavo_operator_adapter_pods{{{ours},state="desired"}}\n'
            f"> ignoring (state) "
            f'octavo_operator_adapter_pods{{{ours},state="loaded"}}',
            "A LoRA adapter is not loaded where it should be",
            f"LoRAAdapter {{{{ $labels.loraadapter }}}} of {service.name} is missing from some of "
            f"the pods that should hold it.",
        ),
        _Alert(
            "OctavoCrashLoop",
            "crash-loop",
            "critical",
            "5m",
            f'max_over_time(octavo_operator_service_pods{{{ours},state="crashing"}}[5m]) > 0',
            "Worker pods crash again and again",
            f"Pods of {service.name} have ended with an error and not become ready since.",
        ),
        _Alert(
            "OctavoStartTooSlow",
            "start-too-slow",
            "warning",
            "1m",
            f"octavo_operator_service_longest_start_seconds{{{ours}}} > {slow_s}",
            "A pod takes too long to become ready",
            f"A pod of {service.name} has been starting for more than {slow_s} s, half of "
            f"rollout.progressDeadlineSeconds.",
        ),
    )


def _rule(alert: _Alert, service: InferenceService) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.wait,
        "labels": {
            "severity": alert.severity,
            "inferenceservice": service.name,
            "inferenceservice_namespace": service.namespace,
        },
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOKS}/{alert.page}.md",
        },
    }
