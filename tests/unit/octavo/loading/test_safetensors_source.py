"""Folders of safetensors, sound and otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.errors import ModelLoadError, WeightError
from octavo.loading.safetensors_source import INDEX_NAME, SafetensorsSource
from tiny_models import make_tiny_model, tensor_shapes, tiny_config, tiny_weights


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_tensor_comes_back(num_shards: int, tmp_path: Path) -> None:
    folder = make_tiny_model("qwen3", tmp_path, num_shards=num_shards)
    source = SafetensorsSource(folder)
    weights = tiny_weights(tiny_config("qwen3"))
    for name, shape in tensor_shapes(tiny_config("qwen3")).items():
        assert name in source
        read = (
            source.matrix(name, (shape[0], shape[1])) if shape[1:] else source.tensor(name, shape)
        )
        assert torch.equal(torch.as_tensor(read), weights[name])
    source.check_all_used(lambda name: False)
    assert "model.layers.0.nothing" not in source


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_keep_their_dtype_and_vectors_are_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    source = SafetensorsSource(make_tiny_model("llama", tmp_path, dtype=dtype))
    matrix = source.matrix("model.embed_tokens.weight", (272, 32))
    assert isinstance(matrix, Tensor)
    assert matrix.dtype is dtype
    assert source.tensor("model.norm.weight", (32,)).dtype is torch.float32


def test_files_without_an_index_are_read_together(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_shards=2)
    (tmp_path / INDEX_NAME).unlink()
    # The same weights in another form, as Mistral's repositories have them.
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "consolidated.safetensors")
    source = SafetensorsSource(tmp_path)
    assert "model.norm.weight" in source
    assert "lm_head.weight" in source
    assert source.tensor("model.norm.weight", (32,)).abs().sum() > 0


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    source = SafetensorsSource(make_tiny_model("llama", tmp_path))
    with pytest.raises(WeightError, match=r"lm_head.weight .* is \[272, 32\], .* \[300, 32\]"):
        source.matrix("lm_head.weight", (300, 32))


def test_absent_tensor_is_named(tmp_path: Path) -> None:
    source = SafetensorsSource(make_tiny_model("llama", tmp_path))
    with pytest.raises(WeightError, match=r"model.layers.7.input_layernorm.weight is not in"):
        source.tensor("model.layers.7.input_layernorm.weight", (32,))


def test_left_over_tensors_are_named_unless_ignored(tmp_path: Path) -> None:
    tensors = {f"extra.{index}": torch.zeros(1) for index in range(7)}
    save_file({**tensors, "rotary_emb.inv_freq": torch.zeros(1)}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    source.tensor("extra.0", (1,))
    with pytest.raises(WeightError, match=r"no place for: extra\.1, .* extra\.5 and 1 more; "):
        source.check_all_used(lambda name: name.endswith("inv_freq"))


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    weights = {"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match=r"stored as F8_E4M3, .* supported: F32, F16, BF16"):
        SafetensorsSource(tmp_path).matrix("a.weight", (2, 2))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 64, id="hostile-length"),
        pytest.param(b"\x02\0\0\0\0\0\0\0{}trailing", id="trailing"),
    ],
)
def test_broken_file_is_a_load_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model.safetensors cannot be read as safetensors"):
        SafetensorsSource(tmp_path)


def test_truncated_file_is_a_load_error(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cannot be read as safetensors"):
        SafetensorsSource(tmp_path)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "a/../../b.safetensors"]
)
def test_index_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    make_tiny_model("llama", tmp_path / "other")
    write_index(folder, {"lm_head.weight": name})
    with pytest.raises(ModelLoadError, match="outside of it"):
        SafetensorsSource(folder)


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    other = make_tiny_model("llama", tmp_path / "other")
    folder = make_tiny_model("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "model.safetensors")
    with pytest.raises(ModelLoadError, match="outside of the model's folder"):
        SafetensorsSource(folder)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        pytest.param({}, "has no weight_map", id="empty"),
        pytest.param([1], "has no weight_map", id="list"),
        pytest.param({"a": 5}, "no safetensors file", id="number"),
        pytest.param({"a": "pytorch_model.bin"}, "no safetensors file", id="pickle"),
        pytest.param({"a": "absent.safetensors"}, "missing", id="absent"),
        pytest.param({"a": "model.safetensors"}, "does not hold it", id="other-download"),
    ],
)
def test_broken_index_is_named(weight_map: object, said: str, tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    write_index(folder, weight_map)
    with pytest.raises(ModelLoadError, match=said):
        SafetensorsSource(folder)


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(WeightError, match=r"a is in both x.safetensors and y.safetensors"):
        SafetensorsSource(tmp_path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ModelLoadError, match="pickled weights, which are never loaded"):
        SafetensorsSource(tmp_path)
