"""What is read off prompts, scores and embeddings, however their steps are planned."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.sampling_params import SamplingParams
from tiny_engine import MAX_MODEL_LEN, TinyEngine, UncapturedGraphs, request_spec, run_to_end

_DRAW = random.Random(1)
SHARED = [_DRAW.randrange(256) for _ in range(40)]
PROMPTS = [
    SHARED + [_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 50))] for _ in range(5)
] + [[7], [7, 8], SHARED]
SCORED = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=3)
PLAIN = SamplingParams(temperature=0, max_tokens=6)
NOTHING = SamplingParams(max_tokens=0)
WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "small-chunks": {"max_num_batched_tokens": 7},
    "one-step-ahead": {"max_num_seqs": 8, "look_ahead": 1},
    "preempted": {"num_blocks": 9, "max_num_batched_tokens": 32},
    "preempted-one-step-ahead": {"num_blocks": 9, "look_ahead": 1},
    "no-prefix-cache": {"enable_prefix_caching": False},
    "padded-steps": {"graphs": UncapturedGraphs, "look_ahead": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TinyEngine:
    return TinyEngine(folder)


def updates_of(updates: list[RequestUpdate], request_id: str) -> list[RequestUpdate]:
    return [update for update in updates if update.request_id == request_id]


@pytest.fixture(scope="module")
def scores(engine: TinyEngine) -> list[list[TokenLogprobs]]:
    """Each prompt token as the draw that only it was allowed, after the tokens before it."""
    result = []
    for prompt in PROMPTS:
        core, tokens = engine.core(), []
        for end in range(1, len(prompt)):
            params = SamplingParams(
                temperature=0, max_tokens=1, logprobs=3, allowed_token_ids=[prompt[end]]
            )
            core.submit([request_spec("one", prompt[:end], params)])
            (update,) = run_to_end(core)
            assert update.logprobs is not None
            tokens += update.logprobs
        result.append(tokens)
    return result


def assert_close(found: list[TokenLogprobs] | None, wanted: list[TokenLogprobs]) -> None:
    assert found is not None
    assert [(one.token_id, one.rank) for one in found] == [
        (one.token_id, one.rank) for one in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one.top_token_ids == other.top_token_ids
        assert [one.logprob, *one.top_logprobs] == pytest.approx(
            [other.logprob, *other.top_logprobs], abs=1e-4
        )


@pytest.mark.parametrize("way", WAYS)
def test_prompt_scores_come_once_and_change_no_draw(
    engine: TinyEngine, scores: list[list[TokenLogprobs]], way: str
) -> None:
    core = engine.core(**WAYS[way])
    plain = engine.generate(PROMPTS, PLAIN, core)  # and the cache is warm
    for index, prompt in enumerate(PROMPTS):
        core.submit([request_spec(str(index), prompt, SCORED, seed=index)])
        # Others that share the prefix and ask nothing run beside them.
        core.submit([request_spec(f"beside-{index}", prompt, PLAIN)])
    updates = run_to_end(core)
    core.check_integrity()
    for index, wanted in enumerate(scores):
        first, *later = updates_of(updates, str(index))
        assert_close(first.prompt_logprobs, wanted)
        assert all(update.prompt_logprobs is None for update in later)
        drawn = [token for update in [first, *later] for token in update.new_token_ids]
        assert drawn == plain[index]
        assert first.num_cached_tokens == 0
        beside = updates_of(updates, f"beside-{index}")
        assert [token for update in beside for token in update.new_token_ids] == plain[index]
        assert all(update.prompt_logprobs is None for update in beside)


def test_blocks_of_a_scored_prompt_are_found_by_others(engine: TinyEngine) -> None:
    core = engine.core()
    core.submit([request_spec("scored", SHARED, SCORED)])
    core.submit([request_spec("later", SHARED, PLAIN)])
    run_to_end(core)
    core.submit([request_spec("last", SHARED, PLAIN)])
    assert run_to_end(core)[0].num_cached_tokens == 32


@pytest.mark.parametrize("prompt", [SHARED, SHARED[:9]], ids=["blocks", "less-than-a-block"])
@pytest.mark.parametrize("has_cache", [True, False])
def test_siblings_speak_after_the_leader_has_told_of_the_prompt(
    engine: TinyEngine, prompt: list[int], has_cache: bool
) -> None:
    core = engine.core(enable_prefix_caching=has_cache, max_num_batched_tokens=16)
    specs = [request_spec("a", prompt, SCORED)]
    specs += [request_spec(name, prompt, PLAIN, leader_id="a") for name in ("b", "c")]
    core.submit(specs)
    updates = run_to_end(core)
    assert updates[0].request_id == "a"
    assert updates[0].prompt_logprobs is not None
    assert len(updates) == 18
    core.check_integrity()


@pytest.mark.parametrize("way", WAYS)
def test_a_request_for_no_tokens_reads_its_prompt_and_ends(
    engine: TinyEngine, scores: list[list[TokenLogprobs]], way: str
) -> None:
    core = engine.core(**WAYS[way])
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    for index, prompt in enumerate(PROMPTS):
        core.submit([request_spec(str(index), prompt, params)])
        core.submit([request_spec(f"unscored-{index}", prompt, NOTHING)])
    updates = run_to_end(core)
    core.check_integrity()
    assert len(updates) == 2 * len(PROMPTS)
    for index, wanted in enumerate(scores):
        (update,) = updates_of(updates, str(index))
        assert (update.finish_reason, update.new_token_ids) == ("length", [])
        assert_close(update.prompt_logprobs, wanted)
        (unscored,) = updates_of(updates, f"unscored-{index}")
        assert (unscored.finish_reason, unscored.prompt_logprobs) == ("length", None)
    assert core.stats().generation_tokens == 0


def test_a_prompt_that_is_only_read_may_fill_the_context(engine: TinyEngine) -> None:
    prompt = [_DRAW.randrange(256) for _ in range(MAX_MODEL_LEN)]
    core = engine.core()
    core.submit([request_spec("full", prompt, NOTHING)])
    (update,) = run_to_end(core)
    assert update.finish_reason == "length"
    core.check_integrity()


@pytest.fixture(scope="module")
def states(engine: TinyEngine, folder: Path) -> list[torch.Tensor]:
    """Each prompt's hidden states after the last norm, by transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model
    with torch.no_grad():
        return [model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]


POOLINGS = {
    "last": PoolingParams("last"),
    "mean": PoolingParams("mean"),
    "mean-cut": PoolingParams("mean", dimensions=8),
    "last-raw": PoolingParams("last", normalize=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("params", POOLINGS.values(), ids=list(POOLINGS))
def test_embeddings_are_transformers_hidden_states(
    engine: TinyEngine, states: list[torch.Tensor], params: PoolingParams, way: str
) -> None:
    core = engine.core(**WAYS[way])
    for _ in range(2):  # cold, and with the prompts in the cache
        for index, prompt in enumerate(PROMPTS):
            spec = request_spec(str(index), prompt, NOTHING)
            spec.pooling = params
            core.submit([spec, request_spec(f"beside-{index}", prompt, PLAIN)])
        updates = run_to_end(core)
        core.check_integrity()
        for index, state in enumerate(states):
            (update,) = updates_of(updates, str(index))
            assert update.embedding is not None
            found = torch.tensor(array("f", update.embedding))
            wanted = state[-1] if params.pooling == "last" else state.mean(dim=0)
            wanted = wanted[: params.dimensions]
            if params.normalize:
                wanted = normalize(wanted, dim=0)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_an_aborted_reading_leaves_nothing_behind(engine: TinyEngine) -> None:
    core = engine.core(max_num_batched_tokens=16)
    spec = request_spec("mean", SHARED, NOTHING)
    spec.pooling = PoolingParams("mean")
    core.submit([spec, request_spec("scored", SHARED, SCORED)])
    core.step()
    core.abort(["mean", "scored"])
    spec = request_spec("next", SHARED, NOTHING)
    spec.pooling = PoolingParams("mean")
    core.submit([spec])
    updates = run_to_end(core)
    core.check_integrity()
    fresh = engine.core()
    fresh.submit([spec])
    (wanted,) = run_to_end(fresh)
    found = updates_of(updates, "next")[0].embedding
    assert found is not None
    assert wanted.embedding is not None
    assert array("f", found) == pytest.approx(array("f", wanted.embedding), abs=1e-5)
