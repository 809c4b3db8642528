"""What the person who runs the suite says about the cluster, read once from the environment.

Knows the variables and refuses to guess: the suite changes CustomResourceDefinitions and makes
pods, so it works on the context it is told by name, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import config

REPOSITORY = Path(__file__).resolve().parents[2]
_DEFAULT_DUMP = REPOSITORY / "build" / "e2e"


class NotAllowedError(Exception):
    """The suite may not run here; the text says what to set."""


@dataclass(frozen=True)
class ValueShape:
    """Layers of a model, and the sizes of what goes into and comes out of their v_proj."""

    num_layers: int
    hidden: int
    values: int


_DEMO_MODEL = "demo://smollm2-135m-instruct"
_DEMO_SHAPE = "30x576x192"


@dataclass(frozen=True)
class Environment:
    """context: of KUBECONFIG. model: what pods serve. accelerator: extended resource, or `none`.

    is_cluster_wide: install the operator for all namespaces. dump: folder for diagnostics.
    reach: `direct` (pod IPs), `proxy` (through the API server), or `auto`. value_shape: of the
    model, None where it is not known, so that no adapter can be made for it.
    """

    context: str
    operator_image: str
    worker_image: str
    model: str
    accelerator: str
    is_cluster_wide: bool
    may_replace: bool
    reach: str
    dump: Path
    value_shape: ValueShape | None


def read_environment(values: Mapping[str, str] = os.environ) -> Environment:
    """The environment; NotAllowedError unless OCTAVO_E2E_CONTEXT names a context of KUBECONFIG."""
    context = values.get("OCTAVO_E2E_CONTEXT", "")
    known = _contexts()
    if not context:
        raise NotAllowedError(
            "set OCTAVO_E2E_CONTEXT to the context of KUBECONFIG that these tests may change "
            f"(there are: {', '.join(known) or 'none'}); they replace Octavo's CRDs in it"
        )
    if context not in known:
        raise NotAllowedError(
            f"OCTAVO_E2E_CONTEXT is {context!r}, which KUBECONFIG does not have; it has "
            f"{', '.join(known) or 'none'}"
        )
    version = "0.1.0"
    model = values.get("OCTAVO_E2E_MODEL", _DEMO_MODEL)
    shape = values.get("OCTAVO_E2E_VALUE_SHAPE", _DEMO_SHAPE if model == _DEMO_MODEL else "")
    return Environment(
        context=context,
        operator_image=values.get(
            "OCTAVO_E2E_OPERATOR_IMAGE", f"ghcr.io/octavo-serving/octavo-operator:{version}"
        ),
        worker_image=values.get(
            "OCTAVO_E2E_WORKER_IMAGE", f"ghcr.io/octavo-serving/octavo-worker:{version}"
        ),
        model=model,
        accelerator=values.get("OCTAVO_E2E_ACCELERATOR", "none"),
        is_cluster_wide=values.get("OCTAVO_E2E_MODE", "namespaced") == "cluster",
        may_replace=values.get("OCTAVO_E2E_REPLACE") == "yes",
        reach=values.get("OCTAVO_E2E_REACH", "auto"),
        dump=Path(values.get("OCTAVO_E2E_DUMP", _DEFAULT_DUMP)),
        value_shape=ValueShape(*map(int, shape.split("x"))) if shape else None,
    )


def image_values(reference: str) -> dict[str, Any]:
    """An image reference as the chart's values have it."""
    name, _, digest = reference.partition("@")
    path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
    first, _, rest = path.partition("/")
    has_registry = rest and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if has_registry else ("docker.io", path)
    return {"registry": registry, "repository": repository, "tag": tag, "digest": digest}


def _contexts() -> list[str]:
    try:
        contexts, _ = config.list_kube_config_contexts()
    except config.ConfigException:
        return []
    return sorted(item["name"] for item in contexts)
