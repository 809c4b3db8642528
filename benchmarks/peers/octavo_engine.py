"""Octavo on the offline workloads: one JSON line a figure. See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Argument: ``dense`` (random float32 weights) or a model. Standard input: the folder of the
    dense model and the workloads, as JSON."""
    from octavo import LLM, SamplingParams

    job = json.load(sys.stdin)
    model = sys.argv[1]
    options: dict[str, Any] = {"max_model_len": 512, "enable_prefix_caching": False}
    if model == "dense":
        model = job["folder"]
        options |= {"load_format": "dummy", "skip_tokenizer_init": True}
    started = time.perf_counter()
    llm = LLM(model, **options)
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
