"""What the server counts itself: choices as their clients feel them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from octavo.metrics.engine_metrics import engine_metrics
from octavo.metrics.families import Histogram, by_label, one
from octavo.outputs import EngineStats, RequestTimings

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
        yield from engine_metrics(stats, self._labels)
        yield by_label(
            "vllm:request_success",
            "Requests that ended, by reason.",
            self._labels,
            "finished_reason",
            self._reasons,
        )
        for histogram in vars(self).values():
            if isinstance(histogram, Histogram):
                yield histogram.family(self._labels)
        yield one(
            CounterMetricFamily,
            "octavo_choices_cut_by_deadline",
            "Choices whose time was up, with or without tokens.",
            self._labels,
            self._num_deadlines,
        )
        yield one(
            CounterMetricFamily,
            "octavo_client_disconnects",
            "Requests whose client left early.",
            self._labels,
            self.num_disconnects,
        )


def _request_time(name: str, documentation: str) -> Histogram:
    return Histogram(f"vllm:{name}_seconds", documentation, _REQUEST_BUCKETS)
