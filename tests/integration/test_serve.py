"""``octavo serve`` over HTTP, as its users meet it: a process, a model, the official client."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil  # type: ignore[import-untyped]
import pytest

from served_model import ServedModel, served_model
from tiny_models import make_tiny_model

pytestmark = pytest.mark.timeout(600)

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
NAME = "tiny"
MAX_MODEL_LEN = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    flags = ("--served-model-name", NAME, "--max-model-len", str(MAX_MODEL_LEN))
    with served_model(model, log, *flags, "--max-num-waiting", "64") as served:
        yield served
        assert served.stop() == 0
        assert not [event for event in served.events() if event["level"] == "error"]


@pytest.fixture
def client(served: ServedModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=120) as client:
        yield client


# ---- The official client -----------------------------------------------------------------------


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]


def test_a_streamed_completion_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "hello", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert len(chunks) > 1
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 5


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    # (The second one finds the prompt in the cache, which usage tells too.)
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_logprobs_tell_every_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 8
    for token in content:
        assert len(token.top_logprobs) == 3
        # Greedy: the one that was taken is the likeliest.
        assert (
            token.logprob
            == token.top_logprobs[0].logprob
            == max(top.logprob for top in token.top_logprobs)
        )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_prompts_scores_are_those_of_the_tokens_when_they_were_drawn(
    client: openai.OpenAI, stream: bool
) -> None:
    free: dict[str, Any] = {"model": NAME, "max_tokens": 20, "temperature": 0, "logprobs": 2}
    extra = {"ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False}
    drawn = client.completions.create(prompt="hello", **free, extra_body=extra).choices[0]
    ids = [*drawn.prompt_token_ids, *drawn.token_ids]  # type: ignore[attr-defined]
    scored: dict[str, Any] = {"prompt": ids, "model": NAME, "max_tokens": 0, "echo": True}
    scored |= {"logprobs": 2, "extra_body": {"skip_special_tokens": False}}
    if stream:
        choice = next(iter(client.completions.create(**scored, stream=True))).choices[0]
    else:
        choice = client.completions.create(**scored).choices[0]
    assert drawn.logprobs is not None
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.tokens[-20:] == drawn.logprobs.tokens
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[-20:] == pytest.approx(
        drawn.logprobs.token_logprobs, abs=1e-3
    )


A, EOS = ord("a"), 257
ENDS: dict[str, tuple[dict[str, Any], tuple[str, Any], str]] = {
    "end-of-text": ({"logit_bias": {str(EOS): 100}}, ("stop", None), ""),
    "ignored-end-of-text": (
        {"logit_bias": {str(EOS): 100}, "ignore_eos": True, "stop_token_ids": [EOS]},
        ("stop", EOS),
        "",
    ),
    "stop-token": ({"logit_bias": {str(A): 100}, "stop_token_ids": [A]}, ("stop", A), ""),
    "stop-token-kept": (
        {
            "logit_bias": {str(A): 100},
            "stop_token_ids": [A],
            "include_stop_str_in_output": True,
            "min_tokens": 2,
        },
        ("stop", A),
        "a",
    ),
    "stop-string": ({"logit_bias": {str(A): 100}, "stop": ["aaa"]}, ("stop", "aaa"), ""),
    "stop-string-after-min-tokens": (
        {"logit_bias": {str(A): 100}, "stop": ["aaa"], "min_tokens": 5},
        ("stop", "aaa"),
        "aa",
    ),
    "length": ({"logit_bias": {str(A): 100}, "ignore_eos": True}, ("length", None), "a" * 8),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("end", ENDS)
def test_why_a_text_ended_is_true(served: ServedModel, end: str, path: str, stream: bool) -> None:
    asked, why, text = ENDS[end]
    body = {"prompt": "hello"} if path == TEXT else {"messages": HELLO}
    body |= {"max_tokens": 8, "temperature": 0, "stream": stream, **asked}
    answer = httpx.post(served.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    if stream:
        lines = [line[6:] for line in answer.text.split("\n\n") if line]
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        assert all(choice["finish_reason"] is None for choice in choices[:-1])
        deltas = [choice.get("delta", {"content": choice.get("text")}) for choice in choices]
        found = "".join(delta.get("content") or "" for delta in deltas)
    else:
        choices = answer.json()["choices"]
        found = choices[0]["text"] if path == TEXT else choices[0]["message"]["content"]
    last = choices[-1]
    assert (last["finish_reason"], last["stop_reason"]) == why
    if end == "stop-token-kept":
        # The barred stop token leaves the two tokens before it to the model.
        assert found.endswith(text)
    else:
        assert found == text


def test_barred_words_and_allowed_tokens_hold(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": NAME, "prompt": "hello", "max_tokens": 40, "temperature": 0}
    text = client.completions.create(**asked, extra_body={"ignore_eos": True}).choices[0].text
    word = next(text[at : at + 2] for at in range(38) if text[at : at + 2].isascii())
    extra = {"ignore_eos": True, "bad_words": [word]}
    other = client.completions.create(**asked, extra_body=extra).choices[0].text
    assert word in text
    assert word not in other
    extra = {"ignore_eos": True, "allowed_token_ids": list(b"abc")}
    some = client.completions.create(**asked, extra_body=extra).choices[0].text
    assert len(some) == 40
    assert set(some) <= set("abc")


def test_embeddings_are_the_same_in_any_batch(client: openai.OpenAI) -> None:
    texts = ["hello", "x" * 200, "another one"]
    for pooling in ("last", "mean"):
        extra = {"pooling": pooling}
        together = client.embeddings.create(model=NAME, input=texts, extra_body=extra)
        for text, one in zip(texts, together.data, strict=True):
            alone = client.embeddings.create(model=NAME, input=text, extra_body=extra)
            assert alone.data[0].embedding == pytest.approx(one.embedding, abs=1e-4)
        assert together.usage.prompt_tokens == sum(map(len, texts))


@pytest.mark.parametrize("extra", [{}, {"prompt_logprobs": 0}], ids=["plain", "scored"])
def test_choices_that_share_their_prompt_do_not_make_it_a_cached_one(
    client: openai.OpenAI, extra: dict[str, Any]
) -> None:
    def num_cached(n: int) -> int | None:
        usage = client.completions.create(
            model=NAME, prompt=[7] * 100, max_tokens=1, n=n, extra_body=extra | salt
        ).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens

    salt = {"cache_salt": f"of choices {extra}"}
    assert num_cached(3) == 0
    assert num_cached(3) == num_cached(1) == (0 if extra else 96)


def test_n_choices_differ_and_their_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model=NAME, prompt="hello", n=4, seed=11, max_tokens=20, temperature=1.0
        )
        return [choice.text for choice in sorted(answer.choices, key=lambda one: one.index)]

    first = ask()
    assert len(set(first)) == 4
    assert ask() == first


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "prompt": "hello",
        "max_tokens": 60,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    text = client.completions.create(**asked).choices[0].text
    stop = text[12:14]
    for stream in (False, True):
        if stream:
            chunks = list(client.completions.create(**asked, stop=[stop], stream=True))
            got = "".join(chunk.choices[0].text for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            choice = client.completions.create(**asked, stop=[stop]).choices[0]
            got, reason = choice.text, choice.finish_reason
        assert got == text[: text.index(stop)]
        assert reason == "stop"


async def test_a_seed_gives_the_same_text_in_any_company(served: ServedModel) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", timeout=120, max_retries=0
    ) as client:

        async def ask(seed: int | None) -> str:
            answer = await client.completions.create(
                model=NAME, prompt="once upon", seed=seed, max_tokens=40, temperature=1.0
            )
            return answer.choices[0].text

        alone = [await ask(seed) for seed in range(4)]
        crowd = await asyncio.gather(*(ask(i if i < 4 else None) for i in range(30)))
        assert crowd[:4] == alone
        assert len({*alone}) == 4
        stream = await client.completions.create(
            model=NAME, prompt="once upon", seed=2, max_tokens=40, temperature=1.0, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == alone[2]


def test_many_clients_at_once_each_get_their_own(served: ServedModel) -> None:
    def ask(number: int) -> list[int]:
        body = {
            "prompt": [number] * (1 + number % 90),
            "max_tokens": 10,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = httpx.post(served.url + TEXT, json=body, timeout=120).json()
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    numbers = list(range(1, 41))
    alone = [ask(number) for number in numbers]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, numbers)) == alone


# ---- Bad input ---------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "hello"}]
BAD: list[tuple[str, Any, str | None, list[str]]] = [
    (TEXT, {"prompt": "x" * 300}, "prompt", ["300", str(MAX_MODEL_LEN), "Shorten"]),
    (TEXT, {"prompt": "x", "max_tokens": 256}, "max_tokens", ["256", "leaves 255", "at most 255"]),
    (CHAT, {"messages": []}, "messages", ["empty", "at least 1"]),
    (CHAT, {"messages": HELLO, "n": 129}, "n", ["129", "128"]),
    (TEXT, {"prompt": "x", "temperature": -1}, "temperature", ["-1", "at least 0"]),
    (TEXT, {"prompt": "x", "max_tokens": -5}, "max_tokens", ["-5", "at least 0"]),
    (TEXT, {"prompt": [272]}, "prompt", ["272", "271"]),
    (TEXT, {"prompt": "x", "stop_token_ids": [272]}, "stop_token_ids", ["272", "271"]),
    (TEXT, {"prompt": "x", "logit_bias": {"272": 1}}, "logit_bias", ["272", "271"]),
    (TEXT, {"prompt": "x", "top_p": "high"}, "top_p", ["'high'", "a number"]),
    (TEXT, {"prompt": "x", "surprise": 1}, "surprise", ["Unknown field", "surprise"]),
    (TEXT, {"prompt": "x", "priority": 10**30}, "priority", [str(10**30)]),
    (TEXT, {"prompt": "x", "min_tokens": 20, "max_tokens": 4}, "min_tokens", ["20", "4"]),
    (TEXT, {"prompt": ""}, "prompt", ["no tokens"]),
    (CHAT, {"messages": HELLO, "model": "other"}, "model", ["'other'", "'tiny'"]),
    (TEXT, b"{", None, ["not valid JSON"]),
    (TEXT, b"", None, ["empty"]),
    (CHAT, b"[]", None, ["array"]),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), BAD)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_bad_input_names_field_value_limit_and_remedy(
    served: ServedModel, path: str, body: Any, param: str | None, words: list[str], stream: bool
) -> None:
    data = body if isinstance(body, bytes) else json.dumps({**body, "stream": stream}).encode()
    response = httpx.post(
        served.url + path, content=data, headers={"content-type": "application/json"}, timeout=60
    )
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    for word in words:
        assert word in error["message"]
    answer = httpx.post(served.url + TEXT, json={"prompt": "x", "max_tokens": 1}, timeout=60)
    assert answer.status_code == 200


def test_a_full_queue_is_an_honest_429(served: ServedModel) -> None:
    body = {"prompt": ["x"] * 30, "n": 2, "max_tokens": 100, "ignore_eos": True}

    def ask(_: int) -> httpx.Response:
        return httpx.post(served.url + TEXT, json=body, timeout=120)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
    assert {answer.status_code for answer in answers} == {200, 429}
    too_many = httpx.post(served.url + TEXT, json={**body, "prompt": ["x"] * 33}, timeout=60)
    assert too_many.status_code == 400
    assert "64 may wait (max_num_waiting)" in too_many.json()["error"]["message"]


# ---- Doors and ends ----------------------------------------------------------------------------


def test_an_api_key_is_asked_for(model: Path, tmp_path: Path) -> None:
    with served_model(model, tmp_path / "log", "--api-key", "secret") as served:
        assert httpx.get(served.url + "/health").status_code == 200
        answer = httpx.get(served.url + "/v1/models")
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret") as client:
            name = client.models.list().data[0].id
            assert client.completions.create(model=name, prompt="x", max_tokens=2).choices


def lines_of(response: httpx.Response) -> Iterator[str]:
    """As line feeds end them; httpx ends one at whatever Unicode takes for a line's end, which a
    model may draw."""
    rest = b""
    for piece in response.iter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode() for line in whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_an_open_stream_end(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with served_model(model, tmp_path / "log", "--max-model-len", "512") as served:
        (engine,) = psutil.Process(served.process.pid).children()
        body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
        with httpx.stream("POST", served.url + TEXT, json=body, timeout=120) as stream:
            lines = lines_of(stream)
            next(lines)
            served.process.send_signal(number)
            data = [line[6:] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        reasons = [json.loads(chunk)["choices"][0]["finish_reason"] for chunk in data[:-1]]
        assert reasons.count("length") == 8
        assert served.process.wait(60) == 0
        assert not psutil.pid_exists(engine.pid)


def test_a_killed_engine_ends_the_server_with_an_error(model: Path, tmp_path: Path) -> None:
    with served_model(model, tmp_path / "log") as served:
        (engine,) = psutil.Process(served.process.pid).children()
        engine.kill()
        assert served.process.wait(60) == 1
        (error,) = [e for e in served.events() if "The engine process" in e["event"]]
        assert "was killed" in error["event"]


def test_a_port_in_use_is_one_sentence(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "octavo", "serve", str(model), "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"octavo: Port {port} on 127.0.0.1 is in use;")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.demo_model
def test_the_demo_model_answers(tmp_path: Path) -> None:
    flags = ("--max-model-len", "512", "--served-model-name", "smollm2")
    with (
        served_model("demo://smollm2-135m-instruct", tmp_path / "log", *flags) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=120) as client,
    ):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=24,
            temperature=0,
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        assert served.stop() == 0
