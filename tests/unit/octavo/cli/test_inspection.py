"""``octavo inspect``: what a model takes, before anybody has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli import main
from tiny_models import make_tiny_model


def test_the_table_counts_with_a_request_of_the_length_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_tiny_model("llama", tmp_path))
    assert main(["inspect", model, "--max-model-len", "256"]) == 0
    table = capsys.readouterr().out
    assert "512 tokens" in table
    assert "  of 256" in table


def test_a_length_that_the_model_was_not_made_for_is_refused_as_serving_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_tiny_model("llama", tmp_path))
    assert main(["inspect", model, "--max-model-len", "513"]) == 2
    assert "--max-model-len is 513, but the model was made for 512" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["inspect", model, "--max-model-len", "0"])
    assert ended.value.code == 2
    assert "'0' is too few" in capsys.readouterr().err
