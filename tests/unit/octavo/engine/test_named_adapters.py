"""Adapters of the command line that can never be served are told before a model is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.config import EngineConfig
from octavo.engine import named_adapters
from octavo.engine.adapter_state import AdapterStateFile, RememberedAdapter
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.build import build_engine
from octavo.engine.named_adapters import check_named_adapters
from octavo.errors import AdapterError, ModelLoadError, OctavoError, SourceUnreachableError
from tiny_adapters import make_adapter
from tiny_models import tiny_config

CONFIG = tiny_config("llama")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 17}, "The adapter's rank is 17; this server takes at most 16"),
        ({"use_dora": True}, "use_dora is True"),
        ({"rank_pattern": {"q_proj": 32}}, "The adapter's rank is 32"),
    ],
    ids=["rank", "feature", "rank of one module"],
)
def test_what_its_configuration_tells_ends_a_start_before_there_is_a_model(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = make_adapter(tmp_path / "good", CONFIG)
    bad = make_adapter(tmp_path / "bad", CONFIG, **settings)
    modules = (("good", str(good)), ("bad", f"file://{bad}"))
    config = EngineConfig(
        model=str(tmp_path / "no-model"), enable_lora=True, lora_modules=modules, device="cpu"
    )
    with pytest.raises(AdapterError, match=rf"^--lora-modules bad=file://{bad}: {message}"):
        build_engine(config)


def test_so_do_a_folder_and_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"^--lora-modules gone=/no/such: .* is not a folder"):
        check_named_adapters([("gone", "/no/such")], 16)
    folder = make_adapter(tmp_path / "half", CONFIG)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"holds no adapter_model\.safetensors"):
        check_named_adapters([("half", str(folder))], 16)


def test_what_must_be_fetched_or_may_get_well_is_left_to_its_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def in_trouble(*arguments: object) -> OctavoError:
        raise SourceUnreachableError("The disk is busy; try again.")

    elsewhere = [("hub", "hf://org/name@v1"), ("short", "org/name"), ("bucket", "s3://bucket/one")]
    check_named_adapters(elsewhere, 16)
    monkeypatch.setattr(named_adapters, "check_folder", in_trouble)
    check_named_adapters([("near", "/")], 16)


def test_names_that_were_replaced_over_the_api_are_not_looked_at(tmp_path: Path) -> None:
    AdapterStateFile(tmp_path / "state").write([RememberedAdapter("one", "/new")])
    engine = AsyncEngine(
        EngineConfig(
            model="m",
            enable_lora=True,
            lora_modules=(("one", "/old"), ("two", "/two")),
            lora_state=str(tmp_path / "state"),
        )
    )
    carried = msgspec.json.decode(engine._environment()["OCTAVO_ENGINE_CONFIG"], type=EngineConfig)
    assert carried.lora_modules == (("two", "/two"),)
