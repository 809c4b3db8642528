"""How the decoder is put together: dtypes, sizes, few operations, errors that name a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dict_weights import DictWeights
from octavo.errors import WeightError
from octavo.kernels.interface import Kernels
from octavo.kernels.reference import ReferenceKernels
from octavo.models import registry
from octavo.models.interface import CausalLM
from paged_sequences import PagedSequences
from tiny_models import tiny_config, tiny_weights

CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def build(
    config: dict[str, Any],
    kernels: Kernels | None = None,
    dtype: torch.dtype = torch.float32,
    weights: dict[str, Tensor] | None = None,
) -> CausalLM:
    source = DictWeights(tiny_weights(config) if weights is None else weights)
    return registry.resolve(config).build(
        source, kernels or ReferenceKernels(), dtype, CPU, max_model_len=64
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_half_precision_weights_leave_activations_in_float32_on_the_cpu(family: str) -> None:
    config = tiny_config(family)
    exact = PagedSequences(build(config)).step({"a": PROMPT})["a"]
    stored = {
        name: tensor.bfloat16().float() if tensor.ndim == 2 else tensor
        for name, tensor in tiny_weights(config).items()
    }
    rounded = PagedSequences(build(config, weights=stored)).step({"a": PROMPT})["a"]
    logits = PagedSequences(build(config, dtype=torch.bfloat16)).step({"a": PROMPT})["a"]
    assert logits.dtype == torch.float32
    # the only difference to float32 is the rounding of the stored weights
    torch.testing.assert_close(logits, rounded, atol=1e-5, rtol=0)
    assert (logits - exact).abs().max() > 1e-3


def test_tied_head_is_the_embedding_and_not_a_copy() -> None:
    untied = build(tiny_config("llama"))
    tied = build(tiny_config("llama", tie_word_embeddings=True))
    assert untied.weights_size_bytes - tied.weights_size_bytes == 272 * 32 * 4


def test_size_is_that_of_all_weights() -> None:
    config = tiny_config("gemma3")
    total = sum(tensor.numel() * 4 for tensor in tiny_weights(config).values())
    assert build(config).weights_size_bytes == total


def test_model_tells_its_shape() -> None:
    model = build(tiny_config("qwen3"))
    shape = (model.num_layers, model.num_kv_heads, model.head_dim, model.vocab_size)
    assert shape == (2, 2, 16, 272)


class Counting:
    """Counts the calls of another object's methods, the linears it prepares included."""

    def __init__(self, counted: Any, calls: Counter[str]) -> None:
        self._counted = counted
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._counted, name)
        return self._counting(name, value) if callable(value) else value

    def __call__(self, x: Tensor) -> Any:
        return self._counting("linear", self._counted)(x)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._calls[name] += 1
            result = function(*arguments)
            return Counting(result, self._calls) if name == "prepare_linear" else result

        return call


@pytest.mark.parametrize(
    ("family", "num_products", "num_layer_calls"),
    [("llama", 4, 9), ("qwen3", 4, 9), ("gemma3", 4, 11)],
)
def test_layer_is_a_handful_of_kernel_calls(
    family: str, num_products: int, num_layer_calls: int
) -> None:
    counts = []
    for num_layers in (2, 3):
        calls: Counter[str] = Counter()
        config = tiny_config(family, num_hidden_layers=num_layers)
        model = build(config, cast(Kernels, Counting(ReferenceKernels(), calls)))
        calls.clear()
        PagedSequences(model).step({"a": PROMPT})
        counts.append(calls)
    added = counts[1] - counts[0]
    assert added["linear"] == num_products
    assert added.total() == num_layer_calls


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_missing_or_misshapen_tensor_is_named(name: str) -> None:
    config = tiny_config("qwen2")
    weights = tiny_weights(config)
    broken = {**weights, name: weights[name][:-1]}
    with pytest.raises(WeightError, match=name):
        build(config, weights=broken)
    del broken[name]
    with pytest.raises(WeightError, match=name):
        build(config, weights=broken)
