"""How an answer is made and sent: at once or as server-sent events, and how it fails.

A raw ASGI response. It reads the body itself, so that every refusal passes one place, and holds
nothing back: while a slow client blocks ``send``, the engine merges what comes next, so that no
connection buffers more than one event a choice.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.engine.model_info import ModelInfo
from octavo.errors import EngineDeadError, OctavoError
from octavo.logs import log_event
from octavo.outputs import GenerationEvent
from octavo.server.auth import key_of
from octavo.server.body import read_model
from octavo.server.boundary import request_id_of
from octavo.server.chunks import DONE, StreamWriter
from octavo.server.context import ServerContext
from octavo.server.disconnect import ClientGoneError, DisconnectWatch
from octavo.server.errors import ApiError, internal_error, left_behind, translate
from octavo.server.exchange import Exchange
from octavo.server.generation import Generation, GenerationJob
from octavo.server.protocol.fields import EngineBody
from octavo.server.requests import Outcome, record_of
from octavo.server.service_level import (
    cancelled,
    deadline_exceeded,
    least_timeout,
    own_priority,
)

_logger = logging.getLogger("octavo.server")
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
Body = TypeVar("Body", bound=EngineBody)


class GenerationAnswer(Response, Generic[Body]):
    """The answer to a request that generates. Subclasses say what a kind of completion looks
    like."""

    body_type: type[Body]

    def __init__(self, context: ServerContext) -> None:
        super().__init__()
        self._context = context
        self._is_started = False
        self._is_stream = False
        self._names: dict[str, str] = {}
        """What the body's fields are called, where it is not what the engine's parameters are."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, generate, send; whatever happens ends as an answer."""
        record = record_of(scope)
        try:
            info = self._context.ready_model()
            body = await read_model(Request(scope, receive), self.body_type)
            with self._context.track_request():
                async with DisconnectWatch(receive):
                    await self._answer(body, info, scope, send)
            record.end_answered()
        except ClientGoneError:
            record.outcome = Outcome.ABORTED
            self._count_disconnect()
        except Exception as error:
            await self._fail(error, scope, receive, send)

    async def _answer(self, body: Body, info: ModelInfo, scope: Scope, send: Send) -> None:
        model = self._context.resolve_model(body.model)
        record, key = record_of(scope), key_of(scope)
        record.model, record.stream = model, body.is_streamed
        record.answer_id = body.request_id or record.id
        record.timeout_s = least_timeout(scope, body.timeout)
        record.priority = own_priority(key, body.priority, "priority" in body.model_fields_set)
        if self._context.config.log_prompts:
            asked = body.model_dump_json(exclude_unset=True)
            log_event(_logger, "prompt", id=record.id, body=asked)
        job = await self._job(body, info)
        metrics = self._context.ready_metrics(info)
        # By the name that was found above: an adapter may have been unloaded since, and must not
        # be answered for by the base model.
        adapter = None if model in self._context.model_names() else model
        generation = Generation(self._context.engine, metrics, job, record, key.tenant, adapter)
        exchange = Exchange(body, job, generation, model, record.answer_id)
        async with aclosing(_checked(generation)) as events:
            if body.is_streamed:
                self._is_stream = True
                await self._stream(events, self._chunks(exchange), exchange, send)
            else:
                whole = await self._collect(events, exchange)
                await self._send_whole(msgspec.json.encode(whole), send)

    @abstractmethod
    async def _job(self, body: Body, info: ModelInfo) -> GenerationJob:
        """What to ask of the engine."""

    def _chunks(self, exchange: Exchange[Body]) -> StreamWriter:
        """What writes the chunks of a stream, where answers may be streamed."""
        raise NotImplementedError

    def _opening(
        self, event: GenerationEvent, chunks: StreamWriter, exchange: Exchange[Body]
    ) -> bytes:
        """Chunks that stand before an event's own; called for each event."""
        raise NotImplementedError

    @abstractmethod
    async def _collect(
        self, events: AsyncIterator[GenerationEvent], exchange: Exchange[Body]
    ) -> msgspec.Struct:
        """The whole answer."""

    async def _stream(
        self,
        events: AsyncIterator[GenerationEvent],
        chunks: StreamWriter,
        exchange: Exchange[Body],
        send: Send,
    ) -> None:
        async for event in events:
            data = self._opening(event, chunks, exchange) + chunks.write(event)
            if data:
                if not self._is_started:
                    await self._start_stream(send)
                await send({"type": "http.response.body", "body": data, "more_body": True})
        if not self._is_started:
            await self._start_stream(send)
        await send({"type": "http.response.body", "body": chunks.ending()})

    async def _start_stream(self, send: Send) -> None:
        self._is_started = True
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})

    async def _send_whole(self, body: bytes, send: Send) -> None:
        self._is_started = True
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        is_left_behind = self._context.is_leaving and isinstance(error, EngineDeadError)
        answer = left_behind() if is_left_behind else translate(error)
        if answer is None:
            _logger.error("generation failed id=%s", request_id_of(scope), exc_info=error)
            answer = internal_error()
        if isinstance(error, OctavoError):
            answer = answer.in_words_of(self._names)
        record_of(scope).end_in_error(answer.status, answer.code)
        if not self._is_started:
            await answer.to_response()(scope, receive, send)
        elif self._is_stream:
            await send({"type": "http.response.body", "body": self._failed(answer)})

    def _failed(self, answer: ApiError) -> bytes:
        """How a stream that has begun ends with an error."""
        return b"data: " + answer.to_json() + b"\n\n" + DONE

    def _count_disconnect(self) -> None:
        if self._context.metrics is not None:
            self._context.metrics.num_disconnects += 1


async def _checked(generation: Generation) -> AsyncGenerator[GenerationEvent, None]:
    """The events; an end before anything was generated is an error."""
    async with aclosing(generation.events()) as events:
        async for event in events:
            if not generation.usage.completion_tokens:
                if event.finish_reason == "deadline":
                    raise deadline_exceeded()
                if event.finish_reason == "abort":
                    raise cancelled()
            yield event
