"""What ``/openapi.json`` says of routes that read their bodies themselves."""

from __future__ import annotations

from typing import Any

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
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "Our fault.",
    503: "Loading, shutting down, or broken.",
    504: "The request's time was up before its first token.",
}


def describe_generation(body: type[RequestBody]) -> dict[str, Any]:
    """Keyword arguments for a route that takes ``body`` and answers with JSON or a stream."""
    schema = body.model_json_schema(ref_template="#/{model}")
    errors = {status: _error(meaning) for status, meaning in _MEANINGS.items()}
    good = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    return {
        "responses": {
            200: {"description": "The answer, or its stream.", "content": good},
            **errors,
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _inline(schema)}},
            }
        },
    }


def _error(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": _ERROR}}}


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
        return {key: resolve(value) for key, value in node.items()}

    inlined: dict[str, Any] = resolve(schema)
    return inlined
