"""What ``/openapi.json`` says of routes that read bodies and write answers themselves."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.server.protocol.fields import RequestBody

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MEANINGS = {
    400: "The request cannot be served as asked.",
    401: "No API key, or a wrong one.",
    403: "The key is not an administrator's, or we may not read what was named.",
    404: "No such model, or nothing of that name.",
    408: "The body did not come in time.",
    409: "What was named is not what was expected.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    431: "The headers are too large.",
    500: "Our fault.",
    503: "Loading, shutting down, or broken.",
    504: "The request's time was up before its first token.",
}


_FOR_ALL = (401, 403, 429, 431, 500)
_FOR_BODIES = (400, 404, 408, 413, 415, 503, 504)
_STREAM = {"type": "string", "description": "Server-sent events, each with a JSON object."}


def describe(
    *bodies: type[RequestBody],
    answer: type[msgspec.Struct],
    is_streamable: bool = False,
    errors: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments for a route that takes one of ``bodies`` and answers with ``answer``.

    ``errors``: statuses beyond those that any body may be answered with.
    """
    schemas = [_schema_of(body) for body in bodies]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    described = describe_answer(answer, *_FOR_BODIES, *errors)
    if is_streamable:
        described["responses"][200]["content"]["text/event-stream"] = {"schema": _STREAM}
    content = {"application/json": {"schema": schema}}
    return described | {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


def describe_answer(
    answer: type[msgspec.Struct], *errors: int, also: Mapping[int, type[msgspec.Struct]] = {}
) -> dict[str, Any]:
    """Keyword arguments for a route that answers with ``answer``, or with one of ``errors``.

    ``also``: other statuses whose bodies are no errors.
    """
    good = {200: answer, **also}
    responses: dict[int, dict[str, Any]] = {
        status: {
            "description": "The answer." if status == 200 else _MEANINGS[status],
            "content": {"application/json": {"schema": _schema_of(struct)}},
        }
        for status, struct in good.items()
    }
    responses |= {status: _error(_MEANINGS[status]) for status in (*_FOR_ALL, *errors)}
    return {"responses": responses}


def describe_text(*errors: int) -> dict[str, Any]:
    """Keyword arguments for a route that answers with plain text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    responses: dict[int, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    responses |= {status: _error(_MEANINGS[status]) for status in (*_FOR_ALL, *errors)}
    return {"responses": responses}


def _error(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": _ERROR}}}


@functools.cache
def _schema_of(kind: type[RequestBody] | type[msgspec.Struct]) -> dict[str, Any]:
    """Made once for all applications of a process, which read it only: it takes most of the time
    that an application takes to make."""
    if issubclass(kind, RequestBody):
        return _inline(kind.model_json_schema(ref_template="#/{model}"))
    return _inline(msgspec.json.schema(kind))


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in their places; ours never refer to themselves."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            return resolve(definitions[reference.rpartition("/")[2]])
        # A discriminator points to the definitions, which stand in their places now.
        return {key: resolve(value) for key, value in node.items() if key != "discriminator"}

    inlined: dict[str, Any] = resolve(schema)
    return inlined
