"""What is done before the operator is removed: it is stopped, and lets go of every resource.

A finalizer holds a resource, and with it a whole namespace, until whoever set it takes it away.
Once the operator is gone nobody would. Run by the chart's pre-delete hook, and by hand where the
operator went without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ClusterError, ConflictError, NotFoundError
from octavo_operator.labels import GROUP
from octavo_operator.manifests.kinds import (
    DEPLOYMENT,
    INFERENCE_SERVICE,
    LORA_ADAPTER,
    POD,
    Kind,
)
from octavo_operator.reconcile.live_object import LiveObject

logger = logging.getLogger(__name__)

OWN_FINALIZERS: Final = f"{GROUP}/"
"""Finalizers that begin with this are the operator's."""

_POLL_S: Final = 0.5
_MAX_ATTEMPTS: Final = 5


async def stop_operator(cluster: Cluster, namespace: str, deployment: str) -> None:
    """Scale the operator's own Deployment to 0 and wait until its pods are gone.

    An operator that still ran would set its finalizers again. The caller sets the time limit.
    """
    patch = {"spec": {"replicas": 0}}
    try:
        live = await cluster.merge(DEPLOYMENT, namespace, deployment, patch)
    except NotFoundError:
        return
    labels = live["spec"]["selector"]["matchLabels"]
    while True:
        if not (await cluster.list_objects(POD, namespace, labels)).items:
            logger.info("the operator has stopped")
            return
        await asyncio.sleep(_POLL_S)


async def release_resources(cluster: Cluster, namespaces: Sequence[str]) -> int:
    """Take the operator's finalizers off every resource in `namespaces` (empty: all of them).

    Returns how many resources were held. Kinds that are not served hold nothing. One that cannot be
    let go keeps no other from it; its error is raised at the end.
    """
    count, failures = 0, []
    for kind in (LORA_ADAPTER, INFERENCE_SERVICE):
        for scope in namespaces or (None,):
            try:
                listed = await cluster.list_objects(kind, scope, {})
            except NotFoundError:
                continue
            for resource in listed.items:
                try:
                    count += await _release(cluster, kind, resource)
                except ClusterError as error:
                    logger.error("%s is not released: %s", _named(kind, resource), error)
                    failures.append(error)
    if failures:
        raise failures[0]
    return count


def _named(kind: Kind, resource: LiveObject) -> str:
    metadata = resource["metadata"]
    return f"{kind.kind} {metadata['namespace']}/{metadata['name']}"


async def _release(cluster: Cluster, kind: Kind, resource: LiveObject) -> bool:
    """Whether `resource` was held by us; others' finalizers stay."""
    with contextlib.suppress(NotFoundError):
        return await _release_present(cluster, kind, resource)
    return True


async def _release_present(cluster: Cluster, kind: Kind, resource: LiveObject) -> bool:
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        metadata = resource["metadata"]
        finalizers = metadata.get("finalizers") or []
        kept = [name for name in finalizers if not name.startswith(OWN_FINALIZERS)]
        if kept == finalizers:
            return False
        name, namespace = metadata["name"], metadata["namespace"]
        # The version makes a finalizer that somebody else adds meanwhile a conflict.
        patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
        try:
            await cluster.merge(kind, namespace, name, patch)
            logger.info("%s is released", _named(kind, resource))
            return True
        except ConflictError:
            if attempt == _MAX_ATTEMPTS:
                raise
            resource = await cluster.get(kind, namespace, name)
    raise AssertionError("the last attempt returns or raises")
