from __future__ import annotations

import random
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from octavo.batch import BatchPlan, StepHandle
from octavo.errors import PromptTooLongError
from octavo.grammar import Grammar, Vocabulary
from octavo.outputs import RequestUpdate
from octavo.runner import cuda_graphs
from octavo.runner.model_runner import ModelRunner
from octavo.sampling_params import SamplingParams
from octavo.structured.compiler import GrammarCompiler
from tiny_engine import (
    TinyEngine,
    UncapturedGraphs,
    byte_vocabulary,
    request_spec,
    run_to_end,
    tokens_of,
)
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

_DRAW = random.Random(0)
PROMPTS = [[_DRAW.randrange(256) for _ in range(_DRAW.randrange(1, 90))] for _ in range(9)]
GREEDY = SamplingParams(temperature=0, max_tokens=20)
RANDOM = SamplingParams(temperature=1.0, max_tokens=20)
FILTERED = SamplingParams(temperature=1.0, max_tokens=20, top_p=0.9, top_k=40)
PENALISED = SamplingParams(temperature=1.0, max_tokens=20, presence_penalty=1.0)
DRAWS = {"greedy": GREEDY, "random": RANDOM, "filtered": FILTERED, "penalised": PENALISED}

WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "small-chunks": {"max_num_batched_tokens": 16},
    "one-step-ahead": {"max_num_seqs": 8, "look_ahead": 1},
    "preempted": {"num_blocks": 9},
    "preempted-one-step-ahead": {"num_blocks": 9, "look_ahead": 1},
    "small-blocks": {"block_size": 8, "num_blocks": 16, "look_ahead": 1},
    "no-prefix-cache": {"enable_prefix_caching": False},
    "padded-steps": {"graphs": UncapturedGraphs},
    "padded-steps-of-three-tokens": {
        "graphs": UncapturedGraphs, "max_num_seqs": 3, "max_num_batched_tokens": 3,
    },
    "padded-steps-one-step-ahead": {
        "graphs": UncapturedGraphs, "max_num_seqs": 7, "look_ahead": 1, "num_blocks": 12,
    },
    "padded-steps-of-few-tokens-beside-decodes": {
        "graphs": UncapturedGraphs, "max_num_seqs": 7, "look_ahead": 1,
        "max_num_batched_tokens_while_decoding": 20,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(engine: TinyEngine) -> dict[str, list[list[int]]]:
    """By draw: what each prompt is answered with when nothing runs beside it."""
    return {
        draw: engine.generate(PROMPTS, params, engine.core(max_num_seqs=1))
        for draw, params in DRAWS.items()
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draw", DRAWS)
def test_how_steps_are_planned_changes_no_token(
    engine: TinyEngine, alone: dict[str, list[list[int]]], draw: str, way: str
) -> None:
    assert engine.generate(PROMPTS, DRAWS[draw], engine.core(**WAYS[way])) == alone[draw]


def test_sliding_windows_survive_padding_and_preemption(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, family="gemma3")
    alone = engine.generate(PROMPTS, GREEDY, engine.core(max_num_seqs=1))
    for way in ("preempted-one-step-ahead", "padded-steps-one-step-ahead"):
        assert engine.generate(PROMPTS, GREEDY, engine.core(**WAYS[way])) == alone


class NotedGraphs(UncapturedGraphs):
    """That a test can look at."""

    last: NotedGraphs

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        NotedGraphs.last = self


def test_steps_prepared_ahead_serve_requests_and_touch_none(
    engine: TinyEngine, alone: dict[str, list[list[int]]]
) -> None:
    core = engine.core(graphs=NotedGraphs, max_num_seqs=7, look_ahead=1)
    while core.prepare_next():
        pass
    graphs = NotedGraphs.last
    num_prepared = graphs.num_graphs
    usual = list(graphs.shapes.by_use())
    assert num_prepared == len(usual) == len(set(usual)) > 10
    assert engine.generate(PROMPTS, GREEDY, core) == alone["greedy"]
    # Decodes beside prompts are captured as they occur.
    assert graphs.num_graphs > num_prepared


def test_what_grammars_need_can_be_loaded_before_anyone_asks(engine: TinyEngine) -> None:
    asked: SimpleQueue[None] = SimpleQueue()

    def vocabulary() -> Vocabulary:
        asked.put(None)
        return byte_vocabulary()

    core = engine.core(grammars=GrammarCompiler(vocabulary, VOCAB_SIZE, [EOS_TOKEN_ID]))
    for _ in range(2):
        core.prepare_grammars()
    asked.get(timeout=60)
    core.submit([request_spec("a", [1, 2], GREEDY, grammar=Grammar("start: /[ab]*/"))])
    assert bytes(tokens_of(run_to_end(core), "a")).strip(b"ab") == b""
    assert asked.empty(), "it was loaded once"
    core.close()


def test_choices_of_one_prompt_share_its_blocks(engine: TinyEngine) -> None:
    core = engine.core(max_num_seqs=4)
    prompt = list(range(64))
    core.submit(
        [
            request_spec(f"r:{i}", prompt, RANDOM, seed=i, leader_id="r:0" if i else None)
            for i in range(4)
        ]
    )
    updates = run_to_end(core)
    texts = {tuple(tokens_of(updates, f"r:{i}")) for i in range(4)}
    assert len(texts) == 4
    # Three children each find the prompt's blocks but the last, which they must compute.
    assert core.stats().cached_prompt_tokens == 3 * 48


def test_a_refused_group_leaves_nothing_behind(engine: TinyEngine) -> None:
    core = engine.core(num_blocks=4)
    with pytest.raises(PromptTooLongError):
        core.submit([request_spec("fits", [1, 2], GREEDY), request_spec("long", [1] * 90, GREEDY)])
    assert not core.has_work
    core.check_integrity()
    core.submit([request_spec("fits", [1, 2], GREEDY)])
    assert len(tokens_of(run_to_end(core), "fits")) == 20


def test_aborting_mid_flight_frees_everything(engine: TinyEngine) -> None:
    core = engine.core(look_ahead=1)
    for index, prompt in enumerate(PROMPTS):
        core.submit([request_spec(str(index), prompt, GREEDY)])
    updates = [update for _ in range(7) for update in core.step()]
    core.abort([str(index) for index in range(len(PROMPTS))])
    updates += run_to_end(core)
    ends = [update for update in updates if update.finish_reason is not None]
    assert sorted(update.request_id for update in ends) == [str(i) for i in range(len(PROMPTS))]
    assert core.stats().num_owned_blocks == 0
    core.check_integrity()


def test_an_id_can_be_used_again_before_the_end_of_its_request_is_told(engine: TinyEngine) -> None:
    core = engine.core()
    core.submit([request_spec("a", [1, 2], GREEDY)])
    core.abort(["a"])
    core.submit([request_spec("a", [1, 2, 3], GREEDY)])
    updates = run_to_end(core)
    assert [update.finish_reason for update in updates if update.finish_reason] == [
        "abort",
        "length",
    ]
    core.check_integrity()


def test_finished_requests_tell_where_their_time_went(engine: TinyEngine) -> None:
    core = engine.core()
    core.submit([request_spec("a", [1, 2, 3], GREEDY)])
    last = run_to_end(core)[-1]
    assert last.finish_reason == "length"
    assert last.timings is not None
    assert min(last.timings.queue_s, last.timings.prefill_s, last.timings.decode_s) >= 0
    stats = core.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (3, 20)
    assert stats.step_token_sum == 3 + 19


def test_a_passed_deadline_ends_a_request_with_its_tokens(engine: TinyEngine) -> None:
    core = engine.core()
    core.submit([request_spec("late", [1, 2, 3], GREEDY, timeout_s=0.0)])
    (last,) = run_to_end(core)
    assert last.finish_reason == "deadline"
    core.check_integrity()


def test_as_many_are_prepared_as_leave_room_for_shapes_that_load_brings(
    engine: TinyEngine, alone: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 36)
    core = engine.core(graphs=NotedGraphs, max_num_seqs=7)
    while core.prepare_next():
        pass
    graphs = NotedGraphs.last
    assert graphs.num_graphs == 4 < len(list(graphs.shapes.by_use()))
    assert engine.generate(PROMPTS, GREEDY, core) == alone["greedy"]
    assert graphs.num_graphs > 4


WISHES = {
    "logprobs": SamplingParams(temperature=0, max_tokens=9, logprobs=2),
    "random logprobs": SamplingParams(temperature=1.0, max_tokens=9, logprobs=0),
    "penalties": SamplingParams(temperature=0, max_tokens=9, presence_penalty=1.0),
    "biases": SamplingParams(temperature=0, max_tokens=9, logit_bias={7: 30.0}),
    "bad words": SamplingParams(temperature=0, max_tokens=9, bad_word_token_ids=[[5], [9, 9]]),
    "least tokens": SamplingParams(temperature=0, max_tokens=9, min_tokens=4),
}


def test_who_wants_more_than_a_draw_costs_nobody_the_captured_steps(
    engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = [*WISHES.values(), GREEDY, RANDOM]

    def outputs(**options: Any) -> list[tuple[list[int], list[dict[int, float]]]]:
        core = engine.core(**options)
        for number, (prompt, params) in enumerate(zip(PROMPTS, wishes, strict=False)):
            core.submit([request_spec(str(number), prompt, params)])
        updates = run_to_end(core)
        return [
            (tokens_of(updates, str(number)), _logprobs_of(updates, str(number)))
            for number in range(len(wishes))
        ]

    alone = outputs(max_num_seqs=1)

    def refuse(self: ModelRunner, plan: BatchPlan) -> StepHandle:
        raise AssertionError("a step was not captured")

    monkeypatch.setattr(ModelRunner, "_execute_eagerly", refuse)
    padded = outputs(graphs=UncapturedGraphs, max_num_seqs=8, look_ahead=1)
    for (tokens, logprobs), (own_tokens, own_logprobs) in zip(padded, alone, strict=True):
        assert tokens == own_tokens
        assert len(logprobs) == len(own_logprobs)
        for found, own in zip(logprobs, own_logprobs, strict=True):
            assert found == pytest.approx(own, abs=1e-4)
    assert len(alone[0][1]) == 9


def _logprobs_of(updates: list[RequestUpdate], request_id: str) -> list[dict[int, float]]:
    """Of each of a request's tokens, by id: its own and the likeliest."""
    return [
        dict(zip(one.top_token_ids, one.top_logprobs, strict=True)) | {one.token_id: one.logprob}
        for update in updates
        if update.request_id == request_id
        for one in update.logprobs or []
    ]
