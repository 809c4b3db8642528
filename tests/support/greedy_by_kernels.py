"""``python -m greedy_by_kernels KERNELS FOLDER...``: greedy tokens of each model, as JSON lines.

A process of its own, because Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import json
import sys

from octavo import LLM, SamplingParams

PROMPTS = [list(b"The quick brown fox jumps over it."), [7], list(range(60, 80))]
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


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


if __name__ == "__main__":
    for path in sys.argv[2:]:
        print(json.dumps(greedy(path, sys.argv[1])), flush=True)
