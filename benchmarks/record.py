"""One JSON line a figure: printed, and appended to a file with how it was taken."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def device_name(device: str) -> str:
    """The processor or card a figure belongs to."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {platform.machine()}"
    return platform.processor() or platform.machine()


class Recorder:
    """Collects the figures of one run.

    ``results``: a file name under benchmarks/results, or None to print only.
    """

    def __init__(self, device: str, results: str | None) -> None:
        self._path = None if results is None else RESULTS / f"{results}.jsonl"
        self._context = {
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", *map(_without_home, sys.argv)]),
            "commit": _commit(),
            "device": device_name(device),
            "versions": _versions(),
        }

    def figure(self, workload: str, name: str, value: float, unit: str, **details: object) -> None:
        """Record one number; ``details`` tell what it depends on."""
        line = {"workload": workload, "figure": name, "value": round(value, 4), "unit": unit}
        line |= details
        print(json.dumps(line), flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as out:
                out.write(json.dumps(line | self._context) + "\n")


def _without_home(argument: str) -> str:
    """Where things lie on this machine is nobody's business: of a path only the last parts."""
    return "…/" + "/".join(argument.split("/")[-2:]) if argument.startswith("/") else argument


def _commit() -> str:
    """Of the checkout, or as GIT_COMMIT says where only the files were copied."""
    if "GIT_COMMIT" in os.environ:
        return os.environ["GIT_COMMIT"]
    command = ["git", "describe", "--always", "--dirty"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return result.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("torch", "triton", "octavo", "vllm", "transformers", "llama-cpp-python"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
