"""Every error Octavo raises on purpose.

::

    OctavoError
    ├── ConfigError              an option or a combination of options cannot be served
    │   └── UnsupportedModelError    the architecture or a feature of the checkpoint is unknown
    ├── ModelLoadError           files of a model or adapter cannot be found or read (HTTP 404)
    │   ├── SourceForbiddenError     where they lie we may not read (HTTP 403)
    │   ├── SourceUnreachableError   they cannot be had now, try again (HTTP 503)
    │   └── WeightError              a tensor is missing, left over, or of the wrong shape
    ├── AdapterError             a LoRA adapter cannot be served with this model, ever (HTTP 400)
    │   └── AdapterChangedError      its files are not those that were asked for (HTTP 409)
    ├── AdapterNotReadyError     an adapter is not loaded in time (HTTP 503, try again)
    ├── OutOfMemoryError         weights or KV cache do not fit
    ├── InvalidRequestError      one request cannot be served as asked (HTTP 400)
    │   ├── PromptTooLongError
    │   └── UnknownModelError        no such model or adapter here (HTTP 404)
    │       └── AdapterRefusedError      the adapter of that name cannot be served (HTTP 404)
    ├── QueueFullError           the waiting queue is full (HTTP 429)
    ├── RequestFailedError       the engine failed at this request alone (HTTP 500)
    └── EngineDeadError          the engine process is gone (HTTP 503, then the server exits)

Messages name the value, the limit and the remedy, in one sentence each where possible.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Root of the tree; never raised itself."""


class ConfigError(OctavoError):
    """An option or a combination of options that cannot be served."""


class UnsupportedModelError(ConfigError):
    """The checkpoint's architecture, or something it asks for, is not supported."""


class ModelLoadError(OctavoError):
    """Files of a model, or of an adapter, cannot be found, fetched or read."""


class SourceForbiddenError(ModelLoadError):
    """The hub, the bucket or the file system does not let us read them."""


class SourceUnreachableError(ModelLoadError):
    """They cannot be had now: a network or a disk is in trouble. Another try may succeed."""


class WeightError(ModelLoadError):
    """A tensor is missing, left over, or has another shape than the architecture says."""


class AdapterError(OctavoError):
    """A LoRA adapter that this model cannot serve as it is: trying again is of no use."""


class AdapterChangedError(AdapterError):
    """An adapter's files have another digest than the one that was asked for."""


class AdapterNotReadyError(OctavoError):
    """An adapter is known and not loaded. ``retry_after_s``: when it is worth another try."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutOfMemoryError(OctavoError):
    """Weights, KV cache or a step's workspace do not fit the memory allowed."""


class InvalidRequestError(OctavoError):
    """One request cannot be served as asked.

    ``param`` is the request field at fault, as the client wrote it.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(InvalidRequestError):
    """The prompt, or the prompt and the tokens asked for, exceed the model's context."""


class UnknownModelError(InvalidRequestError):
    """The request names a model or an adapter that is not served here."""


class AdapterRefusedError(UnknownModelError):
    """The request names an adapter whose files this model cannot serve: see AdapterError."""


class QueueFullError(OctavoError):
    """The waiting queue is full. ``retry_after_s`` is an honest estimate."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestFailedError(OctavoError):
    """The engine failed at this request; the others go on."""


class EngineDeadError(OctavoError):
    """The engine process is gone; every open request gets this."""
