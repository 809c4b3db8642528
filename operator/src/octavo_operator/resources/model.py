"""`spec.model`: which weights are served, and under which name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo_operator.resources.fields import Fields
from octavo_operator.resources.model_uri import HubModel, ModelSource, parse_model_uri
from octavo_operator.resources.references import parse_secret_name

_SERVED_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True, slots=True)
class Model:
    """What to serve.

    revision: branch, tag or commit on the hub; None means the default branch.
    served_name: the `model` that clients write; the resource's name unless given.
    secret: Secret with credentials for the source, or None; the operator never reads it.
    """

    uri: str
    source: ModelSource
    revision: str | None
    served_name: str
    secret: str | None


def parse_model(fields: Fields, resource_name: str) -> Model:
    """`spec.model`; raises ResourceError."""
    uri = fields.required_string("uri", "say which model to serve, such as hf://ORG/NAME")
    source = parse_model_uri(fields.path_of("uri"), uri)
    revision = fields.string("revision", max_length=128)
    if revision is not None and not isinstance(source, HubModel):
        raise fields.error(
            "revision",
            f"is {revision!r} but {uri} has no revisions",
            "remove it, or use an hf:// model",
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise fields.error("revision", f"is {revision!r}", "give a branch, a tag or a commit")
    model = Model(
        uri=uri,
        source=source,
        revision=revision,
        served_name=parse_served_name(fields) or resource_name,
        secret=fields.optional_section("secretRef", parse_secret_name),
    )
    fields.note_unknown()
    return model


def parse_served_name(fields: Fields) -> str | None:
    """The field `servedName`: what clients write as `model`, so no blanks and no leading dash."""
    name = fields.string("servedName", max_length=128)
    if name is not None and not _SERVED_NAME.fullmatch(name):
        raise fields.error(
            "servedName",
            f"is {name!r}",
            "use letters, digits, '.', '_', ':', '/' and '-', with a letter or digit at both ends",
        )
    return name
