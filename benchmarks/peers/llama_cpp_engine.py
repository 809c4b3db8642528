"""llama.cpp (llama-cpp-python) on one request of the demo model's file. See side_by_side.py."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Arguments: the GGUF file, threads. Standard input: the workloads, as JSON."""
    from llama_cpp import Llama

    job = json.load(sys.stdin)
    started = time.perf_counter()
    llm = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
    print(json.dumps({"figure": "start", "value": time.perf_counter() - started}), flush=True)
    prompt = job["workloads"]["cpu1"][0]
    for _ in range(2):  # the first warms up
        llm.reset()
        started = time.perf_counter()
        produced = 0
        for _token in llm.generate(prompt, temp=0.0):
            produced += 1
            if produced == 128:
                break
        seconds = time.perf_counter() - started
    print(json.dumps({"figure": "cpu1", "value": produced / seconds}), flush=True)


if __name__ == "__main__":
    main()
