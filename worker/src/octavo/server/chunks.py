"""The chunks of a stream as bytes: ``data: {...}`` and an empty line.

What is the same in all chunks of an answer is encoded once. A chunk that only adds text, which is
nearly every one, is three pieces of bytes put together.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from octavo.outputs import GenerationEvent
from octavo.server.logprobs import LogprobWriter, TextOffsets
from octavo.server.message_reader import MessageReader, is_empty
from octavo.server.protocol.answers import (
    ChatChunkChoice,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    UsageInfo,
)
from octavo.server.usage import Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class StreamWriter(Protocol):
    """Turns the events of a generation into the bytes of a stream."""

    def write(self, event: GenerationEvent) -> bytes:
        """The chunks for an event; empty when there is nothing to tell."""
        ...

    def ending(self) -> bytes:
        """What comes after all events."""
        ...


class ChunkWriter:
    """What both kinds of stream share; see :class:`ChatChunks` and :class:`CompletionChunks`.

    ``usage`` is live: with ``continuous_usage`` each chunk tells its state, with ``include_usage``
    the last chunk does, and the others say null, as OpenAI's do.
    """

    def __init__(
        self,
        head: dict[str, Any],
        usage: Usage,
        logprobs: LogprobWriter | None,
        *,
        num_choices: int,
        include_usage: bool = False,
        continuous_usage: bool = False,
        return_token_ids: bool = False,
    ) -> None:
        self._head = b"data: " + _encode(head)[:-1]
        self._usage = usage
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._return_token_ids = return_token_ids
        self._is_plain = logprobs is None and not continuous_usage and not return_token_ids
        self._tail = (b'],"usage":null}' if include_usage else b"]}") + b"\n\n"
        self._text_heads = [self._text_head(index) for index in range(num_choices)]
        self._text_tail = self._text_end() + self._tail

    def write(self, event: GenerationEvent) -> bytes:
        """The chunk for an event; empty when there is nothing to tell."""
        if self._is_plain and event.finish_reason is None:
            if not event.text:
                return b""
            return self._text_heads[event.index] + _encode(event.text) + self._text_tail
        if not event.token_ids and not event.text and event.finish_reason is None:
            return b""
        return self._whole(self._choice(event))

    def ending(self) -> bytes:
        """The last word, and before it, if asked for, a chunk with the usage and no choice."""
        if not self._include_usage:
            return DONE
        usage = self._head + b',"choices":[],"usage":' + self._usage_json() + b"}\n\n"
        return usage + DONE

    def _whole(self, choice: ChatChunkChoice | CompletionChoice, more: bytes = b"") -> bytes:
        tail = self._tail
        if self._continuous_usage:
            tail = b'],"usage":' + self._usage_json() + b"}\n\n"
        return self._head + more + b',"choices":[' + _encode(choice) + tail

    def _usage_json(self) -> bytes:
        return _encode(UsageInfo.of(self._usage))

    def _text_head(self, index: int) -> bytes:
        raise NotImplementedError

    def _text_end(self) -> bytes:
        raise NotImplementedError

    def _choice(self, event: GenerationEvent) -> ChatChunkChoice | CompletionChoice:
        raise NotImplementedError


class ChatChunks(ChunkWriter):
    """Chunks of ``/v1/chat/completions``.

    ``reader``: finds thoughts and calls in the text; None: the text is the content.
    """

    def __init__(self, *args: Any, reader: MessageReader | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = reader

    def write(self, event: GenerationEvent) -> bytes:
        """See :class:`ChunkWriter`."""
        if self._reader is None:
            return super().write(event)
        delta = self._reader.delta(event)
        choice = self._choice(event, delta)
        is_silent = self._logprobs is None and not self._return_token_ids
        if event.finish_reason is None and is_empty(delta) and is_silent:
            return b""
        return self._whole(choice)

    def role(self, index: int, prompt: dict[str, Any]) -> bytes:
        """The first chunk of a choice; ``prompt``: what is told of the prompt beside it."""
        more = b"," + _encode(prompt)[1:-1] if prompt else b""
        return self._whole(ChatChunkChoice(index, Delta(role="assistant", content="")), more)

    def echo(self, index: int, text: str) -> bytes:
        """The message that the answer continues, as a chunk of its own."""
        return self._whole(ChatChunkChoice(index, Delta(content=text)))

    def _text_head(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,"delta":{"content":' % index

    def _text_end(self) -> bytes:
        return b'},"logprobs":null,"finish_reason":null}'

    def _choice(self, event: GenerationEvent, delta: Delta | None = None) -> ChatChunkChoice:
        if delta is None:
            delta = Delta(content=event.text) if event.text else Delta()
        choice = ChatChunkChoice(event.index, delta)
        if self._logprobs is not None and event.logprobs:
            choice.logprobs = self._logprobs.chat(event.logprobs)
        if event.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = event.api_finish()
            if self._reader is not None:
                reason = self._reader.finish_reason(event.index, choice.finish_reason)
                choice.finish_reason = reason
        if self._return_token_ids:
            choice.token_ids = event.token_ids
        return choice


class CompletionChunks(ChunkWriter):
    """Chunks of ``/v1/completions``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[int, TextOffsets] = {}
        self._untold: dict[int, list[int]] = {}

    def begin(self, index: int, offsets: TextOffsets) -> None:
        """Say where the text of a choice begins; before its first token, with logprobs only."""
        self._offsets[index] = offsets

    def tell_prompt(self, index: int, token_ids: list[int]) -> None:
        """Have a choice's next chunk tell its prompt, where token ids are told."""
        self._untold[index] = token_ids

    def echo(self, index: int, text: str, logprobs: CompletionLogprobs | None) -> bytes:
        """The prompt, as a chunk of its own before the text."""
        return self._whole(CompletionChoice(index, text, logprobs))

    def _text_head(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,"text":' % index

    def _text_end(self) -> bytes:
        return b',"logprobs":null,"finish_reason":null}'

    def _choice(self, event: GenerationEvent) -> CompletionChoice:
        index = event.index
        choice = CompletionChoice(index, event.text)
        if self._logprobs is not None and event.logprobs:
            choice.logprobs = self._logprobs.completion(event.logprobs, self._offsets[index])
        if event.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = event.api_finish()
        if self._return_token_ids:
            choice.token_ids = event.token_ids
            if index in self._untold:
                choice.prompt_token_ids = self._untold.pop(index)
        return choice
