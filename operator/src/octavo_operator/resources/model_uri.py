"""Where a model's files come from: one small type per URI scheme.

Knows the text of the URIs; fetches nothing and does not know whether the files exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, TypeAlias

from octavo_operator.errors import ResourceError

DEMO_MODELS: Final = ("smollm2-135m-instruct",)
"""Models small enough to ship inside a Python package; the worker fetches them by this name."""

_HUB_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_REPOSITORY = re.compile(rf"{_HUB_PART}/{_HUB_PART}")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_IMAGE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/[a-z0-9._/-]+"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class HubModel:
    """`hf://org/name`: a repository on the Hugging Face hub, fetched by the worker."""

    repository: str


@dataclass(frozen=True, slots=True)
class VolumeModel:
    """`pvc://claim/path`: a folder on a PersistentVolumeClaim, mounted read-only."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class ImageModel:
    """`oci://registry/repository:tag`: an image volume, mounted read-only."""

    reference: str


@dataclass(frozen=True, slots=True)
class BucketModel:
    """`s3://bucket/prefix`: an object store."""

    bucket: str
    prefix: str


@dataclass(frozen=True, slots=True)
class FileModel:
    """`file:///path`: a path as the worker's container sees it (in local mode, on this machine)."""

    path: str


@dataclass(frozen=True, slots=True)
class DemoModel:
    """`demo://name`: one of DEMO_MODELS, fetched by the worker."""

    name: str


ModelSource: TypeAlias = HubModel | VolumeModel | ImageModel | BucketModel | FileModel | DemoModel

_REMEDY = (
    "use hf://ORG/NAME, pvc://CLAIM/PATH, oci://REGISTRY/REPOSITORY:TAG, s3://BUCKET/PREFIX, "
    "file:///PATH or demo://" + DEMO_MODELS[0]
)


def parse_model_uri(field: str, uri: str) -> ModelSource:
    """The source that `uri` names; raises ResourceError for `field` if there is none."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        raise ResourceError(field, f"is {uri!r}, which has no scheme", _REMEDY)
    match scheme:
        case "hf":
            return _parse_hub(field, uri, rest)
        case "pvc":
            return _parse_volume(field, uri, rest)
        case "oci":
            return _parse_image(field, uri, rest)
        case "s3":
            return _parse_bucket(field, uri, rest)
        case "file":
            return FileModel(_clean_path(field, uri, rest, is_absolute=True))
        case "demo":
            return _parse_demo(field, uri, rest)
        case _:
            raise ResourceError(field, f"is {uri!r}, whose scheme is unknown", _REMEDY)


def _parse_hub(field: str, uri: str, rest: str) -> HubModel:
    if not _HUB_REPOSITORY.fullmatch(rest) or ".." in rest:
        raise ResourceError(
            field,
            f"is {uri!r}, which names no hub repository",
            "write hf://ORG/NAME; a branch, tag or commit belongs in the field revision",
        )
    return HubModel(rest)


def _parse_volume(field: str, uri: str, rest: str) -> VolumeModel:
    claim, _, path = rest.partition("/")
    if not _CLAIM.fullmatch(claim):
        raise ResourceError(
            field, f"is {uri!r}, which names no PersistentVolumeClaim", "write pvc://CLAIM/PATH"
        )
    return VolumeModel(claim, _clean_path(field, uri, path, is_absolute=False))


def _parse_image(field: str, uri: str, rest: str) -> ImageModel:
    if not _IMAGE.fullmatch(rest):
        raise ResourceError(
            field,
            f"is {uri!r}, which names no image",
            "write oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST",
        )
    return ImageModel(rest)


def _parse_bucket(field: str, uri: str, rest: str) -> BucketModel:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ResourceError(field, f"is {uri!r}, which names no bucket", "write s3://BUCKET/PREFIX")
    return BucketModel(bucket, _clean_path(field, uri, prefix, is_absolute=False))


def _parse_demo(field: str, uri: str, rest: str) -> DemoModel:
    if rest not in DEMO_MODELS:
        raise ResourceError(
            field,
            f"is {uri!r}, which is no demo model",
            "write " + " or ".join(f"demo://{name}" for name in DEMO_MODELS),
        )
    return DemoModel(rest)


def _clean_path(field: str, uri: str, path: str, *, is_absolute: bool) -> str:
    """A path that stays below its root; an empty relative one is the root itself."""
    pure = PurePosixPath(path)
    if is_absolute and (not pure.is_absolute() or pure == PurePosixPath("/")):
        raise ResourceError(field, f"is {uri!r}, whose path is not absolute", "write file:///PATH")
    if ".." in pure.parts or (not is_absolute and pure.is_absolute()):
        raise ResourceError(
            field, f"is {uri!r}, whose path leaves its root", "write the path without '..' or '//'"
        )
    return "" if str(pure) == "." else str(pure)
