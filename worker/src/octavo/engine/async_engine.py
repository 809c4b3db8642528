"""The engine's face in the server's process.

Turns prompts into requests for the engine's process (:mod:`octavo.engine.engine_connection`) and
its updates into text, of every open request. One bad request never reaches past itself; when the
process dies, every open request gets :class:`EngineDeadError` and the state is DEAD at once.
Torch-free.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from octavo.config import EngineConfig
from octavo.engine.adapter_state import AdapterStateFile
from octavo.engine.adapter_table import AdapterTable
from octavo.engine.carried_errors import from_load_failure, from_refusal
from octavo.engine.engine_connection import EngineConnection, start_engine_process
from octavo.engine.first_adapters import load_first_adapters
from octavo.engine.inspections import Inspections
from octavo.engine.interface import EngineState, LoadProgress
from octavo.engine.loading_state import LoadingState
from octavo.engine.messages import (
    Abort,
    AdapterFailed,
    AdapterOpened,
    FilesFound,
    FromEngine,
    Inspect,
    Inspected,
    LoadFailed,
    PhaseFinished,
    PhaseStarted,
    Ready,
    Refused,
    RequestSpec,
    StepReport,
    Submit,
    ToEngine,
)
from octavo.engine.model_info import ModelInfo
from octavo.engine.open_generation import OpenGeneration
from octavo.engine.open_generations import OpenGenerations
from octavo.engine.prompt_writer import PromptWriter
from octavo.engine.request_options import NO_OPTIONS, RequestOptions
from octavo.engine.request_writer import RequestWriter
from octavo.engine.text import ChoiceText
from octavo.engine.unsent_requests import UnsentRequests
from octavo.engine.watchdog import TICK_S, Watchdog
from octavo.errors import EngineDeadError, ModelLoadError, OctavoError
from octavo.outputs import EngineStats, GenerationEvent, RequestState
from octavo.request import FinishReason
from octavo.sampling_params import SamplingParams
from octavo.tokenization.tokenizer import Tokenizer, Truncation

_log = logging.getLogger(__name__)


class AsyncEngine:
    """See :class:`octavo.engine.interface.Engine` for the meaning of each method."""

    def __init__(self, config: EngineConfig, chat_template_path: str | None = None) -> None:
        self._config = config
        self.state = EngineState.LOADING
        self._loading = LoadingState()
        self._prompts = PromptWriter(chat_template_path)
        self._info: ModelInfo | None = None
        self._requests: RequestWriter | None = None
        self._stats = EngineStats()
        self._watchdog = Watchdog(time.monotonic())
        self._inspections = Inspections()
        self._unsent = UnsentRequests()
        self._open = OpenGenerations()
        self._connection: EngineConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._tokenizer_load: asyncio.Task[None] | None = None
        self._tokenizer_path: str | None = None
        self.adapters = AdapterTable(
            self._send,
            is_enabled=config.enable_lora,
            wait_s=config.longest_lora_wait_s,
            state_file=_adapter_file(config.lora_state),
            wanted_file=_adapter_file(config.lora_wanted),
        )

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None until READY."""
        return self._info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None until loaded, and with ``skip_tokenizer_init``."""
        return self._prompts.tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`render_chat` can work."""
        return self._prompts.has_template

    def progress(self) -> LoadProgress:
        """How far loading is, now."""
        return self._loading.progress()

    async def start(self) -> None:
        """Start the engine process; loading goes on in the background."""
        self._connection = await EngineConnection.open(self._start_process)
        self._tasks.append(asyncio.create_task(self._read(), name="engine-reader"))
        self._tasks.append(asyncio.create_task(self._watch(), name="engine-watchdog"))

    async def _start_process(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        return await start_engine_process(theirs, self._environment())

    def _environment(self) -> dict[str, str]:
        """Of the engine's process; it is to look at what :func:`load_first_adapters` will load."""
        remembered = self.adapters.remembered_names() if self._config.lora_modules else ()
        modules = [one for one in self._config.lora_modules if one[0] not in remembered]
        config = dataclasses.replace(self._config, lora_modules=tuple(modules))
        return {**os.environ, "OCTAVO_ENGINE_CONFIG": msgspec.json.encode(config).decode()}

    async def wait_ready(self) -> None:
        """Return when READY; raise the reason when loading failed."""
        assert self._connection is not None, "start() comes first"
        await self._loading.wait()

    async def generate(
        self,
        prompts: list[str | list[int]],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = NO_OPTIONS,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream the choices of all prompts; closing the iterator aborts what is still open."""
        assert prompts, "somebody asks for something"
        self._refuse_unless_ready()
        specs = await self._write(prompts, params, request_id, options)
        if isinstance(specs, FinishReason):
            for index in range(len(prompts) * params.n):
                yield GenerationEvent(index, "", [], finish_reason=specs.value)
            return
        if self.state is EngineState.DEAD:  # by now
            raise EngineDeadError(_UNREADY[self.state])
        ids = [spec.id for spec in specs]
        self._open.check_free(request_id, ids)
        shown_ids = self._prompts.ids_of(options.shown_special)
        generation = OpenGeneration(
            [
                ChoiceText(
                    self.tokenizer,
                    params,
                    spec.prompt_token_ids,
                    shown_ids=shown_ids,
                    end=options.text_end() if options.text_end else None,
                )
                for spec in specs
            ]
        )
        # From here to the try nothing awaits: registered and submitted is one step.
        self._open.add(ids, generation)
        try:
            self._send(Submit(specs))
            untold = {at: spec.prompt_token_ids for at, spec in enumerate(specs[:: params.n])}
            while not generation.is_over:
                for event in await generation.next_events():
                    event.num_prompt_tokens = len(specs[event.index].prompt_token_ids)
                    event.prompt_token_ids = untold.pop(event.index // params.n, None)
                    yield event
        finally:
            self._close(ids)

    async def _write(
        self,
        prompts: list[str | list[int]],
        params: SamplingParams,
        request_id: str,
        options: RequestOptions,
    ) -> list[RequestSpec] | FinishReason:
        """What the engine is to be sent, which has what is left of the request's time."""
        assert self._requests is not None
        arrived_s = time.monotonic()
        writing = self._requests.write(request_id, prompts, params, options)
        specs = await self._unsent.write(request_id, writing, options.timeout_s)
        if options.timeout_s is not None and not isinstance(specs, FinishReason):
            left_s = options.timeout_s - (time.monotonic() - arrived_s)
            for spec in specs:
                spec.timeout_s = left_s
        return specs

    def abort(self, request_id: str) -> bool:
        """End a request's open choices with finish_reason ``abort``; False if none is open."""
        ids = self._open.ids_of(request_id)
        self._abort(ids)
        return bool(ids) or self._unsent.abort(request_id)

    async def inspect(self) -> Mapping[str, RequestState]:
        """Where open choices stand, by their ids; empty when the engine does not answer soon."""
        if self.state not in (EngineState.READY, EngineState.DRAINING) or self._info is None:
            return {}
        serial = self._inspections.ask()
        self._send(Inspect(serial))
        states = await self._inspections.answer(serial)
        return {state.request_id: state for state in states}

    async def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
    ) -> list[int]:
        """A text as token ids, off the event loop."""
        return await self._prompts.encode(text, add_special_tokens, truncation)

    @property
    def chat_template_source(self) -> str:
        """The text of the chat template; empty without one."""
        return self._prompts.template_source

    def template_reads(self, variable: str) -> bool:
        """Whether the chat template looks at a variable at all."""
        return self._prompts.template_reads(variable)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_special_tokens: bool = False,
        most_tokens: int | None = None,
        **options: Any,
    ) -> list[int]:
        """A conversation as token ids; template and tokenizer run off the event loop."""
        return await self._prompts.render(messages, tools, add_special_tokens, options, most_tokens)

    def stats(self) -> EngineStats:
        """The engine's last report, and how long it has been silent though it has work."""
        watchdog = self._watchdog
        return msgspec.structs.replace(
            self._stats, last_progress_age_s=watchdog.silent_s, is_late=watchdog.is_late
        )

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; return when no request is open or the time is up."""
        if self.state in (EngineState.LOADING, EngineState.READY):
            self.state = EngineState.DRAINING
        try:
            async with asyncio.timeout(timeout_s):
                await self._unsent.wait_for_none()  # then they are open
                await self._open.wait_for_none()
        except TimeoutError:
            for request_id in self._unsent.ids:
                self._unsent.abort(request_id)
            self._abort(self._open.ids)

    async def close(self) -> None:
        """End the engine process and every open request."""
        # While it loads, or cannot be talked to, it would not hear a polite word.
        is_listening = self.state in (EngineState.READY, EngineState.DRAINING)
        is_listening = is_listening and self._info is not None
        self.state = EngineState.DEAD
        self._fail_load(EngineDeadError("The server is shutting down."))
        self.adapters.engine_died(EngineDeadError("The server is shutting down."))
        self._open.fail_all("The server is shutting down.")
        if self._connection is not None:
            await self._connection.end_process(is_listening)
            await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._requests is not None:
            await self._requests.close()

    def _refuse_unless_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise EngineDeadError(_UNREADY[self.state])

    async def _read(self) -> None:
        """Hear the engine until it dies."""
        assert self._connection is not None
        try:
            async for message in self._connection.messages():
                self._handle(message)
        except Exception:  # the task's edge: an engine that cannot be understood is no engine
            _log.exception("The engine process said what cannot be understood; it is ended")
            self._connection.kill()
        await self._died()

    def _handle(self, message: FromEngine) -> None:
        self._watchdog.hear()
        match message:
            case StepReport():
                self._watchdog.hear(message.limit_s)
                self._stats = message.stats or self._stats
                for update in message.updates:
                    if self._open.feed(update):
                        self._send(Abort([update.request_id]))
            case Refused():
                self._open.fail(message.request_id, from_refusal(message))
            case Inspected():
                self._inspections.hear(message)
            case PhaseStarted() | PhaseFinished():
                self._loading.hear(message)
            case FilesFound():
                self._tokenizer_load = self._part_of_load(
                    self._load_tokenizer(message.tokenizer_path),
                    f"The tokenizer in {message.tokenizer_path} cannot be opened",
                )
            case Ready():
                self._part_of_load(self._become_ready(message.info), "The server cannot be readied")
            case AdapterOpened() | AdapterFailed():
                self.adapters.heard(message)
            case LoadFailed():
                self._fail_load(from_load_failure(message))

    async def _watch(self) -> None:
        """Give up an engine that is stuck: its end is what tells everyone who waits for it."""
        watchdog = self._watchdog
        while self.state is not EngineState.DEAD:
            await asyncio.sleep(TICK_S)
            watchdog.tick(time.monotonic(), bool(self._open) and self._info is not None)
            if watchdog.is_stuck:
                _log.error(
                    "The engine has been silent for %.1f s though %d requests are open; its limit "
                    "was %.1f s. It is taken for stuck and ended; where it was follows.",
                    watchdog.silent_s,
                    len(self._open),
                    watchdog.limit_s,
                )
                await self._end_stuck()
                return

    async def _end_stuck(self) -> None:
        assert self._connection is not None
        await self._connection.kill_telling_where()
        await self._died()

    def _part_of_load(self, work: Coroutine[Any, Any, None], failure: str) -> asyncio.Task[None]:
        """Do it in a task, which ends loading where it fails; ``failure`` says so."""

        async def run() -> None:
            try:
                await work
            except OctavoError as error:
                self._fail_load(error)
            except Exception as error:  # the task's edge: nobody else would hear of it
                _log.exception("%s", failure)
                self._fail_load(ModelLoadError(f"{failure}: {error}"))

        task = asyncio.create_task(run())
        self._tasks.append(task)
        return task

    async def _load_tokenizer(self, path: str | None) -> None:
        self._tokenizer_path = path
        if path is not None:
            await self._prompts.load(path)

    async def _become_ready(self, info: ModelInfo) -> None:
        if self._tokenizer_load is not None:
            await self._tokenizer_load
        self._info = info
        self._requests = RequestWriter(info, self._config.seed, self._prompts, self._tokenizer_path)
        await load_first_adapters(self.adapters, self._config.lora_modules, self._loading.hear)
        if self.state is EngineState.LOADING:
            self.state = EngineState.READY
            self._loading.succeed()
        else:
            self._loading.fail(EngineDeadError(_UNREADY[self.state]))

    def _fail_load(self, error: OctavoError) -> None:
        """The end of loading, if it has not ended yet."""
        if self._loading.fail(error):
            self.state = EngineState.DEAD

    async def _died(self) -> None:
        """Everyone is told at once; how it ended is known a moment later."""
        if self.state is EngineState.DEAD and not self._open:
            return
        is_news = self.state is not EngineState.DEAD
        self.state = EngineState.DEAD
        self.adapters.engine_died(EngineDeadError("The engine process ended."))
        self._open.fail_all("The engine process ended.")
        assert self._connection is not None
        reason = f"The engine process {await self._connection.exit_reason()}."
        if is_news:
            _log.error("%s", reason)
        self._fail_load(EngineDeadError(reason))

    def _abort(self, ids: list[str]) -> None:
        """Their readers learn it now, the engine a moment later."""
        self._open.abort(ids)
        if ids:
            self._send(Abort(ids))

    def _close(self, ids: list[str]) -> None:
        """Forget a generation, aborting whatever of it the engine has not finished."""
        unfinished = self._open.close(ids)
        if unfinished and self.state in (EngineState.READY, EngineState.DRAINING):
            self._send(Abort(unfinished))

    def _send(self, message: ToEngine) -> None:
        assert self._connection is not None
        self._connection.send(message)


_UNREADY = {
    EngineState.LOADING: "The model is still loading; try again in a moment.",
    EngineState.DRAINING: "The server is shutting down; try another replica.",
    EngineState.DEAD: "The engine process has ended; this server is about to exit.",
}


def _adapter_file(path: str | None) -> AdapterStateFile | None:
    return None if path is None else AdapterStateFile(Path(path))
