"""Octavo on the offline workloads: one JSON line a figure. See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from shapes import model_folder
from workloads import make_workload


def main() -> None:
    """Arguments: ``dense`` (random float32 weights) or a model, then workload names."""
    from octavo import LLM, SamplingParams

    model, names = sys.argv[1], sys.argv[2:]
    options = {"max_model_len": 512, "enable_prefix_caching": False}
    if model == "dense":
        model = model_folder("135m")
        options |= {"load_format": "dummy", "skip_tokenizer_init": True}
    started = time.perf_counter()
    llm = LLM(model, **options)
    print(json.dumps({"figure": "start", "value": time.perf_counter() - started}), flush=True)
    for name in names:
        prompts = [{"prompt_token_ids": ids} for ids in make_workload(name, 49152).prompts]
        params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True, detokenize=False)
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - started
        produced = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"figure": name, "value": produced / seconds}), flush=True)


if __name__ == "__main__":
    main()
