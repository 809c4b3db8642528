"""The demo model with an adapter says what PEFT says, beside requests without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest, SamplingParams
from tiny_adapters import make_adapter

MODEL = "demo://smollm2-135m-instruct"
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
PROMPTS = ["Water boils at", "def main():\n", "The three primary colours are"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(600)]


@pytest.mark.filterwarnings("ignore")
def test_every_token_is_the_argmax_of_peft(transformers_demo_model: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    # Weak: a strong random adapter makes any model repeat one token, which shows little.
    folder = make_adapter(tmp_path, SHAPE, rank=8, alpha=16, strength=0.05)
    llm = LLM(MODEL, enable_lora=True, max_model_len=128, max_num_seqs=8, num_threads=1)
    request = LoRARequest("demo", str(folder))
    plain = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    mixed = llm.generate(
        PROMPTS * 2, GREEDY, lora_request=[request] * 3 + [None] * 3, use_tqdm=False
    )
    llm.check_integrity()
    llm.close()
    adapted = mixed[:3]
    ids = [[output.outputs[0].token_ids for output in part] for part in (plain, mixed[3:], adapted)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    peft = PeftModel.from_pretrained(transformers_demo_model, str(folder)).eval()
    for output in adapted:
        prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
        with torch.inference_mode():
            logits = peft(torch.tensor([prompt + tokens[:-1]])).logits[0]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == tokens
    peft.unload()
