"""The whole engine gives the same greedy tokens with the C kernels, the reference ones and
Triton's, interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from greedy_by_kernels import greedy, greedy_with_adapters
from tiny_models import FAMILIES, make_tiny_model

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def by_cpu(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    return {family: greedy(str(folder), "cpu") for family, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_c_kernels_and_reference_agree(
    folders: dict[str, Path], by_cpu: dict[str, list[list[int]]], family: str
) -> None:
    assert len({tuple(tokens) for tokens in by_cpu[family]}) == 3
    assert greedy(str(folders[family]), "reference") == by_cpu[family]


def test_c_kernels_and_interpreted_triton_agree(
    folders: dict[str, Path], by_cpu: dict[str, list[list[int]]]
) -> None:
    support = str(Path(__file__).parents[1] / "support")
    path = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "greedy_by_kernels", "triton", *map(str, folders.values())]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *tokens, adapted = [json.loads(line) for line in done.stdout.splitlines()]
    assert dict(zip(folders, tokens, strict=True)) == by_cpu
    expected = greedy_with_adapters(str(list(folders.values())[-1]), "cpu")
    assert all(len(logprobs) == 2 for logprobs in expected)
    for logprobs, wanted in zip(adapted, expected, strict=True):
        assert logprobs == pytest.approx(wanted, abs=1e-3)
