"""A rolling update of real workers under load: every request is answered, whole and in order
(production-stack 601: traffic to terminating pods).

Local mode runs the same plan and manifests as a cluster; the workers are real processes with a tiny
model, the clients keep their connections as OpenAI's do, and half of them stream.

On a busy machine everything may take long, and nothing of that is a failure: probes are patient,
old pods drain for as long as the test may last, and what the operator learns late is waited for.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_services import condition_message, conditions, inference_service
from octavo_operator.local.session import LocalSession
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, POD
from octavo_operator.manifests.worker_command import ENDPOINT_REMOVAL_S
from serving_session import session_of_real_workers
from tiny_models import make_tiny_model

LIMIT_S = 900
NUM_TOKENS = 24
PATIENT_PROBES = {
    "name": "worker",
    "readinessProbe": {"timeoutSeconds": LIMIT_S},
    "livenessProbe": {"timeoutSeconds": LIMIT_S},
}
"""A machine that answers no probe in time would take both pods out of service."""

pytestmark = [
    pytest.mark.timeout(2 * LIMIT_S),
    pytest.mark.skipif(
        sys.platform != "linux", reason="pods share one address elsewhere, so ports differ"
    ),
]


class Callers:
    """Clients that ask all the time, and keep what they were answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[str] = []
        self.failures: list[str] = []
        self.is_done = False

    async def keep_asking(self, *, is_streamed: bool) -> None:
        body = {"prompt": "hello", "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=self._url, timeout=LIMIT_S) as client:
            while not self.is_done:
                try:
                    text = await self._ask(client, {**body, "stream": is_streamed})
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                else:
                    self.answers.append(text)
                await asyncio.sleep(0.01)  # the cores are the workers'

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await client.post("/v1/completions", json=body)
        response.raise_for_status()
        if not body["stream"]:
            return str(response.json()["choices"][0]["text"])
        lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
        if not lines or lines.pop() != "[DONE]":
            raise ValueError(f"the stream broke off: {response.text[:200]!r}")
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


async def pods(session: LocalSession) -> dict[str, Any]:
    listed = await session._store.list_objects(POD, None, {})
    return {pod["metadata"]["name"]: pod for pod in listed.items}


async def wait_for(session: LocalSession, running: asyncio.Task[None], check: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await check():
            if running.done():
                running.result()
            await asyncio.sleep(0.1)


async def test_update_of_real_workers_under_load_fails_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a cluster: a client that keeps a connection must get around to using it once meanwhile.
    delay_s = str(ENDPOINT_REMOVAL_S)
    monkeypatch.setattr("octavo_operator.local.container._SHUTDOWN_DELAY_S", delay_s)
    monkeypatch.setattr("octavo_operator.cluster.startup_reports.PATIENCE_S", 0.0)
    model = make_tiny_model("llama", tmp_path / "model")
    service = inference_service(
        model={"uri": f"file://{model}"},
        replicas=2,
        accelerator={"resource": "none"},
        engine={"args": ["--num-threads=1"], "maxNumSeqs": 8},
        rollout={"drainSeconds": LIMIT_S},
        template={"spec": {"containers": [PATIENT_PROBES]}},
    )
    log = io.StringIO()
    session = session_of_real_workers(tmp_path, log, service)
    running = asyncio.create_task(session.run())

    async def both_serve() -> bool:
        return len(session._endpoints()) == 2

    try:
        await wait_for(session, running, both_serve)
        callers = Callers(session.base_url)
        asking = [
            asyncio.create_task(callers.keep_asking(is_streamed=bool(number % 2)))
            for number in range(4)
        ]
        old = set(await pods(session))

        async def is_replaced() -> bool:
            now = await pods(session)
            return not old & set(now) and await both_serve()

        service["spec"]["engine"]["maxNumSeqs"] = 4
        await session.apply(service)
        await wait_for(session, running, is_replaced)
        num_before = len(callers.answers)

        async def more_answers() -> bool:
            return len(callers.answers) > num_before + 8

        await wait_for(session, running, more_answers)
        callers.is_done = True
        await asyncio.gather(*asking)
        resource: Any = {}

        async def is_told() -> bool:
            nonlocal resource
            await session.apply(service)  # nothing happens any more; have it looked at again
            resource = await session._store.get(INFERENCE_SERVICE, "models", "chat")
            return {"load", "warmup", "total"} <= resource["status"].get("startup", {}).keys()

        await wait_for(session, running, is_told)
    finally:
        session.kill()
        await running
    print(f"\n{len(callers.answers)} answers, {len(callers.failures)} failures", log.getvalue())
    assert callers.failures == []
    assert len(set(callers.answers)) == 1
    assert num_before > 0
    assert conditions(resource)["Ready"] == ("True", "Serving"), condition_message(
        resource, "Ready"
    )
