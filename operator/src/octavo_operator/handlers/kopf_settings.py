"""kopf's settings, each with its reason."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Final

import kopf

from octavo_operator.labels import FIELD_MANAGER, GROUP
from octavo_operator.settings import OperatorSettings

GROWING_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0)
LONGEST_PAUSE_S: Final = 30.0


class EndlessPauses:
    """Seconds between attempts, for ever; begun anew by each call that fails."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(GROWING_PAUSES_S, itertools.repeat(LONGEST_PAUSE_S))


def configure_kopf(target: kopf.OperatorSettings, settings: OperatorSettings) -> None:
    """Set what must not be left to kopf's defaults."""
    # Handlers post events themselves where a user would want one; log lines are no events.
    target.posting.level = logging.WARNING
    target.posting.loggers = False
    target.posting.reporting_component = FIELD_MANAGER
    target.networking.request_timeout = settings.request_timeout_s
    target.networking.connect_timeout = 10.0
    # kopf ends where one call has failed for good: a namespace that is gone, or whose role is,
    # would end the work in all others.
    target.networking.error_backoffs = EndlessPauses()
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
