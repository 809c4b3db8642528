"""Memory and starts, each in processes of their own; nothing else may use the card meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.alone

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# Opens a model of a real shape, says what it got, waits for a line, and works.
WORKER = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from shapes import model_folder
from octavo import LLM, SamplingParams
from octavo.errors import OctavoError
options = json.loads(sys.argv[2])
try:
    llm = LLM(model_folder("0.6b"), load_format="dummy", skip_tokenizer_init=True,
              dtype="bfloat16", device="cuda", max_model_len=4096, **options)
except OctavoError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
    sys.exit()
print(json.dumps({"num_blocks": llm.info.num_blocks}), flush=True)
sys.stdin.readline()
params = [SamplingParams(max_tokens=80, ignore_eos=True, detokenize=False, top_p=0.9,
                         presence_penalty=0.5, logprobs=5 if i % 2 else None)
          for i in range(400)]
prompts = [{"prompt_token_ids": [(7 * i + j) % 100_000 for j in range(900)]} for i in range(400)]
for temperature in (0.0, 1.0):
    more = SamplingParams(temperature=temperature, max_tokens=4, logprobs=1, detokenize=False)
    llm.generate(prompts[:3], more, use_tqdm=False)
outputs = llm.generate(prompts, params, use_tqdm=False)
llm.check_integrity()
free, total = torch.cuda.mem_get_info()
print(json.dumps({"tokens": sum(len(o.outputs[0].token_ids) for o in outputs),
                  "reserved": torch.cuda.max_memory_reserved(), "used": total - free,
                  "total": total}), flush=True)
"""


class Worker:
    """One engine in a process of its own."""

    def __init__(self, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(BENCHMARKS), json.dumps(options)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker ended with status {self._process.wait()}"
        return dict(json.loads(line))

    def work(self) -> None:
        """Let it generate."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(frozen=True)
class Alone:
    """What the first engine did, which began without compiled kernels; it has ended."""

    kernels: str
    """The folder of compiled kernels, which others find full."""
    num_blocks: int
    compiled_late: list[str]
    """Programs that were compiled when launched."""
    done: dict[str, Any]


SHARE = 0.45


def compiled_late(kernels: Path) -> list[str]:
    """Programs that were compiled when launched."""
    (marker,) = kernels.glob("octavo-*.json")
    ahead = marker.stat().st_mtime
    return [path.name for path in kernels.glob("*/*.cubin") if path.stat().st_mtime > ahead]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    kernels = tmp_path_factory.mktemp("kernels")
    worker = Worker(kernel_cache_dir=str(kernels), gpu_memory_utilization=SHARE)
    try:
        num_blocks = worker.hear()["num_blocks"]
        worker.work()
        done = worker.hear()
        return Alone(str(kernels), num_blocks, compiled_late(kernels), done)
    finally:
        worker.end()


def test_nothing_is_compiled_at_launch_that_was_compiled_ahead(alone: Alone) -> None:
    assert not alone.compiled_late


def test_nor_where_there_are_adapters(tmp_path: Path) -> None:
    """Whose programs depend on how many slots there are, and on nothing of a layer's number."""
    worker = Worker(
        kernel_cache_dir=str(tmp_path),
        gpu_memory_utilization=SHARE,
        enable_lora=True,
        max_loras=64,
        max_cpu_loras=64,
    )
    try:
        worker.hear()
        assert not compiled_late(tmp_path)
    finally:
        worker.end()


def test_an_engine_under_full_load_stays_within_its_share(alone: Alone) -> None:
    """CUDA's own part of it included: nothing else is on the card."""
    assert alone.done["used"] <= SHARE * alone.done["total"]


def test_two_workers_share_a_card_and_neither_changes_the_others_size(alone: Alone) -> None:
    workers = [
        Worker(kernel_cache_dir=alone.kernels, gpu_memory_utilization=SHARE) for _ in range(2)
    ]
    try:
        started = [worker.hear() for worker in workers]
        assert [one.get("num_blocks") for one in started] == [alone.num_blocks] * 2, started
        for worker in workers:
            worker.work()
        for worker in workers:
            done = worker.hear()
            assert done["tokens"] == 400 * 80
            assert done["reserved"] <= SHARE * done["total"]
    finally:
        for worker in workers:
            worker.end()


def test_too_small_a_share_is_one_sentence_with_the_numbers(alone: Alone) -> None:
    worker = Worker(kernel_cache_dir=alone.kernels, gpu_memory_utilization=0.02)
    try:
        message = worker.hear()["error"]
    finally:
        worker.end()
    assert message.startswith("OutOfMemoryError: One request of 4096 tokens needs 0.44 GiB")
    assert "raise --gpu-memory-utilization" in message
    assert "for weights" in message


def test_a_neighbour_that_holds_our_share_is_named_with_what_to_lower(alone: Alone) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.empty(int(0.6 * total), dtype=torch.uint8, device="cuda")
    worker = Worker(kernel_cache_dir=alone.kernels, gpu_memory_utilization=0.9)
    try:
        message = worker.hear()["error"]
    finally:
        worker.end()
        del held
        torch.cuda.empty_cache()
    assert "other processes and CUDA hold" in message
    assert "lower --gpu-memory-utilization to 0.3" in message
