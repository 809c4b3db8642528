"""A request's body: bytes → JSON object → validated model, with an answer for each way to fail.

Knows limits and formats; knows nothing of what a field means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from octavo.server.disconnect import ClientGoneError
from octavo.server.errors import ApiError, bad_request
from octavo.server.limits import (
    BODY_TIMEOUT_S,
    MAX_FIELDS,
    MAX_JSON_DEPTH,
    MAX_JSON_PARTS,
    json_depth,
    json_parts,
)
from octavo.server.open_bodies import HeldBody, held_body_of
from octavo.server.protocol.fields import RequestBody
from octavo.server.validation import explain

Body = TypeVar("Body", bound=RequestBody)
_LONG_BYTES = 32 * 1024
"""A body of so many is parsed off the event loop: 5 MB of small content parts take 0.7 s."""


async def read_model(
    request: Request, model: type[Body] | Callable[[dict[str, Any]], type[Body]]
) -> Body:
    """The request's body as ``model``, or as the one that a function chooses for the document.

    Raises ApiError: 413 when it is too large, 429 when those of all open requests are, 415 when
    not JSON by its content type or compressed, 400 when malformed or not valid. Raises
    ClientGoneError when the client leaves.
    """
    _check_content_type(request)
    _check_content_encoding(request)
    raw = await _read(request, held_body_of(request.scope))
    if len(raw) < _LONG_BYTES:
        return _parse(raw, model)
    return await asyncio.to_thread(_parse, raw, model)


def validate(document: dict[str, Any], model: type[Body]) -> Body:
    """A JSON object as ``model``; see :func:`read_model`."""
    if len(document) > MAX_FIELDS:
        raise bad_request(
            f"The request body has {len(document)} fields; at most {MAX_FIELDS} are allowed. "
            "Leave out those that are not this route's.",
            code="unknown_field",
        )
    model.settle_unsupported(document)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        message, param, code = explain(error, model)
        raise bad_request(message, param, code) from None


def _parse(raw: bytes, model: type[Body] | Callable[[dict[str, Any]], type[Body]]) -> Body:
    document = _decode(raw)
    return validate(document, model if isinstance(model, type) else model(document))


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    shown = f"is {content_type[:100]!r}" if content_type else "is missing"
    raise ApiError(
        415,
        f"The Content-Type header {shown}; this route takes JSON only. "
        "Send 'Content-Type: application/json'.",
        code="unsupported_media_type",
    )


def _check_content_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return
    raise ApiError(
        415,
        f"The Content-Encoding header is {encoding[:100]!r}; compressed bodies are not taken. "
        "Send the JSON as it is.",
        code="unsupported_media_type",
        headers={"Accept-Encoding": "identity"},
    )


async def _read(request: Request, held: HeldBody) -> bytes:
    max_bytes = held.bodies.max_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(f"{int(declared)} bytes", max_bytes)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(f"more than {max_bytes} bytes", max_bytes)
                chunks.append(chunk)
                if not held.grow(size):
                    chunks.clear()  # and read on: who still sends does not see an answer
    except TimeoutError:
        raise ApiError(
            408,
            f"The request body was not complete after {BODY_TIMEOUT_S:.0f} s; send it faster.",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    if not held.has_room:
        raise held.bodies.full()
    return b"".join(chunks)


def _too_large(size: str, max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is {size}; the limit is {max_bytes} bytes. Send a shorter request.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def _decode(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        raise bad_request("The request body is empty; send a JSON object.", code="invalid_json")
    if (num_parts := json_parts(raw)) > MAX_JSON_PARTS:
        raise bad_request(
            f"The request body holds {num_parts} objects, lists and members; at most "
            f"{MAX_JSON_PARTS} are allowed. Send several requests.",
            code="invalid_json",
        )
    try:
        document = msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(
            f"The request body is not valid JSON ({error}); send a JSON object in UTF-8.",
            code="invalid_json",
        ) from None
    if not isinstance(document, dict):
        raise bad_request(
            f"The request body is a JSON {_json_kind(document)}; send a JSON object.",
            code="invalid_json",
        )
    if json_depth(document) > MAX_JSON_DEPTH:
        raise _too_deep()
    return document


def _too_deep() -> ApiError:
    return bad_request(
        f"The request body is nested too deeply, more than {MAX_JSON_DEPTH} objects and lists "
        "inside each other; send a flatter JSON object.",
        code="invalid_json",
    )


def _json_kind(document: object) -> str:
    match document:
        case list():
            return "array"
        case str():
            return "string"
        case None:
            return "null"
        case bool():
            return "boolean"
        case _:
            return "number"
