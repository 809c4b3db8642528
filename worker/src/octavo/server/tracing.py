"""OpenTelemetry traces of requests, for who asks for them by ``OTEL_EXPORTER_OTLP_ENDPOINT``.

A span is made of a request's record when it ends, with the times that were kept: tracing costs
nothing while tokens flow. Names are those of OpenTelemetry's semantic conventions for generative
AI (1.37) where it has one. Knows records; the SDK, which is imported only here and only when it
is asked for, reads the other ``OTEL_`` variables and speaks to the collector from a thread.
"""

from __future__ import annotations

import threading
from typing import Any

from octavo.errors import ConfigError
from octavo.server.requests import Outcome, RequestRecord
from octavo.version import __version__

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_CLOSE_LIMIT_S = 3.0


class RequestTracer:
    """Tells a collector of each request that has ended."""

    def __init__(self) -> None:
        """Raises ConfigError where the SDK is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed "
                f"({error}); install octavo[otel], or unset it."
            ) from None
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our names.
        ours = Resource({"service.name": "octavo", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(_of_environment(Resource.create())))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("octavo", __version__)

    def tell(self, record: RequestRecord) -> None:
        """The span of a request that has ended, and of its phases; sent later, in batches."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if record.traceparent is None else {"traceparent": record.traceparent}
        operation = _OPERATIONS.get(record.path, record.path)
        span = self._tracer.start_span(
            f"{operation} {record.model}".strip(),
            TraceContextTextMapPropagator().extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(record, operation),
            start_time=_unix_ns(record, record.arrived_s),
        )
        if record.outcome is Outcome.FAILED:
            span.set_status(trace.StatusCode.ERROR, record.code)
        inside = trace.set_span_in_context(span)
        for name, start_s, end_s in _phases(record):
            phase = self._tracer.start_span(name, inside, start_time=_unix_ns(record, start_s))
            phase.end(_unix_ns(record, end_s))
        span.end(_unix_ns(record, record.arrived_s + record.age_s))

    def close(self) -> None:
        """Send what is left, if the collector takes it soon."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_LIMIT_S)


def _of_environment(resource: Any) -> Any:
    """Without the name that the SDK makes up where none was given."""
    from opentelemetry.sdk.resources import Resource

    attributes = dict(resource.attributes)
    if str(attributes.get("service.name", "")).startswith("unknown_service"):
        del attributes["service.name"]
    return Resource(attributes)


def _attributes(record: RequestRecord, operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.id": record.answer_id,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.temperature": record.temperature,
        "gen_ai.request.top_p": record.top_p,
        "gen_ai.request.choice.count": record.num_choices if record.num_choices > 1 else None,
        "http.request.method": "POST",
        "http.route": record.path,
        "http.response.status_code": record.status,
        "error.type": record.code,
        "octavo.request_id": record.id,
        "octavo.key": record.key or None,
        "octavo.outcome": str(record.outcome),
        "octavo.priority": record.priority,
        "octavo.timeout_s": record.timeout_s,
    }
    if record.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = record.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = record.usage.completion_tokens
        attributes["octavo.usage.cached_tokens"] = record.usage.cached_tokens
    if record.first_token_s is not None:
        first_s = record.first_token_s - record.arrived_s
        attributes["gen_ai.server.time_to_first_token"] = first_s
    return {name: value for name, value in attributes.items() if value not in (None, [], "")}


def _phases(record: RequestRecord) -> list[tuple[str, float, float]]:
    """Name, start and end of each, on the record's clock; ending and beginning at the first token,
    which is the moment the server and the engine both know."""
    timings, first_s = record.timings, record.first_token_s
    if timings is None or first_s is None:
        return []
    prefill_s = first_s - timings.prefill_s
    return [
        ("queue", prefill_s - timings.queue_s, prefill_s),
        ("prefill", prefill_s, first_s),
        ("decode", first_s, first_s + timings.decode_s),
    ]


def _unix_ns(record: RequestRecord, clock_s: float) -> int:
    return int((record.arrived_unix_s + clock_s - record.arrived_s) * 1e9)
