"""Downloads from a hub, and what is said when there are none."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fake_hub import FakeHub, FakeRepository, run_fake_hub
from octavo.errors import ModelLoadError, SourceUnreachableError
from octavo.loading.checkpoint import open_checkpoint
from octavo.loading.model_files import find_model
from octavo.tokenization.tokenizer import Tokenizer
from tiny_models import make_tiny_model

NAME = "acme/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with run_fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def repository(hub: FakeHub, tmp_path: Path) -> FakeRepository:
    folder = make_tiny_model("llama", tmp_path / "source", num_shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    unwanted = (
        "pytorch_model.bin",
        "modeling_evil.py",
        "README.md",
        "consolidated.safetensors",
        "original/model.safetensors",
        "onnx/config.json",
        "1_Dense/model.safetensors",
    )
    files |= dict.fromkeys(unwanted, b"x" * 100)
    files["1_Pooling/config.json"] = b"{}"
    hub.repositories[NAME] = FakeRepository(files, revisions=("main", "v1.0"))
    return hub.repositories[NAME]


def find(tmp_path: Path, name: str = NAME, revision: str | None = None) -> Path:
    return find_model(name, revision=revision, download_dir=str(tmp_path / "cache"))


def test_downloads_what_a_model_needs_and_nothing_else(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path
) -> None:
    folder = find(tmp_path)
    found = [path for path in folder.rglob("*") if not path.is_dir()]
    assert {path.relative_to(folder).as_posix() for path in found} == {
        "1_Pooling/config.json",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in found:
        assert path.read_bytes() == repository.files[path.relative_to(folder).as_posix()]
    assert folder.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("name", [NAME, f"hf://{NAME}"])
def test_downloaded_model_opens(name: str, repository: FakeRepository, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(name, download_dir=str(tmp_path / "cache"))
    assert checkpoint.hf_config["model_type"] == "llama"
    source = checkpoint.open_weights(torch.device("cpu"), torch.float32)
    assert source.tensor("model.norm.weight", (32,)).shape == (32,)
    assert checkpoint.tokenizer_path is not None
    assert Tokenizer.open(checkpoint.tokenizer_path).encode("a") == [97]


def test_second_time_nothing_is_downloaded(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path
) -> None:
    first = find(tmp_path)
    hub.downloads.clear()
    assert find(tmp_path) == first
    assert not hub.downloads


def test_without_weights_for_dummy_ones(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path
) -> None:
    open_checkpoint(NAME, download_dir=str(tmp_path / "cache"), load_format="dummy")
    assert "config.json" in hub.downloads
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


@pytest.mark.filterwarnings("ignore")
def test_interrupted_download_is_taken_up_again(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library keeps whole chunks only; by default they are larger than the tiny model.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    name = "model-00001-of-00002.safetensors"
    size = len(repository.files[name])
    hub.breaks_after[name] = size // 2
    with contextlib.suppress(ModelLoadError):  # the library may go on by itself
        find(tmp_path)
    folder = find(tmp_path)
    assert (folder / name).read_bytes() == repository.files[name]
    assert size <= hub.downloads[name] < size + 1024


@pytest.mark.filterwarnings("ignore")
def test_download_that_always_breaks_off(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library's, between attempts
    hub.always_break.add("tokenizer.json")
    with pytest.raises(ModelLoadError, match=r"acme/tiny cannot be fetched from http.*: ") as e:
        find(tmp_path)
    assert "\n" not in str(e.value)


def test_revision(repository: FakeRepository, tmp_path: Path) -> None:
    assert (find(tmp_path, revision="v1.0") / "config.json").exists()
    with pytest.raises(ModelLoadError, match=r"acme/tiny \(revision v9\) .* no such revision"):
        find(tmp_path, revision="v9")


def test_one_gguf_file_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["acme/gguf"] = FakeRepository({"small.gguf": b"GGUF", "large.gguf": b"x"})
    path = find(tmp_path, "hf://acme/gguf/small.gguf")
    assert path.read_bytes() == b"GGUF"
    assert set(hub.downloads) == {"small.gguf"}
    with pytest.raises(ModelLoadError, match=r"acme/gguf has no config.json; .*: hf://acme/gguf/F"):
        find(tmp_path, "acme/gguf")
    with pytest.raises(ModelLoadError, match=r"acme/gguf/none.gguf is not on .*: no such file"):
        find(tmp_path, "acme/gguf/none.gguf")


@pytest.mark.parametrize("token", [None, "secret"], ids=["anonymous", "with-token"])
def test_unknown_repository(
    token: str | None, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelLoadError, match=r"acme/none is not on http.*, or is private: .*HF_T"):
        find(tmp_path, "acme/none")


def test_private_repository_opens_with_the_token(
    repository: FakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.token = "secret"
    with pytest.raises(ModelLoadError, match="or is private"):
        find(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (find(tmp_path) / "config.json").exists()


@pytest.mark.parametrize("token", [None, "secret"], ids=["anonymous", "with-token"])
def test_gated_repository(
    token: str | None,
    repository: FakeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository.is_gated = True
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelLoadError, match=r"acme/tiny is gated: accept .*/acme/tiny, and set"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "try again later")]
)
def test_refusal_by_the_hub(
    status: int, hint: str, repository: FakeRepository, tmp_path: Path
) -> None:
    repository.status = status
    with pytest.raises(ModelLoadError, match=hint) as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_connection_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ModelLoadError, match="cannot be reached") as caught:
            find(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_downloaded_model_is_found_without_a_network(
    repository: FakeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert find(tmp_path) == folder


def test_damaged_file_is_found_and_fetched_again(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path
) -> None:
    name = "model-00001-of-00002.safetensors"
    cache = str(tmp_path / "cache")
    folder = find_model(NAME, download_dir=cache, is_checked=True)
    blob = (folder / name).resolve()
    marks = tmp_path / "cache" / ".octavo" / "digests"
    assert (marks / blob.name).exists() == (len(blob.name) == 64)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    hub.downloads.clear()
    folder = find_model(NAME, download_dir=cache, is_checked=True)
    assert (folder / name).read_bytes() == repository.files[name]
    assert set(hub.downloads) == {name}


def test_file_that_was_checked_is_not_read_again(
    repository: FakeRepository,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = str(tmp_path / "cache")
    find_model(NAME, download_dir=cache, is_checked=True)
    read: list[Path] = []
    monkeypatch.setattr("octavo.loading.blob_digests._sha256", lambda path: read.append(path))
    find_model(NAME, download_dir=cache, is_checked=True)
    assert read == []


REFUSALS = {
    "taken down": ({"is_disabled": True}, None, "acme/tiny has been disabled on http"),
    "a token that is none": ({}, "expired", r"answered 401 for acme/tiny; .*HF_TOKEN"),
}


@pytest.mark.parametrize(("fields", "token", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_the_hubs_other_refusals(
    fields: dict[str, bool],
    token: str | None,
    words: str,
    repository: FakeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in fields.items():
        setattr(repository, name, value)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelLoadError, match=words):
        find(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_limit_on_requests_is_waited_out_or_told(
    repository: FakeRepository, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    hub.num_limited = 2
    assert (find(tmp_path) / "config.json").exists()
    assert pauses_s[:2] == [8, 8]
    hub.num_limited = 1000
    hub.repositories["acme/other"] = repository
    with pytest.raises(SourceUnreachableError, match=r"answered 429 for acme/other; .*HF_TOKEN"):
        find(tmp_path, "acme/other")
