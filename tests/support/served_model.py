"""``octavo serve`` as a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_START_LIMIT_S = 240.0
_STOP_LIMIT_S = 120.0


@dataclass
class ServedModel:
    """A server that takes requests."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        """Its log lines."""
        return _events(self.log)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        page = httpx.get(f"{self.url}/metrics", timeout=60).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in page.splitlines() if line.startswith(name + "{")]
        chosen = [line for line in lines if all(label in line for label in wanted)]
        assert chosen, f"no sample of {name} with {labels}"
        return sum(float(line.rpartition(" ")[2]) for line in chosen)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(_STOP_LIMIT_S)


@contextmanager
def served_model(
    model: Path | str,
    log: Path,
    *flags: str,
    command: Sequence[str] = (sys.executable, "-m", "octavo"),
) -> Iterator[ServedModel]:
    """Ready when entered, gone when left; ``log`` is where its standard error goes."""
    support = str(Path(__file__).parent)
    path = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [*command, "serve", str(model), "--port", "0", "--log-format", "json", *flags]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*arguments, "--num-threads", "1"], stderr=stderr, env=os.environ | {"PYTHONPATH": path}
        )
    try:
        yield ServedModel(_wait_ready(process, log), process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline_s:
        for event in _events(log):
            if event["event"] == "ready":
                url: str = event["url"]
                return url
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"the server did not get ready:\n{log.read_text()}")


def _events(log: Path) -> list[dict[str, Any]]:
    # The last line may still be under way.
    return [json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("}\n")]
