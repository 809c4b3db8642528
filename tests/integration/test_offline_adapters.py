"""Adapters of an LLM: read when first named, side by side; and what is told of the others."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.batch import BatchPlan, StepHandle
from octavo.engine import build, runner_builder
from octavo.errors import AdapterError, InvalidRequestError, ModelLoadError
from octavo.runner.model_runner import ModelRunner
from tiny_adapters import make_adapter
from tiny_engine import UncapturedGraphs
from tiny_models import make_tiny_model, tiny_config

CONFIG = tiny_config("llama")
PROMPT = {"prompt_token_ids": [5, 6, 7]}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    folder = make_tiny_model("llama", tmp_path / "model")
    options = {"max_loras": 4, "max_cpu_loras": 8, "max_model_len": 64, "num_threads": 1}
    llm = LLM(str(folder), skip_tokenizer_init=True, enable_lora=True, **options)
    yield llm
    llm.check_integrity()
    llm.close()


def adapters(folder: Path, count: int) -> list[LoRARequest]:
    return [
        LoRARequest(f"a{seed}", str(make_adapter(folder / str(seed), CONFIG, seed=seed)))
        for seed in range(count)
    ]


def tokens(llm: LLM, requests: list[LoRARequest]) -> list[list[int]]:
    outputs = llm.generate([PROMPT] * len(requests), GREEDY, lora_request=requests, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def noting(calls: list[str], method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        calls.append(method.__name__)
        return method(*args)

    return noted


def test_those_read_side_by_side_are_those_read_one_by_one(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = adapters(tmp_path, 20)
    calls: list[str] = []
    core = llm._engine.core
    monkeypatch.setattr(core, "open_adapter", noting(calls, core.open_adapter))
    monkeypatch.setattr(core, "step", noting(calls, core.step))
    together = tokens(llm, requests)
    assert calls[:20] == ["open_adapter"] * 20
    assert "open_adapter" not in calls[20:]
    assert len({tuple(one) for one in together}) > 10
    for request in requests:
        llm.unload_lora(request.lora_name)
    assert [tokens(llm, [request])[0] for request in requests] == together


def test_one_that_cannot_be_read_is_told_and_takes_nothing_from_the_others(
    llm: LLM, tmp_path: Path
) -> None:
    requests = adapters(tmp_path, 6)
    shutil.rmtree(requests[2].path)
    weights = Path(requests[4].path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match=str(tmp_path / "2")):
        tokens(llm, requests)
    good = [requests[number] for number in (0, 1, 3, 5)]
    for request in good:
        shutil.rmtree(request.path)
    assert len(tokens(llm, good)) == 4  # they are there already
    with pytest.raises(AdapterError, match="copy it again"):
        tokens(llm, [*good, requests[4]])
    with pytest.raises(InvalidRequestError, match=r"the name 'a0' for .* and for .*elsewhere"):
        tokens(llm, [good[0], LoRARequest("a0", "/elsewhere")])
    assert len(tokens(llm, good)) == 4


def test_a_name_with_another_path_than_before_is_loaded_anew(llm: LLM, tmp_path: Path) -> None:
    one, two = adapters(tmp_path, 2)
    first, second = tokens(llm, [one, two])
    moved = LoRARequest("a0", two.path)
    assert tokens(llm, [moved]) == [second] != [first]


def test_files_that_were_written_anew_are_loaded_anew(llm: LLM, tmp_path: Path) -> None:
    one, two = adapters(tmp_path, 2)
    first, second = tokens(llm, [one, two])
    shutil.copytree(two.path, one.path, dirs_exist_ok=True)
    assert tokens(llm, [one]) == [second] != [first]
    loaded = llm.load_lora(one)
    assert loaded == llm.load_lora(one)


def test_a_folder_may_be_a_path_and_the_number_of_vllm_may_stand_before_it(
    llm: LLM, tmp_path: Path
) -> None:
    (one,) = adapters(tmp_path, 1)
    expected = tokens(llm, [one])
    folder = Path(one.path)
    for request in (LoRARequest("path", folder), LoRARequest("number", 1, folder)):
        assert tokens(llm, [request]) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", "/sql"), "lora_name is ''"),
        ((1, "/sql"), "lora_name is 1"),
        (("sql", 1), "lora_path is 1"),
        (("sql", None), "lora_path is None"),
    ],
    ids=str,
)
def test_what_names_no_adapter_is_refused(given: tuple[Any, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        LoRARequest(*given)


def test_loading_takes_a_request_and_unloading_a_name(llm: LLM, tmp_path: Path) -> None:
    (one,) = adapters(tmp_path, 1)
    with pytest.raises(InvalidRequestError, match=r"request is .*; pass one LoRARequest"):
        llm.load_lora(one.path)  # type: ignore[arg-type]
    llm.load_lora(one)
    with pytest.raises(InvalidRequestError, match=r"name is LoRARequest.*; pass .* lora_name"):
        llm.unload_lora(one)  # type: ignore[arg-type]


def test_a_conversation_is_answered_with_an_adapter(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    llm = LLM(str(model), enable_lora=True, max_model_len=128, num_threads=1)
    chats = [[{"role": "user", "content": word}] for word in ("hi", "yo")]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    (one,) = adapters(tmp_path, 1)
    plain, adapted = (
        llm.chat(chats, params, lora_request=[None, each])[1].outputs[0] for each in (None, one)
    )
    assert adapted.token_ids != plain.token_ids
    (alone,) = llm.chat(chats[1], params, lora_request=one)
    assert alone.outputs[0].token_ids == adapted.token_ids
    llm.close()


def test_who_leaves_while_they_are_read_leaves_nothing_behind(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = adapters(tmp_path, 6)
    core = llm._engine.core
    step = core.step

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokens(llm, requests)
    monkeypatch.setattr(core, "step", step)
    assert len(tokens(llm, requests)) == 6
    assert core._adapters is not None
    assert len(core._adapters._open) == 6


WISHES: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"presence_penalty": 1.0},
    {"logit_bias": {7: 5.0}},
    {"min_tokens": 6},
]


def test_nobody_waits_too_long_for_a_slot(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = adapters(tmp_path, 7)  # there are four slots
    expected = [tokens(llm, [request])[0] for request in requests]
    control = llm._engine.core._adapters
    assert control is not None
    minutes = itertools.count(1)
    monkeypatch.setattr(control, "_clock", lambda: time.monotonic() + 60.0 * next(minutes))
    assert tokens(llm, requests * 3) == expected * 3


def test_adapters_and_wishes_beside_each_other_in_captured_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded as on CUDA, and run by the kernels of the CPU."""
    folder = str(make_tiny_model("llama", tmp_path / "model"))
    requests = adapters(tmp_path, 2)
    chosen = [None, *requests]
    options = {"max_loras": 2, "max_model_len": 64, "num_threads": 1, "max_num_seqs": 8}

    def outputs() -> list[tuple[tuple[int, ...], list[list[float]]]]:
        llm = LLM(folder, skip_tokenizer_init=True, enable_lora=True, **options)
        params = [
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, **wish)
            for wish in WISHES
            for _ in chosen
        ]
        prompts = [{"prompt_token_ids": [5, 6, 7, place]} for place in range(len(params))]
        found = llm.generate(prompts, params, lora_request=chosen * len(WISHES), use_tqdm=False)
        llm.check_integrity()
        llm.close()
        return [
            (
                tuple(one.outputs[0].token_ids),
                [list(at.values()) for at in one.outputs[0].logprobs or []],
            )
            for one in found
        ]

    plain = outputs()
    real = runner_builder.make_runner

    def capturing(*args: Any) -> ModelRunner:
        *given, _, stack = args
        return real(*given, 64, stack)

    def refuse(self: ModelRunner, plan: BatchPlan) -> StepHandle:
        raise AssertionError("a step was not captured")

    monkeypatch.setattr(runner_builder, "StepGraphs", UncapturedGraphs)
    monkeypatch.setattr(build, "make_runner", capturing)
    monkeypatch.setattr(ModelRunner, "_execute_eagerly", refuse)
    captured = outputs()
    assert [tokens for tokens, _ in captured] == [tokens for tokens, _ in plain]
    for (_, own), (_, other) in zip(captured, plain, strict=True):
        assert len(own) == len(other)
        for one, another in zip(own, other, strict=True):
            assert one == pytest.approx(another, abs=1e-4)
    assert len({tokens for tokens, _ in plain}) > 8
