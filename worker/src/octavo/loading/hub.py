"""Fetching models from the Hugging Face hub.

The library does the work (resume, cache, token, progress bars); this says which files are wanted
and words its errors. It is imported only when something must be fetched, as it is slow to import.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError, SourceForbiddenError, SourceUnreachableError
from octavo.loading.blob_digests import damaged_blobs
from octavo.loading.cache_folder import cache_folder
from octavo.loading.embedding_config import POOLING_FILE
from octavo.loading.folder_lock import folder_lock
from octavo.loading.needed_files import NeededFiles

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    POOLING_FILE,
)
_ANSWER_LIMIT_S = 30.0
"""For a connection, and for each part of an answer; the library may wait for ever otherwise."""
_FORBIDDEN = (401, 403)
_NO_REVISION = re.compile(r"\.\.|[\x00-\x20\x7f~^:?*\[\\]|^/|//|/$")
"""What git allows in no name of a branch or tag (git-check-ref-format). The library makes a path in
its cache of it, and reads what lies there."""
_TOO_MANY = 429
_DISABLED = "Access to this resource is disabled."
"""What the hub says of a repository that it has taken down."""
_ATTEMPTS = 3
_MOST_PAUSE_S = 60
"""A longer one is told instead: limits are counted over five minutes."""
_WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")
_PATTERNS = {
    NeededFiles.ALL: (*_SMALL_FILES, *_WEIGHT_FILES),
    NeededFiles.NO_WEIGHTS: _SMALL_FILES,
    NeededFiles.SHAPE: ("config.json", "model.safetensors.index.json"),
}
_NEVER = (
    "[!1]*/*",
    "1*/*.safetensors",
    "consolidated*",
    "adapter_model*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.py",
)
"""Folders of a repository hold other forms of the model (original/, onnx/), all but the one with
the pooling of its embeddings."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub; with ``file``, one GGUF file of it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        """Raises ModelLoadError for a revision that no repository can have."""
        if self.revision is not None and _NO_REVISION.search(self.revision):
            raise ModelLoadError(
                f"The revision of {self.repository} is {self.revision!r:.200}, which is none; give "
                "a branch, a tag or a commit."
            )

    def __str__(self) -> str:
        name = self.repository if self.file is None else f"{self.repository}/{self.file}"
        return name if self.revision is None else f"{name} (revision {self.revision})"


def fetch(
    model: HubModel, download_dir: str | None, needed: NeededFiles, *, is_checked: bool = False
) -> Path:
    """The folder (or the file) that holds the model, downloaded where it is not yet.

    ``is_checked``: large files are compared with their digests, once, by one process at a time;
    one that is damaged is downloaded again.

    ``download_dir`` None: the hub's own cache folder. What an interrupted download left is
    taken up again. Without a network a model that was downloaded before is still found. Raises
    ModelLoadError with one sentence that says what is wrong and what to do.
    """
    if not is_checked:
        return _download(model, download_dir, needed)
    notes = (Path(download_dir) if download_dir else cache_folder()) / ".octavo"
    name = model.repository.replace("/", "--")
    try:
        with folder_lock(notes / f"{name}.lock"):
            path = _download(model, download_dir, needed)
            for blob in _damaged(path, notes):
                blob.unlink()
            path = _download(model, download_dir, needed)
            damaged = _damaged(path, notes)
    except OSError as exc:
        raise ModelLoadError(
            f"{model} cannot be kept in {notes.parent}: {exc.strerror or exc}; what is there is "
            "kept."
        ) from exc
    if damaged:
        raise ModelLoadError(
            f"{model}: {damaged[0].name} is damaged even when downloaded anew; check the disk, and "
            "the proxy on the way to the hub."
        )
    return path


def _damaged(path: Path, notes: Path) -> list[Path]:
    return damaged_blobs(path if path.is_dir() else path.parent, notes / "digests")


def _download(model: HubModel, download_dir: str | None, needed: NeededFiles) -> Path:
    import huggingface_hub

    if model.file is None:
        return fetch_files(model, download_dir, _PATTERNS[needed], _NEVER)
    endpoint = _endpoint()
    with _worded(model, endpoint):
        call = partial(
            huggingface_hub.hf_hub_download,
            model.repository,
            model.file,
            revision=model.revision,
            cache_dir=download_dir,
            endpoint=endpoint,
        )
        return Path(_patiently(call))


def fetch_files(
    model: HubModel,
    download_dir: str | None,
    patterns: Sequence[str],
    never: Sequence[str] = (),
) -> Path:
    """The folder of the repository's files of these patterns; otherwise as :func:`fetch`."""
    import huggingface_hub

    endpoint = _endpoint()
    with _worded(model, endpoint):
        call = partial(
            huggingface_hub.snapshot_download,
            model.repository,
            revision=model.revision,
            cache_dir=download_dir,
            endpoint=endpoint,
            allow_patterns=list(patterns),
            ignore_patterns=list(never),
        )
        return Path(_patiently(call))


def _patiently(call: Callable[[], str]) -> str:
    """Ask again after a limit on requests, where that is soon: the library does so for files, but
    not for what a repository is (2.4)."""
    from huggingface_hub import errors

    for _ in range(_ATTEMPTS - 1):
        try:
            return call()
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as exc:
            response = _response(exc)
            pause_s = None if response is None else _asked_pause_s(response)
            if pause_s is None or pause_s > _MOST_PAUSE_S:
                raise
            time.sleep(pause_s + 1)  # the hub counts whole seconds
    return call()


def _asked_pause_s(response: Any) -> int | None:
    """Seconds until the hub takes requests again; None where it does not say that it will."""
    if response.status_code != _TOO_MANY:
        return None
    waits = response.headers.get("Retry-After", ""), response.headers.get("RateLimit", "")
    found = re.fullmatch(r"(\d+)", waits[0]) or re.search(r";\s*t\s*=\s*(\d+)", waits[1])
    return int(found[1]) if found else None


@contextmanager
def _worded(model: HubModel, where: str) -> Iterator[None]:
    """Translates the library's errors, most specific first: they derive from each other."""
    from huggingface_hub import errors
    from huggingface_hub.utils import get_session

    hooks = getattr(get_session(), "event_hooks", {}).get("request", [])
    if _bound_wait not in hooks:
        hooks.append(_bound_wait)
    try:
        yield
    except errors.GatedRepoError as exc:
        raise SourceForbiddenError(
            f"{model} is gated: accept its conditions at {where}/{model.repository}, and set "
            "HF_TOKEN to a token of that account."
        ) from exc
    except errors.RevisionNotFoundError as exc:
        raise ModelLoadError(
            f"{model} is not on {where}: the repository has no such revision; check --revision."
        ) from exc
    except errors.RepositoryNotFoundError as exc:
        kind = SourceForbiddenError if _status(exc) in _FORBIDDEN else ModelLoadError
        raise kind(
            f"{model} is not on {where}, or is private: check its name, or set HF_TOKEN to a token "
            "that may read it."
        ) from exc
    except errors.LocalEntryNotFoundError as exc:
        if _response(exc) is not None:
            raise _refused(model, where, exc) from exc
        raise SourceUnreachableError(
            f"{model} cannot be fetched and is not in the cache: {where} cannot be reached "
            f"({_reason(exc)}); check the network, or give a local folder."
        ) from exc
    except errors.EntryNotFoundError as exc:
        raise ModelLoadError(f"{model} is not on {where}: no such file.") from exc
    except errors.HfHubHTTPError as exc:
        raise _refused(model, where, exc) from exc
    except errors.HFValidationError as exc:
        raise ModelLoadError(
            f"{model.repository!r} is neither a folder, nor a .gguf file, nor ORG/NAME on the hub."
        ) from exc
    except Exception as exc:
        # Full disks, and connections lost on the way: the class of these depends on the HTTP
        # library, which is requests, httpx or httpx2 depending on the hub library's version.
        raise SourceUnreachableError(
            f"{model} cannot be fetched from {where}: {_reason(exc)}; try again, what is there "
            "already is kept."
        ) from exc


def _bound_wait(request: Any) -> None:
    """Some of the library's calls ask for no limit at all (``HfApi.model_info``)."""
    limits = request.extensions.get("timeout", {})
    for kind, seconds in limits.items():
        if seconds is None:
            limits[kind] = _ANSWER_LIMIT_S


def _endpoint() -> str:
    """As the library reads it, but when it is needed instead of when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _response(exc: BaseException | None) -> Any:
    """The HTTP answer at the root of an error; None where there was none at all."""
    while exc is not None:
        response = getattr(exc, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return response
        exc = exc.__cause__
    return None


def _status(exc: BaseException) -> int | None:
    """Its status."""
    response = _response(exc)
    return None if response is None else int(response.status_code)


def _refused(model: HubModel, where: str, exc: BaseException) -> ModelLoadError:
    status, response = _status(exc), _response(exc)
    if response is not None and response.headers.get("X-Error-Message") == _DISABLED:
        return ModelLoadError(
            f"{model} has been disabled on {where}; look at {where}/{model.repository} for why, "
            "and use another."
        )
    if status in _FORBIDDEN:
        return SourceForbiddenError(
            f"{where} answered {status} for {model}; set HF_TOKEN to a valid token."
        )
    hint = "try again later"
    if status == _TOO_MANY:
        hint = "its limit on requests is reached; try again later, or set HF_TOKEN, which has more"
    return SourceUnreachableError(f"{where} answered {status} for {model}; {hint}.")


def _reason(exc: BaseException) -> str:
    """The innermost cause, which names what really happened, on one line."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}"[:200].rstrip(".")
