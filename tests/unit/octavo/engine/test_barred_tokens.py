"""Words that are not generated and the only tokens allowed, in whole engines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from octavo.engine.intake import Intake
from octavo.engine.model_info import ModelInfo
from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.tokenization.tokenizer import Tokenizer
from tiny_engine import TinyEngine, UncapturedGraphs, request_spec, run_to_end, tokens_of

_DRAW = random.Random(2)
PROMPTS = [[_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 60))] for _ in range(6)]
WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "alone": {"max_num_seqs": 1},
    "one-step-ahead": {"max_num_seqs": 8, "look_ahead": 1},
    "preempted-one-step-ahead": {"num_blocks": 9, "look_ahead": 1},
    "padded-steps": {"graphs": UncapturedGraphs, "look_ahead": 1},
}
FREE = SamplingParams(temperature=1.0, max_tokens=30)
RANDOM: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40, "top_k": 6}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


def holds(tokens: list[int], sequence: list[int]) -> bool:
    length = len(sequence)
    return any(tokens[at : at + length] == sequence for at in range(len(tokens) - length + 1))


@pytest.mark.parametrize("way", WAYS)
def test_sequences_are_not_completed_and_their_beginnings_may_stand(
    engine: TinyEngine, way: str
) -> None:
    free = engine.generate(PROMPTS, SamplingParams(**RANDOM), engine.core(**WAYS[way]))
    # One, two and three tokens that would have come; two of them end in the same token.
    bad = [free[0][9:10], free[1][4:6], free[2][7:10], [300 - 45, free[1][5]]]
    params = SamplingParams(**RANDOM, bad_word_token_ids=bad)
    barred = engine.generate(PROMPTS, params, engine.core(**WAYS[way]))
    for tokens in barred:
        assert not any(holds(tokens, sequence) for sequence in bad)
    # Until the first that would have been completed nothing changes.
    for before, after in zip(free, barred, strict=True):
        ends = [
            end
            for end in range(1, len(before) + 1)
            if any(before[:end][-len(sequence) :] == sequence for sequence in bad)
        ]
        first = min(ends, default=len(before) + 1) - 1
        assert before[:first] == after[:first]
        assert first == len(before) or before != after
    assert engine.generate(PROMPTS, params, engine.core()) == barred, "batching changes nothing"


def test_a_sequence_begun_in_the_prompt_may_be_completed(engine: TinyEngine) -> None:
    prompt, params = [5, 6, 7], SamplingParams(temperature=0, max_tokens=4)
    (free,) = engine.generate([prompt], params, engine.core())
    barred = SamplingParams(temperature=0, max_tokens=4, bad_word_token_ids=[[7, free[0]]])
    assert engine.generate([prompt], barred, engine.core())[0][0] == free[0]


@pytest.fixture(scope="module")
def alone(engine: TinyEngine) -> list[list[int]]:
    """What is drawn freely with nothing beside it."""
    return engine.generate(PROMPTS, FREE, engine.core(max_num_seqs=1))


@pytest.mark.parametrize("way", WAYS)
def test_only_allowed_tokens_are_drawn_and_others_are_not_touched(
    engine: TinyEngine, alone: list[list[int]], way: str
) -> None:
    core = engine.core(**WAYS[way])
    allowed = SamplingParams(temperature=1.0, max_tokens=30, allowed_token_ids=[3, 250, 271])
    for index, prompt in enumerate(PROMPTS):
        params = allowed if index % 2 else FREE
        core.submit([request_spec(str(index), prompt, params, seed=index)])
    updates = run_to_end(core)
    core.check_integrity()
    for index in range(len(PROMPTS)):
        tokens = tokens_of(updates, str(index))
        if index % 2:
            assert set(tokens) <= {3, 250, 271}
            assert len(tokens) == 30
        else:
            assert tokens == alone[index]


def intake(folder: Path) -> tuple[Intake, Tokenizer]:
    """With a vocabulary of letters and bytes in which a word's first letter takes in its space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "Ġh"]
    backend = Backend(models.BPE({token: id for id, token in enumerate(tokens)}, [("Ġ", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.open(folder)
    info = ModelInfo(
        name="tiny",
        max_model_len=64,
        vocab_size=tokenizer.vocab_size,
        has_tokenizer=True,
        eos_token_ids=[1],
        created=0,
    )
    return Intake(info, 0, tokenizer), tokenizer


def test_bad_words_are_spelt_within_words_and_after_spaces(tmp_path: Path) -> None:
    taker, tokenizer = intake(tmp_path)
    params = SamplingParams(bad_words=["hi", " hi", "no"], bad_word_token_ids=[[3]])
    spelt = taker.spell_bad_words(params)
    assert spelt.bad_words == ()
    hi, spaced_hi, no = (tokenizer.encode(text, False) for text in ("hi", " hi", "no"))
    assert len(hi) == len(spaced_hi) == 2, "the space is in the first token"
    # " no" ends with "no", and is barred with it.
    assert [list(ids) for ids in spelt.bad_word_token_ids] == [
        [3], hi, spaced_hi, hi, spaced_hi, no,
    ]  # fmt: skip


def test_bad_words_need_a_tokenizer(tmp_path: Path) -> None:
    info = ModelInfo(
        name="tiny",
        max_model_len=64,
        vocab_size=9,
        has_tokenizer=False,
        eos_token_ids=[],
        created=0,
    )
    with pytest.raises(InvalidRequestError, match="without a tokenizer"):
        Intake(info, 0).spell_bad_words(SamplingParams(bad_words=["x"]))


@pytest.mark.parametrize(
    "arguments",
    [{"allowed_token_ids": [97]}, {"bad_words": ["a"]}, {"bad_word_token_ids": [[97]]}],
)
def test_only_a_grammar_bars_tokens_where_there_is_one(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    taker, _ = intake(tmp_path)
    taker._info = msgspec.structs.replace(taker._info, can_constrain=True)
    structure = StructuredOutputs(regex="a+")
    assert taker.grammar_of(SamplingParams(structured_outputs=structure)) is not None
    with pytest.raises(InvalidRequestError, match="say it in the grammar"):
        taker.grammar_of(SamplingParams(structured_outputs=structure, **arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"allowed_token_ids": [4], "bad_word_token_ids": [[9, 4]]}, "may bar all"),
        ({"allowed_token_ids": [1], "min_tokens": 1}, "may bar all"),
        ({"allowed_token_ids": [10**6]}, "1000000"),
        ({"bad_word_token_ids": [[3, 10**6]]}, "1000000"),
    ],
)
def test_what_leaves_nothing_to_draw_is_refused(
    tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    taker, _ = intake(tmp_path)
    with pytest.raises(InvalidRequestError, match=words):
        taker.prepare("x", [2, 3], SamplingParams(**arguments))
    eos_ignored = SamplingParams(allowed_token_ids=[1], min_tokens=1, ignore_eos=True)
    assert taker.prepare("x", [2, 3], eos_ignored)
