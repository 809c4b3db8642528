"""The engine's face in the server's process.

Starts the engine process, keeps its side of the socket, turns prompts into requests and updates
into text. One bad request never reaches past itself; when the engine process dies, every open
request gets :class:`EngineDeadError` and the state is DEAD at once. Torch-free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from octavo import errors
from octavo.config import EngineConfig
from octavo.engine.intake import Intake
from octavo.engine.interface import EngineState, EngineStats, LoadProgress, ModelInfo
from octavo.engine.messages import (
    Abort,
    FilesFound,
    FrameSplitter,
    FromEngine,
    LoadFailed,
    PhaseFinished,
    PhaseStarted,
    Ready,
    Refused,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
    frame,
)
from octavo.engine.text import ChoiceText
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.outputs import GenerationEvent, RequestUpdate
from octavo.sampling_params import SamplingParams
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_READ_SIZE = 1 << 18
_KILL_AFTER_S = 5.0


class AsyncEngine:
    """See :class:`octavo.engine.interface.Engine` for the meaning of each method."""

    def __init__(self, config: EngineConfig, chat_template_path: str | None = None) -> None:
        self._config = config
        self._chat_template_path = chat_template_path
        self.state = EngineState.LOADING
        self.tokenizer: Tokenizer | None = None
        self.chat_template: ChatTemplate | None = None
        self._phase = PhaseStarted("")
        self._finished_phases: dict[str, float] = {}
        self._info: ModelInfo | None = None
        self._intake: Intake | None = None
        self._stats = EngineStats()
        self._last_report_s = time.monotonic()
        self._open: dict[str, tuple[_Generation, int]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._encoder = msgspec.msgpack.Encoder()
        self._tokenizer_load: asyncio.Task[None] | None = None

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None until READY."""
        return self._info

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`render_chat` can work."""
        return self.chat_template is not None and self.tokenizer is not None

    def progress(self) -> LoadProgress:
        """How far loading is, now."""
        return LoadProgress(
            self._phase.name, self._phase.detail, self._phase.fraction, dict(self._finished_phases)
        )

    async def start(self) -> None:
        """Start the engine process; loading goes on in the background."""
        ours, theirs = socket.socketpair()
        with theirs:
            environment = dict(os.environ)
            environment["OCTAVO_ENGINE_CONFIG"] = msgspec.json.encode(self._config).decode()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "octavo.engine.core_process",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._ready = asyncio.get_running_loop().create_future()
        # A load error nobody waits for is still told by the state and the log.
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._tasks.append(asyncio.create_task(self._read(reader), name="engine-reader"))

    async def wait_ready(self) -> None:
        """Return when READY; raise the reason when loading failed."""
        assert self._ready is not None, "start() comes first"
        await asyncio.shield(self._ready)

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        timeout_s: float | None = None,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream the choices of one prompt; closing the iterator aborts what is still open."""
        self._refuse_unless_ready()
        assert self._intake is not None
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(self._encode, prompt)
        specs = self._intake.prepare(
            request_id,
            prompt,
            params,
            priority=priority,
            timeout_s=timeout_s,
            cache_salt=cache_salt,
        )
        # The tokenizer ran in another thread: the engine may have gone meanwhile.
        self._refuse_unless_ready()
        tokens = specs[0].prompt_token_ids
        generation = _Generation([ChoiceText(self.tokenizer, params, tokens) for _ in specs])
        for index, spec in enumerate(specs):
            if spec.id in self._open:
                raise InvalidRequestError(
                    f"A request with the id {request_id!r} is open; choose another.", "request_id"
                )
            self._open[spec.id] = (generation, index)
        self._idle.clear()
        try:
            self._send(Submit(specs))
            is_first = True
            while not generation.is_over:
                for event in await generation.next_events():
                    event.num_prompt_tokens = len(tokens)
                    if is_first:
                        event.prompt_token_ids, is_first = tokens, False
                    yield event
                self._abort([specs[i].id for i in generation.take_stopped()])
        finally:
            self._close([spec.id for spec in specs])

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """A conversation as token ids; template and tokenizer run off the event loop."""
        template, tokenizer = self.chat_template, self.tokenizer
        if tokenizer is None or template is None:
            raise InvalidRequestError(
                "This model has no chat template; use /v1/completions, or start the server with "
                "--chat-template FILE.",
                "messages",
            )

        def render() -> list[int]:
            text = template.render(list(messages), tools=tools, **options)
            return tokenizer.encode(text, add_special_tokens=False)

        return await asyncio.to_thread(render)

    def stats(self) -> EngineStats:
        """The engine's last report, and how long ago that was if it has work."""
        age_s = time.monotonic() - self._last_report_s if self._open else 0.0
        return msgspec.structs.replace(self._stats, last_progress_age_s=age_s)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; return when no request is open or the time is up."""
        if self.state is EngineState.READY:
            self.state = EngineState.DRAINING
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            for generation, index in list(self._open.values()):
                generation.feed(index, RequestUpdate("", [], finish_reason="abort"))

    async def close(self) -> None:
        """End the engine process and every open request."""
        self._fail_open("The server is shutting down.")
        if self._writer is not None and self._process is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._send(Shutdown())
            try:
                await asyncio.wait_for(self._process.wait(), _KILL_AFTER_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self.state = EngineState.DEAD
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _encode(self, prompt: str) -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "This server runs without a tokenizer (--skip-tokenizer-init); send token ids.",
                "prompt",
            )
        return self.tokenizer.encode(prompt)

    def _refuse_unless_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise EngineDeadError(_UNREADY[self.state])

    async def _read(self, reader: asyncio.StreamReader) -> None:
        splitter = FrameSplitter()
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_SIZE):
                for body in splitter.feed(data):
                    self._handle(decoder.decode(body))
        self._died()

    def _handle(self, message: FromEngine) -> None:
        self._last_report_s = time.monotonic()
        match message:
            case StepReport():
                self._stats = message.stats
                for update in message.updates:
                    self._dispatch(update)
            case Refused():
                self._refuse(message)
            case PhaseStarted():
                self._phase = message
            case PhaseFinished():
                self._finished_phases[message.name] = message.seconds
                self._phase = PhaseStarted("")
            case FilesFound():
                self._tokenizer_load = asyncio.create_task(self._load_tokenizer(message))
                self._tasks.append(self._tokenizer_load)
            case Ready():
                self._tasks.append(asyncio.create_task(self._become_ready(message.info)))
            case LoadFailed():
                self._fail_load(getattr(errors, message.kind)(message.message))

    async def _load_tokenizer(self, files: FilesFound) -> None:
        if files.tokenizer_path is None:
            return
        path = files.tokenizer_path
        self.tokenizer = await asyncio.to_thread(Tokenizer.open, path)
        self.chat_template = await asyncio.to_thread(
            ChatTemplate.open, self._chat_template_path or path, self.tokenizer
        )

    async def _become_ready(self, info: ModelInfo) -> None:
        assert self._ready is not None
        if self._tokenizer_load is not None:
            try:
                await self._tokenizer_load
            except OctavoError as error:
                self._fail_load(error)
                return
        self._info = info
        self._intake = Intake(info, self._config.seed)
        if self.state is EngineState.LOADING:
            self.state = EngineState.READY
            self._ready.set_result(None)

    def _fail_load(self, error: OctavoError) -> None:
        self.state = EngineState.DEAD
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)

    def _died(self) -> None:
        if self.state is not EngineState.DEAD:
            self.state = EngineState.DEAD
            self._fail_load(EngineDeadError("The engine process ended; its log says why."))
        self._fail_open("The engine process ended.")

    def _fail_open(self, message: str) -> None:
        for generation, _ in list(self._open.values()):
            generation.fail(EngineDeadError(message))

    def _dispatch(self, update: RequestUpdate) -> None:
        entry = self._open.get(update.request_id)
        if entry is not None:
            generation, index = entry
            generation.feed(index, update)

    def _refuse(self, refused: Refused) -> None:
        entry = self._open.get(refused.request_id)
        if entry is None:
            return
        kind = getattr(errors, refused.kind)
        if issubclass(kind, errors.QueueFullError):
            error: OctavoError = kind(refused.message, refused.retry_after_s)
        elif issubclass(kind, InvalidRequestError):
            error = kind(refused.message, refused.param)
        else:
            error = kind(refused.message)
        entry[0].fail(error)

    def _abort(self, request_ids: list[str]) -> None:
        """A stop string ended these: the engine need not go on."""
        if request_ids:
            self._send(Abort(request_ids))

    def _close(self, request_ids: list[str]) -> None:
        """Forget a generation, aborting whatever of it the engine has not finished."""
        unfinished = []
        for request_id in request_ids:
            generation, index = self._open.pop(request_id)
            if not generation.is_ended(index):
                unfinished.append(request_id)
        if unfinished and self.state in (EngineState.READY, EngineState.DRAINING):
            self._send(Abort(unfinished))
        if not self._open:
            self._idle.set()

    def _send(self, message: ToEngine) -> None:
        assert self._writer is not None
        self._writer.write(frame(self._encoder, message))


_UNREADY = {
    EngineState.LOADING: "The model is still loading; try again in a moment.",
    EngineState.DRAINING: "The server is shutting down; try another replica.",
    EngineState.DEAD: "The engine process has ended; this server is about to exit.",
}


class _Generation:
    """The open choices of one prompt, between the reader task and the one that streams them."""

    def __init__(self, choices: list[ChoiceText]) -> None:
        self._choices = choices
        self._events: dict[int, GenerationEvent] = {}
        """At most one a choice: what a slow reader has not taken yet is merged."""
        self._ended = [False] * len(choices)
        self._stopped: list[int] = []
        self._error: OctavoError | None = None
        self._wakeup = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended and every event was taken."""
        return all(self._ended) and not self._events and self._error is None

    def is_ended(self, index: int) -> bool:
        """Whether the engine, or a stop string, has ended the choice."""
        return self._ended[index]

    def feed(self, index: int, update: RequestUpdate) -> None:
        """Take the engine's word for one choice."""
        if self._ended[index]:
            return
        if update.finish_reason == "error":
            self.fail(RequestFailedError(update.error or "The engine gave no reason."))
            return
        event = self._choices[index].feed(update)
        event.index = index
        if event.finish_reason is not None:
            self._ended[index] = True
            if update.finish_reason is None:
                self._stopped.append(index)
        if index in self._events:
            self._events[index].absorb(event)
        else:
            self._events[index] = event
        self._wakeup.set()

    def fail(self, error: OctavoError) -> None:
        """End every choice with an error, raised to whoever streams."""
        self._error = error
        self._wakeup.set()

    def take_stopped(self) -> list[int]:
        """Choices a stop string ended since last asked, while the engine still runs them."""
        stopped, self._stopped = self._stopped, []
        return stopped

    async def next_events(self) -> list[GenerationEvent]:
        """What has happened since last asked; raises the error once events are used up."""
        while not self._events:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._wakeup.clear()
            await self._wakeup.wait()
        events, self._events = list(self._events.values()), {}
        return events
