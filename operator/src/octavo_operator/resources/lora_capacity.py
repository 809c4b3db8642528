"""`spec.engine.lora`: room for LoRA adapters, and what pods are given to read them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from octavo_operator.resources.fields import Fields
from octavo_operator.resources.model_uri import ImageModel, parse_model_uri
from octavo_operator.resources.references import parse_claim_name, parse_secret_name

DEFAULT_MAX_ADAPTERS: Final = 8
DEFAULT_MAX_RANK: Final = 16
"""Both are the worker's own."""

LARGEST_RANK: Final = 256
_KINDS: Final = ("pvc", "image", "secretRef")
_REMEDY: Final = "give exactly one of pvc, image and secretRef in each item"


@dataclass(frozen=True, slots=True)
class AdapterImage:
    """An image volume with adapters; pull_secret is None where anybody may pull it."""

    reference: str
    pull_secret: str | None


@dataclass(frozen=True, slots=True)
class LoraCapacity:
    """Room for adapters: how many on the device at once, and their highest rank.

    claims, images, secrets: volumes and credentials that pods have for the adapters' sake. A
    running pod cannot be given them, so they are part of it from its start.
    """

    max_adapters: int
    max_rank: int
    claims: tuple[str, ...] = ()
    images: tuple[AdapterImage, ...] = ()
    secrets: tuple[str, ...] = ()


def parse_lora_capacity(fields: Fields) -> LoraCapacity:
    """`spec.engine.lora`; raises ResourceError."""
    claims: list[str] = []
    images: list[AdapterImage] = []
    secrets: list[str] = []
    for item in fields.sections("sources"):
        given = [kind for kind in _KINDS if item.has(kind)]
        if len(given) != 1:
            raise fields.error(
                "sources", f"has an item with {' and '.join(given) or 'none'}", _REMEDY
            )
        match given[0]:
            case "pvc":
                claims.append(parse_claim_name(item.section("pvc")))
            case "image":
                images.append(_parse_image(item.section("image")))
            case _:
                secrets.append(parse_secret_name(item.section("secretRef")))
        item.note_unknown()
    capacity = LoraCapacity(
        max_adapters=fields.integer("maxAdapters", DEFAULT_MAX_ADAPTERS, 1, 1024),
        max_rank=fields.integer("maxRank", DEFAULT_MAX_RANK, 1, LARGEST_RANK),
        claims=tuple(dict.fromkeys(claims)),
        images=tuple(dict.fromkeys(images)),
        secrets=tuple(dict.fromkeys(secrets)),
    )
    fields.note_unknown()
    return capacity


def _parse_image(fields: Fields) -> AdapterImage:
    remedy = "name an image, such as registry.example.com/adapters/sql:v3"
    reference = fields.required_string("reference", remedy, max_length=512)
    source = parse_model_uri(fields.path_of("reference"), f"oci://{reference}")
    assert isinstance(source, ImageModel)
    image = AdapterImage(
        source.reference, fields.optional_section("pullSecretRef", parse_secret_name)
    )
    fields.note_unknown()
    return image
