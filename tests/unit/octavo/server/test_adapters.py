"""Requests of adapters, where the engine does nothing by itself: who answers, and until when."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.engine.adapter_table import AdapterTable
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter
from octavo.errors import AdapterError
from octavo.lora.adapter_source import AdapterSource

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def table(engine: FakeEngine) -> AdapterTable:
    """It knows ``sql``, and no load of it ever ends."""
    engine.adapters = AdapterTable(lambda message: None, is_enabled=True, wait_s=60.0)
    await engine.adapters.load("sql", AdapterSource("/sql"), is_lazy=True)
    return engine.adapters


async def test_an_adapter_that_goes_while_its_prompt_is_rendered_is_not_the_base_model(
    engine: FakeEngine,
    table: AdapterTable,
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    render = engine.render_chat

    async def slowly(*arguments: Any, **options: Any) -> list[int]:
        await table.unload("sql", 1.0)
        return await render(*arguments, **options)

    monkeypatch.setattr(engine, "render_chat", slowly)
    answer = await client.post("/v1/chat/completions", json={"model": "sql", "messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert not engine.seen


async def test_the_models_own_name_stays_its_own(
    engine: FakeEngine, table: AdapterTable, client: httpx.AsyncClient
) -> None:
    """An adapter may be remembered under it, from when the model was served under another."""
    await table.load("toy/bytes", AdapterSource("/sql"), is_lazy=True)
    cards = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("toy/bytes", None),
        ("sql", "toy/bytes"),
    ]
    body = {"model": "toy/bytes", "prompt": "hi", "max_tokens": 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert len(engine.seen) == 1


async def test_a_name_that_is_not_served_is_told_those_that_are(
    table: AdapterTable, client: httpx.AsyncClient
) -> None:
    for answer in [
        await client.get("/v1/models/org/sql"),
        await client.post("/tokenize", json={"model": "org/sql", "prompt": "hi"}),
    ]:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "model_not_found")
        assert "'org/sql'" in error["message"]
        assert "serves 'toy/bytes', 'sql'." in error["message"]


async def test_waiting_for_a_load_ends_with_the_requests_own_time(
    engine: FakeEngine, table: AdapterTable, client: httpx.AsyncClient
) -> None:
    body = {"model": "sql", "prompt": "hi", "max_tokens": 1}
    headers = {"X-Request-Timeout": "0.05"}
    answer = await client.post("/v1/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert not engine.seen


async def test_who_waits_for_a_load_can_be_cancelled(
    engine: FakeEngine, table: AdapterTable, client: httpx.AsyncClient
) -> None:
    body = {"model": "sql", "prompt": "hi", "max_tokens": 1}
    headers = {"X-Request-Id": "mine"}
    asked = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
    async with asyncio.timeout(10):
        while table.entries()[0].load is None:
            await asyncio.sleep(0.001)
        ended = await client.post("/v1/requests/mine/cancel")
        assert (ended.status_code, ended.json()["num_cancelled"]) == (200, 1)
        answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "request_aborted")
    assert not engine.seen
    (record,) = (await client.get("/v1/requests")).json()["ended"]
    assert record["outcome"] == "aborted"


async def test_waiting_for_a_load_is_time_of_the_request(
    engine: FakeEngine, client: httpx.AsyncClient
) -> None:
    """What is left of it goes to the engine."""
    loop = asyncio.get_running_loop()

    def answer_later(message: OpenAdapter | CloseAdapter) -> None:
        opened = AdapterOpened(message.adapter_id, "d1", 4, 9, 0.1)
        loop.call_later(0.05, engine.adapters.heard, opened)

    engine.adapters = AdapterTable(answer_later, is_enabled=True, wait_s=60.0)
    await engine.adapters.load("sql", AdapterSource("/sql"), is_lazy=True)
    body = {"model": "sql", "prompt": "hi", "max_tokens": 1}
    headers = {"X-Request-Timeout": "30"}
    answer = await client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200
    ((_, _, options),) = engine.seen
    assert options.timeout_s is not None
    assert options.timeout_s < 30.0 - 0.05


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/var/lib/pods/3f/adapters/sql-v2/", "sql-v2"),
        ("~/adapters/sql", "sql"),
        ("./here/is/sql", "sql"),
        ("no/such/kind/sql", "sql"),
        ("hf://org/sql@main", "hf://org/sql@main"),
        ("org/sql", "org/sql"),
        ("s3://bucket/deep/sql", "s3://bucket/deep/sql"),
    ],
)
async def test_clients_learn_no_path_of_this_machine(
    table: AdapterTable, client: httpx.AsyncClient, path: str, root: str
) -> None:
    await table.load("named", AdapterSource(path), is_lazy=True)
    cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
    assert cards["named"]["root"] == root
    assert (await client.get("/v1/models/named")).json() == cards["named"]


async def test_a_refused_adapter_is_neither_listed_nor_suggested_and_requests_hear_why(
    engine: FakeEngine, client: httpx.AsyncClient
) -> None:
    def refuse(message: OpenAdapter | CloseAdapter) -> None:
        failed = AdapterFailed(message.adapter_id, "AdapterError", "The adapter's rank is 64.")
        asyncio.get_running_loop().call_soon(engine.adapters.heard, failed)

    engine.adapters = AdapterTable(refuse, is_enabled=True, wait_s=60.0)
    await engine.adapters.load("wide", AdapterSource("/secret/wide"), is_lazy=True)
    body = {"model": "wide", "prompt": "hi", "max_tokens": 1}
    for answer in [
        await client.post("/v1/completions", json=body),
        await client.post("/v1/completions", json=body | {"stream": True}),
        await client.post("/v1/embeddings", json={"model": "wide", "input": "hi"}),
        await client.get("/v1/models/wide"),
        await client.post("/tokenize", json={"model": "wide", "prompt": "hi"}),
        await client.post("/tokenize", json={"model": "wide", "messages": MESSAGES}),
        await client.post("/detokenize", json={"model": "wide", "tokens": [1]}),
    ]:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "adapter_refused")
        assert error["param"] == "model"
        assert "rank is 64" in error["message"]
        assert "secret" not in error["message"]
        assert "Retry-After" not in answer.headers
    with pytest.raises(AdapterError):  # remembered under what is the model's own name now
        await engine.adapters.load("toy/bytes", AdapterSource("/wide", digest="sha256:1"))
    own = {"model": "toy/bytes", "prompt": "hi"}
    assert (await client.post("/tokenize", json=own)).status_code == 200
    await engine.adapters.unload("toy/bytes", 1.0)
    cards = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["toy/bytes"]
    hint = (await client.post("/v1/completions", json=body | {"model": "gpt-4"})).json()
    assert "wide" not in hint["error"]["message"]
    (listed,) = (await client.get("/v1/adapters")).json()["data"]
    assert (listed["state"], listed["message"]) == ("failed", "The adapter's rank is 64.")


async def test_readiness_waits_for_the_word_that_no_adapter_is_missing(
    engine: FakeEngine, table: AdapterTable, client: httpx.AsyncClient
) -> None:
    table.hold.begin()
    assert (await client.get("/health/loaded")).status_code == 200
    held = await client.get("/health/ready")
    assert (held.status_code, "no adapter is missing" in held.text) == (503, True)
    # Whoever knows it by its address is answered all the same.
    body = {"model": "toy/bytes", "prompt": "hi", "max_tokens": 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    listed = (await client.get("/v1/adapters")).json()
    assert (listed["held"], [entry["name"] for entry in listed["data"]]) == (True, ["sql"])
    waiting = asyncio.create_task(client.get("/health/ready"))
    await asyncio.sleep(0)
    assert (await client.post("/v1/adapters/complete")).json() == {"held": True}
    assert (await waiting).status_code == 200
    assert (await client.post("/v1/adapters/complete")).json() == {"held": False}
    assert not (await client.get("/v1/adapters")).json()["held"]
