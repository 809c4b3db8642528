"""Every family gives transformers' logits, however its tokens are batched and cut up."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dict_weights import DictWeights
from octavo.kernels.interface import Kernels
from octavo.kernels.reference import ReferenceKernels
from octavo.models import registry
from octavo.models.interface import CausalLM
from paged_sequences import PagedSequences
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny_model, tiny_config, tiny_weights

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-every-head-its-own-kv": ("llama", {"num_key_value_heads": 4}),
    "llama-narrow-heads": ("llama", {"head_dim": 8}),
    "llama3-rope": ("llama", {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0}),
    "llama-yarn": ("llama", {"rope_scaling": YARN_ROPE}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-rope-parameters": (
        "llama",
        {"rope_theta": None, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}},
    ),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-tiny-window": ("mistral", {"sliding_window": 3}),
    "qwen2-tied-windows": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": True}),
    "qwen2-yarn": ("qwen2", {"rope_scaling": {**YARN_ROPE, "type": "yarn"}}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "gemma3-layer-types": (
        "gemma3",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma3-scaled-global": ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3-rope-parameters": (
        "gemma3",
        {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
            },
        },
    ),
}


BACKENDS = ("reference", "cpu")


def kernels_of(backend: str) -> Kernels:
    """Skips the test where the backend was not built."""
    if backend == "reference":
        return ReferenceKernels()
    module = pytest.importorskip("octavo.kernels.cpu.backend", exc_type=ImportError)
    try:
        return cast(Kernels, module.CpuKernels())
    except ImportError as error:
        pytest.skip(str(error))


class Pair:
    """Our model on one backend and transformers' over the same folder."""

    def __init__(self, folder: Path, kernels: Kernels) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        self.reference, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        self.reference.eval()
        self.model = build(folder, kernels)

    def expected(self, tokens: list[int]) -> Tensor:
        """Transformers' logits after every token: ``[len(tokens), vocab_size]``."""
        with torch.no_grad():
            logits: Tensor = self.reference(torch.tensor([tokens])).logits[0]
        return logits


def build(folder: Path, kernels: Kernels) -> CausalLM:
    hf_config = json.loads((folder / "config.json").read_text())
    return build_from(hf_config, load_file(folder / "model.safetensors"), kernels)


def build_from(hf_config: dict[str, Any], tensors: dict[str, Tensor], kernels: Kernels) -> CausalLM:
    weights = DictWeights(tensors)
    model = registry.resolve(hf_config).build(
        weights, kernels, torch.float32, torch.device("cpu"), max_model_len=128
    )
    assert weights.left_over() == set()
    return model


PairOf = Callable[[str], Pair]


@pytest.fixture(scope="module", params=BACKENDS)
def pair_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PairOf:
    kernels = kernels_of(request.param)

    @functools.cache
    def make(case: str) -> Pair:
        family, overrides = CASES[case]
        folder = make_tiny_model(family, tmp_path_factory.mktemp(case), **overrides)
        return Pair(folder, kernels)

    return make


def random_tokens(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    # Logits that hardly vary would be close to anything.
    assert expected.std() > 0.5
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_prompts_of_different_lengths_in_one_batch(case: str, pair_of: PairOf) -> None:
    pair = pair_of(case)
    prompts = {str(length): random_tokens(length, length) for length in (1, 5, 16, 61)}
    logits = PagedSequences(pair.model).step(prompts)
    for name, prompt in prompts.items():
        assert_close(logits[name], pair.expected(prompt))


@pytest.mark.parametrize("case", CASES)
def test_chunked_prompts_beside_decodes(case: str, pair_of: PairOf) -> None:
    pair = pair_of(case)
    tokens = {name: random_tokens(50, seed) for seed, name in enumerate("abc")}
    chunks = {"a": [50], "b": [30, *[1] * 20], "c": [7, 1, 13, 2, 27]}
    fed = dict.fromkeys(tokens, 0)
    logits: dict[str, list[Tensor]] = {name: [] for name in tokens}
    sequences = PagedSequences(pair.model, seed=1)
    for step in range(max(map(len, chunks.values()))):
        pieces = {}
        for name in tokens:
            if step < len(chunks[name]):
                pieces[name] = tokens[name][fed[name] : fed[name] + chunks[name][step]]
                fed[name] += chunks[name][step]
        for name, piece_logits in sequences.step(pieces).items():
            logits[name].append(piece_logits)
    for name in tokens:
        assert_close(torch.cat(logits[name]), pair.expected(tokens[name]))


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_language_model_inside_a_gemma_with_images(prefix: str, pair_of: PairOf) -> None:
    text_config = tiny_config("gemma3")
    tensors = {
        name.replace("model.", prefix, 1): tensor
        for name, tensor in tiny_weights(text_config).items()
    }
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text_config}
    prompt = random_tokens(30, 0)
    logits = PagedSequences(build_from(outer, tensors, ReferenceKernels())).step({"a": prompt})["a"]
    assert_close(logits, pair_of("gemma3").expected(prompt))
