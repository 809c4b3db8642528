#!/usr/bin/env python
"""How long the first use of each feature holds up everybody else's tokens, and later ones.

    python benchmarks/first_use.py --shape 8b --dtype bfloat16 --device cuda
    python benchmarks/first_use.py --shape tiny --max-model-len 4096

A server that has just started, with random weights and a tokenizer of its size, streams to some
clients (--clients), while one request of each kind comes alone: with log probabilities, with
penalties, under a JSON schema, of a new adapter, one that is refused, and so on. A figure is the
longest time that any client waited for its next token meanwhile, beside the longest in as long a
time before; what is loaded, compiled or captured when first needed shows in it. Options not listed
here are passed to octavo serve. One JSON line a figure; --results NAME appends them to
benchmarks/results/NAME.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from random_adapters import make_random_adapters
from record import Recorder
from serving import Client, Load, Models, Server
from shapes import SHAPES, model_folder
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": _SCHEMA}}
_CALM_S = 1.0
"""Of streaming alone before each request, to compare with."""


@dataclass(frozen=True, slots=True)
class Use:
    """One request of a kind of its own."""

    name: str
    path: str
    body: dict[str, Any]
    status: int = 200

    def refused(self, status: int) -> Use:
        """The same, that is to be answered with this status."""
        return replace(self, status=status)


def _uses(adapter: str) -> list[Use]:
    def completion(name: str, **more: Any) -> Use:
        body = {"model": "bench", "prompt": f"{name} of a completion", "max_tokens": 12}
        return Use(name, "/v1/completions", {**body, "temperature": 0, **more})

    def chat(name: str, **more: Any) -> Use:
        messages = [{"role": "user", "content": f"{name} of a chat"}]
        body = {"model": "bench", "messages": messages, "max_tokens": 24}
        return Use(name, "/v1/chat/completions", {**body, **more})

    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
    load = {"lora_name": "first", "lora_path": adapter}
    return [
        completion("greedy"),
        completion("random", temperature=1),
        completion("top-p", temperature=1, top_p=0.9),
        completion("top-k and min-p", temperature=1, top_k=20, min_p=0.05),
        completion("log probabilities", logprobs=3),
        completion("log probabilities, random", temperature=1, logprobs=1),
        completion("log probabilities of the prompt", prompt_logprobs=1),
        completion("presence penalty", presence_penalty=0.5),
        completion("repetition penalty, random", temperature=1, repetition_penalty=1.2),
        completion("biases", logit_bias={"65": 5.0}),
        completion("barred words", bad_words=["the", "a b"]),
        completion("least tokens and stops", min_tokens=4, stop=["xyz"], max_tokens=8),
        completion("four choices", temperature=1, n=4),
        completion("a prompt of 3,000 tokens", prompt="word " * 600),
        completion("the same, cached", prompt="word " * 600),
        completion("three prompts", prompt=["one", "two of them", "and three"]),
        chat("chat"),
        chat("JSON schema", response_format=schema),
        chat("JSON object", response_format={"type": "json_object"}),
        chat("regular expression", structured_outputs={"regex": "[0-9]{3}-[a-f]+"}),
        chat("tools", tools=[_TOOL]),
        chat("a tool that must be called", tools=[_TOOL], tool_choice="required"),
        Use(
            "responses", "/v1/responses", {"model": "bench", "input": "hi", "max_output_tokens": 8}
        ),
        Use("embeddings", "/v1/embeddings", {"model": "bench", "input": ["one", "two words"]}),
        Use("tokenize", "/tokenize", {"model": "bench", "prompt": "some words " * 50}),
        completion("an unknown model", model="nobody").refused(404),
        completion("a wrong field", temperature=-1).refused(400),
        Use("an adapter is loaded", "/v1/load_lora_adapter", load),
        completion("with the adapter", model="first"),
        completion("with it and log probabilities", model="first", logprobs=1),
        Use("it is unloaded", "/v1/unload_lora_adapter", {"lora_name": "first"}),
    ]


@dataclass(slots=True)
class Watch:
    """When the streaming clients got tokens."""

    times: list[list[float]] = field(default_factory=list)

    def longest_gap_ms(self, begin: float, end: float) -> float:
        """Between two tokens of any client, of the gaps that reach into this time."""
        gaps = [gap for times in self.times for gap in _gaps(times, begin, end)]
        if not gaps:
            raise SystemExit("No client got a token meanwhile; the server's output says why.")
        return 1e3 * max(gaps)


def _gaps(times: Sequence[float], begin: float, end: float) -> Iterator[float]:
    """From the last one back, as this process streams meanwhile and must not be slow."""
    for after, before in itertools.pairwise(reversed(times)):
        if after <= begin:
            return
        if before < end:
            yield after - before


class Streamer(Client):
    """A client that keeps one stream open, and notes when it gets tokens."""

    def __init__(self, url: str, watch: Watch) -> None:
        super().__init__(url, Models(["bench"]), input_len=16, output_len=3000, vocab=256)
        self._watch = watch

    async def _read_stream(self, reader: asyncio.StreamReader, load: Load, started: float) -> None:
        # Each stream's times are apart: between two there is a prompt.
        times: list[float] = []
        self._watch.times.append(times)
        async for line in reader:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())


async def measure(
    url: str, uses: Sequence[Use], arguments: argparse.Namespace, recorder: Recorder
) -> None:
    """All uses in turn, and again, beside the streaming clients."""
    watch = Watch()
    streams = [
        asyncio.create_task(Streamer(url, watch).run(Load(), sys.maxsize, seed=number))
        for number in range(arguments.clients)
    ]
    await asyncio.sleep(3 * _CALM_S)
    for turn in range(1, arguments.turns + 1):
        for use in uses:
            begun = time.perf_counter()
            await asyncio.sleep(_CALM_S)
            asked = time.perf_counter()
            await asyncio.to_thread(_ask, url, use)
            answered = time.perf_counter()
            await asyncio.sleep(_CALM_S / 2)  # whoever waits still has the next token by then
            for stream in streams:
                if stream.done():
                    stream.result()
            recorder.figure(
                "first-use",
                "longest_gap",
                watch.longest_gap_ms(asked, answered),
                "ms",
                model=arguments.shape,
                clients=arguments.clients,
                use=use.name,
                turn=turn,
                before=round(watch.longest_gap_ms(begun, asked), 1),
                answered_ms=round(1e3 * (answered - asked), 1),
            )
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


def _ask(url: str, use: Use) -> None:
    request = urllib.request.Request(
        url + use.path, json.dumps(use.body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, said = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read()
    if status != use.status:
        raise SystemExit(f"{use.name}: the server answered {status}: {said[:500]!r}")


def _write_tokenizer(folder: Path, vocab_size: int) -> int:
    """As many tokens as the model has: one for each byte, so that the texts here are a token a
    byte, others of bytes that are not in them, and one that ends a text, which is returned."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    others = [token for token in tokens if not token.isascii()]
    pairs = list(itertools.product(others, others))
    triples = itertools.product(map("".join, pairs), others)
    merges = list(itertools.islice(itertools.chain(pairs, triples), vocab_size - len(tokens) - 1))
    tokens += map("".join, merges)
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def main() -> None:
    """Start a server of its own, and measure."""
    arguments, extra = _parse()
    recorder = Recorder(arguments.device, arguments.results)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = json.loads((Path(model_folder(arguments.shape)) / "config.json").read_text())
        end = _write_tokenizer(folder, config["vocab_size"])
        (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
        (adapter,) = make_random_adapters(folder / "adapters", config, 1, 16)
        model = argparse.Namespace(shape=None, model=str(folder))
        extra += ["--load-format", "dummy", "--enable-lora"]
        with Server(model, {}, extra) as server:
            asyncio.run(_measure_own(server, _uses(adapter), arguments, recorder))


async def _measure_own(
    server: Server, uses: Sequence[Use], arguments: argparse.Namespace, recorder: Recorder
) -> None:
    await server.wait_ready()
    await asyncio.sleep(arguments.settle)
    await measure(server.url, uses, arguments, recorder)


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--clients", type=int, default=8, help="that stream (default 8)")
    parser.add_argument("--turns", type=int, default=3, help="each use comes so often (default 3)")
    parser.add_argument(
        "--settle",
        type=float,
        default=0.0,
        help="seconds without load first: an idle server captures its usual steps in them",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="for the record")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
