"""``python -m greedy_by_kernels KERNELS FOLDER...``: greedy tokens of each model, as JSON lines,
and last those of the last model with two adapters and without any in one batch.

A process of its own, because Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from octavo import LLM, LoRARequest, SamplingParams
from tiny_adapters import make_adapter

# The first is longer than a chunk, than a block, and than every family's sliding window (24).
PROMPTS = [list(b"The quick brown fox jumps at."), [7], list(range(60, 72))]
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
ADAPTED_PROMPTS = [PROMPTS[0][:5], PROMPTS[1], PROMPTS[2][:9]]
ADAPTED_PARAMS = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=0)


def greedy(folder: str, kernels: str) -> list[list[int]]:
    """Token ids of each prompt, together in one batch, in chunks of 16."""
    llm = LLM(
        folder,
        kernels=kernels,
        max_model_len=64,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        num_threads=1,
    )
    try:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
        llm.check_integrity()
        return [output.outputs[0].token_ids for output in outputs]
    finally:
        llm.close()


def greedy_with_adapters(folder: str, kernels: str) -> list[list[float]]:
    """Log probabilities of what shorter prompts draw: with an adapter, without, with another."""
    config = json.loads((Path(folder) / "config.json").read_text())
    llm = LLM(
        folder,
        kernels=kernels,
        max_model_len=64,
        max_num_batched_tokens=8,
        num_threads=1,
        enable_lora=True,
        max_loras=2,
    )
    try:
        with TemporaryDirectory() as root:
            first, second = (
                LoRARequest(str(seed), str(make_adapter(Path(root, str(seed)), config, seed=seed)))
                for seed in (1, 2)
            )
            prompts = [{"prompt_token_ids": prompt} for prompt in ADAPTED_PROMPTS]
            outputs = llm.generate(
                prompts, ADAPTED_PARAMS, lora_request=[first, None, second], use_tqdm=False
            )
        llm.check_integrity()
        return [
            [next(iter(place.values())).logprob for place in output.outputs[0].logprobs or []]
            for output in outputs
        ]
    finally:
        llm.close()


if __name__ == "__main__":
    for path in sys.argv[2:]:
        print(json.dumps(greedy(path, sys.argv[1])), flush=True)
    print(json.dumps(greedy_with_adapters(sys.argv[-1], sys.argv[1])), flush=True)
