"""Waits for the CustomResourceDefinitions of the operator's own kinds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ClusterError
from octavo_operator.manifests.kinds import OWN_KINDS

logger = logging.getLogger(__name__)

PAUSE_S: Final = 2.0


async def wait_for_own_kinds(
    cluster: Cluster, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Until the cluster has both; told once. Failures of the API are waited out."""
    is_told = False
    while True:
        try:
            missing = OWN_KINDS - await cluster.served_kinds()
        except ClusterError as error:
            logger.warning("cannot ask for the kinds of the cluster: %s", error)
        else:
            if not missing:
                return
            if not is_told:
                names = ", ".join(sorted(kind.kind for kind in missing))
                logger.error(
                    "nothing is done before this cluster has the kinds %s; apply what is in crds/",
                    names,
                )
                is_told = True
        await sleep(PAUSE_S)
