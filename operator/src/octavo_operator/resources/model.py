"""`spec.model`: which weights are served, and under which name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo_operator.resources.fields import Fields
from octavo_operator.resources.model_uri import HubModel, ModelSource, parse_model_uri

DEFAULT_TOKEN_KEY = "token"
_SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One key of a Secret in the resource's namespace; the operator never reads its value."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Model:
    """What to serve.

    revision: branch, tag or commit on the hub; None means the default branch.
    served_name: the `model` that clients write; the resource's name unless given.
    secret: holds the hub token, or None for public models.
    """

    uri: str
    source: ModelSource
    revision: str | None
    served_name: str
    secret: SecretKey | None


def parse_model(fields: Fields, resource_name: str) -> Model:
    """`spec.model`; raises ResourceError."""
    uri = fields.required_string("uri", "say which model to serve, such as hf://ORG/NAME")
    source = parse_model_uri(fields.path_of("uri"), uri)
    revision = fields.string("revision", max_length=256)
    if revision is not None and not isinstance(source, HubModel):
        raise fields.error(
            "revision",
            f"is {revision!r} but {uri} has no revisions",
            "remove it, or use an hf:// model",
        )
    if revision is not None and revision.startswith("-"):
        raise fields.error("revision", f"is {revision!r}", "give a branch, a tag or a commit")
    model = Model(
        uri=uri,
        source=source,
        revision=revision,
        served_name=parse_served_name(fields) or resource_name,
        secret=fields.optional_section(
            "secretRef", lambda section: parse_secret_key(section, DEFAULT_TOKEN_KEY)
        ),
    )
    fields.note_unknown()
    return model


def parse_served_name(fields: Fields) -> str | None:
    """The field `servedName`: what clients write as `model`, so no blanks and no leading dash."""
    name = fields.string("servedName", max_length=256)
    if name is not None and not _SERVED_NAME.fullmatch(name):
        raise fields.error(
            "servedName",
            f"is {name!r}",
            "start with a letter or digit and use letters, digits, '.', '_', ':', '/' and '-'",
        )
    return name


def parse_secret_key(fields: Fields, default_key: str) -> SecretKey:
    """A reference {name, key} with a default key."""
    key = fields.string("key", max_length=253) or default_key
    if not re.fullmatch(r"[A-Za-z0-9._-]+", key) or set(key) == {"."}:
        raise fields.error(
            "key", f"is {key!r}", "use letters, digits, '.', '_' and '-', as keys of a Secret do"
        )
    reference = SecretKey(
        name=fields.required_object_name("name", "name a Secret in the same namespace"), key=key
    )
    fields.note_unknown()
    return reference
