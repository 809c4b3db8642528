"""What the user typed, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ModelLoadError
from octavo.loading import hub, model_files
from octavo.loading.hub import HubModel
from octavo.loading.model_files import find_model
from octavo.loading.model_folder import file_inside, read_json, read_json_if_there
from octavo.loading.needed_files import NeededFiles


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[HubModel]:
    """What the hub was asked for; it is never reached."""
    models: list[HubModel] = []

    def fetch(
        model: HubModel, download_dir: str | None, needed: NeededFiles, *, is_checked: bool
    ) -> Path:
        models.append(model)
        return Path("fetched")

    monkeypatch.setattr(hub, "fetch", fetch)
    return models


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("acme/model", HubModel("acme/model", "main")),
        ("hf://acme/model", HubModel("acme/model", "main")),
        ("hf://acme/model-1.5B_x", HubModel("acme/model-1.5B_x", "main")),
        ("hf://acme/model/file.gguf", HubModel("acme/model", "main", "file.gguf")),
        ("acme/model/q4/file.gguf", HubModel("acme/model", "main", "q4/file.gguf")),
    ],
)
def test_hub_names(typed: str, expected: HubModel, asked: list[HubModel]) -> None:
    assert find_model(typed, revision="main") == Path("fetched")
    assert asked == [expected]


def test_what_is_here_wins_over_the_hub(
    asked: list[HubModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "model").mkdir(parents=True)
    (tmp_path / "acme" / "model" / "config.json").write_text("{}")
    assert find_model("acme/model") == Path("acme/model")
    assert not asked
    find_model("hf://acme/model")
    assert asked == [HubModel("acme/model")]


def test_gguf_file_and_folder_with_one(asked: list[HubModel], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert find_model(str(file)) == file
    assert find_model(str(tmp_path)) == file
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"2 GGUF files \(model.gguf, other.gguf\); name one"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == tmp_path
    assert find_model(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/no/such/folder", "does not exist"),
        ("./nothing", "does not exist"),
        ("nothing", "does not exist"),
        ("a/b/c", "does not exist"),
        ("hf://acme", "neither a folder"),
        ("hf://acme/../etc", "neither a folder"),
        ("acme/mo del", "neither a folder"),
        ("demo://other", "there is demo://smollm2-135m-instruct"),
    ],
)
def test_what_names_nothing(typed: str, said: str, asked: list[HubModel]) -> None:
    with pytest.raises(ModelLoadError, match=said):
        find_model(typed)
    assert not asked


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"is not a .gguf file"):
        find_model(str(tmp_path / "model.bin"))
    with pytest.raises(ModelLoadError, match=r"neither a config.json nor a .gguf"):
        find_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"a LoRA adapter, .* --lora-modules NAME=/"):
        find_model(str(tmp_path))


def test_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "fetch_demo_model", lambda: Path("demo.gguf"))
    assert find_model("demo://smollm2-135m-instruct") == Path("demo.gguf")


class TestFileInside:
    """Names and links that lead out of a folder."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text('{"a": 1}')
        (tmp_path / "secret.json").write_text("{}")
        return folder

    def test_plain_file(self, folder: Path) -> None:
        assert read_json(folder, "config.json") == {"a": 1}
        assert read_json_if_there(folder, "absent.json") == {}

    @pytest.mark.parametrize(
        "name", ["../secret.json", "/etc/passwd", "a/../../secret.json", "..\\secret.json", "a\0b"]
    )
    def test_name_that_leads_out(self, name: str, folder: Path) -> None:
        with pytest.raises(ModelLoadError, match="outside of it"):
            file_inside(folder, name)

    def test_link_that_leads_out(self, folder: Path, tmp_path: Path) -> None:
        (folder / "link.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(ModelLoadError, match="outside of the model's folder"):
            file_inside(folder, "link.json")

    def test_link_within(self, folder: Path) -> None:
        (folder / "link.json").symlink_to("config.json")
        assert read_json(folder, "link.json") == {"a": 1}

    def test_folder_that_is_a_link(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "current").symlink_to(folder)
        assert read_json(tmp_path / "current", "config.json") == {"a": 1}

    def test_links_of_the_hubs_cache(self, tmp_path: Path) -> None:
        repository = tmp_path / "models--acme--tiny"
        snapshot = repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        (repository / "blobs" / "1").write_text('{"b": 2}')
        (snapshot / "config.json").symlink_to("../../blobs/1")
        assert read_json(snapshot, "config.json") == {"b": 2}
        (tmp_path / "other").write_text("{}")
        (snapshot / "evil.json").symlink_to(tmp_path / "other")
        with pytest.raises(ModelLoadError, match="outside"):
            file_inside(snapshot, "evil.json")

    def test_link_in_a_circle_and_link_to_nothing(self, folder: Path) -> None:
        (folder / "loop").symlink_to("loop")
        (folder / "gone").symlink_to("nowhere")
        for name in ("loop", "gone", "absent"):
            with pytest.raises(ModelLoadError, match="missing or cannot be reached"):
                file_inside(folder, name)

    @pytest.mark.parametrize("content", ["[1]", "{", "\0", "[" * 100_000])
    def test_json_that_is_none(self, content: str, folder: Path) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelLoadError, match=r"config\.json"):
            read_json(folder, "config.json")

    def test_folder_instead_of_a_file(self, folder: Path) -> None:
        (folder / "dir").mkdir()
        with pytest.raises(ModelLoadError, match="is not a file"):
            file_inside(folder, "dir")
