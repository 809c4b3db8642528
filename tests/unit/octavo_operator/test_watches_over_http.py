"""What a watch may bring over HTTP: large objects, an end in the middle, words of a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from octavo_operator.cluster.interface import WatchEvent
from octavo_operator.cluster.kubernetes_api import KubernetesApi
from octavo_operator.errors import GoneError, UnavailableError
from octavo_operator.manifests.kinds import CONFIG_MAP
from store_behind_kmock import StoreBehindKmock, name_cluster

pytestmark = pytest.mark.kmock(cls=StoreBehindKmock, limit=None)

WATCH = "get /api/v1/configmaps"
BOOKMARK = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\n'


@pytest.fixture
async def api(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesApi]:
    name_cluster(kmock.url, tmp_path, monkeypatch)
    async with await KubernetesApi.connect(30.0, is_in_cluster=False) as connected:
        yield connected


async def _watched(api: KubernetesApi, num_events: int | None = None) -> list[WatchEvent]:
    """So many events, or all there are."""
    events: list[WatchEvent] = []
    async with aclosing(api.watch(CONFIG_MAP, None, {}, "0")) as watch:  # type: ignore[type-var]
        async for event in watch:
            events.append(event)
            if len(events) == num_events:
                break
    return events


async def test_object_as_large_as_they_come_is_an_event(kmock: Any, api: KubernetesApi) -> None:
    """As the list of a few thousand adapters is."""
    text = "x" * 1_000_000
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chat-adapters", "namespace": "models"},
        "data": {"wanted.json": text},
    }
    await kmock.store.create(manifest)
    (event,) = await _watched(api, 1)
    assert event.object["data"]["wanted.json"] == text


@pytest.mark.parametrize(
    "line",
    [
        b"<html>502 Bad Gateway</html>\n",
        b"[]\n",
        b"{}\n",
        b'{"type":"LATER","object":{}}\n',
        b'{"type":"ADDED","object":{"metad',
        b'{"type":"ADDED","object":' + b'{"a":' * 5000,
    ],
    ids=["html", "list", "empty", "unknown", "cut-off", "cut-off-deep"],
)
async def test_line_that_is_no_event_is_waited_out(
    kmock: Any, api: KubernetesApi, line: bytes
) -> None:
    kmock[WATCH] << BOOKMARK + line
    with pytest.raises(UnavailableError, match="watch configmaps"):
        await _watched(api)


async def test_object_nested_too_deeply_stops_no_list_and_no_watch(
    kmock: Any, api: KubernetesApi
) -> None:
    """Nor does it take along what stands beside it."""
    metadata = b'"metadata":{"name":"chat","namespace":"models","resourceVersion":"8"}'
    live = b'{"spec":' + b'{"a":[{"}":"]"},' * 5000 + b"1" + b"]}" * 5000 + b"," + metadata + b"}"
    kmock[WATCH] << b'{"type":"ADDED","object":' + live + b"}\n"
    (event,) = await _watched(api, 1)
    assert event.object["metadata"]["name"] == "chat"
    kmock["get /api/v1/namespaces/models/configmaps/chat"] << live
    read = await api.get(CONFIG_MAP, "models", "chat")
    assert read["spec"]["a"][1]["a"][0] == {"}": "]"}
    assert read["metadata"]["name"] == "chat"


async def test_watch_of_which_nothing_is_heard_ends_as_others_do(
    kmock: Any, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with Kubernetes 1.36 and etcd as it comes: no bookmark of a kind that is at rest."""
    monkeypatch.setattr("octavo_operator.cluster.kubernetes_api.WATCH_SILENCE_S", 0.3)
    assert await _watched(api) == []


async def test_version_that_has_expired_is_told_in_the_watch(
    kmock: Any, api: KubernetesApi
) -> None:
    kmock[WATCH] << b'{"type":"ERROR","object":{"code":410,"message":"too old"}}\n'
    with pytest.raises(GoneError, match="too old"):
        await _watched(api)
