"""Where an adapter comes from, as a user says it, and how its files get to this machine.

Knows the three kinds of places (a folder, the hub, a bucket); knows nothing of what the files
hold. Torch-free: the server's process names sources too.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import (
    AdapterError,
    ModelLoadError,
    SourceForbiddenError,
    SourceUnreachableError,
)
from octavo.loading import bucket, bucket_store, hub
from octavo.loading.model_files import without_file_scheme

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_FILES = (CONFIG_NAME, WEIGHTS_NAME)
_HUB_SCHEME = "hf://"
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter that somebody named."""

    path: str
    """A folder (without the ``file://`` that it was named by), ``hf://ORG/NAME[@REVISION]`` (or
    without the scheme, where there is no such folder), or ``s3://BUCKET/PREFIX``."""
    revision: str | None = None
    """Of the hub, instead of the one in the path."""
    digest: str | None = None
    """What its files must have; None: whatever is there."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", without_file_scheme(self.path))

    @property
    def is_near(self) -> bool:
        """Whether it is a folder, whatever else it may turn out to be."""
        return self.path.startswith(("/", ".", "~"))

    @property
    def public_name(self) -> str:
        """For whoever may use the adapter: of a folder its own name, not where it lies on this
        machine; another source as it was named."""
        is_address = self.path.startswith((_HUB_SCHEME, bucket_store.SCHEME))
        if is_address or (not self.is_near and _HUB_NAME.fullmatch(self.path)):
            return self.path
        return Path(self.path).name

    def pinned(self, revision: str | None, digest: str) -> AdapterSource:
        """The same, as it was found."""
        path = self.path if revision is None else self.path.partition("@")[0]
        return AdapterSource(path, revision, digest)


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """An adapter's files on this machine."""

    folder: Path
    revision: str | None
    """The hub's commit."""


def find_adapter(source: AdapterSource, download_dir: str | None = None) -> FoundAdapter:
    """The files of an adapter, fetched where they must be.

    Raises ModelLoadError where there are none, or one of its kinds where they cannot be had;
    AdapterError for a source that makes no sense.
    """
    path = source.path
    if path.startswith(bucket_store.SCHEME):
        _refuse_revision(source)
        folder = bucket.fetch_version(bucket.parse_uri(path), download_dir, _FILES)
        return FoundAdapter(folder, None)
    near = find_near(source)
    if near is not None:
        return near
    folder = hub.fetch_files(_hub_model(source), download_dir, _FILES)
    return FoundAdapter(folder, folder.name)


def find_near(source: AdapterSource) -> FoundAdapter | None:
    """The files of an adapter in a folder; None where a repository or a bucket is meant.

    Raises as :func:`find_adapter` does.
    """
    path = source.path
    if path.startswith((_HUB_SCHEME, bucket_store.SCHEME)):
        return None
    folder = _place(path)
    if _is_folder(folder):
        _refuse_revision(source)
        return FoundAdapter(folder, None)
    if source.is_near or not _HUB_NAME.fullmatch(path) or folder.is_file():
        raise ModelLoadError(
            f"{path} is not a folder; give an adapter's folder, hf://ORG/NAME or "
            "s3://BUCKET/PREFIX."
        )
    return None


FileChange = tuple[tuple[int, ...], ...] | None
"""Of an adapter's files: which each is, its bytes, when it was written and when it was last changed
in any way (a copy may keep the former), in nanoseconds."""


def last_change(source: AdapterSource) -> FileChange:
    """Of what lies in a folder; None where nothing does, as of a repository or a bucket."""
    try:
        found = [(_place(source.path) / name).stat() for name in _FILES]
    except (OSError, ValueError, ModelLoadError):
        return None
    return tuple(
        (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
        for each in found
    )


def _place(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as exc:
        raise ModelLoadError(f"{path!r:.200} names a user who is not known here.") from exc


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError as exc:
        raise SourceForbiddenError(
            f"{path} may not be looked at ({exc}); change the mode of the folders above it."
        ) from exc
    except OSError as exc:
        where = f"{str(path)!r:.200} cannot be looked at ({exc.strerror})"
        if exc.errno == errno.ENAMETOOLONG:
            raise ModelLoadError(f"{where}; it is no folder's.") from exc
        raise SourceUnreachableError(f"{where}; try again.") from exc


def _hub_model(source: AdapterSource) -> hub.HubModel:
    match = _HUB_NAME.fullmatch(source.path.removeprefix(_HUB_SCHEME))
    if match is None:
        raise ModelLoadError(
            f"{source.path!r:.200} is neither a folder nor hf://ORG/NAME[@REVISION] nor "
            "s3://BUCKET/PREFIX."
        )
    if match[2] is not None and source.revision is not None:
        raise AdapterError(
            f"{source.path!r:.200} names a revision, and revision is {source.revision!r:.80}; "
            "leave one of them out."
        )
    return hub.HubModel(match[1], source.revision or match[2])


def _refuse_revision(source: AdapterSource) -> None:
    if source.revision is not None:
        raise AdapterError(
            f"revision is {source.revision!r:.80}, which only adapters on the hub have; "
            f"{source.public_name!r:.200} is not there. Leave it out, or give a digest."
        )
