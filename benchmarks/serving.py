#!/usr/bin/env python
"""Closed-loop streaming load on an OpenAI-compatible server: throughput, TTFT, ITL.

    python benchmarks/serving.py --model demo://smollm2-135m-instruct --clients 1 16
    python benchmarks/serving.py --shape 8b --dtype bfloat16 --clients 1 16 64 128 256
    python benchmarks/serving.py --shape 8b --dtype bfloat16 --clients 64 --adapters 300 --skew 1 \
        --max-loras 64 --max-cpu-loras 300
    python benchmarks/serving.py --url http://127.0.0.1:8000 --served-model-name NAME

Each of c clients keeps one streaming /v1/completions request open (random token ids in,
ignore_eos) until its share of requests is done. Without --url it starts ``octavo serve`` and
also reports the seconds from process start to the first token. With --adapters each request is for
one of so many LoRA adapters of rank 16 on all seven projections, loaded before the first. One JSON
line a figure; --results NAME appends them to benchmarks/results/NAME.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from random_adapters import make_random_adapters
from record import Recorder
from shapes import SHAPES, model_folder

_RANK = 16


@dataclass(slots=True)
class Load:
    """What the clients saw, in seconds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Models:
    """What clients ask for: the number n is asked for in proportion to ``n ** -skew``."""

    names: Sequence[str]
    skew: float = 0.0
    """0: all alike; 1: Zipf's law."""

    def draw(self, draw: random.Random) -> str:
        """One of them."""
        weights = [number**-self.skew for number in range(1, len(self.names) + 1)]
        return draw.choices(self.names, weights)[0]


class Client:
    """One connection's worth of streaming requests, with as little work per chunk as possible."""

    def __init__(
        self, url: str, models: Models, input_len: int, output_len: int, vocab: int
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._models = models
        self._input_len, self._output_len, self._vocab = input_len, output_len, vocab

    async def run(self, load: Load, num_requests: int, seed: int) -> None:
        """Send requests one after another."""
        draw = random.Random(seed)
        for _ in range(num_requests):
            prompt = [
                draw.randrange(self._vocab // 10, self._vocab) for _ in range(self._input_len)
            ]
            await self._one(load, self._models.draw(draw), prompt)

    async def _one(self, load: Load, model: str, prompt: list[int]) -> None:
        body = json.dumps(
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": self._output_len,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                # A model without a tokenizer has no text to stream, but it has these.
                "return_token_ids": True,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"the server answered {status!r}: {await reader.read(2000)!r}")
            await self._read_stream(reader, load, started)
        finally:
            writer.close()

    async def _read_stream(self, reader: asyncio.StreamReader, load: Load, started: float) -> None:
        last = 0.0
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if b'"choices":[]' in line:  # the last one, which has the counts
                load.num_tokens += json.loads(line[6:])["usage"]["completion_tokens"]
            elif last:
                load.gaps.append(now - last)
                last = now
            else:
                load.ttft.append(now - started)
                last = now


async def run_load(client: Client, num_clients: int, per_client: int) -> Load:
    """All clients at once."""
    load = Load()
    started = time.perf_counter()
    await asyncio.gather(
        # Seeds of their own for every number of clients: no prompt may be in the cache already.
        *(client.run(load, per_client, num_clients * 100_003 + i) for i in range(num_clients))
    )
    load.seconds = time.perf_counter() - started
    return load


class Server:
    """An ``octavo serve`` of our own, ended with the block."""

    def __init__(
        self, arguments: argparse.Namespace, adapters: Mapping[str, str], extra: Sequence[str]
    ) -> None:
        """``adapters``: their folders by name."""
        model = model_folder(arguments.shape) if arguments.shape else arguments.model
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        command = [sys.executable, "-m", "octavo", "serve", model, "--port", str(self._port)]
        command += ["--served-model-name", "bench", *extra]
        if arguments.shape:
            command += ["--load-format", "dummy", "--skip-tokenizer-init"]
        if adapters:
            modules = [f"{name}={folder}" for name, folder in adapters.items()]
            command += ["--enable-lora", "--lora-modules", *modules]
        self._command = command

    def __enter__(self) -> Server:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=sys.stderr)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    async def wait_ready(self) -> None:
        """Return when /health/ready answers 200."""
        while True:
            if self._process.poll() is not None:
                raise SystemExit("octavo serve ended before it was ready; its output says why.")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(
                    b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Start a server unless given one, then load it with each number of clients."""
    arguments, extra = _parse()
    recorder = Recorder(arguments.device, arguments.results)
    if arguments.url:
        models = Models([arguments.served_model_name])
        asyncio.run(_measure(arguments, recorder, arguments.url, models))
        return
    with tempfile.TemporaryDirectory() as folder:
        adapters = _make_adapters(arguments, Path(folder))
        with Server(arguments, adapters, extra) as server:
            asyncio.run(_measure_own(arguments, recorder, server, adapters))


def _make_adapters(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    if not arguments.adapters:
        return {}
    config = json.loads((Path(model_folder(arguments.shape)) / "config.json").read_text())
    folders = make_random_adapters(folder, config, arguments.adapters, _RANK)
    return {f"adapter-{number}": path for number, path in enumerate(folders)}


async def _measure_own(
    arguments: argparse.Namespace,
    recorder: Recorder,
    server: Server,
    adapters: Mapping[str, str],
) -> None:
    await server.wait_ready()
    first = Client(server.url, Models(["bench"]), 8, 1, arguments.vocab_size)
    await first.run(Load(), 1, seed=0)
    recorder.figure(
        "start", "first_token", time.perf_counter() - server.started, "s",
        model=arguments.shape or arguments.model, **_of_adapters(arguments),
    )  # fmt: skip
    models = Models(list(adapters) or ["bench"], arguments.skew)
    await _measure(arguments, recorder, server.url, models)


def _of_adapters(arguments: argparse.Namespace) -> dict[str, float]:
    """What a record says of them, if there are any."""
    if not arguments.adapters:
        return {}
    return {"adapters": arguments.adapters, "skew": arguments.skew}


async def _measure(
    arguments: argparse.Namespace, recorder: Recorder, url: str, models: Models
) -> None:
    client = Client(url, models, arguments.input_len, arguments.output_len, arguments.vocab_size)
    await run_load(client, 1, 1)
    await asyncio.sleep(arguments.settle)
    for num_clients in arguments.clients:
        load = await run_load(client, num_clients, arguments.requests_per_client)
        details = {
            "clients": num_clients,
            "model": arguments.shape or arguments.model or models.names[0],
            **_of_adapters(arguments),
        }
        for name, value, unit in (
            ("output_tokens_per_s", load.num_tokens / load.seconds, "tokens/s"),
            ("ttft_p50", 1e3 * statistics.median(load.ttft), "ms"),
            ("ttft_max", 1e3 * max(load.ttft), "ms"),
            ("itl_p50", 1e3 * statistics.median(load.gaps), "ms"),
            ("itl_p99", 1e3 * statistics.quantiles(load.gaps, n=100)[98], "ms"),
            ("itl_max", 1e3 * max(load.gaps), "ms"),
        ):
            recorder.figure("serve", name, value, unit, **details)


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Options not listed here are passed to octavo serve.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, .gguf file, ORG/NAME or demo://NAME")
    source.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    source.add_argument("--url", help="a running server")
    parser.add_argument("--served-model-name", default="bench", help="with --url")
    parser.add_argument("--adapters", type=int, default=0, help="so many, with --shape")
    parser.add_argument(
        "--skew", type=float, default=0.0, help="0: all alike (default); 1: by Zipf's law"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--requests-per-client", type=int, default=4)
    parser.add_argument(
        "--settle",
        type=float,
        default=0.0,
        help="seconds without load first: an idle server captures its usual steps in them",
    )
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=49152, help="ids are drawn below it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="for the record")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    arguments, extra = parser.parse_known_args()
    if arguments.adapters and not arguments.shape:
        parser.error("--adapters makes its adapters for a --shape; give one.")
    return arguments, extra


if __name__ == "__main__":
    main()
