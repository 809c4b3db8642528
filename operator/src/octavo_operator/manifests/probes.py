"""Probes of the worker container.

The worker listens at once and answers 503 on `/health/ready` while it loads or drains. Startup
asks for readiness with a patience that fits a long download, so that no pod is killed while it
loads; only then do the other two begin.
"""

from __future__ import annotations

from typing import Any, Final

from octavo_operator.labels import HTTP_PORT_NAME

STARTUP_PERIOD_S: Final = 1
STARTUP_PATIENCE_S: Final = 7200
"""Two hours: the longest first download and load a pod may take before it is restarted."""


def worker_probes() -> dict[str, Any]:
    """startupProbe, readinessProbe and livenessProbe of the container."""
    return {
        "startupProbe": _http_probe(
            "/health/loaded",
            period_s=STARTUP_PERIOD_S,
            failures=STARTUP_PATIENCE_S // STARTUP_PERIOD_S,
            timeout_s=2,
        ),
        "readinessProbe": _http_probe("/health/ready", period_s=5, failures=2, timeout_s=2),
        "livenessProbe": _http_probe("/health/live", period_s=10, failures=6, timeout_s=5),
    }


def _http_probe(path: str, *, period_s: int, failures: int, timeout_s: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": HTTP_PORT_NAME},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": timeout_s,
    }
