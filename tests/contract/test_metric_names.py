"""The metric names, types and labels that dashboards, KEDA triggers and gateways of vLLM read.

The operator's own are held by the table in docs/monitoring.md.
"""

from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from crd_schema import REPOSITORY
from exposed_metrics import operator_page
from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.metrics.server_metrics import length_buckets
from octavo.outputs import EngineStats
from octavo.server.app import create_app
from octavo.server.requests import Outcome

PLAIN = {"model_name", "engine"}
# Name as queried (a counter's without _total), type, labels beside bucket bounds.
VLLM = [
    ("vllm:num_requests_running", "gauge", PLAIN),
    ("vllm:num_requests_waiting", "gauge", PLAIN),
    ("vllm:num_requests_waiting_by_reason", "gauge", PLAIN | {"reason"}),
    ("vllm:kv_cache_usage_perc", "gauge", PLAIN),
    ("vllm:prefix_cache_queries", "counter", PLAIN),
    ("vllm:prefix_cache_hits", "counter", PLAIN),
    ("vllm:num_preemptions", "counter", PLAIN),
    ("vllm:prompt_tokens", "counter", PLAIN),
    ("vllm:prompt_tokens_by_source", "counter", PLAIN | {"source"}),
    ("vllm:prompt_tokens_cached", "counter", PLAIN),
    ("vllm:generation_tokens", "counter", PLAIN),
    ("vllm:request_success", "counter", PLAIN | {"finished_reason"}),
    ("vllm:request_prompt_tokens", "histogram", PLAIN),
    ("vllm:request_generation_tokens", "histogram", PLAIN),
    ("vllm:iteration_tokens_total", "histogram", PLAIN),
    ("vllm:request_max_num_generation_tokens", "histogram", PLAIN),
    ("vllm:request_params_n", "histogram", PLAIN),
    ("vllm:request_params_max_tokens", "histogram", PLAIN),
    ("vllm:time_to_first_token_seconds", "histogram", PLAIN),
    ("vllm:inter_token_latency_seconds", "histogram", PLAIN),
    ("vllm:request_time_per_output_token_seconds", "histogram", PLAIN),
    ("vllm:e2e_request_latency_seconds", "histogram", PLAIN),
    ("vllm:request_queue_time_seconds", "histogram", PLAIN),
    ("vllm:request_inference_time_seconds", "histogram", PLAIN),
    ("vllm:request_prefill_time_seconds", "histogram", PLAIN),
    ("vllm:request_decode_time_seconds", "histogram", PLAIN),
    ("vllm:request_prefill_kv_computed_tokens", "histogram", PLAIN),
    ("vllm:cache_config_info", "gauge", {"engine", "block_size", "num_gpu_blocks"}),
]
OWN = [
    ("octavo_requests", "counter", PLAIN | {"outcome"}),
    ("octavo_requests_open", "gauge", PLAIN),
    ("octavo_choices_cut_by_deadline", "counter", PLAIN),
    ("octavo_waiting_prompt_tokens", "gauge", PLAIN),
    ("octavo_scheduler_step_seconds", "histogram", PLAIN),
    ("octavo_requests_refused", "counter", PLAIN | {"code"}),
    ("octavo_client_disconnects", "counter", PLAIN),
    ("octavo_kv_blocks", "gauge", PLAIN | {"state"}),
    ("octavo_steps", "counter", PLAIN),
    ("octavo_step_seconds", "counter", PLAIN),
    ("octavo_last_progress_age_seconds", "gauge", PLAIN),
    ("octavo_startup_phase_seconds", "gauge", PLAIN | {"phase"}),
    ("octavo_startup_seconds", "gauge", PLAIN),
    ("process_resident_memory_bytes", "gauge", set()),
]


@pytest.fixture
async def page() -> str:
    """The page after six choices ended, one request was refused."""
    engine = FakeEngine()
    engine.counters = EngineStats(
        num_waiting=3,
        num_deferred=1,
        num_waiting_tokens=77,
        scheduler_step_counts=[3, 1, *[0] * 13],
        scheduler_seconds=0.0001,
        num_blocks=100,
        num_owned_blocks=25,
        num_cached_blocks=10,
        prompt_tokens=50,
        cached_prompt_tokens=20,
        prefix_query_tokens=48,
        generation_tokens=70,
        step_token_counts=[1, 2, *[0] * 11, 1],
        step_token_sum=20_000,
        num_steps=4,
    )
    transport = httpx.ASGITransport(create_app(engine, ServerConfig(served_model_names=("toy",))))
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        for body in (
            {"prompt": "ab", "max_tokens": 5, "n": 2},
            {"prompt": ["ab", "xyz"], "max_tokens": 10},
            {"prompt": "ab", "max_tokens": 40, "stop": ["c", "d"]},
            {"prompt": "ab", "max_tokens": 1, "stream": True},
            {"prompt": "ab", "n": 1000},
        ):
            await client.post("/v1/completions", json=body)
        response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return response.text


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def value(page: str, sample: str, **labels: str) -> float:
    """The sum of the samples that carry these labels."""
    found = [
        entry.value
        for family in text_string_to_metric_families(page)
        for entry in family.samples
        if entry.name == sample and labels.items() <= entry.labels.items()
    ]
    assert found, f"{sample} {labels}"
    return sum(found)


@pytest.mark.parametrize(("name", "kind", "labels"), VLLM + OWN, ids=[row[0] for row in VLLM + OWN])
def test_metric_is_exposed(page: str, name: str, kind: str, labels: set[str]) -> None:
    family = families(page)[name]
    assert family.type == kind
    assert family.samples
    for sample in family.samples:
        assert labels <= set(sample.labels) | {"le"}
        if "model_name" in labels:
            assert sample.labels["model_name"] == "toy"
            assert set(sample.labels) - {"le"} == labels
        if kind == "counter":
            assert sample.name == f"{name}_total"


def test_nothing_else_is_exposed_under_vllms_name(page: str) -> None:
    exposed = {name for name in families(page) if name.startswith("vllm:")}
    assert exposed == {name for name, _, _ in VLLM}


def test_engine_statistics_are_told_as_they_are(page: str) -> None:
    assert value(page, "vllm:num_requests_waiting") == 3
    assert value(page, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(page, "vllm:num_requests_waiting_by_reason", reason="deferred") == 1
    assert value(page, "octavo_waiting_prompt_tokens") == 77
    assert value(page, "octavo_scheduler_step_seconds_bucket", le="5e-05") == 4
    assert value(page, "vllm:kv_cache_usage_perc") == 0.25
    assert value(page, "octavo_kv_blocks", state="free") == 65
    assert value(page, "vllm:prompt_tokens_total") == 50
    assert value(page, "vllm:prefix_cache_queries_total") == 48
    assert value(page, "vllm:prefix_cache_hits_total") == 20
    assert value(page, "vllm:prompt_tokens_by_source_total", source="local_compute") == 30
    assert value(page, "vllm:iteration_tokens_total_bucket", le="8.0") == 3
    assert value(page, "vllm:iteration_tokens_total_bucket", le="+Inf") == 4
    assert value(page, "vllm:iteration_tokens_total_sum") == 20_000


def test_every_request_is_counted_once(page: str) -> None:
    assert value(page, "vllm:request_success_total", finished_reason="length") == 5
    assert value(page, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(page, "vllm:request_success_total", finished_reason="abort") == 0
    # Of HTTP requests, whatever the number of their choices.
    assert value(page, "octavo_requests_total", outcome="finished") == 4
    assert value(page, "octavo_requests_total", outcome="refused") == 1
    assert value(page, "octavo_requests_total") == 5
    assert value(page, "octavo_requests_refused_total", code="invalid_value") == 1
    assert value(page, "vllm:e2e_request_latency_seconds_count") == 6
    assert value(page, "vllm:time_to_first_token_seconds_count") == 6
    assert value(page, "vllm:request_params_n_count") == 4
    assert value(page, "vllm:request_params_n_sum") == 5
    assert value(page, "vllm:request_generation_tokens_bucket", le="5.0") == 3
    assert value(page, "vllm:request_queue_time_seconds_sum") == pytest.approx(0.06)
    assert value(page, "vllm:request_inference_time_seconds_sum") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("max_model_len", "buckets"),
    [(1, (1,)), (7, (1, 2, 5)), (10, (1, 2, 5, 10)), (512, (1, 2, 5, 10, 20, 50, 100, 200, 500))],
)
def test_length_buckets_follow_the_models_length(
    max_model_len: int, buckets: tuple[int, ...]
) -> None:
    assert length_buckets(max_model_len) == buckets


async def test_failure_and_disconnect_are_counted_as_such() -> None:
    engine = FakeEngine()
    app = create_app(engine, ServerConfig())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        engine.fail_midway = "boom"
        await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 9})
        engine.finish_with = "abort"
        await client.post("/v1/completions", json={"prompt": "ab"})
        engine.finish_with = "deadline"
        await client.post("/v1/completions", json={"prompt": "ab"})
        engine.max_open = 0
        await client.post("/v1/completions", json={"prompt": "ab"})
        page = (await client.get("/metrics")).text
    ended = {str(each): value(page, "octavo_requests_total", outcome=each) for each in Outcome}
    assert ended == {"finished": 0, "failed": 1, "aborted": 1, "deadline": 1, "refused": 1}
    assert value(page, "octavo_requests_refused_total", code="queue_full") == 1
    assert value(page, "vllm:request_success_total", finished_reason="error") == 1
    assert value(page, "vllm:request_success_total", finished_reason="abort") == 2


def test_table_of_the_operators_metrics_is_whole() -> None:
    """Each family that the operator exposes has its row, and its labels are named there."""
    text = (REPOSITORY / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(octavo_operator_\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    exposed = {
        name + ("_total" if family.type == "counter" else ""): family
        for name, family in families(operator_page()).items()
        if not name.endswith("_created")  # prometheus_client's, beside each counter
    }
    assert rows.keys() == exposed.keys()
    for name, family in exposed.items():
        assert family.documentation
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        told = {"inferenceservice_namespace", "inferenceservice", "loraadapter", "state"}
        for label in labels - told - ({"resource"} if "_queue_" in name else set()):
            assert f"`{label}`" in rows[name], f"{name}: {label}"
