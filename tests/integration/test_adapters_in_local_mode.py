"""LoRAAdapters with real workers: replaced under load, and there again after a crash.

Local mode runs the same plan and manifests as a cluster; a pod is a process, a container that is
restarted in place is a process that was killed.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapter_stage import lora_adapter
from eventually import eventually
from inference_services import conditions, inference_service
from octavo_operator.manifests.kinds import LORA_ADAPTER
from serving_session import session_of_real_workers
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

LIMIT_S = 240.0
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="pods have no admin port elsewhere"),
]


class Callers:
    """Clients that ask for one model all the time, and keep every answer and failure."""

    def __init__(self, url: str, model: str, count: int = 3) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._is_done = False
        self._tasks = [asyncio.create_task(self._run(url, model)) for _ in range(count)]

    async def _run(self, url: str, model: str) -> None:
        body = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
            while not self._is_done:
                try:
                    self.answers.append(await complete(client, {**body, "ignore_eos": True}))
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    async def end(self) -> None:
        self._is_done = True
        await asyncio.gather(*self._tasks)


async def complete(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    response = await client.post("/v1/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["text"])


@pytest.fixture
async def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventually.LIMIT_S", LIMIT_S)
    monkeypatch.setattr("octavo_operator.local.pod_process.FIRST_BACKOFF_S", 0.1)


async def test_adapter_is_replaced_under_load_and_survives_a_killed_worker(
    tmp_path: Path, patience: None
) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    first = make_adapter(tmp_path / "first", config, seed=1)
    second = make_adapter(tmp_path / "second", config, seed=2)
    wide = make_adapter(tmp_path / "wide", config, rank=64)
    service = inference_service(
        model={"uri": f"file://{model}", "servedName": "base"},
        replicas=2,
        accelerator={"resource": "none"},
        engine={"args": ["--num-threads=1"], "maxNumSeqs": 8, "lora": {}},
    )
    log = io.StringIO()
    session = session_of_real_workers(
        tmp_path,
        log,
        service,
        lora_adapter("sql", f"file://{first}"),
        lora_adapter("rare", f"file://{second}", placement={"replicas": 1}),
    )
    running = asyncio.create_task(session.run())

    async def status() -> dict[str, Any]:
        if running.done():
            running.result()
        live = await session._store.get(LORA_ADAPTER, "models", "sql")
        return dict(live.get("status") or {})

    async def is_rare_there() -> bool:
        live = await session._store.get(LORA_ADAPTER, "models", "rare")
        return conditions(live).get("Ready") == ("True", "Loaded")

    async def is_loaded_from(folder: Path) -> bool:
        now = await status()
        is_ready = conditions({"status": now}).get("Ready") == ("True", "Loaded")
        return is_ready and now["resolvedFrom"]["uri"] == f"file://{folder}" and now["loaded"] == 2

    try:
        await eventually(lambda: running.done() or len(session._endpoints()) == 2)
        await eventually(lambda: is_loaded_from(first))
        await eventually(is_rare_there)
        # One pod holds it, and each is asked.
        said = set()
        for _ in range(6):
            async with httpx.AsyncClient(base_url=session.base_url, timeout=LIMIT_S) as client:
                body = {"model": "rare", "prompt": "hello", "max_tokens": 12, "temperature": 0}
                said.add(await complete(client, body))
        assert len(said) == 1
        callers = Callers(session.base_url, "sql")
        await eventually(lambda: len(callers.answers) >= 6)
        before = set(callers.answers)
        assert len(before) == 1

        # A version that cannot be served reaches one pod, and takes nothing from anybody.
        await session.apply(service, [lora_adapter("sql", f"file://{wide}")])

        async def is_refused() -> bool:
            return conditions({"status": await status()})["Ready"] == ("False", "AdapterRefused")

        await eventually(is_refused)
        seen = len(callers.answers)
        await eventually(lambda: len(callers.answers) >= seen + 6)
        assert set(callers.answers) == before

        await session.apply(service, [lora_adapter("sql", f"file://{second}")])
        await eventually(lambda: is_loaded_from(second))
        seen = len(callers.answers)
        await eventually(lambda: len(callers.answers) >= seen + 12)
        await callers.end()
        assert callers.failures == []
        after = set(callers.answers[seen + 6 :])
        assert len(after) == 1
        assert set(callers.answers) == before | after
        assert before != after

        # Killed, as the kernel does for memory: the container is another one, the pod is the same.
        containers = {pod["uid"]: pod["containerID"] for pod in (await status())["pods"]}
        for process in psutil.Process().children():
            if "serve" in process.cmdline():
                process.kill()
                break

        async def is_back() -> bool:
            pods = (await status())["pods"]
            now = {pod["uid"]: pod["containerID"] for pod in pods}
            is_another = now.keys() == containers.keys() and now != containers
            return is_another and await is_loaded_from(second) and len(session._endpoints()) == 2

        await eventually(is_back)
        again = Callers(session.base_url, "sql")
        await eventually(lambda: len(again.answers) >= 6)
        await again.end()
        assert again.failures == []
        assert set(again.answers) == after

        await session.apply(service, [])

        async def is_gone() -> bool:
            listed = await session._store.list_objects(LORA_ADAPTER, None, {})
            return not listed.items

        await eventually(is_gone)
        async with httpx.AsyncClient(base_url=session.base_url, timeout=LIMIT_S) as client:
            body = {"model": "sql", "prompt": "hello", "max_tokens": 1}
            assert (await client.post("/v1/completions", json=body)).status_code == 404
            await complete(client, {**body, "model": "base"})  # any text, if it answers
    finally:
        session.stop()
        await running
    print(f"\n{len(callers.answers)} + {len(again.answers)} answers\n{log.getvalue()}")
