"""``LLM``: the engine in this process, for batches."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from octavo import LLM, SamplingParams
from octavo.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
    UnsupportedModelError,
)
from octavo.grammar import StructuredOutputs
from octavo.outputs import RequestUpdate
from octavo.structured import compiler
from octavo.tokenization.chat_template import ChatTemplate
from tiny_models import make_tiny_model, tiny_config

LIMITS: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "num_threads": 1}
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(model: Path) -> Iterator[LLM]:
    llm = LLM(str(model), **LIMITS)
    yield llm
    llm.close()
    llm.close()


@pytest.fixture
def llm(opened: LLM) -> Iterator[LLM]:
    yield opened
    opened.check_integrity()
    stats = opened.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_owned_blocks) == (0, 0, 0)


@pytest.fixture(scope="module")
def cramped(model: Path) -> Iterator[LLM]:
    """Its cache holds one request of full length and a little more, so that others give way."""
    config = tiny_config("llama")
    num_heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    block_bytes = 2 * num_heads * config["head_dim"] * 4 * 8
    llm = LLM(str(model), **LIMITS, block_size=8, kv_cache_memory_bytes=17 * block_bytes)
    assert llm.info.num_blocks == 17
    yield llm
    llm.close()


def texts(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[str]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [choice.text for output in outputs for choice in output.outputs]


def test_texts_and_ids_may_be_mixed_and_keep_their_order(llm: LLM) -> None:
    (hello,) = texts(llm, "hello")
    (other,) = texts(llm, {"prompt_token_ids": list(b"other")})
    assert hello != other
    mixed = llm.generate(
        ["other", {"prompt_token_ids": list(b"hello")}, "hello"], GREEDY, use_tqdm=False
    )
    assert [output.outputs[0].text for output in mixed] == [other, hello, hello]
    assert [output.prompt for output in mixed] == ["other", None, "hello"]
    assert [output.prompt_token_ids for output in mixed][1] == list(b"hello")
    assert all(output.outputs[0].finish_reason == "length" for output in mixed)


HELLO = list(b"hello")


def _name_of(prompt: object) -> str:
    """The same in every process: an iterator prints where it lies."""
    return re.sub(" object at 0x[0-9a-f]+", "", str(prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt": "hello"},
        {"prompt": "hello", "prompt_token_ids": None},
        {"prompt": "whatever", "prompt_token_ids": HELLO},
        {"prompt": "hello", "cache_salt": "mine"},
        HELLO,
        tuple(HELLO),
        [np.int64(one) for one in HELLO],
        np.array(HELLO, dtype=np.uint8),
        torch.tensor(HELLO),
        list(torch.tensor(HELLO)),
        {"prompt_token_ids": torch.tensor(HELLO)},
        {"prompt_token_ids": iter(HELLO)},
    ],
    ids=_name_of,
)
def test_a_prompt_may_be_written_in_many_ways(llm: LLM, prompt: Any) -> None:
    (output,) = llm.generate(prompt, GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == HELLO
    assert all(type(one) is int for one in output.prompt_token_ids)
    assert output.outputs[0].text == texts(llm, "hello")[0]


@pytest.mark.parametrize(
    "prompts",
    [[HELLO, HELLO], np.array([HELLO, HELLO]), torch.tensor([HELLO, HELLO]), (HELLO, "hello")],
    ids=["lists", "numpy", "torch", "mixed"],
)
def test_several_prompts_may_be_lists_of_token_ids(llm: LLM, prompts: Any) -> None:
    assert texts(llm, prompts) == texts(llm, "hello") * 2


def test_prompts_of_another_salt_share_no_cached_prefix(llm: LLM) -> None:
    llm.reset_prefix_cache()
    ids = [9] * 100
    salts = [None, "mine", None, "mine"]
    cached = [
        llm.generate({"prompt_token_ids": ids, "cache_salt": salt}, GREEDY, use_tqdm=False)
        for salt in salts
    ]
    assert [output.num_cached_tokens for (output,) in cached] == [0, 0, 96, 96]


def test_more_prompts_than_may_wait_are_all_served(model: Path) -> None:
    llm = LLM(str(model), **LIMITS, max_num_waiting=3)
    try:
        prompts = [f"prompt {number}" for number in range(20)]
        together = texts(llm, prompts)
        assert together == [texts(llm, prompt)[0] for prompt in prompts]
        assert texts(llm, prompts[0]) == together[:1]
        llm.check_integrity()
    finally:
        llm.close()


def test_more_choices_than_may_wait_are_refused_before_others_are_answered(model: Path) -> None:
    llm = LLM(str(model), **LIMITS, max_num_waiting=3)
    try:
        params = [GREEDY] * 9 + [SamplingParams(n=4)]
        with pytest.raises(
            InvalidRequestError, match=r"n is 4.*max_num_waiting is 3; .* at most 3"
        ):
            llm.generate(["x"] * 10, params, use_tqdm=False)
        assert llm.stats().num_steps == 0
        assert len(texts(llm, ["x"] * 9, SamplingParams(n=3, max_tokens=2))) == 27
        llm.check_integrity()
    finally:
        llm.close()


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [GREEDY, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)]
    outputs = llm.generate(["hello", "hello"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [20, 3]
    with pytest.raises(InvalidRequestError, match="2 sampling parameters for 1 prompts"):
        llm.generate("hello", params)
    with pytest.raises(InvalidRequestError, match="0 sampling parameters for 1 prompts"):
        llm.generate("hello", [])
    assert llm.generate([], GREEDY) == []


def test_choices_and_seeds(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=4, max_tokens=20, ignore_eos=True)
    first = texts(llm, "hello", params)
    assert len(set(first)) == 3
    assert texts(llm, ["other", "hello", "third"], params)[3:6] == first


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_an_engine_with_a_seed_answers_the_same_calls_alike(model: Path, seed: int) -> None:
    def answers(**options: Any) -> list[str]:
        llm = LLM(model, **LIMITS, **options)
        try:
            return texts(llm, ["hello", "hello"], SamplingParams(ignore_eos=True))
        finally:
            llm.close()

    first, second = answers(seed=seed)
    assert first != second
    assert answers(seed=seed) == [first, second]
    assert answers() != answers()


def test_as_many_choices_as_may_wait_can_be_asked_for(llm: LLM) -> None:
    params = SamplingParams(n=1000, seed=4, max_tokens=2, ignore_eos=True)
    (output,) = llm.generate("hello", params, use_tqdm=False)
    assert [choice.index for choice in output.outputs] == list(range(1000))
    few = SamplingParams(n=3, seed=4, max_tokens=2, ignore_eos=True)
    assert [choice.text for choice in output.outputs[:3]] == texts(llm, "hello", few)
    with pytest.raises(InvalidRequestError, match=r"n is 10+, and max_num_waiting is 4096"):
        llm.generate("hello", SamplingParams(n=10**15), use_tqdm=False)


def test_choices_of_one_prompt_that_are_preempted_go_on_with_their_own_blocks(
    llm: LLM, cramped: LLM
) -> None:
    params = SamplingParams(n=4, seed=4, max_tokens=60, ignore_eos=True)
    prompt = "hello, this is a prompt"
    assert texts(cramped, prompt, params) == texts(llm, prompt, params)
    assert cramped.stats().num_preemptions


def test_what_choices_of_one_prompt_leave_in_the_cache_is_what_they_said(
    model: Path, llm: LLM
) -> None:
    prompt = list(b"hello, this is a prompt")
    params = SamplingParams(n=3, seed=4, max_tokens=60, ignore_eos=True)
    (output,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    longer = [{"prompt_token_ids": prompt + choice.token_ids} for choice in output.outputs]
    cached = llm.generate(longer, GREEDY, use_tqdm=False)
    assert all(output.num_cached_tokens == 80 for output in cached)
    llm.reset_prefix_cache()
    assert texts(llm, longer) == [output.outputs[0].text for output in cached]


def test_choices_that_share_their_prompt_do_not_make_it_a_cached_one(llm: LLM) -> None:
    llm.reset_prefix_cache()
    prompt = {"prompt_token_ids": [7] * 100}
    params = SamplingParams(n=3, max_tokens=1)
    outputs = [llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2)]
    assert [output.num_cached_tokens for output in outputs] == [0, 96]


def test_a_stop_string_cuts_the_text_and_frees_the_request(llm: LLM) -> None:
    (text,) = texts(llm, "hello")
    stop = text[8:10]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop=stop)
    (output,) = llm.generate("hello", params, use_tqdm=False)
    choice = output.outputs[0]
    assert choice.text == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    kept = SamplingParams(
        temperature=0, max_tokens=20, ignore_eos=True, stop=stop, include_stop_str_in_output=True
    )
    assert texts(llm, "hello", kept) == [text[: text.index(stop) + len(stop)]]


def test_logprobs_come_with_every_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2)
    (output,) = llm.generate("hello", params, use_tqdm=False)
    choice = output.outputs[0]
    assert choice.logprobs is not None
    assert [next(iter(place)) for place in choice.logprobs] == choice.token_ids
    assert all([one.rank for one in place.values()] == [1, 2] for place in choice.logprobs)
    drawn = [choice.logprobs[i][token_id].logprob for i, token_id in enumerate(choice.token_ids)]
    assert choice.cumulative_logprob == pytest.approx(math.fsum(drawn))
    plain = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0]
    assert (plain.logprobs, plain.cumulative_logprob) == (None, None)


def test_the_likeliest_tokens_stand_beside_one_that_is_not_among_them(llm: LLM) -> None:
    barred = texts(llm, "hello", SamplingParams(temperature=0, max_tokens=1))
    first = llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids[0]
    bias = {first: -100.0}
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, logit_bias=bias)
    choice = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
    (place,) = choice.logprobs or []
    assert list(place) == [*choice.token_ids, first]
    assert [one.rank for one in place.values()] == [2, 1]
    assert place[first].decoded_token == barred[0]
    none = SamplingParams(temperature=0, max_tokens=1, logprobs=0, logit_bias=bias)
    (place,) = llm.generate("hello", none, use_tqdm=False)[0].outputs[0].logprobs or []
    assert list(place) == choice.token_ids


def test_a_prompt_is_told_with_each_of_its_tokens(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    (output,) = llm.generate("hello", params, use_tqdm=False)
    first, *others = output.prompt_logprobs or []
    assert first is None
    assert [[one.decoded_token for one in place.values()] for place in others if place] == [
        ["e"],
        ["l"],
        ["l"],
        ["o"],
    ]


def test_log_probabilities_of_the_whole_vocabulary_are_a_distribution(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=-1, prompt_logprobs=-1)
    few = SamplingParams(temperature=0, max_tokens=3, logprobs=30)
    (output, other) = llm.generate(["hello", "hello"], [params, few], use_tqdm=False)
    choice = output.outputs[0]
    assert choice.logprobs is not None
    assert output.prompt_logprobs is not None
    places = [*choice.logprobs, *filter(None, output.prompt_logprobs)]
    assert len(places) == 3 + 4
    for place in places:
        assert place.keys() == set(range(llm.info.vocab_size))
        chances = [math.exp(one.logprob) for one in place.values()]
        assert math.fsum(chances) == pytest.approx(1, abs=1e-5)
    assert [len(place) for place in other.outputs[0].logprobs or []] == [30] * 3


def test_the_progress_bar_is_shown_unless_turned_off(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate(["a", "b"], GREEDY)
    shown = capsys.readouterr().err
    assert "Generating" in shown
    assert "2/2" in shown
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_a_progress_bar_of_ones_own_is_told_of_every_answer(llm: LLM) -> None:
    bars: list[tqdm[Any]] = []

    def make(**options: Any) -> tqdm[Any]:
        bars.append(tqdm(**options, disable=True))
        return bars[-1]

    seen: list[int] = []
    llm.generate(["a", "b"], GREEDY, use_tqdm=lambda **options: seen.append(1) or make(**options))
    llm.chat([{"role": "user", "content": "hi"}], GREEDY, use_tqdm=make)
    assert (len(bars), seen) == (2, [1])
    assert [bar.total for bar in bars] == [2, 1]


@pytest.mark.parametrize("max_num_waiting", [2, 100])
def test_prompts_of_better_priority_run_first(model: Path, max_num_waiting: int) -> None:
    llm = LLM(model, **{**LIMITS, "max_num_seqs": 1}, max_num_waiting=max_num_waiting)
    try:
        core, ended = llm._engine.core, []
        step = core.step

        def noting() -> list[RequestUpdate]:
            updates = step()
            ended.extend(int(one.request_id) for one in updates if one.finish_reason)
            return updates

        core.step = noting  # type: ignore[method-assign]
        llm.generate(["x"] * 5, GREEDY, priority=[3, 0, 3, -1, 2], use_tqdm=False)
        assert ended == [3, 1, 4, 0, 2]
        words = "2 priorities for 1 prompts"
        with pytest.raises(InvalidRequestError, match=words):
            llm.generate("x", GREEDY, priority=[1, 2])
    finally:
        llm.close()


@pytest.mark.parametrize(
    ("prompt", "params", "kind", "words"),
    [
        ("", GREEDY, InvalidRequestError, "no tokens"),
        ("x" * 200, GREEDY, PromptTooLongError, "200 tokens.*128"),
        ({"prompt_token_ids": [272]}, GREEDY, InvalidRequestError, "272.*271"),
        ({"prompt_token_ids": ["a"]}, GREEDY, InvalidRequestError, "must be integers"),
        ({"prompt_token_ids": 5}, GREEDY, InvalidRequestError, "Prompt 1: It is 5; pass a text"),
        ({"prompt_token_ids": [1, True]}, GREEDY, InvalidRequestError, "True among its token ids"),
        ({"prompt_token_ids": np.ones(3)}, GREEDY, InvalidRequestError, "has 1.0 among"),
        ({"prompt_token_ids": b"ab"}, GREEDY, InvalidRequestError, "is b'ab'; pass a text"),
        ({"prompt_token_ids": {1: 2}}, GREEDY, InvalidRequestError, r"is \{1: 2\}; pass a text"),
        ({"prompt_token_ids": None}, GREEDY, InvalidRequestError, r"is \{'prompt_token_ids'"),
        ({"prompt": b"x"}, GREEDY, InvalidRequestError, "has the prompt b'x'"),
        (
            {"prompt": "x", "multi_modal_data": {}},
            GREEDY,
            InvalidRequestError,
            "'multi_modal_data'",
        ),
        ({"prompt_embeds": [[0.5]]}, GREEDY, InvalidRequestError, "'prompt_embeds', which is not"),
        ({"prompt": "x", "cache_salt": 5}, GREEDY, InvalidRequestError, "has the cache_salt 5"),
        (b"x", GREEDY, InvalidRequestError, "Prompt 1: It is b'x'; pass a text"),
        ("x", {"n": 1}, InvalidRequestError, r"is \{'n': 1\}; pass one SamplingParams for all"),
        (
            "x",
            [GREEDY, None],
            InvalidRequestError,
            "has None for prompt 1; pass one SamplingParams",
        ),
        ("x", iter([GREEDY]), InvalidRequestError, "is <list_iterator.*; pass one SamplingParams"),
        (["x", 5], GREEDY, InvalidRequestError, "Prompt 1: It is 5; pass a text"),
        ("x", SamplingParams(logprobs=273), InvalidRequestError, "logprobs is 273.* 272 .*-1"),
        ("x", SamplingParams(max_tokens=128), PromptTooLongError, "128.* leaves 124"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(
    llm: LLM, prompt: Any, params: Any, kind: type[Exception], words: str
) -> None:
    before = llm.stats().num_steps
    prompts = prompt if isinstance(prompt, list) else ["fine", prompt]
    with pytest.raises(kind, match=words):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats().num_steps == before


class _Failing:
    """A runner, or a step's handle, that does something else when its turn has come."""

    def __init__(self, inner: Any, at: int, fail: Callable[[], None]) -> None:
        self._inner, self._left, self._fail = inner, at, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self._fail()


class _FailingAtLaunch(_Failing):
    def execute(self, plan: Any) -> Any:
        self._count()
        return self._inner.execute(plan)


class _FailingAtResult(_Failing):
    def execute(self, plan: Any) -> Any:
        handle = self._inner.execute(plan)
        return SimpleNamespace(draw=handle.draw, result=lambda: self._count() or handle.result())


def _fail() -> None:
    raise RuntimeError("no memory")


def _press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _press_ctrl_c_twice() -> None:
    _press_ctrl_c()
    _press_ctrl_c()


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("runner", [_FailingAtLaunch, _FailingAtResult])
@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (_fail, RuntimeError),
        (_press_ctrl_c, KeyboardInterrupt),
        (_press_ctrl_c_twice, KeyboardInterrupt),
    ],
)
def test_a_call_that_ends_within_a_step_leaves_the_next_one_alone(
    llm: LLM,
    monkeypatch: pytest.MonkeyPatch,
    runner: type[_Failing],
    at: int,
    fail: Callable[[], None],
    error: type[BaseException],
) -> None:
    (expected,) = texts(llm, "hello")
    core = llm._engine.core
    with monkeypatch.context() as patch:
        patch.setattr(core, "_runner", runner(core._runner, at, fail))
        with pytest.raises(error):
            llm.generate(["hello"] * 6, GREEDY, use_tqdm=False)
    assert not core.has_work
    assert not core.inspect()
    assert texts(llm, "hello") == [expected]


def test_threads_that_call_at_once_get_each_what_they_asked_for(llm: LLM) -> None:
    prompts = [[f"{number} of thread {thread}" for number in range(5)] for thread in range(3)]
    expected = [texts(llm, own) for own in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(lambda own: texts(llm, own), prompts)) == expected


def test_one_that_is_closed_says_so(model: Path) -> None:
    llm = LLM(str(model), **LIMITS)
    llm.close()
    with pytest.raises(EngineDeadError, match="closed; open another"):
        llm.generate("hello", GREEDY, use_tqdm=False)


def test_it_is_closed_at_the_end_of_a_with(model: Path) -> None:
    with LLM(model, **LIMITS) as llm:
        assert texts(llm, "hello")
    with pytest.raises(EngineDeadError, match="closed; open another"):
        texts(llm, "hello")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("get_tokenizer", "'get_tokenizer': use the property tokenizer"),
        ("encode", r"'encode': use embed\(\)"),
        ("nothing", "'LLM' object has no attribute 'nothing'$"),
    ],
)
def test_a_method_of_vllm_that_is_not_there_is_told_with_what_is(
    llm: LLM, name: str, words: str
) -> None:
    with pytest.raises(AttributeError, match=words):
        getattr(llm, name)
    assert not hasattr(llm, name)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (StructuredOutputs(regex="("), "unclosed group"),
        (StructuredOutputs(json={"type": "integer", "minimum": 5, "maximum": 3}), "no value"),
        (StructuredOutputs(grammar="start: foo"), "unknown name"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused_before_anything_runs(
    llm: LLM, outputs: StructuredOutputs, words: str
) -> None:
    before = llm.stats().num_steps
    good = SamplingParams(max_tokens=3, structured_outputs=StructuredOutputs(regex="a{3}"))
    bad = SamplingParams(max_tokens=3, structured_outputs=outputs)
    with pytest.raises(InvalidRequestError, match=rf"structured_outputs of prompt 2: .*{words}"):
        llm.generate(["a", "b", "c"], [GREEDY, good, bad], use_tqdm=False)
    assert llm.stats().num_steps == before
    assert texts(llm, "b", good) == ["aaa"]


def test_more_grammars_than_are_kept_are_compiled_once(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "MAX_CACHED", 4)
    grammars = llm._engine.core._constrained._grammars
    assert grammars is not None
    before = grammars.num_compiled
    words = [f"word{number}" for number in range(6)]
    outputs = [StructuredOutputs(choice=[word]) for word in words]
    params = [SamplingParams(max_tokens=9, structured_outputs=each) for each in outputs]
    assert texts(llm, ["x"] * 6, params) == words
    assert grammars.num_compiled - before == 6


def test_a_request_that_fails_as_it_runs_ends_alone(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    (alone,) = texts(llm, "hello")
    dead_end = StructuredOutputs(grammar='start: "ab" NEITHER\nNEITHER: /a/ & /b/')
    failing = SamplingParams(max_tokens=9, logprobs=1, structured_outputs=dead_end)
    outputs = llm.generate(["hello"] * 6, [GREEDY, failing] * 3, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error"] * 3
    assert [output.outputs[0].text for output in outputs] == [alone, "ab"] * 3
    good, failed = outputs[0].outputs[0], outputs[1].outputs[0]
    assert failed.token_ids == list(b"ab")
    assert [next(iter(place)) for place in failed.logprobs or []] == list(b"ab")
    assert "No token could follow the grammar after 2 tokens" in (failed.error or "")
    assert good.error is None
    assert "3 of 6 requests failed, the first one so: No token" in caplog.text


def test_a_conversation_is_rendered_by_the_models_template(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    prompt = [256, 258, *b"user\nhi", 259, *b"\n", 258, *b"assistant\n"]
    assert output.prompt_token_ids == prompt
    expected = "<|bos|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt == expected
    assert output.outputs[0].text == texts(llm, {"prompt_token_ids": prompt})[0]


def test_what_a_template_is_told_may_be_chosen(llm: LLM) -> None:
    def rendered(messages: list[dict[str, Any]], **options: Any) -> str | None:
        return llm.chat(messages, GREEDY, use_tqdm=False, **options)[0].prompt

    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]
    closed = rendered(begun, add_generation_prompt=False)
    assert closed is not None
    assert closed.endswith("Well,<|im_end|>\n")
    going_on = rendered(begun, add_generation_prompt=False, continue_final_message=True)
    assert going_on == closed.removesuffix("<|im_end|>\n")
    own = "{{ messages[0].content }} {{ mood }} {{ tools[0].function.name }}"
    tools = [{"type": "function", "function": {"name": "roll"}}]
    kwargs = {"mood": "glad"}
    assert (
        rendered(begun, chat_template=own, chat_template_kwargs=kwargs, tools=tools)
        == "hi glad roll"
    )
    assert rendered(begun[:1], tools=tools) == rendered(begun[:1])


def test_arguments_of_calls_reach_the_template_as_objects(llm: LLM) -> None:
    own = "{{ messages[0].tool_calls[0].function.arguments.sides }}"
    function = {"name": "roll", "arguments": '{"sides": 6}'}
    call = {"id": "1", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    (output,) = llm.chat([message], GREEDY, chat_template=own, use_tqdm=False)
    assert output.prompt == "6"
    assert function["arguments"] == '{"sides": 6}'


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"chat_template_kwargs": {"tools": []}}, InvalidRequestError, "holds 'tools'; pass it to"),
        ({"continue_final_message": True}, InvalidRequestError, "exclude each other"),
        ({"chat_template": "{% if %}"}, ModelLoadError, "chat template"),
    ],
)
def test_what_a_template_cannot_be_told_is_refused(
    llm: LLM, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        llm.chat([{"role": "user", "content": "hi"}], GREEDY, **options)


def test_a_list_of_conversations_is_answered_one_by_one(llm: LLM) -> None:
    hi, yo = [[{"role": "user", "content": word}] for word in ("hi", "yo")]
    expected = [llm.chat(each, GREEDY)[0].outputs[0].text for each in (hi, yo)]
    both = llm.chat([hi, yo], GREEDY)
    assert [output.outputs[0].text for output in both] == expected
    short = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    unequal = llm.chat(iter([hi, yo]), [GREEDY, short])
    assert [len(output.outputs[0].token_ids) for output in unequal] == [20, 3]
    assert llm.chat([], GREEDY) == []


@pytest.mark.parametrize(
    "messages", ["text", "", None, {"role": "user", "content": "hi"}, ["hi"], [[]], [5], [["hi"]]]
)
def test_what_is_no_conversation_is_refused_by_name(llm: LLM, messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages is .*; pass a conversation"):
        llm.chat(messages, GREEDY)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": "hi"}, "role is None; it must be a text"),
        ({"role": "user", "contents": "hi"}, "a message of the user has no content"),
        ({"role": "user", "content": 5}, "content is 5; it must be a text, or a list"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"content is \[\{'type': 'image_url'.*must be a text",
        ),
    ],
)
def test_a_message_that_says_nothing_or_something_else_is_refused(
    llm: LLM, message: dict[str, Any], words: str
) -> None:
    fine = [{"role": "assistant", "content": None}]
    with pytest.raises(InvalidRequestError, match=rf"Conversation 1: {words}"):
        llm.chat([fine, [message]], GREEDY)


def test_a_conversation_that_the_template_refuses_is_named(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "{{ raise_exception('no judges') if messages[0].role == 'judge' }}"
    monkeypatch.setattr(llm, "_chat_template", ChatTemplate(source, {}))
    hi, odd = [[{"role": role, "content": "hi"}] for role in ("user", "judge")]
    with pytest.raises(InvalidRequestError, match=r"^Conversation 1: .*no judges") as refused:
        llm.chat([hi, odd, hi], GREEDY)
    assert refused.value.param == "messages"


def test_prompts_may_come_from_any_iterable(llm: LLM) -> None:
    words = ["hello", "other"]
    assert texts(llm, (word for word in words)) == texts(llm, words)
    assert texts(llm, dict.fromkeys(words).keys()) == texts(llm, words)


@pytest.mark.parametrize("prompts", [None, 5])
def test_what_is_no_prompts_is_refused_by_name(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"prompts is {prompts}; pass a text"):
        llm.generate(prompts, GREEDY)


def test_dummy_weights_need_nothing_but_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen3")))
    llm = LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True, **LIMITS)
    try:
        assert llm.tokenizer is None
        (output,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, GREEDY, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 20
        assert output.outputs[0].text == ""
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init"):
            llm.generate("text")
        with pytest.raises(InvalidRequestError, match="no chat template"):
            llm.chat([{"role": "user", "content": "hi"}])
    finally:
        llm.close()


def test_skipping_the_tokenizer_skips_one_that_is_there(model: Path) -> None:
    llm = LLM(str(model), skip_tokenizer_init=True, **LIMITS)
    try:
        assert llm.tokenizer is None
        assert not llm.info.has_tokenizer
    finally:
        llm.close()


def test_recommended_sampling_is_known_as_far_as_it_can_be_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_model("llama", tmp_path)
    values = {"temperature": 0.6, "top_k": 20, "top_p": 7, "do_sample": True, "min_p": None}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257, **values}))
    llm = LLM(str(folder), **LIMITS)
    try:
        assert llm.info.sampling_defaults == {"temperature": 0.6, "top_k": 20}
        assert "top_p is 7" in caplog.text
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.6, top_k=20)
    finally:
        llm.close()


def test_calls_without_parameters_use_what_the_model_recommends(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    values = {"eos_token_id": 257, "temperature": 0.7, "top_k": 1}
    (folder / "generation_config.json").write_text(json.dumps(values))
    llm = LLM(str(folder), **LIMITS)
    try:
        greedy = SamplingParams(temperature=0)
        assert texts(llm, "hello", None) == texts(llm, "hello", greedy)
        hi = [{"role": "user", "content": "hi"}]
        asked, unasked = llm.chat(hi, greedy), llm.chat(hi)
        assert asked[0].outputs[0].token_ids == unasked[0].outputs[0].token_ids
    finally:
        llm.close()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"max_model_len": 1000}, ConfigError, "1000.*512"),
        ({"block_size": 17}, ConfigError, "17.* 8, 16"),
        ({"load_format": "pickle"}, ConfigError, "'pickle'.*safetensors"),
        ({"max_modellen": 64}, ConfigError, "no option max_modellen; did you mean max_model_len"),
        ({"qwertz": 1}, ConfigError, "no option qwertz; there are model, revision"),
        ({"max_model_len": "64"}, ConfigError, "max_model_len is '64'.*Expected `int"),
        ({"max_model_len": 64.5}, ConfigError, "max_model_len is 64.5.*Expected `int"),
        ({"enable_prefix_caching": "no"}, ConfigError, "is 'no'.*Expected `bool`"),
        ({"tensor_parallel_size": 2}, ConfigError, "_size is 2, and can only be 1 here; leave"),
        ({"trust_remote_code": True}, ConfigError, "is True, and can only be False here"),
        ({"lora_modules": (("a", "b"),)}, ConfigError, "option of servers; .* lora_request"),
        ({"hf_overrides": {"architectures": ["Odd"]}}, UnsupportedModelError, "Odd"),
    ],
)
def test_options_that_cannot_be_served_are_told(
    model: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        LLM(str(model), **{**LIMITS, **options})


@pytest.mark.parametrize("name", [None, "", 5])
def test_what_names_no_model_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=rf"model is {name!r}; it must be a folder"):
        LLM(name)


def test_options_of_vllm_that_ask_for_what_is_always_so_are_taken(model: Path) -> None:
    options = {"tensor_parallel_size": 1, "trust_remote_code": False, "tokenizer": None}
    llm = LLM(model, **LIMITS, **options, gpu_memory_utilization=1)
    try:
        assert llm.info.name == str(model)
    finally:
        llm.close()


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("shares", [True, False])
def test_choices_share_their_prompt_whether_requests_share_prefixes_or_not(
    model: Path, shares: bool
) -> None:
    llm = LLM(str(model), **LIMITS, enable_prefix_caching=shares)
    prompt = {"prompt_token_ids": list(range(64))}
    params = SamplingParams(n=3, max_tokens=2, ignore_eos=True)
    for _ in range(2):
        llm.generate([prompt], params, use_tqdm=False)
    # Of 64 tokens the last block is computed again, to draw from it.
    assert llm.stats().cached_prompt_tokens == (5 if shares else 4) * 48
    llm.close()
