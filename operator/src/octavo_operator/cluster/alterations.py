"""Applies of which the server makes something else, as an admission webhook may.

The object then never is as it was applied, and to apply it at each look would be to fight: each
write may be an event, and so another look.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from octavo_operator.cluster.informer import ServiceKey
from octavo_operator.labels import ANNOTATION_APPLIED_HASH
from octavo_operator.manifests.kinds import Kind, kind_of
from octavo_operator.reconcile.drift import is_applied
from octavo_operator.reconcile.live_object import LiveObject, annotations_of

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 300.0
"""When the same is tried again: webhooks come and go."""

_Child: TypeAlias = tuple[Kind, str]


class Alterations:
    """Those that were seen, by service and child: what was applied, and until when it is left."""

    def __init__(self) -> None:
        self._known: dict[ServiceKey, dict[_Child, tuple[str, datetime]]] = {}

    def holds_back(
        self,
        service: ServiceKey,
        manifest: Mapping[str, Any],
        live: LiveObject | None,
        now: datetime,
    ) -> bool:
        """Whether exactly this was altered when it was applied last, not long ago. `live` is the
        child as it is known; one that is not there is always made."""
        known, until = self._known.get(service, {}).get(_child(manifest), ("", now))
        return live is not None and known == _hash(manifest) and now < until

    def note(
        self, service: ServiceKey, manifest: Mapping[str, Any], live: LiveObject, now: datetime
    ) -> None:
        """`live` is the server's answer to the apply of `manifest`."""
        child, applied = _child(manifest), _hash(manifest)
        known = self._known.setdefault(service, {})
        before = known.pop(child, None)
        if applied is None or is_applied(manifest, live):
            return
        known[child] = applied, now + timedelta(seconds=PATIENCE_S)
        if before is None:
            logger.warning(
                "%s/%s: the server stores %s %s with other values than were applied, as an "
                "admission webhook makes it do; the same is applied again after %.0f s at the "
                "earliest",
                *service,
                manifest["kind"],
                child[1],
                PATIENCE_S,
            )

    def forget(self, service: ServiceKey) -> None:
        """It is gone."""
        self._known.pop(service, None)


def _child(manifest: Mapping[str, Any]) -> _Child:
    return kind_of(manifest), manifest["metadata"]["name"]


def _hash(manifest: Mapping[str, Any]) -> str | None:
    return annotations_of(manifest).get(ANNOTATION_APPLIED_HASH)
