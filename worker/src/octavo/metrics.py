"""What Prometheus reads: vLLM's metric names, and ``octavo_`` ones for what vLLM lacks.

Knows names, labels and buckets. What the engine counts (tokens, steps, blocks) is read from its
statistics when Prometheus asks, and costs nothing in between; what only the server can know
(waiting as clients feel it) is counted here, in plain integers: one thread, no locks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from octavo.outputs import (
    SCHEDULER_STEP_BUCKETS,
    STEP_TOKEN_BUCKETS,
    AdapterStats,
    EngineStats,
    RequestTimings,
)

# fmt: off
_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)
# fmt: on
_N_BUCKETS = (1, 2, 5, 10, 20)
_VLLM_REASONS = ("stop", "length", "abort", "error")
Labels = Mapping[str, str]


def length_buckets(max_model_len: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to ``max_model_len``."""
    buckets: list[int] = []
    power = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * power > max_model_len:
                return tuple(buckets)
            buckets.append(mantissa * power)
        power *= 10


class Histogram:
    """Counts of observations by upper bound; an observation costs a binary search."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, labels: Labels) -> Metric:
        """For the exposition."""
        return _histogram(
            self.name, self.documentation, labels, self._bounds, self._counts, self._sum
        )


class ChoiceRecord:
    """The times of one choice as the client sees them, from arrival to its last token."""

    __slots__ = ("_arrived_s", "_first_s", "_last_s", "_metrics", "num_tokens")

    def __init__(self, metrics: ServerMetrics, arrived_s: float) -> None:
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._first_s = 0.0
        self._last_s = 0.0
        self.num_tokens = 0

    def tokens(self, count: int, now_s: float) -> None:
        """``count`` tokens arrived together."""
        if self.num_tokens:
            self._metrics.inter_token_latency.observe(now_s - self._last_s)
        else:
            self._first_s = now_s
            self._metrics.time_to_first_token.observe(now_s - self._arrived_s)
        self._last_s = now_s
        self.num_tokens += count

    def finished(
        self,
        reason: str,
        now_s: float,
        *,
        num_prompt_tokens: int,
        num_cached_tokens: int,
        max_tokens: int | None,
        timings: RequestTimings | None,
    ) -> None:
        """The choice ended, with a :class:`octavo.request.FinishReason` value."""
        metrics = self._metrics
        metrics.count_end(reason)
        metrics.e2e_latency.observe(now_s - self._arrived_s)
        metrics.prompt_length.observe(num_prompt_tokens)
        metrics.prefill_computed.observe(max(0, num_prompt_tokens - num_cached_tokens))
        metrics.generation_length.observe(self.num_tokens)
        if max_tokens is not None:
            metrics.max_tokens_asked.observe(max_tokens)
        if self.num_tokens > 1:
            span_s = self._last_s - self._first_s
            metrics.time_per_output_token.observe(span_s / (self.num_tokens - 1))
        if timings is not None:
            metrics.queue_time.observe(timings.queue_s)
            metrics.prefill_time.observe(timings.prefill_s)
            metrics.decode_time.observe(timings.decode_s)
            metrics.inference_time.observe(timings.prefill_s + timings.decode_s)


class ServerMetrics:
    """Counts what the server sees, and writes all metrics down when asked."""

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        lengths = length_buckets(max_model_len)
        self.time_to_first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Time to first token.", _TTFT_BUCKETS
        )
        self.inter_token_latency = Histogram(
            "vllm:inter_token_latency_seconds", "Time between tokens.", _TOKEN_BUCKETS
        )
        self.time_per_output_token = Histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per token after the first, by request.",
            _TOKEN_BUCKETS,
        )
        self.e2e_latency = _request_time("e2e_request_latency", "Time from arrival to the end.")
        self.queue_time = _request_time("request_queue_time", "Time before first scheduled.")
        self.inference_time = _request_time("request_inference_time", "Time after that.")
        self.prefill_time = _request_time("request_prefill_time", "Time until the first token.")
        self.decode_time = _request_time("request_decode_time", "Time from first to last token.")
        self.prompt_length = Histogram(
            "vllm:request_prompt_tokens", "Prompt tokens by request.", lengths
        )
        self.generation_length = Histogram(
            "vllm:request_generation_tokens", "Generated tokens by request.", lengths
        )
        self.max_generation_length = Histogram(
            "vllm:request_max_num_generation_tokens", "Most tokens of any choice.", lengths
        )
        self.max_tokens_asked = Histogram(
            "vllm:request_params_max_tokens", "max_tokens asked for.", lengths
        )
        self.prefill_computed = Histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens computed, cached ones left out.",
            lengths,
        )
        self.n_asked = Histogram("vllm:request_params_n", "n asked for.", _N_BUCKETS)
        self._reasons = dict.fromkeys(_VLLM_REASONS, 0)
        self._num_deadlines = 0
        self.num_disconnects = 0

    def start_choice(self, arrived_s: float) -> ChoiceRecord:
        """Begin the record of one choice; times are of one monotonic clock."""
        return ChoiceRecord(self, arrived_s)

    def count_end(self, reason: str) -> None:
        """A choice ended for a :class:`octavo.request.FinishReason`."""
        self._num_deadlines += reason == "deadline"
        self._reasons[reason if reason in self._reasons else "abort"] += 1

    def collect(self, stats: EngineStats) -> Iterator[Metric]:
        """Everything, with the engine's part as ``stats`` has it."""
        yield from _gauges(stats, self._labels)
        yield from _counters(stats, self._labels)
        yield _by_label(
            "vllm:request_success",
            "Requests that ended, by reason.",
            self._labels,
            "finished_reason",
            self._reasons,
        )
        for histogram in vars(self).values():
            if isinstance(histogram, Histogram):
                yield histogram.family(self._labels)
        yield _one(
            CounterMetricFamily,
            "octavo_choices_cut_by_deadline",
            "Choices whose time was up, with or without tokens.",
            self._labels,
            self._num_deadlines,
        )
        yield _one(
            CounterMetricFamily,
            "octavo_client_disconnects",
            "Requests whose client left early.",
            self._labels,
            self.num_disconnects,
        )


def _request_time(name: str, documentation: str) -> Histogram:
    return Histogram(f"vllm:{name}_seconds", documentation, _REQUEST_BUCKETS)


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
        yield _one(GaugeMetricFamily, name, documentation, labels, value)
    yield _by_label(
        "vllm:num_requests_waiting_by_reason",
        "Requests waiting, by reason.",
        labels,
        "reason",
        {"capacity": stats.num_waiting - stats.num_deferred, "deferred": stats.num_deferred},
        GaugeMetricFamily,
    )
    free = stats.num_blocks - stats.num_owned_blocks - stats.num_cached_blocks
    yield _by_label(
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
        yield _one(CounterMetricFamily, name, documentation, labels, value)
    yield _by_label(
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
    yield _histogram(
        "vllm:iteration_tokens_total",
        "Tokens by engine step.",
        labels,
        STEP_TOKEN_BUCKETS,
        counts,
        stats.step_token_sum,
    )
    yield _histogram(
        "octavo_scheduler_step_seconds",
        "Time spent on deciding, by engine step.",
        labels,
        SCHEDULER_STEP_BUCKETS,
        stats.scheduler_step_counts or [0] * (len(SCHEDULER_STEP_BUCKETS) + 1),
        stats.scheduler_seconds,
    )


def request_outcomes(
    outcomes: Mapping[str, int], refusals: Mapping[str, int], num_open: int, labels: Labels
) -> Iterator[Metric]:
    """How requests ended, each counted once, and how many have not yet."""
    yield _by_label("octavo_requests", "Requests by how they ended.", labels, "outcome", outcomes)
    yield _by_label(
        "octavo_requests_refused",
        "Requests refused, by the code of the error.",
        labels,
        "code",
        refusals,
    )
    yield _one(GaugeMetricFamily, "octavo_requests_open", "Requests under way.", labels, num_open)


def info_gauge(name: str, documentation: str, facts: Labels) -> Metric:
    """A gauge that is always 1 and tells facts in its labels."""
    family = GaugeMetricFamily(name, documentation, labels=list(facts))
    family.add_metric(list(facts.values()), 1)
    return family


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
    yield _by_label(
        "octavo_lora_adapters",
        "LoRA adapters by where they are.",
        labels,
        "place",
        {"device": len(stats.resident), "host": len(stats.in_host_memory)},
        GaugeMetricFamily,
    )
    yield _by_label("octavo_lora_loads", "Loads by how they ended.", labels, "outcome", outcomes)
    yield _by_label(
        "octavo_lora_evictions",
        "LoRA adapters that made room for others, by place.",
        labels,
        "place",
        {"device": stats.num_slot_evictions, "host": stats.num_host_evictions},
    )
    yield _one(
        CounterMetricFamily,
        "octavo_lora_copies",
        "Copies of adapters to the device.",
        labels,
        stats.num_fills,
    )


def startup_seconds(
    phases: Mapping[str, float], ready_s: float | None, labels: Labels
) -> Iterator[Metric]:
    """How long each phase of loading took, and all of it from the process's start."""
    yield _by_label(
        "octavo_startup_phase_seconds",
        "Duration of each phase of loading.",
        labels,
        "phase",
        phases,
        GaugeMetricFamily,
    )
    if ready_s is not None:
        yield _one(
            GaugeMetricFamily,
            "octavo_startup_seconds",
            "From process start until requests were taken.",
            labels,
            ready_s,
        )


class MetricsPage:
    """The text behind ``/metrics``: what ``source`` yields, then this process's own use."""

    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Source(source))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)


class _Source(Collector):
    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source()


_Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


def _one(
    family: _Family, name: str, documentation: str, labels: Labels, value: float
) -> CounterMetricFamily | GaugeMetricFamily:
    metric = family(name, documentation, labels=list(labels))
    metric.add_metric(list(labels.values()), value)
    return metric


def _by_label(
    name: str,
    documentation: str,
    labels: Labels,
    label: str,
    values: Mapping[str, float],
    family: _Family = CounterMetricFamily,
) -> Metric:
    metric = family(name, documentation, labels=[*labels, label])
    for key, value in values.items():
        metric.add_metric([*labels.values(), key], value)
    return metric


def _histogram(
    name: str,
    documentation: str,
    labels: Labels,
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
) -> Metric:
    family = HistogramMetricFamily(name, documentation, labels=list(labels))
    buckets, running = [], 0
    for bound, count in zip([*map(_bound, bounds), "+Inf"], counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric(list(labels.values()), buckets, total)
    return family


def _bound(value: float) -> str:
    return str(float(value))
