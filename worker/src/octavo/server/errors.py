"""Every error a client can get, in OpenAI's shape.

Knows which HTTP status each of our errors has and how its body looks. Refuses to tell a client
anything of our insides: what is not an error of ours is "internal error" and a line in the log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from octavo.errors import (
    AdapterChangedError,
    AdapterError,
    AdapterNotReadyError,
    AdapterRefusedError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
    QueueFullError,
    SourceForbiddenError,
    SourceUnreachableError,
    UnknownModelError,
)
from octavo.server.limits import MAX_HEADER_BYTES

_UNREACHABLE_RETRY_S = 10
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is an error.

    ``code`` is a word for programs, ``param`` the request's field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    def in_words_of(self, names: Mapping[str, str]) -> ApiError:
        """The same of a body whose fields have other ``names`` than the engine's parameters."""
        name = names.get(self.param or "")
        if name is None or self.param is None:
            return self
        told = self.message
        if "_" in self.param:  # else it is a word of the sentence: "The prompt has ..."
            told = re.sub(rf"\b{re.escape(self.param)}\b", name, told)
        return ApiError(self.status, told, code=self.code, param=name, headers=self.headers)

    def to_json(self) -> bytes:
        """The body: ``{"error": {message, type, param, code}}``."""
        return msgspec.json.encode({"error": self._fields()})

    def to_response(self) -> Response:
        """The whole answer."""
        return Response(
            self.to_json(), self.status, headers=self.headers, media_type="application/json"
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }


def bad_request(
    message: str, param: str | None = None, code: str | None = "invalid_value"
) -> ApiError:
    """HTTP 400."""
    return ApiError(400, message, code=code, param=param)


def translate(error: Exception) -> ApiError | None:
    """The answer to one of our errors; None when a client neither caused it nor can act on it,
    as with RequestFailedError, whose message is for the log."""
    match error:
        case ApiError():
            return error
        case AdapterRefusedError():
            return ApiError(404, str(error), code="adapter_refused", param=error.param)
        case UnknownModelError():
            return ApiError(404, str(error), code="model_not_found", param=error.param or "model")
        case PromptTooLongError():
            return ApiError(400, str(error), code="context_length_exceeded", param=error.param)
        case InvalidRequestError():
            return ApiError(400, str(error), code="invalid_value", param=error.param)
        case QueueFullError():
            headers = _retry_after(error.retry_after_s)
            return ApiError(429, str(error), code="queue_full", headers=headers)
        case AdapterNotReadyError():
            headers = _retry_after(error.retry_after_s)
            return ApiError(503, str(error), code="adapter_not_ready", headers=headers)
        case AdapterChangedError():
            return ApiError(409, str(error), code="adapter_changed", param="digest")
        case AdapterError():
            return ApiError(400, str(error), code="adapter_refused", param="lora_path")
        case SourceForbiddenError():
            return ApiError(403, str(error), code="adapter_forbidden", param="lora_path")
        case SourceUnreachableError():
            headers = _retry_after(_UNREACHABLE_RETRY_S)
            return ApiError(
                503, str(error), code="adapter_unreachable", param="lora_path", headers=headers
            )
        case ModelLoadError():
            return ApiError(404, str(error), code="adapter_not_found", param="lora_path")
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_dead")
        case _:
            return None


def headers_too_large() -> ApiError:
    """The answer to more headers than are taken, whoever notices it."""
    return ApiError(
        431,
        f"The request headers are larger than {MAX_HEADER_BYTES} bytes; send fewer.",
        code="headers_too_large",
        headers={"Connection": "close"},
    )


def no_http() -> ApiError:
    """The answer to what the protocol's parser does not take."""
    return ApiError(
        400,
        "This is no HTTP/1.1 request that this server takes: its first line, a header, or the "
        "length of its body is malformed or told twice. Send plain HTTP/1.1; TLS and HTTP/2 end "
        "at a proxy in front of it.",
        code="invalid_http",
    )


def left_behind() -> ApiError:
    """The answer to a request that a shutdown does not wait for."""
    return ApiError(
        503,
        "The server shut down before the request was answered; ask another replica.",
        code="engine_draining",
        headers={"Connection": "close"},
    )


def internal_error() -> ApiError:
    """What a client is told of an error that is our fault."""
    return ApiError(
        500,
        "The server failed to answer this request; the cause is in its log, "
        "under the id in the X-Request-Id header.",
        code="internal_error",
    )


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
