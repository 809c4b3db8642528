"""Adapters in local mode: the same plan with processes instead of pods, of a fake worker."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from adapter_stage import lora_adapter
from eventually import eventually
from fake_adapter_table import digest_of
from inference_services import conditions, inference_service
from octavo_operator.errors import LocalError
from octavo_operator.local.container import Machine
from octavo_operator.local.resource_file import read_resource_file
from octavo_operator.local.session import LocalOptions, LocalSession
from octavo_operator.manifests.kinds import LORA_ADAPTER
from serving_session import serving

WORKER = Path(__file__).parents[3] / "support" / "fake_octavo_worker.py"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="pods share one address elsewhere, without an admin port"
)


class Place:
    """A file with a service and adapters, and folders with their files."""

    def __init__(self, folder: Path, replicas: int | None, **spec: Any) -> None:
        self.folder = folder
        self.file = folder / "service.yaml"
        self.log = io.StringIO()
        self._spec = {"replicas": replicas, **spec}

    def put(self, name: str, content: str) -> str:
        """Have `content` be the adapter in the folder `name`; its URI."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        (place / "adapter").write_text(content, encoding="utf-8")
        return f"file://{place}"

    def write(self, *adapters: dict[str, Any]) -> None:
        service = inference_service(
            model={"uri": "hf://org/name", "servedName": "base"},
            **self._spec,
            accelerator={"resource": "none"},
            engine={"lora": {}},
        )
        self.file.write_text(yaml.safe_dump_all([service, *adapters]), encoding="utf-8")


def served(place: Place) -> AbstractAsyncContextManager[LocalSession]:
    content = read_resource_file(place.file)
    chosen = LocalOptions(
        file=place.file,
        content=content,
        host="127.0.0.1",
        port=0,
        machine=Machine(
            programs={"octavo": (sys.executable, str(WORKER))},
            environment={"PATH": os.environ["PATH"], "FAKE_IDLE_S": "10"},
            cache_folder=place.folder / "cache",
            secrets=content.secrets,
        ),
    )
    return serving(chosen, place.log)


async def ask(client: httpx.AsyncClient, session: LocalSession, model: str) -> httpx.Response:
    return await client.post(f"{session.base_url}/v1/completions", json={"model": model})


async def ready(session: LocalSession, name: str = "sql") -> tuple[str, str]:
    live = await session._store.get(LORA_ADAPTER, "models", name)
    return conditions(live).get("Ready", ("", ""))


async def test_adapter_of_the_file_is_served_replaced_and_taken_away(tmp_path: Path) -> None:
    place = Place(tmp_path, replicas=2)
    place.write(lora_adapter("sql", place.put("v1", "one")))
    async with served(place) as session, httpx.AsyncClient(timeout=30) as client:
        # The first answer of each pod: it has the adapter before it has any traffic.
        await eventually(lambda: len(session._endpoints()) == 2)
        answers = [await ask(client, session, "sql") for _ in range(4)]
        assert {answer.json()["digest"] for answer in answers} == {digest_of("one")}
        pids = {answer.json()["pid"] for answer in answers}
        assert len(pids) == 2

        # A process that dies is started again, with the adapter: its folder is the pod's.
        os.kill(min(pids), signal.SIGKILL)
        await eventually(lambda: len(session._endpoints()) == 1)
        await eventually(lambda: len(session._endpoints()) == 2)
        again = [await ask(client, session, "sql") for _ in range(4)]
        assert {answer.status_code for answer in again} == {200}
        assert len({answer.json()["pid"] for answer in again} - pids) == 1

        place.write(lora_adapter("sql", place.put("v2", "two")))

        async def is_replaced() -> bool:
            found = {(await ask(client, session, "sql")).json()["digest"] for _ in range(4)}
            return found == {digest_of("two")} and await ready(session) == ("True", "Loaded")

        await eventually(is_replaced)

        place.write()

        async def is_gone() -> bool:
            return {(await ask(client, session, "sql")).status_code for _ in range(4)} == {404}

        await eventually(is_gone)
        assert (await ask(client, session, "base")).status_code == 200
        await eventually(lambda: "adapter sql is unloaded" in place.log.getvalue())
    assert "adapter sql: Loaded: 2 of 2 pods serve sql" in place.log.getvalue()


async def test_bad_adapter_keeps_nobody_from_served(tmp_path: Path) -> None:
    place = Place(tmp_path, replicas=1)
    place.write(
        lora_adapter("wide", place.put("wide", "refused")),
        lora_adapter("sql", place.put("v1", "one")),
    )
    async with served(place) as session, httpx.AsyncClient(timeout=30) as client:
        assert (await ask(client, session, "sql")).json()["digest"] == digest_of("one")
        assert (await ask(client, session, "wide")).status_code == 404
        await eventually(lambda: "adapter wide: AdapterRefused: rank is 64" in place.log.getvalue())


async def test_call_for_an_adapter_wakes_a_service_that_sleeps(tmp_path: Path) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 1, "cooldown": "10s"}
    place = Place(tmp_path, replicas=None, scaling=scaling)
    place.write(lora_adapter("sql", place.put("v1", "one")))
    async with served(place) as session, httpx.AsyncClient(timeout=60) as client:
        first = (await ask(client, session, "sql")).json()
        await eventually(lambda: not session._endpoints())
        again = (await ask(client, session, "sql")).json()
    assert again["digest"] == first["digest"] == digest_of("one")
    assert again["pid"] != first["pid"]


WRONG = [
    ({"serviceRef": {"name": "other"}}, "is for other"),
    ({"sauce": {}}, "spec.sauce"),
    ({"uri": "demo://x"}, "no demo"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_adapter_that_cannot_be_meant_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    place = Place(tmp_path, replicas=1)
    place.write(lora_adapter("sql", **change))
    with pytest.raises(LocalError, match=f"LoRAAdapter sql.*{words}"):
        read_resource_file(place.file)
