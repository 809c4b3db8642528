"""A streamed response: OpenAI's events, numbered, as bytes.

``response.created``, ``response.in_progress``, then the message and its text as they grow, then
``response.completed`` or ``response.incomplete`` with the whole. A chunk that only adds text is
pieces of bytes put together, as in :mod:`octavo.server.chunks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.outputs import GenerationEvent
from octavo.server.errors import ApiError
from octavo.server.exchange import GatheredChoice
from octavo.server.protocol.response_answers import (
    OutputLogprob,
    OutputMessage,
    OutputText,
    ResponseAnswer,
    ResponseError,
)

_encode = msgspec.json.Encoder().encode


class ResponseEvents:
    """The events of one response.

    ``snapshot``: the response as of now, with the message given, if any. ``write_logprobs``: the
    log probabilities of an event's tokens, where they were asked for.
    """

    def __init__(
        self,
        message_id: str,
        snapshot: Callable[[OutputMessage | None], ResponseAnswer],
        write_logprobs: Callable[[GenerationEvent], list[OutputLogprob]] | None,
    ) -> None:
        self._message_id = message_id
        self._snapshot = snapshot
        self._write_logprobs = write_logprobs
        self._number = 0
        self._gathered = GatheredChoice()
        self._logprobs: list[OutputLogprob] = []
        self._place = {"item_id": message_id, "output_index": 0, "content_index": 0}
        name = b"response.output_text.delta"
        place = _encode(self._place)[1:-1]
        self._delta_head = b'event: %b\ndata: {"type":"%b",%b,' % (name, name, place)

    def opening(self) -> bytes:
        """What comes before the first text."""
        response = self._snapshot(None)
        item = OutputMessage(self._message_id, "in_progress", [])
        return b"".join(
            [
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place, part=OutputText("")),
            ]
        )

    def write(self, event: GenerationEvent) -> bytes:
        """See :class:`octavo.server.chunks.StreamWriter`."""
        self._gathered.add(event)
        logprobs = b'"logprobs":[],'
        if self._write_logprobs is not None and event.logprobs:
            written = self._write_logprobs(event)
            self._logprobs += written
            logprobs = b'"logprobs":' + _encode(written) + b","
        elif not event.text:
            return b""
        return b'%b%b"delta":%b,"sequence_number":%d}\n\n' % (
            self._delta_head,
            logprobs,
            _encode(event.text),
            self._next_number(),
        )

    def ending(self) -> bytes:
        """See :class:`octavo.server.chunks.StreamWriter`."""
        message = message_of(self._message_id, self._gathered, self._logprobs)
        text = message.content[0]
        response = self._snapshot(message)
        return b"".join(
            [
                self._event(
                    "response.output_text.done",
                    **self._place,
                    text=text.text,
                    logprobs=text.logprobs,
                ),
                self._event("response.content_part.done", **self._place, part=text),
                self._event("response.output_item.done", output_index=0, item=message),
                self._event(f"response.{response.status}", response=response),
            ]
        )

    def failed(self, error: ApiError) -> bytes:
        """The end of a response that cannot be finished."""
        message = OutputMessage(self._message_id, "incomplete", [OutputText(self._gathered.text)])
        response = self._snapshot(message)
        response.status, response.incomplete_details = "failed", None
        response.error = ResponseError(error.code or "server_error", error.message)
        return self._event("response.failed", response=response)

    @property
    def gathered(self) -> GatheredChoice:
        """The message so far."""
        return self._gathered

    def _event(self, kind: str, **fields: Any) -> bytes:
        fields = {"type": kind, **fields, "sequence_number": self._next_number()}
        return b"event: " + kind.encode() + b"\ndata: " + _encode(fields) + b"\n\n"

    def _next_number(self) -> int:
        number = self._number
        self._number += 1
        return number


def message_of(
    message_id: str, choice: GatheredChoice, logprobs: list[OutputLogprob]
) -> OutputMessage:
    """A whole message."""
    is_complete = choice.finish_reason == "stop"
    return OutputMessage(
        message_id,
        "completed" if is_complete else "incomplete",
        [OutputText(choice.text, logprobs=logprobs)],
    )
