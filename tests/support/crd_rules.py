"""A CRD's CEL rules, evaluated the way an API server evaluates them.

Knows where rules apply (each node that is present), that a rule with ``oldSelf`` runs on updates
only, and that a rule which cannot be evaluated counts as broken. Refuses to know the meaning of
any rule. The evaluator is cel-python, with RE2 for ``matches`` as in Kubernetes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import celpy
from celpy.adapter import json_to_cel

from crd_schema import Schema, root_schema, schema_errors, with_defaults


def admission_errors(
    crd: Mapping[str, Any], new: Mapping[str, Any], old: Mapping[str, Any] | None = None
) -> list[str]:
    """Why an API server would refuse ``new`` (an update of ``old``); empty when it is accepted.

    As there: defaults first, then the schema, and the rules only when the schema is kept.
    """
    schema = root_schema(crd)
    filled = with_defaults(new, schema)
    shape = {**schema["properties"], "metadata": {"type": "object"}}
    errors = schema_errors(filled, {**schema, "properties": shape})
    if errors:
        return errors
    before = None if old is None else with_defaults(old, schema)
    return list(rule_errors(filled, schema, before))


def rule_errors(value: Any, schema: Schema, old: Any = None) -> Iterator[str]:
    """The messages of the rules that ``value`` breaks, at this node and below."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        if not evaluate(rule["rule"], value, old):
            yield rule["message"]
    if isinstance(value, Mapping):
        extra = schema.get("additionalProperties")
        for name, item in value.items():
            child = schema.get("properties", {}).get(name, extra)
            if child is not None:
                before = old.get(name) if isinstance(old, Mapping) else None
                yield from rule_errors(item, child, before)
    elif isinstance(value, list):
        for item in value:
            yield from rule_errors(item, schema.get("items", {}))


def evaluate(rule: str, value: Any, old: Any = None) -> bool:
    """The rule's answer; raises celpy.CELEvalError when it has none."""
    activation = {"self": json_to_cel(value)}
    if old is not None:
        activation["oldSelf"] = json_to_cel(old)
    return bool(_program(rule).evaluate(activation))


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
