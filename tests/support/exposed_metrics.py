"""The metrics that the two programs really expose, for whoever writes queries against them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import httpx
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo_operator.handlers.metrics import OperatorMetrics

FROM_PROMETHEUS = frozenset({"up"})
"""Series that a scrape makes by itself."""

_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_METRIC = re.compile(r"(?:vllm:|octavo_|process_|up\b)[a-zA-Z0-9_:]*")
_STRINGS = re.compile(r'"[^"]*"')


async def worker_samples() -> frozenset[str]:
    """Names of all samples on a worker's page."""
    transport = httpx.ASGITransport(
        create_app(FakeEngine(), ServerConfig(served_model_names=("toy",)))
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        # Labelled counters show no sample before their first event.
        await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2})
        await client.post("/v1/completions", json={"prompt": "ab", "n": 1000})
        page = (await client.get("/metrics")).text
    return _samples(page)


def operator_samples() -> frozenset[str]:
    """Names of all samples on the operator's page, with one pod and one adapter."""
    metrics = OperatorMetrics()
    metadata = {"namespace": "models", "name": "a", "labels": {}}
    metrics.watch_pods(lambda: [{"metadata": metadata, "status": {}}])
    metrics.watch_adapters(
        lambda: [{"metadata": metadata, "spec": {"serviceRef": {"name": "chat"}}}]
    )
    return _samples(generate_latest(metrics.registry).decode())


def metrics_in(expression: str) -> frozenset[str]:
    """The metrics that a PromQL expression reads."""
    return frozenset(
        word for word in _WORDS.findall(_STRINGS.sub('""', expression)) if _METRIC.fullmatch(word)
    )


def _samples(page: str) -> frozenset[str]:
    names: Iterable[str] = (
        sample.name for family in text_string_to_metric_families(page) for sample in family.samples
    )
    return frozenset(names)
