"""References from a resource to other objects of its namespace: an object {name}."""

from __future__ import annotations

from octavo_operator.resources.fields import Fields


def parse_secret_name(fields: Fields) -> str:
    """Of a Secret."""
    return _parse_name(fields, "name a Secret in the same namespace")


def parse_claim_name(fields: Fields) -> str:
    """Of a PersistentVolumeClaim."""
    return _parse_name(fields, "name a PersistentVolumeClaim in this namespace")


def _parse_name(fields: Fields, remedy: str) -> str:
    name = fields.required_object_name("name", remedy)
    fields.note_unknown()
    return name
