"""The server's side of the wall, with the test on the other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.engine.interface import EngineState
from octavo.engine.messages import (
    Abort,
    FilesFound,
    LoadFailed,
    PhaseFinished,
    PhaseStarted,
    Ready,
    Refused,
    Shutdown,
    Submit,
)
from octavo.engine.request_options import RequestOptions
from octavo.errors import (
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
    QueueFullError,
    RequestFailedError,
    UnsupportedModelError,
)
from octavo.grammar import StructuredOutputs
from octavo.outputs import GenerationEvent, RequestUpdate
from octavo.pooling_params import PoolingParams
from octavo.request import AdapterGeneration, Tenant
from octavo.sampling_params import SamplingParams
from polling import until
from puppet_engine import INFO, PuppetEngine, puppet_engine


@pytest.fixture
async def engine(byte_tokenizer: Path) -> AsyncIterator[PuppetEngine]:
    async with puppet_engine(byte_tokenizer) as engine:
        yield engine


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 50, **values})


def said(request_id: str, text: str, finish: str | None = None) -> RequestUpdate:
    return RequestUpdate(request_id, list(text.encode()), finish_reason=finish)


async def collect(events: AsyncIterator[GenerationEvent]) -> list[GenerationEvent]:
    return [event async for event in events]


def asking(
    engine: PuppetEngine, request_id: str = "r", **values: Any
) -> asyncio.Task[list[GenerationEvent]]:
    events = engine.generate(["hi"], params(**values), request_id=request_id)
    return asyncio.create_task(collect(events))


# ---- Loading -----------------------------------------------------------------------------------


async def test_progress_follows_the_phases(byte_tokenizer: Path) -> None:
    async with puppet_engine() as engine:
        engine.say(PhaseStarted("weights", "tiny", 0.5))
        await until(lambda: engine.progress().phase)
        assert (engine.progress().phase, engine.progress().fraction) == ("weights", 0.5)
        engine.say(PhaseFinished("weights", 2.0))
        await until(lambda: engine.progress().finished)
        assert engine.progress().phase == ""
        assert engine.progress().finished == {"weights": 2.0}


async def test_nothing_is_taken_while_it_loads() -> None:
    async with puppet_engine() as engine:
        with pytest.raises(EngineDeadError, match="still loading"):
            await anext(engine.generate([[1]], params(), request_id="r"))


async def test_ready_waits_for_the_tokenizer(byte_tokenizer: Path) -> None:
    async with puppet_engine(byte_tokenizer) as engine:
        assert engine.state is EngineState.READY
        assert engine.tokenizer is not None
        assert engine.has_chat_template
        ids = await engine.render_chat([{"role": "user", "content": "hi"}])
        assert bytes(id for id in ids if id < 256).startswith(b"user\nhi")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (LoadFailed("UnsupportedModelError", "no such thing"), UnsupportedModelError),
        (LoadFailed("NoSuchError", "no such thing"), ModelLoadError),
        (LoadFailed("QueueFullError", "no such thing"), ModelLoadError),
        (LoadFailed("annotations", "no such thing"), ModelLoadError),
    ],
)
async def test_a_load_failure_keeps_its_kind(failure: LoadFailed, kind: type[Exception]) -> None:
    async with puppet_engine() as engine:
        engine.say(failure)
        with pytest.raises(kind, match="no such thing") as raised:
            await engine.wait_ready()
        assert type(raised.value) is kind
        assert engine.state is EngineState.DEAD


async def test_a_broken_tokenizer_fails_loading_before_the_weights_are_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    async with puppet_engine() as engine:
        engine.say(FilesFound(str(tmp_path)))
        with pytest.raises(ModelLoadError, match="tokenizer"):
            await engine.wait_ready()
        assert engine.state is EngineState.DEAD
        engine.say(Ready(INFO))
        await asyncio.sleep(0.02)
        assert engine.state is EngineState.DEAD


async def test_what_nobody_expects_of_the_last_part_of_loading_ends_it(
    monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Path
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("octavo.engine.async_engine.load_first_adapters", fail)
    async with puppet_engine() as engine, asyncio.timeout(30):
        engine.say(FilesFound(str(byte_tokenizer)))
        engine.say(Ready(INFO))
        with pytest.raises(ModelLoadError, match="cannot be readied: no such thing"):
            await engine.wait_ready()
        assert engine.state is EngineState.DEAD


async def test_a_process_that_dies_while_loading_says_how() -> None:
    async with puppet_engine() as engine:
        engine.process.kill()
        engine.far_end.close()
        with pytest.raises(EngineDeadError, match=r"was killed; .* memory limit"):
            await engine.wait_ready()


async def test_closing_while_loading_ends_the_wait_at_once() -> None:
    async with puppet_engine() as engine:
        waiting = asyncio.create_task(engine.wait_ready())
        await asyncio.sleep(0)
        async with asyncio.timeout(4):  # less than a polite word is waited for
            await engine.close()
        with pytest.raises(EngineDeadError, match="shutting down"):
            await waiting
        assert engine.process.returncode == -signal.SIGKILL


async def test_draining_while_loading_never_becomes_ready() -> None:
    async with puppet_engine() as engine:
        await engine.drain(1.0)
        engine.say(Ready(INFO))
        with pytest.raises(EngineDeadError, match="shutting down"):
            await engine.wait_ready()


async def test_an_engine_that_was_never_started_closes() -> None:
    engine = PuppetEngine()
    await engine.close()
    await engine.close()
    assert engine.state is EngineState.DEAD


# ---- Generating --------------------------------------------------------------------------------


async def test_a_prompt_becomes_events(engine: PuppetEngine) -> None:
    task = asking(engine, logprobs=None)
    submit = await engine.hear()
    assert isinstance(submit, Submit)
    (spec,) = submit.requests
    assert (spec.id, spec.prompt_token_ids, spec.params.max_tokens) == ("r", [104, 105], 50)
    engine.report(said("r", "He"))
    await until(lambda: engine.num_open)
    engine.report(said("r", "llo", "length"))
    events = await task
    assert "".join(event.text for event in events) == "Hello"
    assert events[0].prompt_token_ids == [104, 105]
    assert all(event.prompt_token_ids is None for event in events[1:])
    assert {event.num_prompt_tokens for event in events} == {2}
    assert events[-1].finish_reason == "length"
    assert engine.num_open == 0
    await engine.hear_nothing()


async def test_n_choices_are_submitted_together(engine: PuppetEngine) -> None:
    task = asking(engine, n=3, seed=5)
    submit = await engine.hear()
    assert [(s.id, s.leader_id, s.seed) for s in submit.requests] == [
        ("r:0", None, 5),
        ("r:1", "r:0", 6),
        ("r:2", "r:0", 7),
    ]
    engine.report(*(said(f"r:{i}", "abc"[i], "stop") for i in (2, 0, 1)))
    events = await task
    # The last token of a "stop" is the one that stopped, and no part of the text.
    assert sorted((e.index, e.text, e.token_ids) for e in events) == [
        (0, "", [97]),
        (1, "", [98]),
        (2, "", [99]),
    ]


async def test_what_a_request_asks_beside_its_sampling_reaches_the_engine(
    engine: PuppetEngine,
) -> None:
    options = RequestOptions(
        priority=-2,
        timeout_s=1000.0,
        tenant=Tenant("team", 3, 4),
        pooling=PoolingParams("mean"),
        adapter=AdapterGeneration(7, "digest"),
    )
    salted = msgspec.structs.replace(options, cache_salt="salt")
    keys = []
    for number, asked in enumerate((options, salted, RequestOptions())):
        events = engine.generate(["hi"], params(), request_id=str(number), options=asked)
        task = asyncio.create_task(collect(events))
        (spec,) = (await engine.hear()).requests
        assert spec.priority == asked.priority
        assert spec.timeout_s == (asked.timeout_s and pytest.approx(asked.timeout_s, rel=0.5))
        assert (spec.tenant, spec.pooling) == (asked.tenant, asked.pooling)
        assert spec.adapter_id == (asked.adapter and asked.adapter.id)
        keys.append(spec.cache_key)
        engine.report(said(spec.id, "", "stop"))
        await task
    assert len(set(keys)) == 3


async def test_a_stop_string_over_tokens_aborts_even_if_nobody_reads(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(stop="END"), request_id="r")
    first = asyncio.ensure_future(anext(events))
    await engine.hear()
    engine.report(said("r", "one E"))
    assert (await first).text == "one "
    engine.report(said("r", "N"))
    engine.report(said("r", "D and more"))
    assert await engine.hear() == Abort(["r"])
    engine.report(said("r", " and more"), RequestUpdate("r", [], finish_reason="abort"))
    (last,) = await collect(events)
    assert (last.text, last.finish_reason, last.stop_reason) == ("", "stop", "END")
    await engine.hear_nothing()


async def test_who_leaves_at_the_stop_string_is_not_forgotten(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(stop="!"), request_id="r")
    first = asyncio.ensure_future(anext(events))
    await engine.hear()
    engine.report(said("r", "a!"))
    assert (await first).finish_reason == "stop"
    await events.aclose()
    assert await engine.hear() == Abort(["r"])
    assert engine.num_open == 0


async def test_a_slow_reader_gets_merged_events(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(n=2), request_id="r")
    first = asyncio.ensure_future(anext(events))
    await engine.hear()
    engine.report(said("r:0", "a"))
    assert (await first).text == "a"
    for letter in "bcdefg":
        engine.report(said("r:0", letter), said("r:1", letter))
    engine.report(said("r:0", "h", "length"), said("r:1", "h", "length"))
    await until(lambda: all(engine._open[f"r:{i}"][0].is_ended(i) for i in range(2)))
    rest = await collect(events)
    assert [(e.index, e.text, e.finish_reason) for e in rest] == [
        (0, "bcdefgh", "length"),
        (1, "bcdefgh", "length"),
    ]


async def test_prompts_of_one_request_enter_the_engine_together(engine: PuppetEngine) -> None:
    events = engine.generate(["hi", [5, 6]], params(n=2), request_id="r")
    task = asyncio.create_task(collect(events))
    specs = (await engine.hear()).requests
    assert [(spec.id, bytes(spec.prompt_token_ids), spec.leader_id) for spec in specs] == [
        ("r:0:0", b"hi", None),
        ("r:0:1", b"hi", "r:0:0"),
        ("r:1:0", bytes([5, 6]), None),
        ("r:1:1", bytes([5, 6]), "r:1:0"),
    ]
    engine.report(*(said(spec.id, "ab"[number % 2], "length") for number, spec in enumerate(specs)))
    told = [(e.index, e.text, e.prompt_token_ids, e.num_prompt_tokens) for e in await task]
    assert told == [
        (0, "a", [104, 105], 2),
        (1, "b", None, 2),
        (2, "a", [5, 6], 2),
        (3, "b", None, 2),
    ]
    assert not engine.abort("r")


async def test_all_prompts_of_a_request_are_aborted_by_its_id(engine: PuppetEngine) -> None:
    task = asyncio.create_task(collect(engine.generate(["a", "b"], params(), request_id="r")))
    await engine.hear()
    assert engine.abort("r")
    assert [event.finish_reason for event in await task] == ["abort"] * 2


async def test_closing_mid_stream_aborts_what_is_open(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(n=3), request_id="r")
    first = asyncio.ensure_future(anext(events))
    await engine.hear()
    engine.report(said("r:1", "x", "length"))
    await first
    await events.aclose()
    assert await engine.hear() == Abort(["r:0", "r:2"])
    engine.report(said("r:0", "late"))  # nobody's any more
    assert engine.num_open == 0
    await engine.drain(5)


async def test_cancelling_before_anything_was_said_aborts(engine: PuppetEngine) -> None:
    task = asking(engine)
    await engine.hear()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.hear() == Abort(["r"])


async def test_a_generator_that_never_ran_says_nothing(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(), request_id="r")
    await events.aclose()
    await engine.hear_nothing()
    assert engine.num_open == 0


async def test_cancelling_while_the_prompt_is_tokenised_says_nothing(engine: PuppetEngine) -> None:
    task = asking(engine)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.hear_nothing()
    assert engine.num_open == 0


class SlowGrammars:
    """In place of an engine's trials: each takes until the gate is open."""

    def __init__(self, engine: PuppetEngine) -> None:
        assert engine._requests is not None
        self.gate = asyncio.Event()
        self.is_asked = asyncio.Event()
        engine._requests._trials = self  # type: ignore[assignment]

    async def check(self, text: str, asked: StructuredOutputs) -> None:
        self.is_asked.set()
        await self.gate.wait()

    async def close(self) -> None:
        pass


CONSTRAINED = msgspec.structs.replace(INFO, can_constrain=True)


@pytest.mark.parametrize("pooling", [None, PoolingParams()], ids=["generated", "embedded"])
@pytest.mark.parametrize("end", ["deadline", "abort"])
async def test_a_request_may_end_before_the_engine_hears_of_it(
    byte_tokenizer: Path, end: str, pooling: PoolingParams | None
) -> None:
    async with puppet_engine(byte_tokenizer, CONSTRAINED) as engine:
        slow = SlowGrammars(engine)
        asked = params(n=2, structured_outputs=StructuredOutputs(regex="a"))
        timeout_s = 0.01 if end == "deadline" else None
        options = RequestOptions(timeout_s=timeout_s, pooling=pooling)
        events = engine.generate(["hi", "ho"], asked, request_id="r", options=options)
        collecting = asyncio.create_task(collect(events))
        await slow.is_asked.wait()
        assert not engine.abort("another")
        if end == "abort":
            assert engine.abort("r")
            assert not engine.abort("r")
        ends = [(event.index, event.text, event.finish_reason) for event in await collecting]
        assert ends == [(index, "", end) for index in range(4)]
        assert not engine.abort("r")
        await engine.hear_nothing()


async def test_the_engine_gets_what_is_left_of_a_requests_time(byte_tokenizer: Path) -> None:
    async with puppet_engine(byte_tokenizer, CONSTRAINED) as engine:
        slow = SlowGrammars(engine)
        asked = params(n=2, structured_outputs=StructuredOutputs(regex="a"))
        options = RequestOptions(timeout_s=100.0)
        events = engine.generate(["hi"], asked, request_id="r", options=options)
        collecting = asyncio.create_task(collect(events))
        await slow.is_asked.wait()
        await asyncio.sleep(0.05)
        slow.gate.set()
        submitted = await engine.hear()
        assert isinstance(submitted, Submit)
        for spec in submitted.requests:
            assert spec.timeout_s is not None
            assert 0 < spec.timeout_s < 99.96
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)


@pytest.mark.parametrize(("first", "second"), [("r", 1), ("r", 2), ("r:1", 2)])
async def test_an_id_in_use_is_refused_and_leaves_nothing(
    engine: PuppetEngine, first: str, second: int
) -> None:
    open_one = asking(engine, first, n=second if first == "r" else 1)
    await engine.hear()
    before = engine.num_open
    with pytest.raises(InvalidRequestError, match="'r' is open") as raised:
        await asking(engine, "r", n=second)
    assert raised.value.param == "request_id"
    assert engine.num_open == before
    open_one.cancel()
    assert isinstance(await engine.hear(), Abort)


@pytest.mark.parametrize(
    ("prompt", "values", "kind", "param", "words"),
    [
        ([], {}, InvalidRequestError, "prompt", "no tokens"),
        ("", {}, InvalidRequestError, "prompt", "no tokens"),
        ([1] * 128, {}, PromptTooLongError, "prompt", "128 tokens.* at most 128"),
        ([1] * 100, {"max_tokens": 29}, PromptTooLongError, "max_tokens", "29.* leaves 28"),
        ([272], {}, InvalidRequestError, "prompt", "272.* to 271"),
        ([-1], {}, InvalidRequestError, "prompt", "-1.* to 271"),
        (["a"], {}, InvalidRequestError, "prompt", "must be integers"),
        ([1.5], {}, InvalidRequestError, "prompt", "must be integers"),
        ([1], {"logit_bias": {272: 1.0}}, InvalidRequestError, "logit_bias", "272.* to 271"),
        ([1], {"stop_token_ids": [999]}, InvalidRequestError, "stop_token_ids", "999.* to 271"),
        (
            [1] * 120,
            {"max_tokens": None, "min_tokens": 9},
            InvalidRequestError,
            "min_tokens",
            "min_tokens is 9.* 8",
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_here(
    engine: PuppetEngine,
    prompt: Any,
    values: dict[str, Any],
    kind: type[InvalidRequestError],
    param: str,
    words: str,
) -> None:
    with pytest.raises(kind, match=words) as raised:
        await collect(engine.generate([prompt], params(**values), request_id="r"))
    assert raised.value.param == param
    await engine.hear_nothing()
    assert engine.num_open == 0


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        (Refused("r", "QueueFullError", "full", retry_after_s=2.5), QueueFullError),
        (Refused("r", "PromptTooLongError", "full", param="prompt"), PromptTooLongError),
        (Refused("r", "RequestFailedError", "full"), RequestFailedError),
        (Refused("r", "KeyError", "full"), RequestFailedError),
    ],
)
async def test_a_refusal_keeps_its_kind(
    engine: PuppetEngine, refused: Refused, kind: type[Exception]
) -> None:
    task = asking(engine)
    await engine.hear()
    engine.say(refused)
    with pytest.raises(kind, match="full") as raised:
        await task
    assert type(raised.value) is kind
    assert getattr(raised.value, "retry_after_s", 2.5) == 2.5
    assert getattr(raised.value, "param", None) == refused.param
    assert engine.num_open == 0


async def test_a_failed_choice_fails_its_request_alone(engine: PuppetEngine) -> None:
    bad, good = asking(engine, "bad", n=2), asking(engine, "good")
    await until(lambda: engine.num_open == 3)
    engine.report(RequestUpdate("bad:1", [], finish_reason="error", error="row 7"))
    with pytest.raises(RequestFailedError, match="row 7"):
        await bad
    engine.report(said("good", "fine", "length"))
    assert [event.text for event in await good] == ["fine"]


async def test_text_that_cannot_be_made_fails_its_request_alone(engine: PuppetEngine) -> None:
    bad, good = asking(engine, "bad"), asking(engine, "good")
    await until(lambda: engine.num_open == 2)
    generation, _ = engine._open["bad"]

    def broken(update: RequestUpdate) -> GenerationEvent:
        raise ZeroDivisionError

    generation._choices[0].feed = broken  # type: ignore[method-assign]
    engine.report(said("bad", "x"), said("good", "fine", "length"))
    assert [event.text for event in await good] == ["fine"]
    with pytest.raises(RequestFailedError, match="could not be made"):
        await bad
    assert engine.state is EngineState.READY


async def test_without_a_tokenizer_only_ids_go_in() -> None:
    async with puppet_engine() as engine:
        engine.say(FilesFound(None))
        engine.say(Ready(INFO))
        await engine.wait_ready()
        with pytest.raises(InvalidRequestError, match="--skip-tokenizer-init"):
            await asking(engine)
        with pytest.raises(InvalidRequestError, match="no chat template"):
            await engine.render_chat([])
        task = asyncio.create_task(
            collect(engine.generate([[5]], params(stop="x"), request_id="ids"))
        )
        await engine.hear()
        engine.report(RequestUpdate("ids", [1, 2], finish_reason="length"))
        (event,) = await task
        assert (event.text, event.token_ids) == ("", [1, 2])


# ---- The end -----------------------------------------------------------------------------------

_GARBAGE = [
    pytest.param(b"\xff\xff\xff\xff", id="a length no message has"),
    pytest.param(b"\x00\x00\x00\x03abc", id="no msgpack"),
    pytest.param(b"\x00\x00\x00\x00", id="an empty message"),
    pytest.param(b"\x00\x00\x00\x08\x92\xa6NoSuch", id="an unknown message"),
    pytest.param(b"\x00\x00\x00\x0d\x93\xaaStepReport\x01", id="updates of the wrong type"),
]


@pytest.mark.parametrize("garbage", _GARBAGE)
async def test_an_engine_that_cannot_be_understood_is_ended(
    engine: PuppetEngine, garbage: bytes
) -> None:
    task = asking(engine)
    await engine.hear()
    engine.say_bytes(garbage)
    with pytest.raises(EngineDeadError):
        await task
    assert engine.state is EngineState.DEAD
    await engine.process.wait()
    assert engine.process.returncode == -signal.SIGKILL


async def test_a_dead_engine_ends_every_request_at_once(
    engine: PuppetEngine, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [asking(engine, str(i), n=1 + i % 2) for i in range(6)]
    await until(lambda: engine.num_open == 9)
    os.kill(engine.process.pid, signal.SIGKILL)
    engine.far_end.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineDeadError) for result in results)
    assert engine.state is EngineState.DEAD
    assert engine.num_open == 0
    with pytest.raises(EngineDeadError, match="has ended"):
        await asking(engine, "late")
    await until(lambda: "was killed" in caplog.text)
    async with asyncio.timeout(5):
        await engine.drain(60)


async def test_text_that_came_before_the_end_is_still_read(engine: PuppetEngine) -> None:
    events = engine.generate(["hi"], params(), request_id="r")
    first = asyncio.ensure_future(anext(events))
    await engine.hear()
    engine.report(said("r", "a"))
    await first
    engine.report(said("r", "b"))
    engine.far_end.close()
    await until(lambda: engine.state is EngineState.DEAD)
    assert (await anext(events)).text == "b"
    with pytest.raises(EngineDeadError):
        await anext(events)


async def test_drain_without_requests_returns_at_once(engine: PuppetEngine) -> None:
    async with asyncio.timeout(10):
        await engine.drain(600)
    with pytest.raises(EngineDeadError, match="try another replica"):
        await asking(engine)


async def test_drain_lets_open_requests_end(engine: PuppetEngine) -> None:
    task = asking(engine)
    await engine.hear()
    draining = asyncio.create_task(engine.drain(600))
    await until(lambda: engine.state is EngineState.DRAINING)
    engine.report(said("r", "a"))
    assert not draining.done()
    engine.report(said("r", "b", "length"))
    assert "".join(event.text for event in await task) == "ab"
    await draining


@pytest.mark.parametrize("is_in_time", [True, False])
async def test_drain_waits_for_requests_that_are_still_being_written(
    byte_tokenizer: Path, is_in_time: bool
) -> None:
    async with puppet_engine(byte_tokenizer, CONSTRAINED) as engine:
        slow = SlowGrammars(engine)
        task = asking(engine, structured_outputs=StructuredOutputs(regex="a"))
        await slow.is_asked.wait()
        draining = asyncio.create_task(engine.drain(600 if is_in_time else 0.01))
        await until(lambda: engine.state is EngineState.DRAINING)
        with pytest.raises(EngineDeadError, match="shutting down"):
            await asking(engine, "later")
        if is_in_time:
            slow.gate.set()
            await engine.hear()
            engine.report(said("r", "a", "stop"))
        assert [event.finish_reason for event in await task] == ["stop" if is_in_time else "abort"]
        await draining


async def test_drain_that_takes_too_long_aborts_with_the_text_so_far(engine: PuppetEngine) -> None:
    task = asking(engine, stop="zebra")
    await engine.hear()
    engine.report(said("r", "held: zeb"))
    await engine.drain(0.05)
    assert await engine.hear() == Abort(["r"])
    events = await task
    assert "".join(event.text for event in events) == "held: zeb"
    assert events[-1].finish_reason == "abort"


async def test_closing_tells_the_engine_and_every_request(engine: PuppetEngine) -> None:
    task = asking(engine)
    await engine.hear()
    closing = asyncio.create_task(engine.close())
    assert await engine.hear() == Shutdown()
    with pytest.raises(EngineDeadError, match="shutting down"):
        await task
    engine.process.kill()
    await closing
    await engine.close()
    assert engine.state is EngineState.DEAD


async def test_an_engine_deaf_to_shutdown_is_killed(
    engine: PuppetEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.engine.engine_connection._KILL_AFTER_S", 0.05)
    await engine.close()
    assert engine.process.returncode == -signal.SIGKILL


async def test_an_engine_that_the_kernel_holds_is_not_waited_for(
    engine: PuppetEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.engine.engine_connection._KILL_AFTER_S", 0.05)
    monkeypatch.setattr(engine.process, "kill", lambda: None)
    async with asyncio.timeout(30):
        await engine.close()
    assert engine.process.returncode is None


async def test_age_of_progress_counts_only_with_work(engine: PuppetEngine) -> None:
    assert engine.stats().last_progress_age_s == 0
    task = asking(engine)
    await engine.hear()
    await until(lambda: engine.stats().last_progress_age_s > 0.02)
    engine.report()
    await until(lambda: engine.stats().last_progress_age_s < 0.02)
    task.cancel()


async def test_engines_come_and_go_without_trace(byte_tokenizer: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with puppet_engine(byte_tokenizer):
        pass
    before, tasks = handles(), len(asyncio.all_tasks())
    for _ in range(5):
        async with puppet_engine(byte_tokenizer) as engine:
            task = asking(engine)
            await engine.hear()
            engine.say_bytes(b"\xff" * 4)
            with pytest.raises(EngineDeadError):
                await task
    await until(lambda: handles() <= before)
    assert len(asyncio.all_tasks()) == tasks
