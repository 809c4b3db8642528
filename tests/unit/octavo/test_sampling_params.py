"""SamplingParams accepts what can be served, names what cannot, and survives the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.logprobs) == (16, 0, None)
    assert not params.is_greedy
    assert not params.has_filter
    assert not params.has_penalty


@pytest.mark.parametrize(
    ("arguments", "param", "limit"),
    [
        pytest.param({"n": 0}, "n", "at least 1", id="n-zero"),
        pytest.param({"n": True}, "n", "an integer", id="n-bool"),
        pytest.param({"temperature": -0.1}, "temperature", "between 0.0", id="temperature"),
        pytest.param(
            {"temperature": 1e300}, "temperature", "and 1000000.0", id="temperature-large"
        ),
        pytest.param({"temperature": 10**400}, "temperature", "finite", id="temperature-integer"),
        pytest.param({"temperature": float("nan")}, "temperature", "finite", id="nan"),
        pytest.param({"temperature": "hot"}, "temperature", "finite number", id="string"),
        pytest.param({"top_p": 0.0}, "top_p", "above 0", id="top_p-zero"),
        pytest.param({"top_p": 1.1}, "top_p", "between 0.0 and 1.0", id="top_p-large"),
        pytest.param({"top_k": -2}, "top_k", "between -1 and 2147483647", id="top_k"),
        pytest.param({"top_k": 2**64}, "top_k", "between -1 and 2147483647", id="large-top_k"),
        pytest.param({"min_p": 2.0}, "min_p", "between 0.0 and 1.0", id="min_p"),
        pytest.param({"repetition_penalty": 0.0}, "repetition_penalty", "1e-05", id="rep"),
        pytest.param({"repetition_penalty": 1e-38}, "repetition_penalty", "1e-05", id="rep-small"),
        pytest.param(
            {"repetition_penalty": 1e300}, "repetition_penalty", "1000000", id="rep-large"
        ),
        pytest.param({"presence_penalty": 2.5}, "presence_penalty", "and 2.0", id="presence"),
        pytest.param({"frequency_penalty": -3}, "frequency_penalty", "-2.0", id="frequency"),
        pytest.param({"seed": 2**63}, "seed", str(2**63 - 1), id="seed"),
        pytest.param({"max_tokens": -1}, "max_tokens", "at least 0", id="max_tokens"),
        pytest.param({"min_tokens": 17}, "min_tokens", "between 0 and 16", id="min_tokens"),
        pytest.param({"logprobs": -2}, "logprobs", "at least -1", id="logprobs"),
        pytest.param({"prompt_logprobs": -2}, "prompt_logprobs", "at least -1", id="prompt"),
        pytest.param({"allowed_token_ids": [-1]}, "allowed_token_ids", "at least 0", id="allowed"),
        pytest.param({"bad_words": [" "]}, "bad_words", "no space", id="bad-words"),
        pytest.param({"bad_word_token_ids": [[]]}, "bad_word_token_ids", "empty", id="bad-empty"),
        pytest.param({"bad_word_token_ids": [5]}, "bad_word_token_ids", "a list", id="bad-ids"),
        pytest.param({"logit_bias": {5: 101.0}}, "logit_bias", "100", id="bias-value"),
        pytest.param({"logit_bias": {-1: 1.0}}, "logit_bias", "at least 0", id="bias-id"),
        pytest.param({"logit_bias": [5]}, "logit_bias", "must map", id="bias-list"),
        pytest.param(
            {"structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "is {'regex': 'a'}; pass a StructuredOutputs",
            id="structured-dict",
        ),
        pytest.param({"stop_token_ids": "ab"}, "stop_token_ids", "a list", id="stop-ids-text"),
        pytest.param({"allowed_token_ids": {1: 2}}, "allowed_token_ids", "a list", id="map"),
        pytest.param({"seed": np.float64(0.5)}, "seed", "an integer", id="seed-numpy"),
        pytest.param({"stop": [""]}, "stop", "at least one", id="stop-empty"),
        pytest.param({"stop": 7}, "stop", "a list", id="stop-number"),
        pytest.param({"stop": ["x"], "detokenize": False}, "stop", "detokenize", id="stop-ids"),
        pytest.param({"stop_token_ids": [-1]}, "stop_token_ids", "at least 0", id="stop-id"),
        pytest.param({"ignore_eos": 1}, "ignore_eos", "true or false", id="switch"),
    ],
)
def test_unservable_value_is_named_with_its_limit(
    arguments: dict[str, Any], param: str, limit: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**arguments)
    assert caught.value.param == param
    assert limit in str(caught.value)
    assert param in str(caught.value)


def test_one_stop_string_and_absent_lists_are_stored_as_tuples() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    nulls: dict[str, Any] = {"stop": None, "stop_token_ids": None, "logit_bias": None}
    params = SamplingParams(**nulls)
    assert (params.stop, params.stop_token_ids, params.logit_bias) == ((), (), {})


@pytest.mark.parametrize("of", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_numbers_and_lists_of_arrays_are_stored_as_pythons_own(of: Callable[[object], Any]) -> None:
    params = SamplingParams(
        temperature=of(0.5).reshape(1)[0],
        seed=of([3])[0],
        max_tokens=of([4])[0],
        ignore_eos=of([True])[0],
        stop_token_ids=of([1, 2]),
        allowed_token_ids=list(of([3, 4])),
        logit_bias={of([5])[0]: of([0.5])[0]},
        bad_word_token_ids=of([[6, 7]]),
    )
    assert params == SamplingParams(
        temperature=0.5,
        seed=3,
        max_tokens=4,
        ignore_eos=True,
        stop_token_ids=[1, 2],
        allowed_token_ids=range(3, 5),
        logit_bias={5: 0.5},
        bad_word_token_ids=[[6, 7]],
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    ("arguments", "is_greedy", "has_filter"),
    [
        pytest.param({"temperature": 0.0, "top_k": 5}, True, False, id="zero"),
        pytest.param({"temperature": 1e-6}, True, False, id="nearly-zero"),
        pytest.param({"top_k": 5}, False, True, id="top_k"),
        pytest.param({"top_k": -1}, False, False, id="top_k-off"),
        pytest.param({"top_p": 0.9}, False, True, id="top_p"),
        pytest.param({"min_p": 0.1}, False, True, id="min_p"),
    ],
)
def test_greedy_and_filtered_draws_are_recognised(
    arguments: dict[str, Any], is_greedy: bool, has_filter: bool
) -> None:
    params = SamplingParams(**arguments)
    assert (params.is_greedy, params.has_filter) == (is_greedy, has_filter)


def test_instance_survives_msgpack() -> None:
    params = SamplingParams(
        n=3,
        temperature=0.5,
        seed=-(2**63),
        stop=["a", "b"],
        stop_token_ids=[4],
        max_tokens=None,
        logprobs=0,
        logit_bias={7: -100.0},
    )
    wire = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(wire, type=SamplingParams) == params


def test_instance_cannot_be_changed() -> None:
    params: Any = SamplingParams()
    with pytest.raises(AttributeError):
        params.temperature = 0.0


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, octavo.sampling_params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
