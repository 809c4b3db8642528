"""``octavo run-batch``: answers a file of requests, each as a server would, without a port."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from octavo.cli.batch_lines import BatchLine, read_batch_lines
from octavo.cli.batch_output import BatchOutput
from octavo.cli.configs import engine_config, server_config
from octavo.config import EngineConfig, ServerConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.interface import EngineState
from octavo.errors import ConfigError, EngineDeadError
from octavo.logs import configure_logging
from octavo.server.event_loop import new_event_loop

_RETRY_S = 0.5
"""After an answer that the queue is full, as choices of many lines may fill it."""

App = Callable[[Any, Any, Any], Awaitable[None]]


def run(parsed: argparse.Namespace) -> int:
    """Returns 0, or 1 where lines have no answer. Raises OctavoError when it cannot begin or go
    on."""
    engine_settings = replace(engine_config(parsed), lora_wait_s=None)  # nobody is in a hurry
    settings = replace(
        server_config(parsed, {}), api_keys=(), admin_keys=(), api_key_files=(), admin_port=None
    )
    configure_logging(parsed.log_format, parsed.log_level)
    source, target = Path(parsed.input_file), Path(parsed.output_file)
    num_lines = sum(1 for _ in read_batch_lines(source))
    if target.exists() and target.samefile(source):
        raise ConfigError(f"--output-file is {target}, the input file; choose another.")
    with (
        BatchOutput(target, resumes=parsed.resume) as output,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(_Batch(source, num_lines, output).run(engine_settings, settings))
    if output.num_failed:
        print(
            f"octavo: {output.num_failed} of {num_lines} lines failed; their error, or the body of "
            f"their response, in {parsed.output_file} tells why.",
            file=sys.stderr,
        )
    return 1 if output.num_failed else 0


class _Batch:
    """The lines of one file on their way."""

    def __init__(self, source: Path, num_lines: int, output: BatchOutput) -> None:
        self._source, self._num_lines, self._output = source, num_lines, output

    async def run(self, engine_settings: EngineConfig, settings: ServerConfig) -> None:
        """To the end of the file."""
        engine = AsyncEngine(engine_settings, settings.chat_template)
        await engine.start()
        try:
            from octavo.server.app import create_app

            app = create_app(engine, settings)
            await engine.wait_ready()
            assert engine.info is not None, "it is ready"
            await self._answer_all(engine, app, 2 * engine.info.max_num_seqs)
        except BaseExceptionGroup as group:  # of the lines under way; the first tells it
            raise group.exceptions[0] from group
        finally:
            await engine.close()

    async def _answer_all(self, engine: AsyncEngine, app: App, most: int) -> None:
        """``most`` at a time, so that a long file is not in memory."""
        room = asyncio.Semaphore(most)
        with tqdm(total=self._num_lines, desc="Answering", unit="line") as bar:

            async def answer(line: BatchLine) -> None:
                try:
                    answered = await _answer(app, line)
                    if engine.state is EngineState.DEAD:
                        raise EngineDeadError(
                            "The engine has died; with --resume the same command goes on."
                        )
                    self._output.write(answered)
                    bar.update()
                finally:
                    room.release()

            async with asyncio.TaskGroup() as group:
                for line in read_batch_lines(self._source):
                    if (line.fault or line.custom_id) in self._output.answered:
                        bar.update()
                        continue
                    await room.acquire()
                    group.create_task(answer(line))


async def _answer(app: App, line: BatchLine) -> dict[str, Any]:
    """In OpenAI's shape."""
    answer: dict[str, Any] = {
        "id": f"batch_req_{os.urandom(12).hex()}",
        "custom_id": line.custom_id,
        "response": None,
        "error": None,
    }
    if line.fault is not None:
        answer["error"] = {"code": "invalid_line", "message": line.fault}
        return answer
    status, request_id, body = await _post(app, line.url, line.body)
    while status == 429:
        await asyncio.sleep(_RETRY_S)
        status, request_id, body = await _post(app, line.url, line.body)
    answer["response"] = {
        "status_code": status,
        "request_id": request_id,
        "body": msgspec.Raw(body),
    }
    return answer


async def _post(app: App, path: str, body: bytes) -> tuple[int, str, bytes]:
    """Status, request id and body of an application's answer."""
    sent: list[MutableMapping[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if parts:
            return parts.pop()
        await asyncio.Event().wait()  # nobody leaves
        raise AssertionError("an event that nobody sets was set")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
    await app(scope, receive, send)
    headers = dict(sent[0]["headers"])
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], headers.get(b"x-request-id", b"").decode(), whole
