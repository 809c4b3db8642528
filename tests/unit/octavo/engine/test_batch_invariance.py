"""With batch-invariant kernels a request's bits depend on nothing but the request."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest
from octavo.errors import ConfigError
from octavo.kernels.adapters import AdapterStack, Projection
from octavo.kernels.cpu.invariant import InvariantCpuKernels
from octavo.kernels.interface import Kernels
from octavo.kernels.select import select_adapters, select_kernels
from octavo.outputs import TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.sampling_params import SamplingParams
from tiny_adapters import make_adapter
from tiny_engine import TinyEngine, UncapturedGraphs, request_spec, run_to_end
from tiny_models import make_tiny_model

_DRAW = random.Random(1)
_SHARED = [_DRAW.randrange(256) for _ in range(40)]
PROMPTS = [
    *([_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 90))] for _ in range(7)),
    *([*_SHARED, *(_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 40)))] for _ in range(3)),
]
WIDE = {"hidden_size": 160, "intermediate_size": 352, "num_attention_heads": 8, "head_dim": 32}
DRAWS = {
    "greedy": SamplingParams(temperature=0, max_tokens=16, logprobs=5),
    "random": SamplingParams(temperature=1.0, max_tokens=16, logprobs=5),
}
WAYS: dict[str, dict[str, Any]] = {
    "batched": {"max_num_seqs": 16, "max_num_batched_tokens": 512},
    "few-at-once": {"max_num_seqs": 3},
    "small-chunks": {"max_num_batched_tokens": 7},
    "one-step-ahead": {"max_num_seqs": 8, "look_ahead": 1},
    "preempted": {"num_blocks": 9, "max_num_seqs": 8},
    "no-prefix-cache": {"enable_prefix_caching": False, "max_num_seqs": 5},
}

Bits = list[tuple[list[int], list[TokenLogprobs]]]


def bits_of(engine: TinyEngine, params: SamplingParams, **options: Any) -> Bits:
    """Tokens and log probabilities of each prompt: equal only if every logit is."""
    core = engine.core(**options)
    for index, prompt in enumerate(PROMPTS):
        core.submit([request_spec(str(index), prompt, params, seed=index)])
    bits: Bits = [([], []) for _ in PROMPTS]
    for update in run_to_end(core):
        tokens, logprobs = bits[int(update.request_id)]
        tokens += update.new_token_ids
        logprobs += [one for one in update.logprobs or [] if one is not None]
    core.check_integrity()
    assert all(len(logprobs) == len(tokens) == 16 for tokens, logprobs in bits)
    return bits


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    folder = tmp_path_factory.mktemp(request.param)
    return TinyEngine(folder, request.param, InvariantCpuKernels(), **WIDE)


@pytest.mark.parametrize("draw", DRAWS)
def test_the_company_changes_no_bit(engine: TinyEngine, draw: str) -> None:
    alone = bits_of(engine, DRAWS[draw], max_num_seqs=1, enable_prefix_caching=False)
    for way, options in WAYS.items():
        assert bits_of(engine, DRAWS[draw], **options) == alone, way


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_company_changes_no_bit_of_an_embedding(engine: TinyEngine, pooling: Any) -> None:
    def embeddings(**options: Any) -> dict[str, bytes | None]:
        core = engine.core(**options)
        for index, prompt in enumerate(PROMPTS):
            spec = request_spec(str(index), prompt, SamplingParams(max_tokens=0))
            spec.pooling = PoolingParams(pooling)
            core.submit([spec])
        return {update.request_id: update.embedding for update in run_to_end(core)}

    alone = embeddings(max_num_seqs=1, max_num_batched_tokens=512)
    assert len(alone) == len(PROMPTS)
    assert None not in alone.values()
    for way, options in WAYS.items():
        assert embeddings(**options) == alone, way


def test_padding_changes_no_token(engine: TinyEngine) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=16)
    alone = engine.generate(PROMPTS, params, engine.core(max_num_seqs=1))
    padded = engine.core(graphs=UncapturedGraphs, max_num_seqs=7, look_ahead=1)
    assert engine.generate(PROMPTS, params, padded) == alone


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_of_any_number_of_rows_have_the_same_bits(
    dtype: torch.dtype, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels: Kernels = InvariantCpuKernels()
        weight, bias = torch.randn(200, 333).to(dtype), torch.randn(200)
        linear = kernels.prepare_linear([weight], bias, dtype)
        x = torch.randn(70, 333)
        whole = linear(x)
        for num_rows in (1, 2, 3, 8, 15, 16, 17, 33, 69):
            for first in (0, 1, 70 - num_rows):
                part = linear(x[first : first + num_rows])
                assert torch.equal(part, whole[first : first + num_rows]), (num_rows, first)
    finally:
        torch.set_num_threads(before)
    expected = torch.nn.functional.linear(x, weight.float(), bias)
    torch.testing.assert_close(whole, expected, atol=1e-3, rtol=1e-3)


def test_kernels_without_such_a_form_refuse(tmp_path: Path) -> None:
    assert isinstance(select_kernels(torch.device("cpu"), "auto", True), InvariantCpuKernels)
    with pytest.raises(ConfigError, match="reference kernels have no batch-invariant form"):
        select_kernels(torch.device("cpu"), "reference", True)


def test_adapters_change_nothing_of_it(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model", **WIDE)
    config = json.loads((model / "config.json").read_text())
    requests = [
        LoRARequest(name, str(make_adapter(tmp_path / name, config, seed=seed, rank=4 + 8 * seed)))
        for seed, name in enumerate(("first", "second"))
    ]
    chosen = [[None, *requests][index % 3] for index in range(len(PROMPTS))]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]

    def bits(**options: Any) -> list[object]:
        llm = LLM(
            str(model),
            kernels="cpu",
            batch_invariant=True,
            enable_lora=True,
            max_model_len=128,
            num_threads=1,
            **options,
        )
        outputs = llm.generate(prompts, DRAWS["greedy"], lora_request=chosen, use_tqdm=False)
        llm.close()
        return [(one.outputs[0].token_ids, one.outputs[0].logprobs) for one in outputs]

    alone = bits(max_num_seqs=1, enable_prefix_caching=False)
    assert bits(max_num_seqs=16) == alone
    assert bits(max_num_seqs=3, max_num_batched_tokens=7) == alone


@pytest.mark.parametrize("threads", [1, 2])
def test_what_an_adapter_adds_has_the_same_bits_in_any_company(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    projection = Projection(0, ("q", "k"), 333, (200, 72))
    stack = AdapterStack.allocate([projection], 2, 32, torch.float32, torch.device("cpu"))
    for matrix in (*stack.a, stack.b):
        matrix.normal_()
    stack.table[1, 0, 1] = 16
    stack.table[0, 0, 1] = 32
    kernels = InvariantCpuKernels()
    adapters = select_adapters(kernels, stack)
    linear = kernels.prepare_linear([torch.randn(272, 333)], None, torch.float32)
    x = torch.randn(70, 333)
    slots = torch.tensor([index % 3 - 1 for index in range(70)], dtype=torch.int32)
    try:
        whole = adapters.step(slots).project(0, linear, x)
        for first in range(0, 70, 7):
            for last in (first + 1, first + 5, 70):
                own = adapters.step(slots[first:last])
                part = own.project(0, linear, x[first:last])
                assert torch.equal(part, whole[first:last]), (first, last)
    finally:
        torch.set_num_threads(before)
