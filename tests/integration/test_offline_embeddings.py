"""``LLM.embed``: vectors of prompts, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, LoRARequest
from octavo.engine.model_info import ModelInfo
from octavo.engine.pooling import checked_pooling
from octavo.errors import InvalidRequestError
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model, tiny_config

HELLO = list(b"hello")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    llm = LLM(model, max_model_len=128, max_num_seqs=4, num_threads=1, enable_lora=True)
    yield llm
    llm.check_integrity()
    llm.close()


def test_a_vector_of_each_prompt_is_the_models_hidden_state(llm: LLM, model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaModel.from_pretrained(model, dtype=torch.float32)
    hidden = reference(torch.tensor([HELLO])).last_hidden_state[0].detach()
    for pooling, raw in (("last", hidden[-1]), ("mean", hidden.mean(dim=0))):
        other, found = llm.embed(["x", HELLO], pooling=pooling, normalize=False, use_tqdm=False)
        torch.testing.assert_close(torch.tensor(found.outputs.embedding), raw)
        assert (found.prompt_token_ids, found.outputs.error) == (HELLO, None)
        assert other.outputs.embedding != found.outputs.embedding
    (unit,) = llm.embed("hello", use_tqdm=False)
    expected = torch.nn.functional.normalize(hidden[-1], dim=0)
    torch.testing.assert_close(torch.tensor(unit.outputs.embedding), expected)
    assert llm.embed([]) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "cls"}, "pooling is 'cls'; it must be 'last' or 'mean'"),
        ({"dimensions": 8}, "dimensions is 8; this model's vectors have 32 and were not made"),
        ({"dimensions": 33}, "dimensions is 33"),
        ({"dimensions": "32"}, "dimensions is '32'"),
    ],
)
def test_a_vector_that_cannot_be_had_is_refused(
    llm: LLM, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        llm.embed("hello", **options)


def test_prompts_that_are_too_long_can_be_cut(llm: LLM) -> None:
    long = "0123456789" * 20
    with pytest.raises(InvalidRequestError, match=r"Prompt 1: The prompt has 200 tokens"):
        llm.embed(["x", long], use_tqdm=False)
    for prompt in (long, list(long.encode())):
        (fits,) = llm.embed(prompt, truncate_prompt_tokens=-1, use_tqdm=False)
        assert bytes(fits.prompt_token_ids).decode() == long[-128:]
    short, cut = llm.embed(["ab", long], truncate_prompt_tokens=5, use_tqdm=False)
    assert bytes(short.prompt_token_ids) == b"ab"
    assert bytes(cut.prompt_token_ids) == b"56789"


@pytest.mark.parametrize("kept", [0, -2, 1.5, "5", True])
def test_a_cut_that_makes_no_sense_is_refused(llm: LLM, kept: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"truncate_prompt_tokens is .*at least 1, or -1"):
        llm.embed("x", truncate_prompt_tokens=kept)


def test_adapters_change_vectors(llm: LLM, tmp_path: Path) -> None:
    adapter = LoRARequest("one", str(make_adapter(tmp_path, tiny_config("llama"))))
    asked = [None, adapter, None]
    base, adapted, again = llm.embed(["hello"] * 3, lora_request=asked, use_tqdm=False)
    assert base.outputs == again.outputs
    assert base.outputs != adapted.outputs


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "words"),
    [
        (None, 5, 17, "dimensions is 17; it must be from 1 to 16"),
        ([4, 8], 8, 5, "dimensions is 5; it must be one of 4, 8, 16"),
        ([], 16, 8, "were not made to be cut"),
    ],
)
def test_vectors_are_cut_where_the_model_was_made_for_it(
    allowed: list[int] | None, good: int, bad: int, words: str
) -> None:
    info = ModelInfo(
        name="m",
        max_model_len=8,
        vocab_size=9,
        hidden_size=16,
        pooling="mean",
        embedding_dimensions=allowed,
        has_tokenizer=False,
        eos_token_ids=[],
        created=0,
    )
    params = checked_pooling(info, None, good, normalize=False)
    assert (params.pooling, params.dimensions, params.normalize) == ("mean", good, False)
    with pytest.raises(InvalidRequestError, match=words):
        checked_pooling(info, None, bad, normalize=True)


def test_the_progress_bar_speaks_of_vectors_and_of_no_tokens(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.embed(["a", "b"])
    shown = capsys.readouterr().err
    assert "Embedding: 100%" in shown
    assert "tokens/s" not in shown
