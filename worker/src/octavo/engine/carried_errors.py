"""Errors on their way through the wall: which of ours they are is kept, by name.

Knows the error tree and the messages that carry one. Torch-free.
"""

from __future__ import annotations

from octavo import errors
from octavo.engine.messages import AdapterFailed, LoadFailed, Refused
from octavo.errors import (
    AdapterError,
    AdapterNotReadyError,
    InvalidRequestError,
    ModelLoadError,
    OctavoError,
    QueueFullError,
    RequestFailedError,
)

_RETRIED = (QueueFullError, AdapterNotReadyError)
"""They say when to try again."""
_MOST_CHARACTERS = 8192
"""Of a message: twice the longest path."""


def to_refusal(request_id: str, error: OctavoError) -> Refused:
    """What the engine answers to a request it does not take."""
    return Refused(
        request_id,
        type(error).__name__,
        _told(error),
        param=error.param if isinstance(error, InvalidRequestError) else None,
        retry_after_s=error.retry_after_s if isinstance(error, _RETRIED) else 0.0,
    )


def from_refusal(refused: Refused) -> OctavoError:
    """The error as it was raised; RequestFailedError where its kind is not known here."""
    kind = _kind(refused.kind, RequestFailedError)
    if issubclass(kind, _RETRIED):
        return kind(refused.message, refused.retry_after_s)
    if issubclass(kind, InvalidRequestError):
        return kind(refused.message, refused.param)
    return kind(refused.message)


def to_load_failure(error: Exception) -> LoadFailed:
    """What the engine says when it could not be built; foreign errors become ModelLoadError."""
    if isinstance(error, OctavoError):
        return LoadFailed(type(error).__name__, _told(error))
    detail = f"{type(error).__name__}: {_told(error)}" if str(error) else type(error).__name__
    return LoadFailed(
        ModelLoadError.__name__, f"The model cannot be loaded ({detail}); the log tells where."
    )


def from_load_failure(failed: LoadFailed) -> OctavoError:
    """The error as it was raised; ModelLoadError where its kind is not known here."""
    kind = _kind(failed.kind, ModelLoadError)
    if issubclass(kind, _RETRIED):  # they need more than a message
        kind = ModelLoadError
    return kind(failed.message)


def to_adapter_failure(adapter_id: int, error: OctavoError) -> AdapterFailed:
    """What the engine says of an adapter that it could not read."""
    return AdapterFailed(adapter_id, type(error).__name__, _told(error))


def from_adapter_failure(failed: AdapterFailed) -> OctavoError:
    """The error as it was raised; AdapterError where its kind is not known here."""
    kind = _kind(failed.kind, AdapterError)
    return (AdapterError if issubclass(kind, _RETRIED) else kind)(failed.message)


def _told(error: Exception) -> str:
    """Its message as any text can be sent, whatever it quotes of files and of their names; of a
    long one its beginning and its end."""
    text = str(error)
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return text.encode(errors="backslashreplace").decode()


def _kind(name: str, otherwise: type[OctavoError]) -> type[OctavoError]:
    kind: object = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, OctavoError) else otherwise
