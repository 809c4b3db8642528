"""Messages come out as they went in, however their stream is cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.messages import (
    Abort,
    FrameSplitter,
    FromEngine,
    Refused,
    RequestSpec,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
    frame,
)
from octavo.outputs import EngineStats, RequestTimings, RequestUpdate, TokenLogprobs
from octavo.sampling_params import SamplingParams

ENCODER = msgspec.msgpack.Encoder()


@given(
    bodies=st.lists(st.binary(max_size=40), max_size=12),
    cuts=st.lists(st.integers(0, 600), max_size=30),
)
@settings(deadline=None)
def test_any_split_of_the_stream_gives_the_same_messages(
    bodies: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = FrameSplitter()
    found: list[bytes] = []
    for start, end in pairwise(places):
        found += splitter.feed(stream[start:end])
    assert found == bodies


def test_a_length_no_message_has_is_an_error() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(b"\x40\x00\x00") == []
    with pytest.raises(ValueError, match="1073741825 bytes"):
        splitter.feed(b"\x01")


MESSAGES: list[tuple[Any, Any]] = [
    (ToEngine, Shutdown()),
    (ToEngine, Abort(["a", "b:1"])),
    (
        ToEngine,
        Submit(
            [
                RequestSpec(
                    "r",
                    [1, 2],
                    SamplingParams(
                        temperature=0.5, stop=["x"], logit_bias={3: -1.5}, seed=-1, max_tokens=None
                    ),
                    seed=2**63 - 1,
                    stop_token_ids=[7],
                    eos_token_ids=[0],
                    priority=-3,
                    timeout_s=1.5,
                    cache_key=b"\x00key",
                    block_hashes=[b"\xff" * 16],
                    leader_id="l",
                )
            ]
        ),
    ),
    (FromEngine, Refused("r", "QueueFullError", "full", retry_after_s=0.5)),
    (
        FromEngine,
        StepReport(
            [
                RequestUpdate(
                    "r",
                    [1],
                    [TokenLogprobs(1, -0.5, 1, [1, 2], [-0.5, -1.0])],
                    "stop",
                    "é\N{GRINNING FACE}",
                    5,
                    None,
                    RequestTimings(0.1, 0.2, 0.3),
                )
            ],
            EngineStats(num_running=3, step_token_counts=[1, 2]),
        ),
    ),
]


@pytest.mark.parametrize(("union", "message"), MESSAGES, ids=lambda value: type(value).__name__)
def test_a_message_comes_out_as_it_went_in(union: Any, message: Any) -> None:
    (body,) = FrameSplitter().feed(frame(ENCODER, message))
    assert msgspec.msgpack.Decoder(union).decode(body) == message
