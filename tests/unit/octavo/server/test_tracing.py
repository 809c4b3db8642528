"""Spans as a collector gets them, over HTTP and protobuf; and nothing at all without one."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from running_server import running_server

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """Takes in what is sent to /v1/traces."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                assert self.path == "/v1/traces"
                collector.requests.append(ExportTraceServiceRequest.FromString(data))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    serving = threading.Thread(target=collector.server.serve_forever, daemon=True)
    serving.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-models")
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    serving.join()


def attributes(span: Any) -> dict[str, Any]:
    values = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        values[each.key] = (
            [item.string_value for item in value.values] if kind == "array_value" else value
        )
    return values


async def test_request_becomes_a_span_with_its_phases(collector: Collector) -> None:
    config = ServerConfig(exports_traces=True, shutdown_timeout_s=5.0)
    async with (
        running_server(FakeEngine(), config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await server.listener.is_ready.wait()
        headers = {"traceparent": PARENT, "X-Request-Id": "trace-1"}
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "a secret"}],
            "max_tokens": 7,
            "temperature": 0.5,
            "stream": True,
        }
        await client.post("/v1/chat/completions", json=body, headers=headers)
        await client.post("/v1/completions", json={"prompt": "a", "n": 1000})
        await client.get("/v1/models")
        assert await server.stop() == 0
    span, refused = collector.of("chat toy/bytes"), collector.of("text_completion")
    assert span.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert span.kind == 2  # SERVER
    told = attributes(span)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": "toy/bytes",
        "gen_ai.response.id": "trace-1",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "octavo.request_id": "trace-1",
        "octavo.outcome": "finished",
    }
    assert {name: told.get(name) for name in expected} == expected
    assert told["gen_ai.usage.input_tokens"] > 0
    assert "secret" not in str(collector.requests)
    for name, seconds in (("queue", 0.01), ("prefill", 0.02), ("decode", 0.03)):
        phase = collector.of(name)
        assert phase.parent_span_id == span.span_id
        assert phase.trace_id == span.trace_id
        took_s = (phase.end_time_unix_nano - phase.start_time_unix_nano) / 1e9
        assert took_s == pytest.approx(seconds, abs=1e-5)
    assert refused.trace_id != span.trace_id
    assert attributes(refused)["error.type"] == "invalid_value"
    assert attributes(refused)["octavo.outcome"] == "refused"
    assert len(collector.spans) == 5
    (resource, *_) = collector.requests[0].resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "my-models"


async def test_collector_that_is_not_there_costs_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    config = ServerConfig(exports_traces=True, shutdown_timeout_s=5.0)
    async with (
        running_server(FakeEngine(), config) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await server.listener.is_ready.wait()
        answer = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 200
        assert await server.stop() == 0


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':');"
        "from fake_engine import FakeEngine; from octavo.config import ServerConfig;"
        "from octavo.server.app import create_app; import asyncio;"
        "asyncio.run(asyncio.sleep(0)); import octavo.cli, octavo.server.lifecycle;"
        "ours = ('opentelemetry.sdk', 'opentelemetry.exporter');"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, ":".join(sys.path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
