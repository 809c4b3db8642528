"""What the engine has counted, as its statistics have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from octavo.metrics.families import Labels, by_label, histogram, info_gauge, one
from octavo.outputs import SCHEDULER_STEP_BUCKETS, STEP_TOKEN_BUCKETS, AdapterStats, EngineStats


def engine_metrics(stats: EngineStats, labels: Labels) -> Iterator[Metric]:
    """Requests, blocks, tokens and steps."""
    yield from _gauges(stats, labels)
    yield from _counters(stats, labels)


def adapter_metrics(
    stats: AdapterStats,
    name_of: Callable[[int], str],
    outcomes: Mapping[str, int],
    labels: Labels,
) -> Iterator[Metric]:
    """LoRA adapters: who runs (in vLLM's form), where they are, what became of loads."""
    yield info_gauge(
        "vllm:lora_requests_info",
        "LoRA adapters with requests.",
        {
            "max_lora": str(stats.num_slots),
            "waiting_lora_adapters": ",".join(map(name_of, stats.waiting)),
            "running_lora_adapters": ",".join(map(name_of, stats.running)),
        },
    )
    yield by_label(
        "octavo_lora_adapters",
        "LoRA adapters by where they are.",
        labels,
        "place",
        {"device": len(stats.resident), "host": len(stats.in_host_memory)},
        GaugeMetricFamily,
    )
    yield by_label("octavo_lora_loads", "Loads by how they ended.", labels, "outcome", outcomes)
    yield by_label(
        "octavo_lora_evictions",
        "LoRA adapters that made room for others, by place.",
        labels,
        "place",
        {"device": stats.num_slot_evictions, "host": stats.num_host_evictions},
    )
    yield one(
        CounterMetricFamily,
        "octavo_lora_copies",
        "Copies of adapters to the device.",
        labels,
        stats.num_fills,
    )


def _gauges(stats: EngineStats, labels: Labels) -> Iterator[Metric]:
    usage = stats.num_owned_blocks / stats.num_blocks if stats.num_blocks else 0.0
    for name, documentation, value in (
        ("vllm:num_requests_running", "Requests in the batch.", stats.num_running),
        ("vllm:num_requests_waiting", "Requests waiting.", stats.num_waiting),
        (
            "octavo_waiting_prompt_tokens",
            "Prompt tokens of waiting requests.",
            stats.num_waiting_tokens,
        ),
        ("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", usage),
        (
            "octavo_last_progress_age_seconds",
            "Time since the last step, while there is work.",
            stats.last_progress_age_s,
        ),
    ):
        yield one(GaugeMetricFamily, name, documentation, labels, value)
    yield by_label(
        "vllm:num_requests_waiting_by_reason",
        "Requests waiting, by reason.",
        labels,
        "reason",
        {"capacity": stats.num_waiting - stats.num_deferred, "deferred": stats.num_deferred},
        GaugeMetricFamily,
    )
    free = stats.num_blocks - stats.num_owned_blocks - stats.num_cached_blocks
    yield by_label(
        "octavo_kv_blocks",
        "KV blocks by state.",
        labels,
        "state",
        {"owned": stats.num_owned_blocks, "cached": stats.num_cached_blocks, "free": free},
        GaugeMetricFamily,
    )


def _counters(stats: EngineStats, labels: Labels) -> Iterator[Metric]:
    for name, documentation, value in (
        ("vllm:num_preemptions", "Preemptions.", stats.num_preemptions),
        ("vllm:prompt_tokens", "Prompt tokens.", stats.prompt_tokens),
        ("vllm:prompt_tokens_cached", "Prompt tokens found cached.", stats.cached_prompt_tokens),
        ("vllm:generation_tokens", "Generated tokens.", stats.generation_tokens),
        ("vllm:prefix_cache_queries", "Tokens looked up.", stats.prefix_query_tokens),
        ("vllm:prefix_cache_hits", "Tokens found.", stats.cached_prompt_tokens),
        ("octavo_steps", "Engine steps.", stats.num_steps),
        ("octavo_step_seconds", "Time spent in engine steps.", stats.step_seconds),
    ):
        yield one(CounterMetricFamily, name, documentation, labels, value)
    yield by_label(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens by source.",
        labels,
        "source",
        {
            "local_compute": stats.prompt_tokens - stats.cached_prompt_tokens,
            "local_cache_hit": stats.cached_prompt_tokens,
            "external_kv_transfer": 0,
        },
    )
    counts = stats.step_token_counts or [0] * (len(STEP_TOKEN_BUCKETS) + 1)
    yield histogram(
        "vllm:iteration_tokens_total",
        "Tokens by engine step.",
        labels,
        STEP_TOKEN_BUCKETS,
        counts,
        stats.step_token_sum,
    )
    yield histogram(
        "octavo_scheduler_step_seconds",
        "Time spent on deciding, by engine step.",
        labels,
        SCHEDULER_STEP_BUCKETS,
        stats.scheduler_step_counts or [0] * (len(SCHEDULER_STEP_BUCKETS) + 1),
        stats.scheduler_seconds,
    )
