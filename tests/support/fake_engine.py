"""An engine without a model: deterministic, slow on demand, and it can break on demand.

It reads and writes bytes as tokens. Token ``i`` of choice ``c`` for a prompt follows from the
prompt alone, so that crossed streams show.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from octavo.engine.adapter_table import AdapterTable
from octavo.engine.interface import EngineState, LoadProgress
from octavo.engine.model_info import ModelInfo
from octavo.engine.request_options import NO_OPTIONS, RequestOptions
from octavo.errors import (
    EngineDeadError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    RequestFailedError,
)
from octavo.outputs import (
    EngineStats,
    GenerationEvent,
    RequestState,
    RequestTimings,
    TokenLogprobs,
)
from octavo.pooling_params import PoolingParams
from octavo.sampling_params import SamplingParams
from octavo.tokenization.tokenizer import Truncation

EOS = 256
MAX_MODEL_LEN = 512


class ByteTokenizer:
    """One token a byte."""

    special_ids = frozenset({EOS})
    drops_first_space = False
    named_tokens: Mapping[str, str] = {"eos_token": "END"}

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_spelling(self, token_id: int) -> str:
        return chr(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(id_ for id_ in token_ids if id_ < EOS).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id >= EOS else bytes([token_id])


def expected_ids(prompt: Sequence[int], choice: int, count: int) -> list[int]:
    """What the fake generates: lower-case letters."""
    start = sum(prompt) + 7 * choice
    return [97 + (start + position) % 26 for position in range(count)]


def expected_text(prompt: str, choice: int, count: int) -> str:
    """The same as text."""
    return bytes(expected_ids(list(prompt.encode()), choice, count)).decode()


def render(messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """The fake's chat template."""
    text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
    return text + ("<assistant>" if add_generation_prompt else "")


TEMPLATE_VARIABLES = frozenset({"enable_thinking", "reasoning_effort", "documents"})
"""What the fake's chat template reads."""


def fake_embedding(ids: Sequence[int], params: PoolingParams) -> bytes:
    """Four numbers that tell how it was asked for."""
    vector = [float(len(ids)), float(ids[-1]), float(params.pooling == "mean"), 0.5]
    return array("f", vector[: params.dimensions]).tobytes()


def _scored(token_id: int, num_top: int, logprob: float) -> TokenLogprobs:
    top = [97 + (token_id - 97 + rank) % 26 for rank in range(num_top)]
    return TokenLogprobs(token_id, logprob, 1, top, [logprob - i for i in top])


class FakeEngine:
    """Implements :class:`octavo.engine.interface.Engine`."""

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        ready: bool = True,
        max_open: int = 1000,
        has_tokenizer: bool = True,
    ) -> None:
        self.step_s = step_s
        self.max_open = max_open
        self.has_tokenizer = has_tokenizer
        self.gate = asyncio.Event()
        """Nothing is generated, and nothing admitted, while it is cleared."""
        self.gate.set()
        self.open_ids: set[str] = set()
        self.aborted_ids: list[str] = []
        self.num_choices: dict[str, int] = {}
        self._mailboxes: dict[str, _Mailbox] = {}
        self.seen: list[tuple[str | list[int], SamplingParams, RequestOptions]] = []
        self.template_kwargs: dict[str, Any] = {}
        self.events_made = 0
        self.counters = EngineStats(num_blocks=100)
        self.adapters = AdapterTable(lambda message: None, is_enabled=False, wait_s=1.0)
        self.load_error: Exception | None = None
        self.fail_midway: str | None = None
        self.finish_with: str | None = None
        self._state = EngineState.LOADING
        self._loaded = asyncio.Event()
        self._death = asyncio.Event()
        self._drain_abort = asyncio.Event()
        self._empty = asyncio.Event()
        self.closed = False
        if ready:
            self.become_ready()

    # What a test does to it.

    def become_ready(self) -> None:
        self._state = EngineState.READY
        self._loaded.set()

    def fail_to_load(self, error: Exception) -> None:
        self.load_error = error
        self._state = EngineState.DEAD
        self._loaded.set()

    def die(self) -> None:
        self._state = EngineState.DEAD
        self._death.set()

    # The face.

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> ModelInfo | None:
        if not self._loaded.is_set() or self.load_error is not None:
            return None
        return ModelInfo(
            name="toy/bytes",
            max_model_len=MAX_MODEL_LEN,
            vocab_size=257,
            hidden_size=4,
            embedding_dimensions=[2],
            has_tokenizer=self.has_tokenizer,
            eos_token_ids=[EOS],
            created=1_700_000_000,
            block_size=16,
            num_blocks=100,
            dtype="float32",
        )

    @property
    def tokenizer(self) -> ByteTokenizer | None:
        return ByteTokenizer() if self.has_tokenizer else None

    @property
    def has_chat_template(self) -> bool:
        return self.has_tokenizer

    async def start(self) -> None:
        return None

    async def wait_ready(self) -> None:
        await self._loaded.wait()
        if self.load_error is not None:
            raise self.load_error

    def progress(self) -> LoadProgress:
        if self._state is EngineState.LOADING:
            return LoadProgress("weights", "model.safetensors", 0.5, {"files": 0.25})
        return LoadProgress(finished={"files": 0.25, "weights": 1.5}, ready_s=2.5)

    async def generate(
        self,
        prompts: list[str | list[int]],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = NO_OPTIONS,
    ) -> AsyncGenerator[GenerationEvent, None]:
        self.seen += [(prompt, params, options) for prompt in prompts]
        encoded = [list(p.encode()) if isinstance(p, str) else p for p in prompts]
        for ids in encoded:
            self._check(ids, params, request_id)
        num_choices = len(prompts) * params.n
        if sum(self.num_choices[id_] for id_ in self.open_ids) + num_choices > self.max_open:
            raise QueueFullError("The queue is full; retry later.", 2.3)
        self.open_ids.add(request_id)
        self.num_choices[request_id] = num_choices
        self._empty.clear()
        mailbox = self._mailboxes[request_id] = _Mailbox()
        workers = [
            asyncio.create_task(
                self._work(ids, params, options.pooling, _Letterbox(mailbox, number * params.n))
            )
            for number, ids in enumerate(encoded)
        ]
        finished = 0
        try:
            while finished < num_choices:
                for event in await mailbox.take():
                    yield event
                    finished += event.finish_reason is not None
        finally:
            for worker in workers:
                worker.cancel()
            if finished < num_choices:
                self.aborted_ids.append(request_id)
            self.open_ids.discard(request_id)
            del self._mailboxes[request_id]
            if not self.open_ids:
                self._empty.set()

    def abort(self, request_id: str) -> bool:
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None:
            for choice in range(self.num_choices[request_id]):
                mailbox.put(GenerationEvent(choice, "", [], finish_reason="abort"))
        return mailbox is not None

    async def inspect(self) -> Mapping[str, RequestState]:
        timings = RequestTimings(0.5, 0.25, 0.0)
        return {
            id_: RequestState(id_, "decode", timings, 1, 2, 3, 0) for id_ in sorted(self.open_ids)
        }

    async def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
    ) -> list[int]:
        """One special token is put before a text that asks for any."""
        if not self.has_tokenizer:
            raise InvalidRequestError("There is no tokenizer here.", "prompt")
        ids = list(text.encode())
        if truncation is not None:
            ids = truncation.cut(ids, int(add_special_tokens))
        return [EOS, *ids] if add_special_tokens else ids

    chat_template_source = ""

    def template_reads(self, variable: str) -> bool:
        return variable in TEMPLATE_VARIABLES

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_special_tokens: bool = False,
        most_tokens: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        self.template_kwargs = dict(kwargs)
        if any(message["content"] == "template error" for message in messages):
            raise InvalidRequestError("The chat template refuses these messages.", "messages")
        text = render(messages, kwargs.get("add_generation_prompt", True))
        return [EOS] * add_special_tokens + list(text.encode())

    def stats(self) -> EngineStats:
        self.counters.num_running = len(self.open_ids)
        return self.counters

    async def drain(self, timeout_s: float) -> None:
        self._state = EngineState.DRAINING
        if self.open_ids:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)
        self._drain_abort.set()

    async def close(self) -> None:
        self.closed = True

    # Inside.

    def _check(self, ids: list[int], params: SamplingParams, request_id: str) -> None:
        if self._state is EngineState.DEAD:
            raise EngineDeadError("The engine is gone.")
        if not ids:
            raise InvalidRequestError("The prompt has no tokens.", "prompt")
        if len(ids) >= MAX_MODEL_LEN:
            raise PromptTooLongError(
                f"The prompt has {len(ids)} tokens; the model's context holds {MAX_MODEL_LEN}. "
                "Shorten it.",
                "prompt",
            )
        assert request_id not in self.open_ids, "request ids must be unique"

    async def _work(
        self,
        ids: list[int],
        params: SamplingParams,
        pooling: PoolingParams | None,
        mailbox: _Letterbox,
    ) -> None:
        try:
            await self._generate(ids, params, pooling, mailbox)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            mailbox.fail(error)

    async def _generate(
        self,
        ids: list[int],
        params: SamplingParams,
        pooling: PoolingParams | None,
        mailbox: _Letterbox,
    ) -> None:
        await self._pause()
        room = MAX_MODEL_LEN - len(ids)
        count = room if params.max_tokens is None else min(params.max_tokens, room)
        for choice in range(params.n):
            first = GenerationEvent(choice, "", [], num_prompt_tokens=len(ids))
            first.prompt_token_ids = ids if choice == 0 else None
            if choice == 0 and params.prompt_logprobs is not None:
                first.prompt_logprobs = [
                    _scored(id_, params.prompt_logprobs, -2.0) for id_ in ids[1:]
                ]
            if pooling is not None and self.finish_with is None:
                first.embedding = fake_embedding(ids, pooling)
            if params.max_tokens == 0 and self.finish_with is None:
                first.finish_reason = "length"
            mailbox.put(first)
        if self.finish_with is not None:
            for choice in range(params.n):
                mailbox.put(GenerationEvent(choice, "", [], finish_reason=self.finish_with))
            return
        texts = [expected_ids(ids, choice, count) for choice in range(params.n)]
        for position in range(count):
            await self._pause()
            if self.fail_midway is not None and position == 2:
                reason, self.fail_midway = self.fail_midway, None
                raise RequestFailedError(reason)
            for choice in range(params.n):
                self._put_token(mailbox, params, choice, texts[choice], position, count)

    async def _pause(self) -> None:
        await asyncio.sleep(self.step_s)
        waiters = [asyncio.create_task(event.wait()) for event in (self.gate, self._death)]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
        if self._death.is_set():
            raise EngineDeadError("The engine process has died; the server is restarting.")

    def _put_token(
        self,
        mailbox: _Letterbox,
        params: SamplingParams,
        choice: int,
        token_ids: list[int],
        position: int,
        count: int,
    ) -> None:
        token_id = token_ids[position]
        event = GenerationEvent(choice, chr(token_id), [token_id])
        if params.logprobs is not None:
            event.logprobs = [_scored(token_id, params.logprobs, -0.5 + 0.1 * choice)]
        stopped = chr(token_id) in params.stop
        if stopped or position == count - 1 or self._drain_abort.is_set():
            event.finish_reason = "stop" if stopped else "length"
            if self._drain_abort.is_set():
                event.finish_reason = "abort"
            event.stop_reason = chr(token_id) if stopped else None
            event.timings = RequestTimings(0.01, 0.02, 0.03)
        self.events_made += 1
        mailbox.put(event)


class _Letterbox:
    """Of one prompt: its choices are numbered from ``first`` on."""

    def __init__(self, mailbox: _Mailbox, first: int) -> None:
        self._mailbox = mailbox
        self._first = first
        self.fail = mailbox.fail

    def put(self, event: GenerationEvent) -> None:
        event.index += self._first
        self._mailbox.put(event)


class _Mailbox:
    """At most one pending event a choice; later ones are merged into it."""

    def __init__(self) -> None:
        self._pending: dict[int, GenerationEvent] = {}
        self._ended: set[int] = set()
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()

    def put(self, event: GenerationEvent) -> None:
        if event.index in self._ended:
            return
        if event.finish_reason is not None:
            self._ended.add(event.index)
        waiting = self._pending.get(event.index)
        if waiting is None:
            self._pending[event.index] = event
        else:
            waiting.absorb(event)
        self._arrived.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._arrived.set()

    async def take(self) -> list[GenerationEvent]:
        await self._arrived.wait()
        self._arrived.clear()
        events = list(self._pending.values())
        self._pending.clear()
        if not events and self._error is not None:
            raise self._error
        if self._error is not None:
            self._arrived.set()
        return events
