"""vLLM (its CPU build) on the offline workloads: one JSON line a figure. See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Argument: dtype. Standard input: the model's folder and the workloads, as JSON."""
    from vllm import LLM, SamplingParams

    job = json.load(sys.stdin)
    started = time.perf_counter()
    llm = LLM(
        job["folder"],
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=sys.argv[1],
        max_model_len=512,
        enable_prefix_caching=False,
    )
    print(json.dumps({"figure": "start", "value": time.perf_counter() - started}), flush=True)
    for name, id_lists in job["workloads"].items():
        prompts = [{"prompt_token_ids": ids} for ids in id_lists]
        params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True, detokenize=False)
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - started
        produced = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"figure": name, "value": produced / seconds}), flush=True)


if __name__ == "__main__":
    main()
