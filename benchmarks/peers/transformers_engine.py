"""transformers' generate on the offline workloads (static batch). See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Standard input: the model's folder and the workloads, as JSON."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    job = json.load(sys.stdin)
    config = AutoConfig.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, id_lists in job["workloads"].items():
        ids = torch.tensor(id_lists)
        with torch.inference_mode():
            started = time.perf_counter()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=128,
                max_new_tokens=128,
                pad_token_id=0,
            )
            seconds = time.perf_counter() - started
        produced = out.numel() - ids.numel()
        print(json.dumps({"figure": name, "value": produced / seconds}), flush=True)


if __name__ == "__main__":
    main()
