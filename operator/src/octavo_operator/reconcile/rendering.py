"""The manifests of an InferenceService as a first apply would make them, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.manifests.kinds import (
    INFERENCE_POOL,
    LEADER_WORKER_SET,
    POD_MONITOR,
    PROMETHEUS_RULE,
)
from octavo_operator.reconcile.observed import Observed
from octavo_operator.reconcile.plan import plan
from octavo_operator.resources.inference_service import parse_inference_service

_KINDS: Final = frozenset({LEADER_WORKER_SET, POD_MONITOR, PROMETHEUS_RULE, INFERENCE_POOL})
_NO_UID: Final = "00000000-0000-0000-0000-000000000000"
"""Owner references need a uid; there is none before the resource exists."""


def render_service(resource: Mapping[str, Any], default_image: str) -> list[Mapping[str, Any]]:
    """All children, in the order they are applied; raises ResourceError when there can be none."""
    parse_inference_service(resource)
    named = {**resource, "metadata": {"uid": _NO_UID, "generation": 1, **resource["metadata"]}}
    observed = Observed(named, (), (), _KINDS)
    first = plan(observed, default_image, datetime.now(UTC))
    if not first.applies and first.status is not None:
        reasons = [
            item["message"] for item in first.status["conditions"] if item["type"] == "Ready"
        ]
        raise ResourceError("spec", "cannot be carried out", reasons[0])
    return [apply.manifest for apply in first.applies]
