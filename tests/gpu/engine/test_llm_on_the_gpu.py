"""A model of some million random weights through ``LLM``: the GPU says what the CPU says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.loading.demo_model import DEMO_MODEL
from octavo.loading.model_files import find_model
from octavo.outputs import RequestOutput
from tiny_models import make_tiny_model

_DRAW = random.Random(3)
VOCAB = 4000
PROMPTS = [[_DRAW.randrange(VOCAB) for _ in range(_DRAW.randrange(2, 300))] for _ in range(12)]
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
# The CPU's reference kernels take a second for a few dozen tokens of this model.
FEW_PROMPTS = PROMPTS[:5]
SHORT = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, seed=5, max_tokens=40, ignore_eos=True)
SCORED = SamplingParams(temperature=0.8, seed=5, max_tokens=40, ignore_eos=True, logprobs=4)
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
BYTES_OF_A_TOKEN = 8 * 2 * 2 * 64 * 2
"""Layers, keys and values, heads, their size, bfloat16."""
# Opening an engine takes most of a test: its process that compiles finds some thirty programs,
# other ones for other limits. So one engine shows all that it can.
LIMITS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "max_model_len": 512,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
    "kv_cache_memory_bytes": 128 << 20,
}


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_tiny_model(
        request.param,
        tmp_path_factory.mktemp(request.param),
        **SHAPE,
        **({"query_pre_attn_scalar": 64} if request.param == "gemma3" else {}),
    )
    return str(folder)


@contextmanager
def opened(model: str, device: str = "cuda", **options: Any) -> Iterator[LLM]:
    # One thread: many, in many tests at once, would keep each other waiting.
    kernels = {"kernels": "reference", "num_threads": 1} if device == "cpu" else {}
    llm = LLM(model, device=device, **(LIMITS | kernels | options))
    try:
        yield llm
        llm.check_integrity()
    finally:
        llm.close()
        torch.cuda.empty_cache()


def outputs_of(
    llm: LLM, params: SamplingParams = GREEDY, prompts: list[list[int]] = PROMPTS
) -> list[RequestOutput]:
    return llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)


def tokens_of(
    llm: LLM, params: SamplingParams = GREEDY, prompts: list[list[int]] = PROMPTS
) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs_of(llm, params, prompts)]


def test_float32_draws_the_cpus_tokens_captured_and_eager(model: str) -> None:
    with opened(model, "cpu", dtype="float32") as cpu:
        expected = tokens_of(cpu, SHORT, FEW_PROMPTS)
    eager_in_chunks = {"enforce_eager": True, "max_num_batched_tokens": 100}
    for options in ({}, eager_in_chunks):
        with opened(model, dtype="float32", **options) as gpu:
            assert tokens_of(gpu, SHORT, FEW_PROMPTS) == expected, options


def test_bfloat16_is_as_close_to_the_cpu_as_rounding_allows(model: str) -> None:
    """The CPU's own text, scored token for token: weights rounded alike, arithmetic not."""
    with opened(model, "cpu", dtype="bfloat16") as cpu:
        drawn = tokens_of(cpu, SHORT, FEW_PROMPTS)
        texts = [p + ids for p, ids in zip(FEW_PROMPTS, drawn, strict=True)]
        expected = _scores(cpu, texts)
    with opened(model, dtype="bfloat16") as gpu:
        actual = _scores(gpu, texts)
    gaps = sorted(abs(a - b) for a, b in zip(actual, expected, strict=True))
    assert gaps[len(gaps) // 2] < 0.05
    assert gaps[int(len(gaps) * 0.99)] < 0.5


def _scores(llm: LLM, texts: list[list[int]]) -> list[float]:
    """The log probability of each token of each text but its first."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": t} for t in texts], params, use_tqdm=False)
    places = [place for output in outputs for place in output.prompt_logprobs or [] if place]
    return [next(iter(place.values())).logprob for place in places]


def bits_of(llm: LLM, prompts: list[list[int]] = PROMPTS) -> list[tuple[list[int], Any]]:
    """Tokens and log probabilities."""
    outputs = outputs_of(llm, SCORED, prompts)
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]


INVARIANT: dict[str, Any] = {"batch_invariant": True, "dtype": "bfloat16"}


def test_batch_invariant_bits(model: str) -> None:
    """Alone, together, in chunks, from the cache: the same tokens and, bit for bit, the same log
    probabilities; captured steps, which give none, the same tokens."""
    with opened(model, **INVARIANT) as llm:
        expected = [bits for prompt in PROMPTS for bits in bits_of(llm, [prompt])]
        llm.reset_prefix_cache()
        assert bits_of(llm) == expected, "together"
        assert bits_of(llm) == expected, "together, from the cache"
        tokens = [tokens for tokens, _ in expected]
        assert tokens_of(llm, SEEDED) == tokens, "captured, from the cache"
        llm.reset_prefix_cache()
        assert tokens_of(llm, SEEDED) == tokens, "captured"
    eager = INVARIANT | {"enforce_eager": True}
    with opened(model, max_num_batched_tokens=50, max_num_seqs=7, **eager) as llm:
        assert bits_of(llm) == expected, "in chunks"
        assert bits_of(llm) == expected, "in chunks, from the cache"
        assert tokens_of(llm, SEEDED) == tokens, "in chunks, from the cache, tokens alone"


def test_preempted_requests_keep_their_bits(model: str) -> None:
    with opened(model, **INVARIANT | {"kv_cache_memory_bytes": 900 * BYTES_OF_A_TOKEN}) as llm:
        expected = [tokens for prompt in PROMPTS for tokens in tokens_of(llm, GREEDY, [prompt])]
        llm.reset_prefix_cache()
        assert llm.stats().num_preemptions == 0
        assert tokens_of(llm) == expected
        assert llm.stats().num_preemptions > 0


def test_offline_a_step_beside_decodes_is_as_long_as_any(tmp_path: Path) -> None:
    """A server's would have 2,048 tokens; so 9 steps of prompts here."""
    folder = make_tiny_model("llama", tmp_path, **SHAPE)
    prompts = [[_DRAW.randrange(VOCAB) for _ in range(300)] for _ in range(66)]
    two = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with opened(str(folder), max_num_batched_tokens=4096, max_num_seqs=128) as llm:
        outputs_of(llm, two, prompts)
        assert 5 <= llm.stats().num_steps <= 8


def test_the_demo_model_draws_the_cpus_tokens() -> None:
    try:
        find_model(DEMO_MODEL)
    except Exception as error:  # no network, and not fetched before
        pytest.skip(f"the demo model is not here: {error}")
    prompts = ["Water boils at", "The capital of France is", "def fibonacci(n):"]
    params = SamplingParams(temperature=0, max_tokens=32)
    limits = {"max_model_len": 256, "max_num_seqs": 4, "dtype": "float32"}
    texts = []
    for device in ("cpu", "cuda"):
        llm = LLM(
            DEMO_MODEL, device=device, num_threads=1, kv_cache_memory_bytes=256 << 20, **limits
        )
        texts.append([o.outputs[0].text for o in llm.generate(prompts, params, use_tqdm=False)])
        llm.close()
    assert texts[0] == texts[1]
