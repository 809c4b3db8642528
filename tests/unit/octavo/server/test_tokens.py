"""``/tokenize`` and ``/detokenize``: vLLM's bodies, both forms."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fake_engine import EOS, MAX_MODEL_LEN, FakeEngine, render
from octavo.config import ServerConfig
from octavo.server.app import create_app

HELLO = [{"role": "user", "content": "Hello"}]
ASSISTANT = [*HELLO, {"role": "assistant", "content": "I am"}]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "hi"}, [EOS, 104, 105]),
        ({"prompt": "hi", "add_special_tokens": False, "model": "toy/bytes"}, [104, 105]),
        ({"prompt": ""}, [EOS]),
        ({"messages": HELLO}, list(render(HELLO).encode())),
        ({"messages": HELLO, "add_special_tokens": True}, [EOS, *render(HELLO).encode()]),
        ({"messages": HELLO, "add_generation_prompt": False}, list(render(HELLO, False).encode())),
        ({"messages": HELLO, "tools": None}, list(render(HELLO).encode())),
    ],
)
async def test_texts_and_conversations_become_ids(
    client: httpx.AsyncClient, body: dict[str, Any], tokens: list[int]
) -> None:
    answer = (await client.post("/tokenize", json=body)).json()
    assert answer == {
        "count": len(tokens),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": tokens,
        "token_strs": None,
    }
    spelt = (await client.post("/tokenize", json=body | {"return_token_strs": True})).json()
    assert spelt["token_strs"] == [chr(token) for token in tokens]


async def test_a_client_without_a_tokenizer_learns_what_it_needs(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = dict.fromkeys(("bos_token", "unk_token", "pad_token", "sep_token", "cls_token"))
    expected = {"eos_token": "END", "chat_template": None, "model_max_length": MAX_MODEL_LEN}
    assert (await client.get("/tokenizer_info")).json() == expected | others
    monkeypatch.setattr(engine, "chat_template_source", "{{ messages }}")
    expected["chat_template"] = "{{ messages }}"
    assert (await client.get("/tokenizer_info")).json() == expected | others


async def test_template_fields_reach_the_template(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {
        "messages": ASSISTANT,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    assert (await client.post("/tokenize", json=body)).status_code == 200
    assert engine.template_kwargs == {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "enable_thinking": True,
    }


async def test_ids_become_text_again(client: httpx.AsyncClient) -> None:
    tokens = (await client.post("/tokenize", json={"prompt": "hé日"})).json()["tokens"]
    assert (await client.post("/detokenize", json={"tokens": tokens})).json() == {"prompt": "hé日"}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "odd": 1}, "odd"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HELLO, "prompt": "x"}, "prompt"),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"messages": HELLO, "media_io_kwargs": {"a": {}}}, "media_io_kwargs"),
        ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"odd": 1}}, "chat_template_kw"),
        ("/tokenize", {"messages": [{"role": "user", "content": "template error"}]}, "messages"),
        ("/tokenize", {"prompt": "x", "model": "gpt-4"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [257]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "gpt-4"}, "model"),
    ],
)
async def test_bad_bodies_are_refused_by_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"].startswith(param)


async def test_without_a_tokenizer_it_is_said() -> None:
    app = create_app(FakeEngine(has_tokenizer=False), ServerConfig())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://octavo"
    ) as client:
        for response in (
            await client.post("/tokenize", json={"prompt": "x"}),
            await client.post("/detokenize", json={"tokens": [1]}),
            await client.get("/tokenizer_info"),
        ):
            assert response.status_code == 400
            assert "--skip-tokenizer-init" in response.json()["error"]["message"]
