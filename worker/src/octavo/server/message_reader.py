"""The text of an answer's choices, read as messages: whole, or as deltas of a stream."""

from __future__ import annotations

from msgspec import UNSET

from octavo.outputs import GenerationEvent
from octavo.server.message_plan import MessagePlan
from octavo.server.protocol.answers import (
    ChatMessage,
    Delta,
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from octavo.tools.message import MessageDelta


class MessageReader:
    """One parser a choice."""

    def __init__(self, plan: MessagePlan, num_choices: int, *, tells_reasoning: bool) -> None:
        self._plan = plan
        self._parsers = [plan.parser() for _ in range(num_choices)]
        self._tells_reasoning = tells_reasoning

    def delta(self, event: GenerationEvent) -> Delta:
        """What an event adds to its choice's message."""
        parser = self._parsers[event.index]
        found = parser.feed(event.text)
        if event.finish_reason is not None:
            _join(found, parser.finish())
        delta = Delta()
        if found.reasoning and self._tells_reasoning:
            delta.reasoning_content = found.reasoning
        if found.content:
            delta.content = found.content
        if found.calls:
            delta.tool_calls = [
                ToolCallDelta(call.index, function=FunctionCallDelta(arguments=call.arguments))
                if call.name is None
                else ToolCallDelta(
                    call.index,
                    self._plan.format.calls.new_id(),
                    "function",
                    FunctionCallDelta(call.name, call.arguments),
                )
                for call in found.calls
            ]
        return delta

    def message(self, index: int, text: str) -> ChatMessage:
        """A choice's whole message."""
        parser = self._parsers[index]
        found = parser.feed(text)
        _join(found, parser.finish())
        message = ChatMessage(found.content or (None if found.calls else ""))
        if found.reasoning and self._tells_reasoning:
            message.reasoning_content = found.reasoning
        if found.calls:
            message.tool_calls = [
                ToolCall(
                    self._plan.format.calls.new_id(), FunctionCall(call.name or "", call.arguments)
                )
                for call in found.calls
            ]
        return message

    def finish_reason(self, index: int, reason: str | None) -> str | None:
        """A stop after calls is a stop for calls, but for a call that the client named: there
        OpenAI's answers say stop."""
        is_stop_for_calls = self._parsers[index].num_calls > 0 and not self._plan.is_named
        return "tool_calls" if reason == "stop" and is_stop_for_calls else reason


def is_empty(delta: Delta) -> bool:
    """Whether a chunk would tell nothing."""
    return delta.content is UNSET and delta.reasoning_content is UNSET and delta.tool_calls is UNSET


def _join(first: MessageDelta, later: MessageDelta) -> None:
    """One delta of two in a row: a call that goes on is still one."""
    first.reasoning += later.reasoning
    first.content += later.content
    for call in later.calls:
        if call.name is None and first.calls and first.calls[-1].index == call.index:
            first.calls[-1].arguments += call.arguments
        else:
            first.calls.append(call)
