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
from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.cluster.work_queue import WorkQueue
from octavo_operator.errors import ConflictError
from octavo_operator.handlers.metrics import OperatorMetrics

_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_METRIC = re.compile(r"(?:vllm:|octavo_|process_|up\b)[a-zA-Z0-9_:]*")
_STRINGS = re.compile(r'"[^"]*"')


_known_of_worker: list[frozenset[str]] = []
"""Once made: a server for every query of every panel would take most of the tests' time."""


async def worker_samples() -> frozenset[str]:
    """Names of all samples on a worker's page."""
    if not _known_of_worker:
        _known_of_worker.append(await _worker_samples())
    return _known_of_worker[0]


async def _worker_samples() -> frozenset[str]:
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
    """Names of all samples on the operator's page."""
    return _samples(operator_page())


def operator_page() -> str:
    """The operator's page, with one pod, one adapter, and one of everything that happens."""
    metrics = OperatorMetrics()
    metrics.note_load(1.0, None)
    metrics.note_load(1.0, "RankTooHigh")
    metrics.operation.note_pass("InferenceService", 0.01, None)
    metrics.operation.note_pass("InferenceService", 0.01, ConflictError("too late"))
    metrics.operation.note_call("GET", 200)
    metrics.operation.watch_queues(lambda: {"InferenceService": WorkQueue(_no_work)})
    metrics.operation.watch_watches(lambda now: {"pods": 1.0})
    metadata = {"namespace": "models", "name": "a", "labels": {}}
    metrics.watch_pods(lambda: [{"metadata": metadata, "status": {}}])
    metrics.watch_adapters(
        lambda: [{"metadata": metadata, "spec": {"serviceRef": {"name": "chat"}}}]
    )
    return generate_latest(metrics.registry).decode()


async def _no_work(key: ServiceKey) -> None:
    pass


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
