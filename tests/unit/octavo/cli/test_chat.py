"""``octavo chat`` with a scripted user and a real server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from fake_engine import FakeEngine, expected_text, render
from octavo.cli.chat import Chat, read_message
from octavo.cli.chat_client import AnswerPiece, ChatClient, ChatFailedError
from octavo.config import ServerConfig
from octavo.errors import ConfigError
from polling import until
from running_server import RunningServer, running_server


def script(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Reads these lines, then the end of input; an exception is raised in its turn."""
    rest: Iterator[str | type[BaseException]] = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read_line


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    config = ServerConfig(api_keys=("key",), served_model_names=("toy",))
    async with running_server(FakeEngine(), config) as server:
        await server.listener.is_ready.wait()
        yield server


async def run_chat(chat: Chat, *lines: str | type[BaseException], interactive: bool = False) -> int:
    """In a thread: the chat blocks, and the server lives in this loop."""
    return await asyncio.to_thread(chat.run, script(*lines), is_interactive=interactive)


async def test_answers_stream_and_the_conversation_is_kept(server: RunningServer) -> None:
    output = io.StringIO()
    chat = Chat(ChatClient(server.url, "key"), {"max_tokens": 3}, "be brief", output)
    assert await run_chat(chat, "one", "two", "/exit") == 0
    history = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
    ]
    first = expected_text(render(history), 0, 3)
    history += [{"role": "assistant", "content": first}, {"role": "user", "content": "two"}]
    second = expected_text(render(history), 0, 3)
    assert output.getvalue() == f"{first}\n{second}\n"
    assert chat.messages == [*history, {"role": "assistant", "content": second}]


async def test_commands(server: RunningServer) -> None:
    output = io.StringIO()
    chat = Chat(ChatClient(server.url, "key"), {"max_tokens": 2}, None, output)
    assert await run_chat(chat, "/retry", "one", "/retry", "/what", "", "/help", "/reset") == 0
    answer = expected_text(render([{"role": "user", "content": "one"}]), 0, 2)
    lines = output.getvalue().splitlines()
    assert lines[:3] == ["(there is nothing to answer yet)", answer, answer]
    assert lines[3] == "(there is no command /what; /help lists them)"
    assert lines[-1] == "(forgotten)"
    assert chat.messages == []


async def test_token_rate_is_told_to_people(server: RunningServer) -> None:
    output = io.StringIO()
    chat = Chat(ChatClient(server.url, "key"), {"max_tokens": 7}, None, output)
    await run_chat(chat, "one", KeyboardInterrupt, interactive=True)
    assert "(7 tokens, " in output.getvalue()
    assert "Ctrl-D or /exit" in output.getvalue()


async def test_leaving_an_answer_aborts_it(server: RunningServer) -> None:
    server.engine.step_s = 0.01
    client = ChatClient(server.url, "key")

    def take_one_piece() -> AnswerPiece:
        pieces = client.stream({"messages": [{"role": "user", "content": "x"}], "max_tokens": 400})
        try:
            return next(pieces)
        finally:
            pieces.close()

    assert (await asyncio.to_thread(take_one_piece)).text
    await until(lambda: server.engine.aborted_ids)


def test_interrupted_answer_keeps_what_came() -> None:
    class Interrupted(ChatClient):
        def stream(self, body):  # type: ignore[no-untyped-def]
            yield AnswerPiece("half")
            raise KeyboardInterrupt

    output = io.StringIO()
    chat = Chat(Interrupted("http://x", None), {}, None, output)
    assert chat.run(script("hi"), is_interactive=False) == 0
    assert output.getvalue() == "half (stopped)\n"
    assert chat.messages[-1] == {"role": "assistant", "content": "half"}


async def test_refusal_is_shown_and_forgotten(server: RunningServer) -> None:
    output = io.StringIO()
    chat = Chat(ChatClient(server.url, "wrong"), {}, None, output)
    assert await run_chat(chat, "one") == 1
    assert "not one this server knows" in output.getvalue()
    assert chat.messages == []


async def test_failure_within_an_answer_is_shown(server: RunningServer) -> None:
    server.engine.fail_midway = "boom"
    output = io.StringIO()
    chat = Chat(ChatClient(server.url, "key"), {"max_tokens": 9}, None, output)
    assert await run_chat(chat, "one") == 1
    assert "(The server failed" in output.getvalue()


async def test_models_are_listed(server: RunningServer) -> None:
    for url in (server.url, f"{server.url}/v1/", server.url.removeprefix("http://")):
        assert await asyncio.to_thread(ChatClient(url, "key").model_names) == ["toy"]


def test_missing_server_is_one_sentence() -> None:
    with pytest.raises(ChatFailedError, match=r"No server answers at http://127.0.0.1:1 .*serve"):
        ChatClient("http://127.0.0.1:1", None).model_names()


def test_wrong_url_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="write it like"):
        ChatClient("ftp://x", None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two"], "one\ntwo"),
        (['"""', "one", "", 'two"""', '"""'], 'one\n\ntwo"""'),
    ],
)
def test_message_may_have_several_lines(lines: list[str], message: str) -> None:
    assert read_message(script(*lines), "> ") == message
