"""transformers' generate on the offline workloads (static batch). See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from shapes import model_folder
from workloads import make_workload


def main() -> None:
    """Arguments: workload names."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_folder("135m"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name in sys.argv[1:]:
        ids = torch.tensor(make_workload(name, 49152).prompts)
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
