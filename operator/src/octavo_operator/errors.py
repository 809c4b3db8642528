"""The operator's error tree: what can go wrong, and who can put it right.

Knows no Kubernetes client and no kopf: foreign exceptions are translated into these at the door
where they enter (`cluster/`, `local/`), and into kopf's own at the handler edge.

::

    OctavoOperatorError
    ├── ResourceError            a custom resource asks for something impossible (the user)
    ├── SettingsError            a flag or variable of the operator itself is wrong (the user)
    ├── ClusterError             the Kubernetes API did not do what was asked
    │   ├── NotFoundError        404
    │   ├── ConflictError        409: somebody else wrote first; read again
    │   ├── NamesakeError        the name of an object of ours is taken by somebody else's
    │   ├── GoneError            410: a watch fell behind; list again
    │   ├── ThrottledError       429: the server says when to come back
    │   ├── UnavailableError     401, 5xx, timeouts, broken connections; try again later
    │   ├── WebhookError         an admission webhook that is to be asked does not answer
    │   ├── ForbiddenError       403: a right is missing, or a quota is used up
    │   └── RejectedError        400, 422: the object is invalid; trying again is useless
    ├── KindsGoneError           the cluster has our own kinds no more (the user)
    ├── LeaseLostError           another operator leads by now, or may
    ├── WorkerUnreachableError   a worker does not answer, or not as it should
    ├── AdapterCallError         a worker does not load, or forget, an adapter
    └── LocalError               `octavo-operator local` cannot go on (the user)
        ├── PortInUseError
        └── WorkerFailedError    a worker process does not come up
"""

from __future__ import annotations


class OctavoOperatorError(Exception):
    """Root of everything this package raises on purpose."""


class ResourceError(OctavoOperatorError):
    """A field of a custom resource is wrong; the sentence says which, why and what to do."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field} {problem}; {remedy}")


class SettingsError(OctavoOperatorError):
    """A flag or environment variable of the operator is wrong."""


class ClusterError(OctavoOperatorError):
    """The Kubernetes API did not do what was asked.

    `retry_after_s` is when trying again makes sense, or None when it is up to the caller.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFoundError(ClusterError):
    """The object, or its whole kind, is not there (404)."""


class ConflictError(ClusterError):
    """Somebody else changed the object first (409)."""


class NamesakeError(ClusterError):
    """The name that an object of ours must have is somebody else's (the user)."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"{kind} {name} exists and belongs to somebody else; delete it, or give the "
            f"InferenceService another name"
        )


class GoneError(ClusterError):
    """The resource version to watch from is too old (410); list again."""


class ThrottledError(ClusterError):
    """The server asks for patience (429); `retry_after_s` is its own figure if it gave one."""


class UnavailableError(ClusterError):
    """The server failed, timed out, or could not be reached (5xx, network).

    Or it does not know who asks (401): a token is renewed, and says nothing of rights.
    """


class WebhookError(ClusterError):
    """The server has to ask an admission webhook, which does not answer it (500)."""


class ForbiddenError(ClusterError):
    """A right is missing or a quota is used up (403)."""


class RejectedError(ClusterError):
    """The server finds the object invalid (400, 422); the same object will never pass."""


class KindsGoneError(OctavoOperatorError):
    """Somebody took our CustomResourceDefinitions away, and all resources with them."""

    def __init__(self) -> None:
        super().__init__(
            "this cluster no longer has the kinds InferenceService and LoRAAdapter, or one of "
            "them; apply what is in crds/, then the resources; an operator that starts waits for "
            "the kinds"
        )


class LeaseLostError(OctavoOperatorError):
    """This operator must stop: another leads by now, or may."""


class WorkerUnreachableError(OctavoOperatorError):
    """A worker does not answer, or not as the contract says."""


class AdapterCallError(OctavoOperatorError):
    """A worker does not load, or forget, an adapter; `reason` is a stable word."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class LocalError(OctavoOperatorError):
    """`octavo-operator local` cannot go on."""


class PortInUseError(LocalError):
    """The address to serve on is taken."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"{host}:{port} is already in use; stop what listens there, or choose another port "
            f"with --port"
        )


class WorkerFailedError(LocalError):
    """A worker process does not come up; carries what it said last."""

    def __init__(self, message: str, last_lines: tuple[str, ...] = ()) -> None:
        self.last_lines = last_lines
        super().__init__(message)
