"""Where adapters come from: which files are fetched, and how each kind of failure is named."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_bucket import KEY, REGION, FakeBucket, run_fake_bucket
from fake_hub import FakeHub, FakeRepository, run_fake_hub
from octavo.errors import (
    AdapterError,
    ModelLoadError,
    SourceForbiddenError,
    SourceUnreachableError,
)
from octavo.lora.adapter_source import AdapterSource, FoundAdapter, find_adapter
from tiny_adapters import make_adapter
from tiny_models import tiny_config

NAME = "acme/sql"
NAMES = {"adapter_config.json", "adapter_model.safetensors"}


def files_of(tmp_path: Path, seed: int = 0) -> dict[str, bytes]:
    folder = make_adapter(tmp_path / f"source-{seed}", tiny_config("llama"), seed=seed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with run_fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        files = files_of(tmp_path) | {"optimizer.pt": b"x", "model.safetensors": b"x"}
        hub.repositories[NAME] = FakeRepository(files, revisions=("main", "v1"))
        yield hub


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBucket]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY.secret_access_key)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    with run_fake_bucket("adapters") as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        put(bucket, files_of(tmp_path) | {"other.safetensors": b"x", "README.md": b"x"})
        yield bucket


def put(bucket: FakeBucket, files: dict[str, bytes]) -> None:
    bucket.objects |= {f"sql/v1/{name}": content for name, content in files.items()}


def find(tmp_path: Path, path: str, revision: str | None = None) -> FoundAdapter:
    return find_adapter(AdapterSource(path, revision), str(tmp_path / "cache"))


def seen(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize(
    ("path", "revision"),
    [(f"hf://{NAME}", None), (NAME, "v1"), (f"hf://{NAME}@v1", None)],
    ids=["main", "revision", "at"],
)
def test_the_hubs_adapter_is_named_by_its_commit(
    path: str, revision: str | None, hub: FakeHub, tmp_path: Path
) -> None:
    found = find(tmp_path, path, revision)
    assert found.revision == hub.repositories[NAME].commit
    assert seen(found.folder) == NAMES
    again = AdapterSource(path, revision).pinned(found.revision, "sha256:0")
    assert again == AdapterSource(path.partition("@")[0], found.revision, "sha256:0")
    hub.downloads.clear()
    assert find_adapter(again, str(tmp_path / "cache")) == found
    assert not hub.downloads


def test_a_folder_may_be_named_as_in_a_lora_adapter(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql", tiny_config("llama"))
    source = AdapterSource(f"file://{folder}")
    assert source == AdapterSource(str(folder))
    assert source.public_name == "sql"
    assert find_adapter(source).folder == folder


@pytest.mark.filterwarnings("ignore")
def test_a_commit_that_was_fetched_needs_no_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(tmp_path, f"hf://{NAME}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert find(tmp_path, f"hf://{NAME}", found.revision) == found


def test_a_bucket_that_changes_leaves_what_was_found(bucket: FakeBucket, tmp_path: Path) -> None:
    first = find(tmp_path, "s3://adapters/sql/v1")
    assert first.revision is None
    assert seen(first.folder) == NAMES
    old = (first.folder / "adapter_model.safetensors").read_bytes()
    put(bucket, files_of(tmp_path, seed=1))
    second = find(tmp_path, "s3://adapters/sql/v1")
    assert second.folder != first.folder
    assert (first.folder / "adapter_model.safetensors").read_bytes() == old
    weights = (second.folder / "adapter_model.safetensors").read_bytes()
    assert weights == bucket.objects["sql/v1/adapter_model.safetensors"] != old
    bucket.downloads.clear()
    assert find(tmp_path, "s3://adapters/sql/v1/") == second
    assert not bucket.downloads


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        (f"hf://{NAME}@v1", "v2", "leave one of them out"),
        ("s3://adapters/sql/v1", "v2", "which only adapters on the hub have"),
        (".", "v2", "which only adapters on the hub have"),
    ],
    ids=["twice", "bucket", "folder"],
)
def test_a_revision_that_makes_no_sense_is_refused(path: str, revision: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        find_adapter(AdapterSource(path, revision))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-of-that-name/sql", "user who is not known"),
        ("~no\0body/sql", "user who is not known"),
        ("/" + "x" * 300, "File name too long"),
    ],
    ids=["user", "nul", "length"],
)
def test_a_path_that_cannot_be_is_refused_in_words(path: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        find_adapter(AdapterSource(path))


@pytest.mark.parametrize(
    "revision", ["../../../../dev/zero", "/dev/zero", "a/../b", "a\0b", "a b", "a\\b", "a/", "a//b"]
)
def test_a_revision_leads_nowhere_in_the_cache(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub is down its library reads a file of that name: an endless one, or any other."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelLoadError, match="which is none; give a branch, a tag or a commit"):
        find_adapter(AdapterSource(f"hf://{NAME}", revision), str(tmp_path))


def test_a_disk_in_trouble_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "is_dir", stale)
    with pytest.raises(SourceUnreachableError, match=r"Stale file handle.*try again"):
        find_adapter(AdapterSource("/mnt/sql"))


def test_the_hubs_refusals_are_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    for path, kind in [
        ("hf://acme/none", SourceForbiddenError),  # the hub tells strangers no more
        (f"hf://{NAME}@v9", ModelLoadError),
        ("hf://one-part", ModelLoadError),
    ]:
        with pytest.raises(ModelLoadError) as caught:
            find(tmp_path, path)
        assert type(caught.value) is kind, path
    for change, kind in [
        ({"is_gated": True}, SourceForbiddenError),
        ({"status": 403}, SourceForbiddenError),
        ({"status": 418}, SourceUnreachableError),
    ]:
        hub.repositories[NAME] = FakeRepository(files_of(tmp_path), **change)
        with pytest.raises(ModelLoadError) as caught:
            find(tmp_path, f"hf://{NAME}")
        assert type(caught.value) is kind, change


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_a_source_that_does_not_answer_is_unreachable(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"hf://{NAME}" if variable == "HF_ENDPOINT" else "s3://adapters/sql"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers
        monkeypatch.setenv(variable, f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(SourceUnreachableError, match="cannot be reached"):
            find(tmp_path, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_a_source_that_takes_the_call_and_says_nothing_is_unreachable(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is waited for takes one of few threads."""
    path = f"hf://{NAME}" if variable == "HF_ENDPOINT" else "s3://adapters/sql"
    monkeypatch.setattr("octavo.loading.hub._ANSWER_LIMIT_S", 0.1)
    monkeypatch.setattr("octavo.loading.bucket_store._TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SourceUnreachableError, match=r"cannot be (reached|listed)"):
            find(tmp_path, path)


def test_the_buckets_refusals_are_told_apart(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match=r"lacks adapter_config.json, adapter_model") as caught:
        find(tmp_path, "s3://adapters/sql/v2")
    assert type(caught.value) is ModelLoadError
    with pytest.raises(ModelLoadError, match="404"):
        find(tmp_path, "s3://others/sql/v1")
    with pytest.raises(ModelLoadError, match="is no bucket"):
        find(tmp_path, "s3://adapters/../sql")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceForbiddenError, match="403"):
        find(tmp_path, "s3://adapters/sql/v1")
