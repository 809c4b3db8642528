"""What is taken as an adapter, and what is refused, by name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import AdapterError, ModelLoadError, SourceForbiddenError
from octavo.lora.adapter_config import parse_peft_config
from octavo.lora.adapter_folder import read_adapter
from octavo.lora.adapter_source import AdapterSource, find_adapter, last_change
from octavo.lora.adapter_weights import AdapterWeights, lay_out
from octavo.models import registry
from octavo.models.decoder import projections_of
from tiny_adapters import make_adapter, module_shapes
from tiny_models import tiny_config

CONFIG = tiny_config("llama")
PROJECTIONS = tuple(projections_of(registry.resolve(CONFIG).config))
MAX_BYTES = 1 << 20
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def load(folder: Path, max_rank: int = 16) -> AdapterWeights:
    return lay_out(read_adapter(folder, MAX_BYTES, max_rank), PROJECTIONS, max_rank)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head'"),
        ({"target_modules": ["model.embed_tokens"]}, "'model.embed_tokens'"),
        ({"r": 0}, "r is 0"),
        ({"r": 257}, "ranks go from 1 to 256"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": {"(a|a)*": 2}}, r"'\(a\|a\)\*' is not a pattern that is taken"),
        ({"rank_pattern": {"(a|(b|c))": 2}}, "is not a pattern that is taken"),
        ({"rank_pattern": {r"(a)\1": 2}}, "is not a pattern that is taken"),
        ({"rank_pattern": {"(?=a)a": 2}}, "is not a pattern that is taken"),
        ({"rank_pattern": {"": 2}}, "is not a pattern that is taken"),
        ({"rank_pattern": {".*.*.*x": 2}}, "in 125000 ways; at most 20000 are tried"),
        ({"alpha_pattern": {"(.|.)" * 15: 2}}, "in 32768 ways; at most 20000 are tried"),
        ({"rank_pattern": {f".*.*{one}": 2 for one in range(9)}}, "in 22500 ways"),
        ({"rank_pattern": ["q_proj"]}, "it must be an object"),
        (
            {"rank_pattern": dict.fromkeys(map(str, range(1025)), 2)},
            "has 1025 keys .* at most 1024",
        ),
        ({"lora_alpha": 10**400}, "it must be a number"),
        ({"use_rslora": "false"}, "use_rslora is 'false' .* true or false"),
        ({"alpha_pattern": {"[z-a]_proj": 2}}, "cannot be matched"),
        ({"rank_pattern": {"q_proj": 300}}, "ranks go from 1 to 256"),
        ({"base_model_name_or_path": "half \ud800"}, r"is 'half \\ud800' in .* a name or a path"),
        ({"base_model_name_or_path": "x" * 4097}, "of 4096 characters at most"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_served_is_refused_by_its_name(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        parse_peft_config({**PEFT, **setting})


def test_ranks_and_scalings_follow_pefts_patterns() -> None:
    config = parse_peft_config(
        {
            **PEFT,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 16},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32},
        }
    )
    first, second = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    assert (config.rank_of(first), config.scaling_of(first)) == (2, 16.0)
    assert (config.rank_of(second), config.scaling_of(second)) == (2, 4.0)
    assert config.rank_of("model.layers.1.mlp.up_proj") == 16
    assert config.rank_of("model.layers.11.mlp.up_proj") == 4
    assert config.largest_rank == 16
    stable = parse_peft_config({**PEFT, "use_rslora": True})
    assert stable.scaling_of(first) == 4.0


@pytest.mark.parametrize(
    "pattern",
    [
        "(q|k)_proj",
        "q_proj|k_proj",
        r"layers\.(?:0|1)\.self_attn\.[qv]_proj",
        r"^model.layers.[0-9]+.mlp.*",
        r".*self_attn.*",
        r"model\.layers\.(1\d|2[0-3])\.mlp\.(gate|up)_proj",
        r"layers\.\d{1,2}\.[^.]+\.o_?proj$",
        "(q_proj|^model.layers.1.mlp.down_proj)",
    ],
)
def test_regular_expressions_mean_what_peft_takes_them_for(pattern: str) -> None:
    from peft.utils.other import get_pattern_key

    config = parse_peft_config({**PEFT, "rank_pattern": {pattern: 7}})
    matched = {}
    for layer in (0, 1, 2, 11, 23, 24):
        for name in module_shapes(CONFIG):
            full_name = f"model.layers.{layer}.{name}"
            matched[full_name] = config.rank_of(full_name) == 7
            assert matched[full_name] == (get_pattern_key([pattern], full_name) == pattern)
    assert set(matched.values()) == {True, False}


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
def test_patterns_name_modules_as_the_model_that_was_trained_does(
    prefix: str, tmp_path: Path
) -> None:
    pattern = {f"{prefix}layers.1.self_attn.v_proj": 32}
    written = f"base_model.model.{prefix}"
    settings = {"targets": ("v_proj",), "alpha_pattern": pattern, "prefix": written}
    weights = load(make_adapter(tmp_path, CONFIG, **settings))
    assert [copy.scaling for copy in weights.layout.copies.copies] == [1.0, 8 / 4, 1.0, 32 / 4]


def test_adapters_that_were_trained_alike_share_a_layout_and_others_do_not(tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / str(seed), CONFIG, seed=seed) for seed in (1, 2)]
    config = folders[1] / "adapter_config.json"
    values = json.loads(config.read_text())
    # PEFT saves them in any order.
    values["target_modules"] = [*reversed(values["target_modules"])]
    config.write_text(json.dumps(values))
    first, alike = map(load, folders)
    assert first.layout is alike.layout
    assert first.digest != alike.digest
    other = load(make_adapter(tmp_path / "3", CONFIG, lora_alpha=5))
    assert other.layout is not first.layout
    filled = torch.empty(2, first.layout.packing.size)
    for weights, run in zip((first, alike), filled, strict=True):
        weights.copy_into(run)
    assert not torch.equal(filled[0], filled[1])


def test_an_adapter_takes_no_more_than_it_is(tmp_path: Path) -> None:
    weights = load(make_adapter(tmp_path, CONFIG, rank=3, targets=("v_proj", "down_proj")))
    qkv, output, gate_up, down = PROJECTIONS[:4]
    packing = weights.layout.packing
    assert packing.ranks == (16, 0, 0, 16) * 2
    assert packing.size == 2 * (qkv.num_elements(16) + down.num_elements(16))
    buffer = torch.full((packing.size + 5,), float("nan"))
    weights.copy_into(buffer)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = list(packing.matrices(buffer))[4]
    start, rank = packing.table[4]
    assert torch.equal(b.flatten(), buffer[start : start + rank * sum(qkv.out_features)])
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    assert torch.equal(a[2, :3], tensors[name.format("A")])
    assert not a[:2].any()
    assert not a[2, 3:].any()
    assert torch.equal(b[-32:, :3], tensors[name.format("B")] * (8 / 3))
    assert not b[:-32].any()
    assert buffer[packing.size :].isnan().all()
    assert (output.layer, gate_up.layer) == (0, 0)


def change(folder: Path, change: Any) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
CHANGES: dict[str, tuple[Any, str]] = {
    "embeddings": (
        lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2)}),
        "embeddings and the output head are not adapted",
    ),
    "untrained embeddings": (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(2)}),
        "save the adapter with save_embedding_layers=False",
    ),
    "unknown": (
        lambda t: t.update({"base_model.model.visual.x": torch.ones(2)}), "which is not served"
    ),
    "vision": (
        lambda t: t.update({Q.format("A").replace("model.layers", "vision.layers"): torch.ones(2)}),
        "which is not served",
    ),
    "layer": (
        lambda t: t.update({Q.format("A").replace(".0.", ".7."): torch.ones(4, 32)}),
        "this model has no such module; the adapter was made for 'test/base'",
    ),
    "half": (lambda t: t.pop(Q.format("B")), "without its other half"),
    "shape": (
        lambda t: t.update({Q.format("A"): torch.ones(4, 33)}),
        r"has the shape \(4, 33\); for this model and rank it must be \(4, 32\)",
    ),
    "rank": (lambda t: t.update({Q.format("A"): torch.ones(5, 32)}), r"it must be \(4, 32\)"),
    "integers": (
        lambda t: t.update({Q.format("A"): torch.ones(4, 32, dtype=torch.int8)}), "stored as 'I8'"
    ),
    "empty": (lambda t: t.clear(), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    action, message = CHANGES[name]
    with pytest.raises(AdapterError, match=message):
        load(change(make_adapter(tmp_path, CONFIG), action))


def test_what_only_training_reads_is_left_out(tmp_path: Path) -> None:
    mica = make_adapter(tmp_path / "mica", CONFIG, init_lora_weights="mica")
    plain = load(make_adapter(tmp_path / "plain", CONFIG)).layout.packing
    assert load(mica).layout.packing == plain
    velora = make_adapter(tmp_path / "velora", CONFIG, velora_config={"num_groups": 32})
    name = Q.format("").replace("lora_.weight", "lora_velora_embed")
    change(velora, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert load(velora).layout.packing == plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
def test_what_is_not_finite_is_refused(
    value: float, side: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q.format(side)][-1, 2] = value

    weights = load(change(make_adapter(tmp_path, CONFIG), spoil))
    with pytest.raises(AdapterError, match=f"not finite as {dtype}"):
        weights.copy_into(torch.empty(weights.layout.packing.size, dtype=dtype))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_b_is_scaled_in_float32_and_rounded_once(stored: torch.dtype, tmp_path: Path) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()})
        tensors[Q.format("B")].mul_(3000)

    folder = change(make_adapter(tmp_path, CONFIG, rank=5, lora_alpha=8), convert)
    weights = load(folder)
    run = torch.full((weights.layout.packing.size,), float("nan"), dtype=torch.bfloat16)
    weights.copy_into(run)
    (_, b) = next(weights.layout.packing.matrices(run))
    stored_b = load_file(folder / "adapter_model.safetensors")[Q.format("B")]
    rows = b[: len(stored_b)]
    assert torch.equal(rows[:, :5], (stored_b.float() * 1.6).bfloat16())
    assert not rows[:, 5:].any()


def test_a_rank_above_the_servers_is_refused_with_the_flag_to_change(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"rank is 12; .* at most 8: .* --max-lora-rank 12 \(max"
    ):
        load(make_adapter(tmp_path, CONFIG, rank=4, rank_pattern={"q_proj": 12}), max_rank=8)


@pytest.mark.parametrize("cut", [0, 4, 50, 3000], ids=str)
def test_a_file_that_was_cut_short_is_refused(cut: int, tmp_path: Path) -> None:
    path = make_adapter(tmp_path, CONFIG) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AdapterError, match="copy it again"):
        load(tmp_path)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    path = make_adapter(tmp_path, CONFIG) / "adapter_model.safetensors"
    for entry in (
        {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 10**9]},
        {"dtype": "F32", "shape": [4, 32], "data_offsets": [-512, 0]},
        {"dtype": "F32", "shape": [-4, -32], "data_offsets": [0, 512]},
        {"dtype": "F32", "shape": [4, 32], "data_offsets": [2, 514]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 512]},
        {"dtype": "F32", "shape": [4, 32], "data_offsets": [0.0, 512.0]},
        {"dtype": "F32", "shape": [4, 32], "data_offsets": [512]},
        {"dtype": "F32", "shape": [True, 128], "data_offsets": [0, 512]},
        {"dtype": ["F32"], "shape": [4, 32], "data_offsets": [0, 512]},
        {"dtype": "F32"},
        7,
    ):
        write_header(path, {Q.format("A"): entry})
        with pytest.raises(AdapterError):
            load(tmp_path)
    write_header(path, [])
    with pytest.raises(AdapterError, match="no JSON object"):
        load(tmp_path)


def write_header(path: Path, header: object) -> None:
    """Before a kilobyte of zeros."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1024))


def test_the_work_that_a_header_makes_is_bounded(tmp_path: Path) -> None:
    """Lengths of a shape are multiplied, and a number may have 4,300 digits."""
    path = make_adapter(tmp_path, CONFIG) / "adapter_model.safetensors"
    for shape in ([10**4000] * 9, [1] * 9):
        write_header(path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}})
        with pytest.raises(AdapterError, match="'a' has no shape of at most 8 lengths"):
            load(tmp_path)
    write_header(path, {"__metadata__": {"format": "x" * (1 << 20)}})
    with pytest.raises(AdapterError, match=r"header of 10\d+ bytes; at most 1048576 are read"):
        lay_out(read_adapter(tmp_path, 2 * MAX_BYTES, 16), PROJECTIONS, 16)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1] * 90_000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**4000], "data_offsets": [0, 10**4000]},
        {"dtype": "x" * 100_000},
    ],
    ids=("shape", "numbers", "dtype"),
)
def test_what_is_said_of_a_header_is_short(entry: dict[str, object], tmp_path: Path) -> None:
    path = make_adapter(tmp_path, CONFIG) / "adapter_model.safetensors"
    write_header(path, {"k" * 100_000: entry})
    with pytest.raises(AdapterError) as refused:
        load(tmp_path)
    assert len(str(refused.value)) < 700


def test_pickles_missing_files_and_huge_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is not a folder"):
        find_adapter(AdapterSource(str(tmp_path / "nowhere")))
    with pytest.raises(ModelLoadError, match="neither a folder nor hf://"):
        find_adapter(AdapterSource("hf://one-part"))
    folder = make_adapter(tmp_path / "adapter", CONFIG)
    with pytest.raises(AdapterError, match="at most"):
        read_adapter(folder, -(1 << 20), 16)
    with pytest.raises(AdapterError, match="rank is 4; this server takes at most 2"):
        read_adapter(folder, -(1 << 20), 2)  # the reason, not that the file is large
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="a pickle, which is never loaded"):
        load(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"holds no adapter_model.safetensors\. Name"):
        load(folder)
    (tmp_path / "secret").mkdir()
    for number in range(8):
        make_adapter(tmp_path / f"checkpoint-{number}", CONFIG)
    with pytest.raises(ModelLoadError, match=r"_config\.json; adapters are in") as refused:
        load(tmp_path)
    assert "adapter, checkpoint-0, " in str(refused.value)
    assert "checkpoint-6, 1 more below it. Name" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert last_change(AdapterSource("a\0b")) is None


def test_one_of_its_files_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "adapter", CONFIG)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelLoadError, match=r"^adapter/adapter_config\.json is not a folder; give"
    ):
        find_adapter(AdapterSource("adapter/adapter_config.json"))


def test_files_of_the_same_age_and_size_are_told_apart(tmp_path: Path) -> None:
    """As a link's that leads to the next of many versions, or of a copy that keeps times."""
    link, changes = tmp_path / "latest", set()
    for seed in range(2):
        folder = make_adapter(tmp_path / f"version-{seed}", CONFIG, seed=seed)
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        changes.add(last_change(AdapterSource(str(link))))
        assert last_change(AdapterSource(str(link))) in changes
    assert len(changes) == 2


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads what it likes."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", [".", "adapter", "adapter/adapter_config.json"])
def test_what_may_not_be_read_is_forbidden(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        folder = make_adapter(root / "adapter", CONFIG)
        mode = (root / closed).stat().st_mode
        (root / closed).chmod(0)
        try:
            with as_nobody(), pytest.raises(SourceForbiddenError, match="change"):
                load(find_adapter(AdapterSource(str(folder))).folder)
        finally:
            (root / closed).chmod(mode)


def test_the_digest_names_contents_and_not_places(tmp_path: Path) -> None:
    digests = [
        read_adapter(
            make_adapter(tmp_path / name, CONFIG, seed=seed, alpha=alpha), MAX_BYTES, 16
        ).digest
        for name, seed, alpha in [("a", 1, 8), ("b", 1, 8), ("c", 2, 8), ("d", 1, 9)]
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
