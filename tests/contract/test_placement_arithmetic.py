"""Operator and worker count a GPU's memory alike: what one plans, the other can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_services import inference_service
from model_shapes import LLAMA_8B, MIXTRAL_8X7B, QWEN_32B, SMOLLM_135M
from octavo.cli import main
from octavo.config import EngineConfig
from octavo.engine.model_shape import can_split
from octavo.errors import OutOfMemoryError
from octavo.kernels.adapters import AdapterStack
from octavo.models import registry
from octavo.models.decoder import projections_of
from octavo.runner.memory import UNCOUNTED_BYTES, kv_budget
from octavo.runner.trial_steps import CardUse
from octavo_operator.placement import footprint as operators
from octavo_operator.placement.footprint import Split, footprint, split_problem
from octavo_operator.placement.model_shape import ModelShape, read_report
from octavo_operator.resources.engine import Engine
from octavo_operator.resources.inference_service import parse_inference_service
from tiny_models import FAMILIES, make_tiny_model

SHAPES = {"8b": LLAMA_8B, "32b": QWEN_32B, "mixtral": MIXTRAL_8X7B, "135m": SMOLLM_135M}


def engine(**fields: Any) -> Engine:
    return parse_inference_service(inference_service(engine=fields)).engine


def inspected(folder: Path, tmp_path: Path) -> ModelShape:
    """What the operator understands of what the worker says."""
    target = tmp_path / "message"
    assert main(["inspect", str(folder), "--json", "--output", str(target)]) == 0
    shape = read_report(target.read_text())
    assert shape is not None
    return shape


@pytest.mark.parametrize("family", FAMILIES)
def test_operator_understands_what_the_worker_says_of_a_model(family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path / "model")
    shape = inspected(folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert shape.num_layers == config["num_hidden_layers"]
    need = footprint(shape, engine(maxModelLen=64), Split())
    assert need.weights_bytes == shape.weights_bytes
    assert need.kv_bytes == 64 * shape.kv_bytes_per_token


class _Model:
    def __init__(self, shape: ModelShape) -> None:
        self.num_layers = shape.num_layers
        self.num_kv_heads = shape.num_kv_heads
        self.head_dim = shape.head_dim


class _Card:
    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes

    def free_bytes(self) -> int:
        return self.total_bytes


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("length", [16, 1000, 8192])
def test_the_smallest_card_that_the_operator_takes_is_the_smallest_that_the_worker_takes(
    shape: ModelShape, length: int
) -> None:
    need = footprint(shape, engine(maxModelLen=length), Split())
    use = CardUse(need.weights_bytes, need.workspace_bytes, 0, us_per_token=1.0)
    config = EngineConfig(model="m", max_model_len=length, gpu_memory_utilization=1.0)

    def is_taken(total_bytes: int) -> bool:
        try:
            kv_budget(
                config,
                _Model(shape),  # type: ignore[arg-type]
                dtype=torch.bfloat16,
                max_model_len=length,
                max_num_seqs=256,
                card=_Card(total_bytes),  # type: ignore[arg-type]
                use=use,
            )
        except OutOfMemoryError:
            return False
        return True

    assert is_taken(need.total_bytes)
    assert not is_taken(need.total_bytes - 1)


def test_constants_are_the_workers() -> None:
    assert operators.UNCOUNTED_BYTES == UNCOUNTED_BYTES
    assert EngineConfig(model="m").block_size == operators.BLOCK_TOKENS


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_take_what_the_worker_sets_aside(family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path / "model")
    config = registry.resolve(json.loads((folder / "config.json").read_text())).config
    stack = AdapterStack.allocate(
        projections_of(config), 4, 24, torch.bfloat16, torch.device("meta")
    )
    lora = engine(lora={"maxAdapters": 4, "maxRank": 24})
    need = footprint(inspected(folder, tmp_path), lora, Split())
    assert need.adapters_bytes == stack.size_bytes


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_split_over_the_same_numbers_of_gpus(shape: ModelShape) -> None:
    for num_gpus in range(1, 65):
        is_possible = split_problem(shape, Split(num_gpus)) is None
        assert can_split(shape, num_gpus) is is_possible  # type: ignore[arg-type]
