"""The engine process itself: started, asked, killed, orphaned; with a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.interface import EngineState
from octavo.engine.request_options import RequestOptions
from octavo.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    OctavoError,
    OutOfMemoryError,
    QueueFullError,
    UnsupportedModelError,
    WeightError,
)
from octavo.outputs import GenerationEvent
from octavo.request import Tenant
from octavo.sampling_params import SamplingParams
from polling import until
from tiny_models import make_tiny_model

LIMITS: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "num_threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def started(model: Path | str, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineConfig(model=str(model), **{**LIMITS, **options}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[AsyncEngine]:
    """One for all tests that leave it as it was."""
    async with started(model, max_num_waiting=4) as engine:
        await engine.wait_ready()
        yield engine
        assert engine.state is EngineState.READY
        await until(lambda: engine.stats().num_running == 0)
        stats = engine.stats()
        assert (stats.num_waiting, stats.num_owned_blocks) == (0, 0)


def process_of(engine: AsyncEngine) -> asyncio.subprocess.Process:
    assert engine._connection is not None
    return engine._connection.process


async def collect(events: AsyncIterator[GenerationEvent]) -> dict[int, GenerationEvent]:
    """The choices, each as one event."""
    whole: dict[int, GenerationEvent] = {}
    async for event in events:
        if event.index in whole:
            whole[event.index].absorb(event)
        else:
            whole[event.index] = event
    return whole


module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
async def test_it_generates_what_it_is_asked(engine: AsyncEngine) -> None:
    assert engine.info is not None
    assert (engine.info.max_model_len, engine.info.vocab_size) == (128, 272)
    progress = engine.progress()
    assert list(progress.finished) == ["import", "files", "weights", "kv_cache", "warmup"]
    assert progress.ready_s is not None
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    first = await collect(engine.generate(["hello"], params, request_id="a"))
    again = await collect(engine.generate([list(b"hello")], params, request_id="b"))
    assert first[0].finish_reason == "length"
    assert len(first[0].token_ids) == 20
    assert first[0].token_ids == again[0].token_ids
    assert first[0].timings is not None


@module_loop
async def test_seeded_choices_are_the_same_in_any_company(engine: AsyncEngine) -> None:
    params = SamplingParams(n=2, seed=7, max_tokens=20, ignore_eos=True)
    alone = await collect(engine.generate(["hello"], params, request_id="alone"))
    other = SamplingParams(max_tokens=30, ignore_eos=True)
    company = [
        asyncio.create_task(collect(engine.generate(["other"], other, request_id=f"o{i}")))
        for i in range(2)
    ]
    together = await collect(engine.generate(["hello"], params, request_id="together"))
    assert [together[i].token_ids for i in range(2)] == [alone[i].token_ids for i in range(2)]
    assert alone[0].token_ids != alone[1].token_ids
    await asyncio.gather(*company)


@module_loop
async def test_a_stop_string_ends_the_request_in_the_engine(engine: AsyncEngine) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    text = (await collect(engine.generate(["hello"], greedy, request_id="whole")))[0].text
    stop = text[8:11]
    before = engine.stats().generation_tokens
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, stop=stop)
    stopped = (await collect(engine.generate(["hello"], params, request_id="stopped")))[0]
    assert (stopped.text, stopped.stop_reason) == (text[: text.index(stop)], stop)
    await until(lambda: engine.stats().num_running == 0)
    assert engine.stats().generation_tokens - before < 100


@module_loop
async def test_closing_at_any_moment_leaves_nothing(engine: AsyncEngine) -> None:
    params = SamplingParams(max_tokens=100, ignore_eos=True, n=2)
    for turn in range(30):
        task = asyncio.create_task(
            collect(engine.generate(["hello"], params, request_id=f"closing-{turn}"))
        )
        await asyncio.sleep(turn * 0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0)
    assert engine.stats().num_owned_blocks == 0


@module_loop
async def test_a_full_queue_refuses_with_an_estimate(engine: AsyncEngine) -> None:
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    tasks = [
        asyncio.create_task(collect(engine.generate(["hello"], params, request_id=f"q{i}")))
        for i in range(20)
    ]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, QueueFullError)]
    served = [result for result in results if isinstance(result, dict)]
    assert refused
    assert served
    assert len(refused) + len(served) == 20
    assert all(error.retry_after_s > 0 for error in refused)
    assert all(len(choices[0].token_ids) == 100 for choices in served)


@module_loop
async def test_a_request_of_several_prompts_is_admitted_or_refused_as_a_whole(
    engine: AsyncEngine,
) -> None:
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    options = RequestOptions(tenant=Tenant("limited", max_running=1, max_queued=3))

    def ask(num_prompts: int, id: str) -> Coroutine[Any, Any, dict[int, GenerationEvent]]:
        prompts = [[97 + number] for number in range(num_prompts)]
        return collect(engine.generate(prompts, params, request_id=id, options=options))

    with pytest.raises(InvalidRequestError, match=r"has 5 prompts, .* at most 4"):
        await ask(5, "never")
    first = asyncio.create_task(ask(4, "first"))
    await until(lambda: engine.stats().num_running == 1)
    with pytest.raises(QueueFullError):
        await ask(4, "not now")
    assert [len(choice.token_ids) for choice in (await first).values()] == [100] * 4


async def test_a_killed_engine_takes_nobody_with_it(model: Path) -> None:
    async with started(model) as engine:
        await engine.wait_ready()
        process = process_of(engine)
        params = SamplingParams(max_tokens=110, ignore_eos=True)
        tasks = [
            asyncio.create_task(collect(engine.generate(["hello"], params, request_id=str(i))))
            for i in range(8)
        ]
        await until(lambda: len(engine._open) == 8)
        os.kill(process.pid, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.state is EngineState.DEAD
        assert any(isinstance(result, EngineDeadError) for result in results)
        # On a fast machine some may have ended before the blow.
        assert all(isinstance(result, EngineDeadError | dict) for result in results)
        await process.wait()
        assert not psutil.pid_exists(process.pid)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_the_terminals_signals_are_the_servers_to_handle(
    engine: AsyncEngine, stop: signal.Signals
) -> None:
    pid = process_of(engine).pid
    os.kill(pid, stop)
    await asyncio.sleep(0.05)
    assert psutil.Process(pid).is_running()


def _break_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _unknown(folder: Path) -> None:
    _break_config(folder, architectures=["NoSuchForCausalLM"], model_type="nosuch")


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _widen(folder: Path) -> None:
    _break_config(folder, intermediate_size=64)


@pytest.mark.parametrize(
    ("damage", "options", "kind", "words"),
    [
        (_unknown, {}, UnsupportedModelError, "NoSuchForCausalLM.*LlamaForCausalLM"),
        (_truncate, {}, ModelLoadError, "cannot be read as safetensors"),
        (_widen, {}, WeightError, "mlp"),
        (None, {"max_model_len": 100_000}, ConfigError, "100000.* 512"),
        (None, {"max_model_len": 1}, ConfigError, "at least 2"),
        (None, {"kv_cache_memory_bytes": 1000}, OutOfMemoryError, "KV cache.*kv-cache-memory"),
    ],
)
async def test_what_cannot_be_loaded_is_told_and_leaves_no_process(
    tmp_path: Path, damage: Any, options: dict[str, Any], kind: type[OctavoError], words: str
) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    if damage is not None:
        damage(folder)
    async with started(folder, **options) as engine:
        with pytest.raises(kind, match=words):
            await engine.wait_ready()
        assert engine.state is EngineState.DEAD
        process = process_of(engine)
    assert process.returncode is not None
    assert not psutil.pid_exists(process.pid)


async def test_a_missing_model_is_told(tmp_path: Path) -> None:
    async with started(tmp_path / "nowhere") as engine:
        with pytest.raises(ModelLoadError, match="nowhere"):
            await engine.wait_ready()


async def test_no_module_comes_from_the_folder_it_runs_in(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('code from a model folder')")
    monkeypatch.chdir(tmp_path)
    async with started(model) as engine:
        await engine.wait_ready()


_PARENT = """
import asyncio, sys
from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine

async def main():
    engine = AsyncEngine(EngineConfig(model=sys.argv[1], max_model_len=128, num_threads=1))
    await engine.start()
    if sys.argv[2] == "ready":
        await engine.wait_ready()
    print(engine._connection.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["loading", "ready"])
def test_an_orphan_ends(model: Path, moment: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(model), moment], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    # Adopted by init, which may be slow to bury it.
    _gone, alive = psutil.wait_procs([child], timeout=60)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
