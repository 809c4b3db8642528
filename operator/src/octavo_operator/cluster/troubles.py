"""What cannot be followed in one scope: told once when it begins, and once when it is over.

A namespace that goes takes the operator's role there with it, and an API server that is down fails
every call: all informers have the same to say then, again and again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from typing import Final

from octavo_operator.errors import ClusterError

logger = logging.getLogger(__name__)

GATHER_S: Final = 1.0
"""What begins within this time is told in one line."""


class Troubles:
    """Those of the informers of `namespace`, None for all namespaces.

    Each informer speaks for itself, and is named by the plural of its kind.
    """

    def __init__(self, namespace: str | None) -> None:
        self._where = f"namespace {namespace}" if namespace is not None else "all namespaces"
        self._known: dict[Hashable, type[ClusterError]] = {}
        self._untold: dict[Hashable, tuple[str, ClusterError]] = {}
        self._is_told = False

    def begin(self, informer: Hashable, plural: str, error: ClusterError) -> None:
        """It fails: news where it did not, or for another reason."""
        if self._known.get(informer) is type(error):
            return
        self._known[informer] = type(error)
        if not self._untold:
            asyncio.get_running_loop().call_later(GATHER_S, self._tell)
        self._untold[informer] = plural, error

    def end(self, informer: Hashable) -> None:
        """It works, whether it failed before or not."""
        self._known.pop(informer, None)
        self._untold.pop(informer, None)
        if self._is_told and not self._known:
            self._is_told = False
            logger.info("%s: everything is followed again", self._where)

    def _tell(self) -> None:
        if not self._untold:
            return
        plurals = ", ".join(sorted({plural for plural, _ in self._untold.values()}))
        _, first = next(iter(self._untold.values()))
        logger.warning(
            "%s: cannot follow %s: %s; trying until it works, which is told",
            self._where,
            plurals,
            first,
        )
        self._untold.clear()
        self._is_told = True
