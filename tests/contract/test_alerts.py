"""Alerts: they name metrics that exist, lead to pages that exist, and fire when they should.

Those of one InferenceService are rendered by the operator, those on the operator by its chart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from crd_schema import REPOSITORY
from exposed_metrics import metrics_in, operator_samples, worker_samples
from helm_binary import find_helm
from inference_services import inference_service
from octavo_operator.manifests.prometheus_rule import RUNBOOKS, prometheus_rule
from octavo_operator.resources.inference_service import parse_inference_service
from promtool_binary import HOW_TO_GET, PromtoolError, check_rules, has_promtool, run_rules

RUNBOOK_FOLDER = REPOSITORY / "docs" / "runbooks"
needs_promtool = pytest.mark.skipif(not has_promtool(), reason=HOW_TO_GET)

SPEC: dict[str, Any] = json.loads(
    json.dumps(prometheus_rule(parse_inference_service(inference_service()))["spec"])
)
(_CHARTS,) = (
    item
    for item in find_helm().template(
        REPOSITORY / "charts" / "octavo", {"metrics": {"alerts": {"enabled": True}}}
    )
    if item["kind"] == "PrometheusRule"
)
SPEC["groups"] += _CHARTS["spec"]["groups"]
RULES = {rule["alert"]: rule for group in SPEC["groups"] for rule in group["rules"]}

POD = 'namespace="models",serving_octavo_dev_service="chat",pod="chat-1",model_name="chat"'
OTHER = POD.replace('service="chat"', 'service="other"')
OURS = 'inferenceservice_namespace="models",inferenceservice="chat"'


@dataclass(frozen=True)
class Story:
    """Series by the minute, and whether the alert fires at minute `at`; `labels` beside its own."""

    name: str
    alert: str
    series: dict[str, str]
    fires: bool
    labels: dict[str, str] = field(default_factory=dict)
    at: str = "30m"


WORKER_LABELS = {
    "namespace": "models",
    "serving_octavo_dev_service": "chat",
    "pod": "chat-1",
    "model_name": "chat",
}
OPERATOR_LABELS = {"inferenceservice_namespace": "models", "inferenceservice": "chat"}


def ended(reason: str, labels: str = POD) -> str:
    return f'octavo_requests_total{{{labels},outcome="{reason}"}}'


def pods(state: str) -> str:
    return f'octavo_operator_service_pods{{{OURS},state="{state}"}}'


def adapter_pods(state: str) -> str:
    return f'octavo_operator_adapter_pods{{{OURS},loraadapter="sql",state="{state}"}}'


def own(name: str, resource: str) -> str:
    labels = f'namespace="octavo-system",container="operator",resource="{resource}"'
    return f"octavo_operator_{name}{{{labels}}}"


def leader(pod: str) -> str:
    return f'octavo_operator_leader{{namespace="octavo-system",container="operator",pod="{pod}"}}'


AGE = f"octavo_last_progress_age_seconds{{{POD}}}"
WAITING = f"vllm:num_requests_waiting{{{POD}}}"
KV = f"vllm:kv_cache_usage_perc{{{POD}}}"
PREEMPTIONS = f"vllm:num_preemptions_total{{{POD}}}"
START = f"octavo_operator_service_longest_start_seconds{{{OURS}}}"

STORIES = [
    Story("stalled", "OctavoUpButNotServing", {AGE: "0+60x40"}, True, WORKER_LABELS),
    Story("busy", "OctavoUpButNotServing", {AGE: "1x40"}, False),
    Story(
        "stalled-elsewhere",
        "OctavoUpButNotServing",
        {f"octavo_last_progress_age_seconds{{{OTHER}}}": "0+60x40"},
        False,
    ),
    Story(
        "fails-all",
        "OctavoUpButNotServing",
        {ended("failed"): "0+6x40", ended("finished"): "9x40"},
        True,
        {"pod": "chat-1"},
    ),
    Story(
        "fails-some",
        "OctavoUpButNotServing",
        {ended("failed"): "0+6x40", ended("finished"): "0+6x40"},
        False,
    ),
    Story("grows", "OctavoQueueGrowing", {WAITING: "9+2x40"}, True, WORKER_LABELS),
    Story("steady", "OctavoQueueGrowing", {WAITING: "50x40"}, False),
    Story("short", "OctavoQueueGrowing", {WAITING: "0+0.1x40"}, False),
    Story(
        "full-and-waiting",
        "OctavoKVCacheFull",
        {KV: "0.99x40", WAITING: "3x40", PREEMPTIONS: "0x40"},
        True,
        WORKER_LABELS,
    ),
    Story(
        "full-and-preempting",
        "OctavoKVCacheFull",
        {KV: "0.99x40", WAITING: "0x40", PREEMPTIONS: "0+5x40"},
        True,
        WORKER_LABELS,
    ),
    Story(
        "full-and-no-harm",
        "OctavoKVCacheFull",
        {KV: "0.99x40", WAITING: "0x40", PREEMPTIONS: "7x40"},
        False,
    ),
    Story("roomy", "OctavoKVCacheFull", {KV: "0.5x40", WAITING: "9x40"}, False),
    Story(
        "adapter-missing",
        "OctavoAdapterMissing",
        {adapter_pods("desired"): "2x40", adapter_pods("loaded"): "1x40"},
        True,
        {**OPERATOR_LABELS, "loraadapter": "sql"},
    ),
    Story(
        "adapter-loaded",
        "OctavoAdapterMissing",
        {adapter_pods("desired"): "2x40", adapter_pods("loaded"): "2x40"},
        False,
    ),
    Story(
        "crashes",
        "OctavoCrashLoop",
        {pods("crashing"): "0 1 0 0 1 0 0 1 0 0 1x30"},
        True,
        {"state": "crashing"},
    ),
    Story("crashed-once", "OctavoCrashLoop", {pods("crashing"): "0 1 0x40"}, False),
    Story(
        "works", "OctavoOperatorWithoutLeader", {leader("a"): "1x40", leader("b"): "0x40"}, False
    ),
    Story(
        "nobody-leads",
        "OctavoOperatorWithoutLeader",
        {leader("a"): "1x10 0x30", leader("b"): "0x40"},
        True,
        {"namespace": "octavo-system"},
    ),
    Story(
        "handed-over",
        "OctavoOperatorWithoutLeader",
        {leader("a"): "1x24 0x16", leader("b"): "0x26 1x14"},
        False,
    ),
    Story(
        "not-scraped",
        "OctavoOperatorWithoutLeader",
        {leader("a").replace("octavo-system", "elsewhere"): "1x40"},
        True,
        {"namespace": "octavo-system", "container": "operator"},
    ),
    Story(
        "blind",
        "OctavoOperatorBlind",
        {own("watch_age_seconds", "pods"): "0+60x40", own("watch_age_seconds", "leases"): "5x40"},
        True,
        {"namespace": "octavo-system", "resource": "pods"},
    ),
    # A kind that the cluster lacks is asked for every five minutes.
    Story(
        "absent-kind",
        "OctavoOperatorBlind",
        {own("watch_age_seconds", "scaledobjects"): "0+60x5 0+60x5 0+60x5 0+60x5 0+60x5 0+60x9"},
        False,
    ),
    Story(
        "behind",
        "OctavoOperatorBehind",
        {own("queue_oldest_seconds", "InferenceService"): "0+20x40"},
        True,
        {"namespace": "octavo-system", "resource": "InferenceService"},
    ),
    Story(
        "busy-for-a-while",
        "OctavoOperatorBehind",
        {own("queue_oldest_seconds", "InferenceService"): "0x22 0+30x8"},
        False,
    ),
    Story(
        "fails-on",
        "OctavoOperatorFailing",
        {own("queue_failing", "InferenceService"): "0x5 1x35"},
        True,
        {
            "namespace": "octavo-system",
            "container": "operator",
            "resource": "InferenceService",
        },
    ),
    Story(
        "fails-now-and-then",
        "OctavoOperatorFailing",
        {own("queue_failing", "InferenceService"): "1x10 0 1x10 0 1x18"},
        False,
    ),
    Story("slow-start", "OctavoStartTooSlow", {START: "0+60x40"}, True),
    Story("quick-start", "OctavoStartTooSlow", {START: "0+60x9 0x31"}, False),
]


def promtool_test(story: Story) -> dict[str, Any]:
    rule = RULES[story.alert]
    labels = {**story.labels, **rule["labels"]}
    expected = []
    if story.fires:
        annotations = {
            key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: labels.get(m[1], ""), text)
            for key, text in rule["annotations"].items()
        }
        expected = [{"exp_labels": labels, "exp_annotations": annotations}]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": v} for name, v in story.series.items()],
        "alert_rule_test": [
            {"eval_time": story.at, "alertname": story.alert, "exp_alerts": expected}
        ],
    }


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    check_rules(SPEC)


@needs_promtool
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_alert_fires_when_it_should_and_only_then(story: Story) -> None:
    run_rules(SPEC, [promtool_test(story)])


@needs_promtool
def test_promtool_would_notice_a_wrong_rule() -> None:
    with pytest.raises(PromtoolError):
        check_rules({"groups": [{"name": "g", "rules": [{"alert": "A", "expr": "sum(("}]}]})
    (story,) = (story for story in STORIES if story.name == "stalled")
    silent = promtool_test(story)
    silent["alert_rule_test"][0]["exp_alerts"] = []
    with pytest.raises(PromtoolError):
        run_rules(SPEC, [silent])


def test_every_alert_has_a_story_that_fires_and_one_that_does_not() -> None:
    for fires in (True, False):
        assert {story.alert for story in STORIES if story.fires is fires} == set(RULES)


@pytest.mark.parametrize("alert", sorted(RULES))
async def test_alert_reads_metrics_that_are_exposed(alert: str) -> None:
    read = metrics_in(RULES[alert]["expr"])
    assert read
    assert read <= await worker_samples() | operator_samples()


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    pages = {
        rule["annotations"]["runbook_url"].removeprefix(f"{RUNBOOKS}/") for rule in RULES.values()
    }
    assert pages == {path.name for path in RUNBOOK_FOLDER.glob("*.md")} - {"README.md"}
    for alert, rule in RULES.items():
        page = RUNBOOK_FOLDER / rule["annotations"]["runbook_url"].removeprefix(f"{RUNBOOKS}/")
        assert page.read_text(encoding="utf-8").startswith(f"# {alert}\n")
