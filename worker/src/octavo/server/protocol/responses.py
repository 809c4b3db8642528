"""The body of ``POST /v1/responses``: OpenAI's, for text, with vLLM's sampling fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from octavo.grammar import StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.server.protocol.chat import (
    MAX_MESSAGES,
    MAX_PARTS,
    Conversation,
    Message,
    TemplateKwargs,
    TextPart,
    check_template_kwargs,
    refuse_media,
)
from octavo.server.protocol.fields import LogprobCount, PositiveCount, SamplingBody, StrictModel
from octavo.server.protocol.structured import StructuredOutputsBody
from octavo.server.protocol.unsupported import (
    RESPONSE,
    RESPONSE_MESSAGE,
    STREAM_OPTIONS,
    Unsupported,
    settle,
)

_LOGPROBS = "message.output_text.logprobs"
_ITEM_TYPES = frozenset({"message"})
_TEXT: dict[str, Unsupported] = {
    "verbosity": Unsupported("no model here knows it; ask in the prompt", ("medium",)),
}
_REASONING: dict[str, Unsupported] = {
    "summary": Unsupported("reasoning is not summarised"),
    "generate_summary": Unsupported("reasoning is not summarised"),
    "context": Unsupported("send the items that shall be seen"),
    "mode": Unsupported("no model here knows it"),
}
_PART: dict[str, Unsupported] = {
    "annotations": Unsupported("they are not shown to the model", ([],)),
    "logprobs": Unsupported("they are not shown to the model", ([],)),
    "prompt_cache_breakpoint": Unsupported("prompts are cached by blocks, wherever they end"),
}


class InputText(StrictModel):
    """A piece of a message that was sent."""

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(StrictModel):
    """One turn of the conversation: sent, or answered before."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[InputText], Field(min_length=1, max_length=MAX_PARTS)],
        BeforeValidator(refuse_media, json_schema_input_type=str | list[InputText]),
    ]
    id: str | None = Field(None, max_length=256, description="Taken, and not used.")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(
        None, description="Taken, and not used."
    )

    def as_message(self) -> Message:
        """As the chat template is given it."""
        content = self.content
        if isinstance(content, str):
            return Message(role=self.role, content=content, name=None)
        parts = [TextPart(type="text", text=part.text) for part in content]
        return Message(role=self.role, content=parts, name=None)


def _as_items(value: object) -> object:
    """One text is one message; items of a kind that is not taken are named."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        for index, item in enumerate(value):
            kind = item.get("type", "message") if isinstance(item, dict) else "message"
            if not isinstance(kind, str) or kind not in _ITEM_TYPES:
                raise ValueError(
                    f"item {index} has the type {kind!r:.80}; only 'message' is taken yet. "
                    "Send its text as a message."
                )
    return value


class Reasoning(StrictModel):
    """How much the model shall think before it answers."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="For chat templates that read reasoning_effort."
    )


class OutputFormat(StrictModel):
    """What the text must be; the Responses API's way to say it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=8192, description="Not shown to the model.")
    schema_: dict[str, Any] | bool | None = Field(
        None, alias="schema", description="Draft 2020-12; for type json_schema only."
    )
    strict: bool | None = Field(None, description="Schemas are always followed strictly.")

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> OutputFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError(
                f"type is {self.type!r}; schema belongs to type 'json_schema', and must be there."
            )
        return self

    def to_structured_outputs(self) -> StructuredOutputs | None:
        """The same in the engine's terms; None where any text will do."""
        if self.type == "json_object":
            return StructuredOutputs(json_object=True)
        return None if self.schema_ is None else StructuredOutputs(json=self.schema_)


class TextOptions(StrictModel):
    """How the answer is written."""

    format: OutputFormat | None = None


class ResponseStreamOptions(StrictModel):
    """What a stream tells beside the text."""


class ResponseRequest(SamplingBody):
    """Instructions and items to be answered."""

    unsupported: ClassVar = RESPONSE

    input: Annotated[
        Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)],
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputMessage]),
    ]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: PositiveCount | None = Field(
        None, description="As many as the context holds if left out."
    )
    include: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)] | None = (
        Field(None, description=f"{_LOGPROBS!r} tells log probabilities; nothing else is offered.")
    )
    top_logprobs: LogprobCount | None = Field(None, description=f"Needs {_LOGPROBS!r} in include.")
    text: TextOptions | None = None
    structured_outputs: StructuredOutputsBody | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: TemplateKwargs = None

    @classmethod
    def settle_unsupported(cls, document: dict[str, Any]) -> None:
        """Also those inside the fields that are objects, and inside the items."""
        super().settle_unsupported(document)
        inner = (("text", _TEXT), ("reasoning", _REASONING), ("stream_options", STREAM_OPTIONS))
        for name, table in inner:
            value = document.get(name)
            if isinstance(value, dict):
                settle(value, table, f"{name}.")
        items = document.get("input")
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict):
                _settle_item(item, f"input[{index}].")

    @model_validator(mode="after")
    def _fields_agree(self) -> ResponseRequest:
        for name in self.include or ():
            if name != _LOGPROBS:
                raise ValueError(
                    f"include holds {name!r:.80}; this server has nothing of that kind to tell, "
                    f"only {_LOGPROBS!r}. Leave it out."
                )
        if self.top_logprobs and not self.tells_logprobs:
            raise ValueError(
                f"top_logprobs is {self.top_logprobs} and include does not hold {_LOGPROBS!r}; "
                "set it, or leave top_logprobs out."
            )
        if self.structured_outputs is not None and self.output_format is not None:
            raise ValueError(
                "text.format and structured_outputs are both set; an answer can follow one of "
                "them: leave the other out."
            )
        check_template_kwargs(self.chat_template_kwargs)
        effort = self.reasoning and self.reasoning.effort
        if effort and "reasoning_effort" in (self.chat_template_kwargs or {}):
            raise ValueError(
                "reasoning.effort is set, and again in chat_template_kwargs; send one of them."
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError(
                "stream_options is set and stream is not true; "
                "set stream to true or leave stream_options out."
            )
        return self

    @property
    def tells_logprobs(self) -> bool:
        """Whether log probabilities are part of the answer."""
        return _LOGPROBS in (self.include or ())

    @property
    def output_format(self) -> OutputFormat | None:
        """What the text must be; None for any text."""
        asked = None if self.text is None else self.text.format
        return None if asked is None or asked.type == "text" else asked

    def conversation(self) -> Conversation:
        """The messages that the chat template is given."""
        messages = [item.as_message() for item in self.input]
        if self.instructions:
            messages.insert(0, Message(role="system", content=self.instructions, name=None))
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning is not None and self.reasoning.effort is not None:
            variables["reasoning_effort"] = self.reasoning.effort
        return Conversation(
            messages=messages,
            chat_template_kwargs=variables,
            add_generation_prompt=True,
            continue_final_message=False,
            add_special_tokens=False,
        )

    def to_sampling_params(self, defaults: dict[str, float]) -> SamplingParams:
        """See :meth:`SamplingBody.sampling_params`."""
        params = self.sampling_params(
            defaults,
            max_tokens=self.max_output_tokens,
            logprobs=(self.top_logprobs or 0) if self.tells_logprobs else None,
        )
        asked = self.structured_outputs or self.output_format
        if asked is None:
            return params
        return msgspec.structs.replace(params, structured_outputs=asked.to_structured_outputs())


def _settle_item(item: dict[str, Any], path: str) -> None:
    settle(item, RESPONSE_MESSAGE, path)
    parts = item.get("content")
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        if isinstance(part, dict):
            settle(part, _PART, f"{path}content[{index}].")
