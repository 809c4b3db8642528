"""vLLM (its CPU build) on the offline workloads: one JSON line a figure. See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from shapes import model_folder
from workloads import make_workload


def main() -> None:
    """Arguments: dtype, then workload names."""
    from vllm import LLM, SamplingParams

    dtype, names = sys.argv[1], sys.argv[2:]
    started = time.perf_counter()
    llm = LLM(
        model_folder("135m"),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=dtype,
        max_model_len=512,
        enable_prefix_caching=False,
    )
    print(json.dumps({"figure": "start", "value": time.perf_counter() - started}), flush=True)
    for name in names:
        workload = make_workload(name, 49152)
        prompts = [{"prompt_token_ids": ids} for ids in workload.prompts]
        params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True, detokenize=False)
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - started
        produced = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"figure": name, "value": produced / seconds}), flush=True)


if __name__ == "__main__":
    main()
