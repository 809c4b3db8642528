"""The demo model's greedy text is transformers' own, token for token, however it is scheduled; and
PEFT's with an adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from octavo.loading.demo_model import fetch_demo_model
from octavo.tokenization.tokenizer import Tokenizer
from tiny_adapters import make_adapter
from varied_prompts import PROMPTS

MODEL = "demo://smollm2-135m-instruct"
NUM_TOKENS = 64
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(900)]


def generate(llm: LLM, prompts: list[str] = PROMPTS) -> list[list[int]]:
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def open_llm(**options: Any) -> LLM:
    # One thread: two wait for each other at every barrier, which on a machine shared with others
    # takes ten times as long.
    return LLM(MODEL, **{"max_model_len": 512, "max_num_seqs": 16, "num_threads": 1, **options})


def assert_greedy(model: Any, prompt: list[int], tokens: list[int]) -> None:
    """Each token is the argmax of another implementation after those before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0]
    assert logits[len(prompt) - 1 :].argmax(-1).tolist() == tokens


@pytest.fixture(scope="module")
def prompt_ids() -> list[list[int]]:
    tokenizer = Tokenizer.open(str(fetch_demo_model()))
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Octavo's own tokens, one request at a time: compared with transformers below."""
    llm = open_llm(max_num_seqs=1)
    try:
        return generate(llm)
    finally:
        llm.close()


@pytest.fixture(scope="module")
def transformers_model() -> Any:
    """In float32; who adds to it takes it away again."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    path = fetch_demo_model()
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.mark.filterwarnings("ignore")
def test_every_token_is_the_argmax_of_transformers(
    transformers_model: Any, prompt_ids: list[list[int]], expected: list[list[int]]
) -> None:
    # Feeding our own tokens back is greedy decoding by induction: if every one is the argmax
    # after those before it, transformers' greedy loop would have produced the same sequence.
    for prompt, tokens in zip(prompt_ids, expected, strict=True):
        assert_greedy(transformers_model, prompt, tokens)


# Each value of each option is in one of these; "preempted" below is another.
SCHEDULES: dict[str, dict[str, Any]] = {
    "batch-of-2-in-chunks-of-64": {"max_num_seqs": 2, "max_num_batched_tokens": 64},
    "batch-of-7-in-chunks-of-16-and-blocks-of-32": {
        "max_num_seqs": 7, "max_num_batched_tokens": 16, "block_size": 32,
    },
    "batch-of-16-in-chunks-of-512-one-step-ahead-without-prefix-cache": {
        "max_num_batched_tokens": 512, "look_ahead": True, "enable_prefix_caching": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=list(SCHEDULES))
def test_scheduling_changes_no_token(options: dict[str, Any], expected: list[list[int]]) -> None:
    llm = open_llm(**options)
    try:
        assert generate(llm) == expected
        # Again: now every full block of the prompts is in the prefix cache, if there is one.
        assert generate(llm, PROMPTS[:8]) == expected[:8]
        llm.check_integrity()
    finally:
        llm.close()


def test_preempted_requests_end_with_the_same_tokens(expected: list[list[int]]) -> None:
    # 30 layers x keys and values x 3 heads of 64 x 16 tokens x 4 bytes
    block_bytes = 30 * 2 * 3 * 64 * 16 * 4
    # Room for about three requests' full length, with sixteen trying.
    llm = open_llm(max_model_len=160, kv_cache_memory_bytes=30 * block_bytes)
    try:
        assert generate(llm) == expected
        assert llm.stats().num_preemptions > 0
        llm.check_integrity()
    finally:
        llm.close()


@pytest.mark.filterwarnings("ignore")
def test_every_token_with_an_adapter_is_the_argmax_of_peft(
    transformers_model: Any, tmp_path: Path
) -> None:
    """Beside requests without one."""
    from peft import PeftModel

    prompts = [PROMPTS[index] for index in (1, 2, 16)]
    # Weak: a strong random adapter makes any model repeat one token, which shows little.
    folder = make_adapter(tmp_path, SHAPE, rank=8, alpha=16, strength=0.05)
    llm = open_llm(enable_lora=True, max_model_len=128, max_num_seqs=8)
    adapter = LoRARequest("demo", str(folder))
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    plain = llm.generate(prompts, params, use_tqdm=False)
    requests = [adapter] * 3 + [None] * 3
    mixed = llm.generate(prompts * 2, params, lora_request=requests, use_tqdm=False)
    llm.check_integrity()
    llm.close()
    adapted = mixed[:3]
    ids = [[output.outputs[0].token_ids for output in part] for part in (plain, mixed[3:], adapted)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    peft = PeftModel.from_pretrained(transformers_model, str(folder)).eval()
    for output in adapted:
        assert_greedy(peft, output.prompt_token_ids, output.outputs[0].token_ids)
    peft.unload()
