"""``LLM``: the engine in this process, for batches."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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


def test_more_prompts_than_may_wait_are_all_served(model: Path) -> None:
    llm = LLM(str(model), **LIMITS, max_num_waiting=3)
    try:
        prompts = [f"prompt {number}" for number in range(20)]
        together = texts(llm, prompts)
        assert together == [texts(llm, prompt)[0] for prompt in prompts]
        with pytest.raises(InvalidRequestError, match=r"n is 4.* at most 3"):
            llm.generate("x", SamplingParams(n=4), use_tqdm=False)
        assert texts(llm, prompts[0]) == together[:1]
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
    assert [one.token_id for one in choice.logprobs] == choice.token_ids
    assert all(one.rank == 1 and len(one.top_token_ids) == 2 for one in choice.logprobs)
    assert texts(llm, "hello", params)[0]
    assert llm.generate("hello", GREEDY, use_tqdm=False)[0].outputs[0].logprobs is None


def test_the_progress_bar_is_shown_unless_turned_off(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate(["a", "b"], GREEDY)
    shown = capsys.readouterr().err
    assert "Generating" in shown
    assert "2/2" in shown
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("prompt", "params", "kind", "words"),
    [
        ("", GREEDY, InvalidRequestError, "no tokens"),
        ("x" * 200, GREEDY, PromptTooLongError, "200 tokens.*128"),
        ({"prompt_token_ids": [272]}, GREEDY, InvalidRequestError, "272.*271"),
        ({"prompt_token_ids": ["a"]}, GREEDY, InvalidRequestError, "must be integers"),
        ({"prompt": "x"}, GREEDY, InvalidRequestError, "prompt_token_ids"),
        ({"prompt_token_ids": 5}, GREEDY, InvalidRequestError, r"is \{'prompt_token_ids': 5\}"),
        ("x", {"n": 1}, InvalidRequestError, r"is \{'n': 1\}; pass one SamplingParams for all"),
        ("x", [GREEDY, None], InvalidRequestError, "pass one SamplingParams for all"),
        ([5], GREEDY, InvalidRequestError, "A prompt is 5; pass a text"),
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
    assert [each.token_id for each in failed.logprobs or []] == list(b"ab")
    assert "No token could follow the grammar after 2 tokens" in (failed.error or "")
    assert good.error is None
    assert "3 of 6 requests failed, the first one so: No token" in caplog.text


def test_a_conversation_is_rendered_by_the_models_template(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    prompt = [256, 258, *b"user\nhi", 259, *b"\n", 258, *b"assistant\n"]
    assert output.prompt_token_ids == prompt
    assert output.outputs[0].text == texts(llm, {"prompt_token_ids": prompt})[0]


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
    finally:
        llm.close()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"max_model_len": 1000}, ConfigError, "1000.*512"),
        ({"block_size": 17}, ConfigError, "17.* 8, 16"),
        ({"load_format": "pickle"}, ConfigError, "'pickle'.*safetensors"),
        ({"hf_overrides": {"architectures": ["Odd"]}}, UnsupportedModelError, "Odd"),
    ],
)
def test_options_that_cannot_be_served_are_told(
    model: Path, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        LLM(str(model), **{**LIMITS, **options})


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
