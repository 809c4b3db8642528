"""The chart, installed by a real helm into the cluster under test."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from environment import REPOSITORY, Environment, image_values
from helm_binary import HelmError, find_helm

CHART = REPOSITORY / "charts" / "octavo"
NAME = "octavo-e2e"


@dataclass(frozen=True)
class Release:
    """One release. `values` are the chart's; `chart` may be a changed copy of it."""

    environment: Environment
    namespace: str
    values: Mapping[str, Any]
    chart: Path = field(default=CHART)

    def install(self) -> None:
        """Install or upgrade, and wait until the operator is ready."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(dict(self.values), file)
            file.flush()
            self._helm(
                *("upgrade", NAME, str(self.chart), "--install", "--values", file.name),
                *("--wait", "--timeout", "5m"),
            )

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--ignore-not-found", "--wait", "--timeout", "5m")

    def changed(self, values: Mapping[str, Any], chart: Path | None = None) -> Release:
        """The release with values merged over its own, one level deep."""
        merged = dict(self.values)
        for key, value in values.items():
            present = merged.get(key)
            if isinstance(present, Mapping) and isinstance(value, Mapping):
                merged[key] = {**present, **value}
            else:
                merged[key] = value
        return replace(self, values=merged, chart=chart or self.chart)

    def _helm(self, *arguments: str) -> None:
        command = [
            *(str(find_helm().binary), "--kube-context", self.environment.context),
            *("--namespace", self.namespace, *arguments),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        if result.returncode != 0:
            raise HelmError(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")


def first_values(environment: Environment, namespaces: list[str]) -> dict[str, Any]:
    """Values of the release that the suite begins with."""
    worker = image_values(environment.worker_image)
    return {
        "fullnameOverride": NAME,
        "image": image_values(environment.operator_image),
        "workerImage": worker,
        "namespaces": [] if environment.is_cluster_wide else namespaces,
        "logLevel": "DEBUG",
        # What the suite installed goes with it.
        "crds": {"keep": False},
    }
