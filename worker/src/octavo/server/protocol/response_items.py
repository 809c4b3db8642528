"""What a Responses request sends, items and tools, and the chat's words for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from octavo.server.protocol.chat import MAX_PARTS, Message, refuse_media
from octavo.server.protocol.fields import StrictModel
from octavo.server.protocol.tools import MAX_TOOLS, CalledFunction, MessageToolCall
from octavo.server.protocol.unsupported import RESPONSE_ITEM, RESPONSE_PART, settle
from octavo.structured.json_schema import MAX_SCHEMA_CHARS

_Status = Literal["in_progress", "completed", "incomplete"]
_MAX_LOGPROBS = 1 << 20
_NOT_USED = "Taken, and not used."
_ItemId = Annotated[str | None, Field(max_length=256, description=_NOT_USED)]


class InputText(StrictModel):
    """A piece of a message that was sent, or answered before."""

    type: Literal["input_text", "output_text"]
    text: str
    logprobs: Annotated[
        list[dict[str, Any]] | None,
        Field(max_length=_MAX_LOGPROBS, description="Of an earlier answer. Taken, and not used."),
    ] = None


_Content = Annotated[
    str | Annotated[list[InputText], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)],
    BeforeValidator(refuse_media, json_schema_input_type=str | list[InputText]),
]


class InputMessage(StrictModel):
    """One turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    id: _ItemId = None
    status: _Status | None = Field(None, description=_NOT_USED)


class InputCall(StrictModel):
    """A call that was answered with before."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    arguments: str = Field(max_length=MAX_SCHEMA_CHARS)
    id: _ItemId = None
    status: _Status | None = Field(None, description=_NOT_USED)


class InputCallOutput(StrictModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: _Content
    id: _ItemId = None
    status: _Status | None = Field(None, description=_NOT_USED)


class ReasoningText(StrictModel):
    """A piece of thoughts."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(StrictModel):
    """Thoughts that were answered with before; given to the chat template."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(max_length=MAX_PARTS)] | None = None
    id: _ItemId = None
    status: _Status | None = Field(None, description=_NOT_USED)


InputItem = InputMessage | InputCall | InputCallOutput | InputReasoning
_KINDS: dict[object, type[InputItem]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputCallOutput,
    "reasoning": InputReasoning,
}


def as_items(value: object) -> object:
    """One text is one message; items of a kind that is not taken are named."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                continue
            kind = item.setdefault("type", "message")
            if kind == "item_reference":
                raise ValueError(
                    f"item {index} is an 'item_reference', and this server stores no items; send "
                    "the item itself (an option of clients that is often called store: false)."
                )
            if not isinstance(kind, str) or kind not in _KINDS:
                raise ValueError(
                    f"item {index} has the type {kind!r:.80}; those taken are "
                    f"{', '.join(map(str, _KINDS))}. Leave it out."
                )
    return value


def settle_item(item: dict[str, Any], path: str) -> None:
    """Drop from an item what asks for nothing; raise ApiError for what cannot be honoured."""
    settle(item, RESPONSE_ITEM, path)
    for field in ("content", "output"):
        parts = item.get(field)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict):
                settle(part, RESPONSE_PART, f"{path}{field}[{index}].")


def to_messages(items: Sequence[InputItem]) -> list[Message]:
    """As the chat template is given them: thoughts and calls are the assistant's message's, and
    thoughts that it said nothing after, as an answer that was cut may end, are one without words.
    """
    messages: list[Message] = []
    thoughts: str | None = None
    for item in items:
        if isinstance(item, InputReasoning):
            said = "".join(part.text for part in item.content or ())
            thoughts = "\n".join(filter(None, (thoughts, said))) or thoughts
            continue
        if thoughts is not None and not _is_assistants(item):
            messages.append(_wordless(thoughts))
            thoughts = None
        if isinstance(item, InputCallOutput):
            output = _text(item.output)
            messages.append(
                Message(role="tool", content=output, tool_call_id=item.call_id, name=None)
            )
            continue
        if isinstance(item, InputMessage):
            message = Message(role=item.role, content=_text(item.content), name=None)
            messages.append(message)
        else:
            message = _calling(messages, item, starts_anew=thoughts is not None)
        if thoughts is not None:
            message.reasoning_content, thoughts = thoughts, None
    return messages if thoughts is None else [*messages, _wordless(thoughts)]


def _is_assistants(item: InputItem) -> bool:
    return isinstance(item, InputCall) or (
        isinstance(item, InputMessage) and item.role == "assistant"
    )


def _wordless(thoughts: str) -> Message:
    return Message(role="assistant", content="", reasoning_content=thoughts, name=None)


def _calling(messages: list[Message], item: InputCall, *, starts_anew: bool) -> Message:
    """The assistant's message that a call belongs to: the last one, or one of its own."""
    function = CalledFunction(name=item.name, arguments=item.arguments)
    call = MessageToolCall(id=item.call_id, function=function, index=None)
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant" and not starts_anew:
        last.tool_calls = [*(last.tool_calls or ()), call]
        return last
    message = Message(role="assistant", content=None, tool_calls=[call], name=None)
    messages.append(message)
    return message


def _text(content: str | list[InputText]) -> str:
    """Parts are joined as the chat's are."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class ResponseTool(StrictModel):
    """A function, as the Responses API writes it: without the chat's inner object."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=16_384)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(StrictModel):
    """The function that is to be called."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")


class ResponseAllowedTools(StrictModel):
    """The functions that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseToolChoice], Field(min_length=1, max_length=MAX_TOOLS)]


def as_chat_tools(value: object) -> object:
    """Tools in the chat's shape; what is no function is named."""
    if not isinstance(value, list):
        return value
    tools = []
    for index, tool in enumerate(value):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise ValueError(
                f"tool {index} has the type {kind!r:.80}; only 'function' is taken: "
                "this server runs no tools itself. Leave it out."
            )
        tools.append({"type": kind, "function": {k: v for k, v in tool.items() if k != "type"}})
    return tools


def as_chat_choice(value: object) -> object:
    """A choice of functions in the chat's shape."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("function", "allowed_tools"):
        return value
    inner = {name: given for name, given in value.items() if name != "type"}
    if kind == "allowed_tools" and isinstance(inner.get("tools"), list):
        inner["tools"] = [as_chat_choice(tool) for tool in inner["tools"]]
    return {"type": kind, kind: inner}
