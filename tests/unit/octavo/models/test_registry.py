"""The registry finds families, imports only the one asked for, and lists what it knows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models import registry
from octavo.models.family import ModelFamily
from tiny_models import FAMILIES, tiny_config


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_by_architecture_and_by_model_type(family: str) -> None:
    config = tiny_config(family)
    by_architecture = registry.resolve(config)
    del config["architectures"]
    assert registry.resolve(config).config == by_architecture.config


def test_unknown_architecture_lists_what_is_supported() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        registry.resolve({"architectures": ["FooForCausalLM"], "model_type": "llama"})
    assert "FooForCausalLM" in str(caught.value)
    for name in registry.supported_architectures():
        assert name in str(caught.value)
    assert "octavo.models" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"architectures": "LlamaForCausalLM"}, id="string"),
        pytest.param({"architectures": []}, id="empty"),
        pytest.param({"architectures": [3], "model_type": "llama"}, id="number"),
    ],
)
def test_file_without_a_usable_architecture_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="architectures is"):
        registry.resolve(config)


def test_only_the_chosen_familys_module_is_imported() -> None:
    code = (
        "import sys; from octavo.models import registry; "
        "registry.resolve({'architectures': ['MistralForCausalLM'], 'vocab_size': 8, "
        "'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1, "
        "'num_attention_heads': 2, 'max_position_embeddings': 64}); "
        "print(*sorted(m for m in sys.modules if m.startswith('octavo.models.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {module.removeprefix("octavo.models.") for module in run.stdout.split()}
    assert "mistral" in imported
    assert not imported & {"llama", "qwen2", "qwen3", "gemma3"}


PLUGIN = "octavo_test_plugin"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Installs a package that serves FooForCausalLM; lists the groups that were looked at."""

    def family(hf_config: Mapping[str, object]) -> ModelFamily:
        assert hf_config["architectures"] == ["FooForCausalLM"]
        return registry.resolve({**hf_config, "architectures": ["LlamaForCausalLM"]})

    module = ModuleType(PLUGIN)
    vars(module)["family"] = family
    monkeypatch.setitem(sys.modules, PLUGIN, module)
    points = [
        EntryPoint(name, f"{PLUGIN}:family", registry.ENTRY_POINT_GROUP)
        for name in ("FooForCausalLM", "LlamaForCausalLM")
    ]
    looked_at: list[str] = []

    def entry_points(*, group: str, name: str | None = None) -> EntryPoints:
        looked_at.append(group)
        return EntryPoints(point for point in points if name in (None, point.name))

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return looked_at


def test_third_party_architecture_comes_from_an_entry_point(installed: list[str]) -> None:
    config = tiny_config("llama", architectures=["FooForCausalLM"])
    assert registry.resolve(config).config == registry.resolve(tiny_config("llama")).config
    assert "FooForCausalLM" in registry.supported_architectures()
    assert set(installed) == {"octavo.models"}


def test_entry_points_are_not_looked_at_for_built_in_names(installed: list[str]) -> None:
    registry.resolve(tiny_config("llama"))
    assert installed == []
