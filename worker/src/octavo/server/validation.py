"""pydantic's findings as one sentence: the field, its value, the limit, the remedy."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN_CHARS = 80
_KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "finite_number": "a finite number",
}
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str | None, str]:
    """Message, parameter and code for the first finding, or for all fields that are unknown."""
    findings = error.errors(include_url=False)
    unknown = [finding for finding in findings if finding["type"] == "extra_forbidden"]
    if unknown:
        return _unknown_fields([_path(finding["loc"]) for finding in unknown], model)
    findings = _most_telling(findings)
    finding = findings[0]
    path = _path(finding["loc"])
    if len(findings) > 1 and all(each["type"] in _KINDS for each in findings):
        kinds = " or ".join(_KINDS[each["type"]] for each in findings)
        return f"{path} is {shown(finding['input'])}; it must be {kinds}.", path, "invalid_value"
    if finding["type"] == "missing":
        return f"{path} is missing; it is required.", path, "missing_field"
    return _sentence(finding, path, model), path or None, "invalid_value"


def _most_telling(findings: list[ErrorDetails]) -> list[ErrorDetails]:
    """Those about the first field at fault, as deep inside it as they go.

    Where a field may have several forms, pydantic reports each form that does not fit: what it
    says of the inside of one tells more than "not the other".
    """
    first = _path(findings[0]["loc"])
    inside = [finding for finding in findings if _path(finding["loc"]).startswith(first)]
    deepest = max(inside, key=lambda finding: len(_path(finding["loc"])))
    same = [each for each in inside if _path(each["loc"]) == _path(deepest["loc"])]
    return [each for each in same if each["type"] not in _KINDS] or same


def _unknown_fields(paths: list[str], model: type[BaseModel]) -> tuple[str, str, str]:
    names = ", ".join(paths[:8]) + (" ..." if len(paths) > 8 else "")
    is_own = paths[0].isidentifier()  # what is inside a field has other names to be close to
    close = difflib.get_close_matches(paths[0], list(model.model_fields), n=1) if is_own else []
    hint = f"; did you mean {close[0]}?" if len(paths) == 1 and close else "."
    noun = "field" if len(paths) == 1 else "fields"
    message = (
        f"Unknown {noun}: {names}{hint} Unknown fields are refused, not ignored: leave them out."
    )
    return message, paths[0], "unknown_field"


def _sentence(finding: ErrorDetails, path: str, model: type[BaseModel]) -> str:
    kind, context = finding["type"], finding.get("ctx", {})
    if kind == "value_error":
        reason = str(context["error"])
        return f"{path}: {reason}" if path else reason
    subject = f"{path} is {shown(finding['input'])}"
    if kind in _KINDS:
        return f"{subject}; it must be {_KINDS[kind]}.{_default(path, model)}"
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"{subject}; it must be {words} {context[key]}.{_default(path, model)}"
    if kind in ("too_long", "string_too_long"):
        noun = "characters" if kind == "string_too_long" else "items"
        size = len(finding["input"]) if hasattr(finding["input"], "__len__") else "too many"
        return f"{path} has {size} {noun}; at most {context['max_length']} are allowed. Send fewer."
    if kind in ("too_short", "string_too_short"):
        noun = "character" if kind == "string_too_short" else "item"
        return f"{path} is empty; it must have at least {context['min_length']} {noun}."
    if kind in ("literal_error", "enum"):
        return f"{subject}; it must be one of {context['expected'].replace(' or ', ', ')}."
    if kind == "string_pattern_mismatch":
        return f"{subject}; it must match {context['pattern']}."
    return f"{subject}; {finding['msg'][:1].lower()}{finding['msg'][1:]}."


def _default(path: str, model: type[BaseModel]) -> str:
    field = model.model_fields.get(path)
    if field is None or field.is_required():
        return ""
    return " Leave it out for the default."


def _path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "content", "str")`` as ``messages[0].content``; the names that pydantic
    gives to the branches of a union are left out."""
    path = ""
    for before, step in zip((None, *location), location, strict=False):
        if isinstance(step, int):
            path += f"[{step}]"
        elif (
            step in _BRANCHES
            or step.endswith("]")
            or (step in _ITEM_KINDS and isinstance(before, int))
        ):
            continue
        else:
            path += f".{step}" if path else step
    return path


_BRANCHES = frozenset({"str", "int", "float", "bool", "[key]"})
_ITEM_KINDS = _BRANCHES | {"message", "function_call", "function_call_output", "reasoning"}
"""Also of the Responses API's items: other things have such names, but not after an index."""


def shown(value: Any) -> str:
    """A value as JSON would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a list of {len(value)} items" if isinstance(value, list) else "a large object"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
