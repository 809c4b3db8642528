"""Tokens drawn with an adapter are PEFT's, whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from tiny_adapters import make_adapter
from tiny_gguf import write_tiny_gguf
from tiny_models import FAMILIES, make_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [[1, 2, 3, 4, 5], list(range(40, 90)), [7], [200, 13, 13, 5] * 6]
# How adapters differ: one after another in the batch.
KINDS: dict[str, dict[str, Any]] = {
    "all": {"rank": 4},
    "attention": {"rank": 8, "targets": ("q_proj", "v_proj")},
    "one": {"rank": 1, "alpha": 3, "targets": ("down_proj",)},
    "stabilised": {"rank": 16, "use_rslora": True, "targets": ("o_proj", "up_proj")},
    "patterns": {
        "rank": 4,
        "rank_pattern": {"down_proj": 2, "q_proj": 12},
        "alpha_pattern": {
            "model.layers.1.mlp.down_proj": 11,
            r"layers\.\d+\.(self_attn|mlp)\.(v|up)_proj": 1,
        },
    },
    "half": {"rank": 20, "dtype": torch.bfloat16},
    "gate": {"rank": 5, "targets": ("gate_proj",)},
    "key": {"rank": 3, "targets": ("k_proj", "up_proj", "o_proj")},
}


class World:
    """A tiny model and an adapter of each kind."""

    def __init__(self, family: str, root: Path) -> None:
        self.model = make_tiny_model(family, root / "model")
        config = json.loads((self.model / "config.json").read_text())
        self.adapters = {
            name: make_adapter(root / name, config, seed=seed, **kind)
            for seed, (name, kind) in enumerate(KINDS.items())
        }

    def request(self, name: str | None) -> LoRARequest | None:
        return None if name is None else LoRARequest(name, str(self.adapters[name]))


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(request.param, tmp_path_factory.mktemp(request.param))


def open_llm(world: World, **options: Any) -> LLM:
    settings = {"max_model_len": 128, "num_threads": 1, "max_lora_rank": 32, "seed": 1}
    return LLM(str(world.model), enable_lora=True, **{**settings, **options})


@pytest.fixture(scope="module", params=["cpu", "reference"])
def llm(request: pytest.FixtureRequest, world: World) -> Iterator[LLM]:
    llm = open_llm(world, kernels=request.param)
    yield llm
    llm.close()


def generate(
    llm: LLM, world: World, prompts: list[list[int]], names: list[str | None]
) -> list[list[int]]:
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        GREEDY,
        lora_request=[world.request(name) for name in names],
        use_tqdm=False,
    )
    llm.check_integrity()
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.filterwarnings("ignore")
def test_every_token_is_the_argmax_of_peft(llm: LLM, world: World) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32).eval()
    plain = generate(llm, world, PROMPTS, [None] * len(PROMPTS))
    for name, folder in world.adapters.items():
        peft = PeftModel.from_pretrained(base, str(folder)).eval()
        drawn = generate(llm, world, PROMPTS, [name] * len(PROMPTS))
        assert drawn != plain, f"{name} changes nothing, so it shows nothing"
        for prompt, tokens in zip(PROMPTS, drawn, strict=True):
            with torch.inference_mode():
                logits = peft(torch.tensor([prompt + tokens[:-1]])).logits[0]
            assert logits[len(prompt) - 1 :].argmax(-1).tolist() == tokens, name
        base = peft.unload()


def test_a_mixed_batch_draws_what_each_request_draws_alone(llm: LLM, world: World) -> None:
    names = [*KINDS, None]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(2 * len(names))]
    mixed = [names[index % len(names)] for index in range(len(prompts))]
    alone = [
        generate(llm, world, [prompt], [name])[0]
        for prompt, name in zip(prompts, mixed, strict=True)
    ]
    llm.reset_prefix_cache()
    assert generate(llm, world, prompts, mixed) == alone


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_loras": 1, "max_cpu_loras": 1}, id="one-slot-and-one-host-entry"),
        pytest.param({"max_loras": 3, "max_cpu_loras": 3, "max_num_seqs": 4}, id="three-slots"),
        pytest.param({"max_num_batched_tokens": 16, "look_ahead": True}, id="chunks-one-ahead"),
        pytest.param({"enable_prefix_caching": False}, id="no-prefix-cache"),
    ],
)
def test_scheduling_changes_no_token(options: dict[str, Any], tmp_path: Path) -> None:
    world = World("llama", tmp_path)
    names = [*KINDS, None]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(2 * len(names))]
    mixed = [names[index % len(names)] for index in range(len(prompts))]
    expected_by = open_llm(world)
    expected = generate(expected_by, world, prompts, mixed)
    expected_by.close()
    llm = open_llm(world, **options)
    try:
        assert generate(llm, world, prompts, mixed) == expected
        assert generate(llm, world, prompts, mixed) == expected
    finally:
        llm.close()


def test_prompts_of_one_adapter_are_begun_together(tmp_path: Path) -> None:
    world = World("llama", tmp_path)
    llm = open_llm(world, max_loras=1, max_num_seqs=2)
    names = [*KINDS, None] * 3
    outputs = generate(llm, world, [PROMPTS[0]] * len(names), names)
    adapters = llm.stats().adapters
    assert adapters is not None
    assert adapters.num_fills == len(KINDS), "each is copied once, with one slot for all"
    assert outputs[: len(KINDS) + 1] * 3 == outputs, "results stand in the prompts' order"
    llm.close()


def test_a_model_of_a_gguf_file_takes_the_same_adapters(tmp_path: Path) -> None:
    """Rows of q and k stand in another order there."""
    world = World("llama", tmp_path)
    names = [*KINDS, None]
    expected_by = open_llm(world)
    expected = generate(expected_by, world, [PROMPTS[0]] * len(names), names)
    expected_by.close()
    world.model = write_tiny_gguf(world.model, tmp_path / "model.gguf")
    llm = open_llm(world)
    try:
        assert generate(llm, world, [PROMPTS[0]] * len(names), names) == expected
    finally:
        llm.close()


def test_a_replaced_adapter_never_sees_the_others_blocks(tmp_path: Path) -> None:
    world = World("qwen3", tmp_path)
    prompt = [PROMPTS[1]]
    llm = open_llm(world)
    try:
        first = generate(llm, world, prompt, ["all"])
        config = json.loads((world.model / "config.json").read_text())
        other = make_adapter(tmp_path / "replacement", config, seed=77)
        old, world.adapters["all"] = world.adapters["all"], other
        second = generate(llm, world, prompt, ["all"])
        assert llm.stats().cached_prompt_tokens == 0
        assert second != first
        fresh = open_llm(world)
        assert generate(fresh, world, prompt, ["all"]) == second
        fresh.close()
        # The first one again: its blocks are still those of the same weights.
        world.adapters["all"] = old
        assert generate(llm, world, prompt, ["all"]) == first
        assert llm.stats().cached_prompt_tokens == 48
    finally:
        llm.close()
