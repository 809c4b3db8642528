"""A streamed response: OpenAI's events, numbered, as bytes.

``response.created``, ``response.in_progress``, then items as they grow (thoughts, a message,
calls), then ``response.completed`` or ``response.incomplete`` with the whole. What only adds text
to a message is pieces of bytes put together, as in :mod:`octavo.server.chunks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.outputs import GenerationEvent
from octavo.server.errors import ApiError
from octavo.server.exchange import GatheredChoice
from octavo.server.message_reader import MessageReader
from octavo.server.protocol.answers import ChatMessage, Delta
from octavo.server.protocol.response_answers import (
    OutputCall,
    OutputItem,
    OutputLogprob,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    ResponseAnswer,
    ResponseError,
)

_encode = msgspec.json.Encoder().encode
_DELTA = b"response.output_text.delta"


class ResponseEvents:
    """The events of one response.

    ``snapshot``: the response as of now, with the items given; with a choice, as of its end.
    ``write_logprobs``: those of an event's tokens, where they were asked for. ``reader``: finds
    thoughts and calls in the text; None: the text is the message.
    """

    def __init__(
        self,
        answer_id: str,
        snapshot: Callable[[list[OutputItem], GatheredChoice | None], ResponseAnswer],
        write_logprobs: Callable[[GenerationEvent], list[OutputLogprob]] | None,
        reader: MessageReader | None,
    ) -> None:
        self._answer_id = answer_id
        self._snapshot = snapshot
        self._write_logprobs = write_logprobs
        self._reader = reader
        self._number = 0
        self._gathered = GatheredChoice()
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._logprobs: list[OutputLogprob] = []
        """Not told of yet, as their text is not: they go with the message's next delta."""
        self._delta_head = b""

    def opening(self) -> bytes:
        """What comes before the first text."""
        response = self._snapshot([], None)
        events = [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]
        if self._reader is None:
            events += self._begin_message()
        return b"".join(events)

    def write(self, event: GenerationEvent) -> bytes:
        """See :class:`octavo.server.chunks.StreamWriter`."""
        self._gathered.add(event)
        if self._write_logprobs is not None and event.logprobs:
            self._logprobs += self._write_logprobs(event)
        if self._reader is not None:
            return b"".join(self._pieces(self._reader.delta(event)))
        return self._text(event.text) if event.text or self._logprobs else b""

    def ending(self) -> bytes:
        """See :class:`octavo.server.chunks.StreamWriter`."""
        events = [] if self._open is not None or self._items else self._begin_message()
        if self._logprobs and isinstance(self._open, OutputMessage):
            events.append(self._text(""))
        events += self._end(is_complete=self._gathered.finish_reason == "stop")
        response = self._snapshot(self._items, self._gathered)
        events.append(self._event(f"response.{response.status}", response=response))
        return b"".join(events)

    def failed(self, error: ApiError) -> bytes:
        """The end of a response that cannot be finished."""
        items = self._items
        if self._open is not None:
            self._open.status = "incomplete"
            items = [*items, self._open]
        response = self._snapshot(items, self._gathered)
        response.status, response.incomplete_details = "failed", None
        response.error = ResponseError(error.code or "server_error", error.message)
        return self._event("response.failed", response=response)

    def _pieces(self, delta: Delta) -> Iterator[bytes]:
        if delta.reasoning_content is not UNSET:
            if not isinstance(self._open, OutputReasoning):
                yield from self._begin_reasoning()
            assert isinstance(self._open, OutputReasoning)
            self._open.content[0].text += delta.reasoning_content
            place = self._place(has_part=True)
            text = delta.reasoning_content
            yield self._event("response.reasoning_text.delta", **place, delta=text)
        if delta.content is not UNSET:
            if not isinstance(self._open, OutputMessage):
                yield from self._begin_message()
            yield self._text(delta.content)
        for call in () if delta.tool_calls is UNSET else delta.tool_calls:
            function = call.function
            assert function is not UNSET, "every delta of a call has one"
            if call.id is not UNSET:
                name = "" if function.name is UNSET else function.name
                yield from self._begin_call(call.id, name)
            assert isinstance(self._open, OutputCall)
            if function.arguments is not UNSET and function.arguments:
                self._open.arguments += function.arguments
                yield self._event(
                    "response.function_call_arguments.delta",
                    **self._place(),
                    delta=function.arguments,
                )

    def _text(self, text: str) -> bytes:
        """What a message's text has grown by."""
        assert isinstance(self._open, OutputMessage)
        part = self._open.content[0]
        part.text += text
        logprobs, self._logprobs = self._logprobs, []
        part.logprobs += logprobs
        written = _encode(logprobs) if logprobs else b"[]"
        return b'%b"logprobs":%b,"delta":%b,"sequence_number":%d}\n\n' % (
            self._delta_head,
            written,
            _encode(text),
            self._next_number(),
        )

    def _begin_message(self) -> list[bytes]:
        item = OutputMessage(self._item_id("msg"), "in_progress", [])
        events = self._begin(item)
        part = OutputText("", logprobs=[])
        place = self._place(has_part=True)
        events.append(self._event("response.content_part.added", **place, part=part))
        item.content.append(part)
        self._delta_head = b'event: %b\ndata: {"type":"%b",%b,' % (
            _DELTA,
            _DELTA,
            _encode(place)[1:-1],
        )
        return events

    def _begin_reasoning(self) -> list[bytes]:
        item = OutputReasoning(self._item_id("rs"), "in_progress", [])
        events = self._begin(item)
        item.content.append(OutputReasoningText(""))
        return events

    def _begin_call(self, call_id: str, name: str) -> list[bytes]:
        return self._begin(OutputCall(self._item_id("fc"), "in_progress", call_id, name, ""))

    def _begin(self, item: OutputItem) -> list[bytes]:
        events = self._end(is_complete=True)
        self._open = item
        index = len(self._items)
        return [*events, self._event("response.output_item.added", output_index=index, item=item)]

    def _end(self, *, is_complete: bool) -> list[bytes]:
        """Close the item that is open, if there is one."""
        item, events = self._open, []
        if item is None:
            return []
        item.status = "completed" if is_complete else "incomplete"
        place = self._place(has_part=not isinstance(item, OutputCall))
        if isinstance(item, OutputMessage):
            part = item.content[0]
            done = {"text": part.text, "logprobs": part.logprobs}
            events.append(self._event("response.output_text.done", **place, **done))
            events.append(self._event("response.content_part.done", **place, part=part))
        elif isinstance(item, OutputReasoning):
            text = item.content[0].text
            events.append(self._event("response.reasoning_text.done", **place, text=text))
        else:
            done = {"name": item.name, "arguments": item.arguments}
            events.append(self._event("response.function_call_arguments.done", **place, **done))
        index = len(self._items)
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self._items.append(item)
        self._open = None
        return events

    def _item_id(self, kind: str) -> str:
        return item_id(kind, self._answer_id, len(self._items) + (self._open is not None))

    def _place(self, *, has_part: bool = False) -> dict[str, Any]:
        assert self._open is not None
        place: dict[str, Any] = {"item_id": self._open.id, "output_index": len(self._items)}
        return place | {"content_index": 0} if has_part else place

    def _event(self, kind: str, **fields: Any) -> bytes:
        fields = {"type": kind, **fields, "sequence_number": self._next_number()}
        return b"event: " + kind.encode() + b"\ndata: " + _encode(fields) + b"\n\n"

    def _next_number(self) -> int:
        number = self._number
        self._number += 1
        return number


def item_id(kind: str, answer_id: str, index: int) -> str:
    """Of the item at a place of the output."""
    return f"{kind}_{answer_id}_{index}" if index else f"{kind}_{answer_id}"


def items_of(
    message: ChatMessage, answer_id: str, logprobs: list[OutputLogprob], *, is_complete: bool
) -> list[OutputItem]:
    """A whole message as items: thoughts, text, calls."""
    items: list[OutputItem] = []
    if message.reasoning_content is not UNSET:
        thoughts = [OutputReasoningText(message.reasoning_content)]
        items.append(OutputReasoning(item_id("rs", answer_id, 0), "completed", thoughts))
    calls = () if message.tool_calls is UNSET else message.tool_calls
    if message.content or not (calls or items):
        text = OutputText(message.content or "", logprobs=logprobs)
        items.append(OutputMessage(item_id("msg", answer_id, len(items)), "completed", [text]))
    for call in calls:
        function, place = call.function, item_id("fc", answer_id, len(items))
        items.append(OutputCall(place, "completed", call.id, function.name, function.arguments))
    items[-1].status = "completed" if is_complete else "incomplete"
    return items
