"""kopf's settings, each with its reason."""

from __future__ import annotations

import logging

import kopf

from octavo_operator.labels import FIELD_MANAGER, GROUP
from octavo_operator.settings import OperatorSettings


def configure_kopf(target: kopf.OperatorSettings, settings: OperatorSettings) -> None:
    """Set what must not be left to kopf's defaults."""
    # Handlers post events themselves where a user would want one; log lines are no events.
    target.posting.level = logging.WARNING
    target.posting.loggers = False
    target.posting.reporting_component = FIELD_MANAGER
    target.networking.request_timeout = settings.request_timeout_s
    target.networking.connect_timeout = 10.0
    target.networking.error_backoffs = (1, 2, 4, 8, 15, 30)
    target.networking.enforce_retry_after = True
    # The server ends a watch before a load balancer forgets it. An integer: kopf writes it into the
    # URL as it is, and an API server refuses "290.0".
    target.watching.server_timeout = 290
    target.watching.client_timeout = 320.0
    target.watching.connect_timeout = 10.0
    target.watching.reconnect_backoff = 1.0
    # With named namespaces the operator has no right to look at cluster-wide objects.
    target.scanning.disabled = bool(settings.namespaces)
    target.process.ultimate_exiting_timeout = settings.exit_timeout_s
    # Nothing is stored by these, as no handler needs it; should one ever, then under our own name.
    # kopf takes its finalizer off where no handler needs it, so it must not be the operator's.
    target.persistence.finalizer = f"{GROUP}/kopf"
    target.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    target.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
