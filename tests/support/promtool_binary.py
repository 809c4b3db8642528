"""promtool, Prometheus' own checker of rules; part of Debian's package `prometheus`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HOW_TO_GET = "no promtool here; install Prometheus (Debian: apt-get install prometheus)"


class PromtoolError(Exception):
    """promtool said no; the text is its own."""


def has_promtool() -> bool:
    return shutil.which("promtool") is not None


def check_rules(spec: Mapping[str, Any]) -> None:
    """`spec` is a PrometheusRule's; PromtoolError when promtool finds fault with it."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.yaml")
        rules.write_text(yaml.safe_dump(dict(spec)), encoding="utf-8")
        _run("check", "rules", str(rules))


def run_rules(spec: Mapping[str, Any], tests: list[dict[str, Any]]) -> None:
    """Play `tests`, in promtool's form, against the rules; PromtoolError when one fails."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.yaml")
        rules.write_text(yaml.safe_dump(dict(spec)), encoding="utf-8")
        file = Path(folder, "tests.yaml")
        content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        _run("test", "rules", str(file))


def _run(*arguments: str) -> None:
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PromtoolError(f"{result.stdout}\n{result.stderr}")
