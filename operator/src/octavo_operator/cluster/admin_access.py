"""Where, and with which key, the operator reaches what a worker shows to administrators only.

One root key lies in a Secret of the operator's own namespace, made at the first start. The key of a
service is derived from it, so no Secret is needed where services live; pods are told the SHA-256 of
their key, which is no secret. A pod of an operator that knew no admin port has one port for all,
and is reached there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from octavo_operator.cluster.informer import ServiceKey, service_of
from octavo_operator.cluster.interface import Cluster
from octavo_operator.errors import ClusterError, ConflictError, NotFoundError, SettingsError
from octavo_operator.labels import LABEL_ADMIN_PORT, MANAGED_BY
from octavo_operator.manifests.kinds import SECRET
from octavo_operator.manifests.worker_command import WORKER_PORT
from octavo_operator.reconcile.live_object import LiveObject, labels_of
from octavo_operator.worker_client import WorkerEndpoint

logger = logging.getLogger(__name__)

ROOT_BYTES: Final = 32
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
_DATA_KEY: Final = "key"


class AdminAccess:
    """Keys of all services, derived from `root`."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    @classmethod
    def for_this_run(cls) -> AdminAccess:
        """With a root key that nobody keeps, where there is no other run to know it."""
        return cls(secrets.token_bytes(ROOT_BYTES))

    def key_sha256(self, service: ServiceKey) -> str:
        """What pods of `service` are told of its key; 64 hexadecimal digits."""
        return hashlib.sha256(self._key(service).encode()).hexdigest()

    def endpoint(self, pod: LiveObject) -> WorkerEndpoint | None:
        """Where to ask the worker in `pod`; None while it has no address."""
        host, labels = (pod.get("status") or {}).get("podIP"), labels_of(pod)
        if not host:
            return None
        if LABEL_ADMIN_PORT not in labels:
            return WorkerEndpoint(str(host), WORKER_PORT)
        key = self._key(service_of(pod))
        return WorkerEndpoint(str(host), int(labels[LABEL_ADMIN_PORT]), key)

    def _key(self, service: ServiceKey) -> str:
        # Neither part can hold a slash, so no two services share a message.
        return hmac.new(self._root, "/".join(service).encode(), hashlib.sha256).hexdigest()


async def load_admin_access(
    cluster: Cluster,
    namespace: str,
    name: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AdminAccess:
    """The access with the root key in the Secret, which is made if it is not there.

    Failures of the API, a right that is missing among them, are waited out; SettingsError when the
    Secret holds something else.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return AdminAccess(await _root_key(cluster, namespace, name))
        except ConflictError:
            # Another operator was first; its key counts.
            continue
        except ClusterError as error:
            logger.error(
                "nothing is done before Secret %s/%s can be had, the key to workers' admin ports "
                "(rights: create secrets, and get this one): %s",
                namespace,
                name,
                error,
            )
            await sleep(max(pause_s, error.retry_after_s or 0.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _root_key(cluster: Cluster, namespace: str, name: str) -> bytes:
    try:
        live = await cluster.get(SECRET, namespace, name)
    except NotFoundError:
        live = await cluster.create(_secret(namespace, name))
        logger.info("made Secret %s/%s, the key to workers' admin ports", namespace, name)
    try:
        root = base64.b64decode(live["data"][_DATA_KEY], validate=True)
    except (KeyError, TypeError, binascii.Error):
        root = b""
    if len(root) < ROOT_BYTES:
        raise SettingsError(
            f"Secret {namespace}/{name} holds no key of {ROOT_BYTES} bytes or more under "
            f"{_DATA_KEY!r}; delete it, and the operator makes one"
        )
    return root


def _secret(namespace: str, name: str) -> dict[str, object]:
    key = base64.b64encode(secrets.token_bytes(ROOT_BYTES)).decode()
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": MANAGED_BY},
        },
        "type": "Opaque",
        "immutable": True,
        "data": {_DATA_KEY: key},
    }
