"""The body of ``POST /v1/responses``: OpenAI's, for text, with vLLM's sampling fields."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from octavo.grammar import StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.server.protocol.chat import (
    MAX_MESSAGES,
    Conversation,
    Message,
    TemplateKwargs,
    check_template_kwargs,
)
from octavo.server.protocol.fields import (
    LogprobCount,
    PositiveCount,
    SamplingBody,
    StrictModel,
    at_most,
)
from octavo.server.protocol.response_items import (
    InputItem,
    ResponseAllowedTools,
    ResponseTool,
    ResponseToolChoice,
    as_chat_choice,
    as_chat_tools,
    as_items,
    settle_item,
    to_messages,
)
from octavo.server.protocol.structured import StructuredOutputsBody
from octavo.server.protocol.tools import MAX_TOOLS, ChatTool, ToolChoice, ToolsBody
from octavo.server.protocol.unsupported import RESPONSE, STREAM_OPTIONS, Unsupported, settle

MAX_CLIENT_METADATA = 64
_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED_THOUGHTS = "reasoning.encrypted_content"
"""Asked for by clients that keep the conversation themselves, so that a server without storage gets
its thoughts back. Ours come in the clear, and are taken back so."""
_FORMAT = "text.format"
_TEXT: dict[str, Unsupported] = {
    "verbosity": Unsupported("no model here knows it; ask in the prompt", ("medium",)),
}
_REASONING: dict[str, Unsupported] = {
    "summary": Unsupported("thoughts come whole; they are not summarised", ("auto",)),
    "generate_summary": Unsupported("thoughts come whole; they are not summarised", ("auto",)),
    "context": Unsupported("send the items that shall be seen"),
    "mode": Unsupported("no model here knows it"),
}
ClientMetadata = Annotated[
    dict[Annotated[str, Field(max_length=256)], Annotated[str, Field(max_length=16_384)]],
    Field(max_length=MAX_CLIENT_METADATA),
    BeforeValidator(partial(at_most, MAX_CLIENT_METADATA)),
]


class Reasoning(StrictModel):
    """How much the model shall think before it answers."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="For chat templates that read reasoning_effort."
    )


class _ItemConversation(Conversation):
    """Items as messages, with what the body says of thoughts."""

    reasoning: Reasoning | None = None

    def template_variables(self) -> dict[str, Any]:
        """See :meth:`Conversation.template_variables`."""
        variables = super().template_variables()
        if self.reasoning is not None and self.reasoning.effort is not None:
            variables["reasoning_effort"] = self.reasoning.effort
        return variables

    def field_of(self, variable: str) -> str:
        """See :meth:`Conversation.field_of`."""
        field = super().field_of(variable)
        return {"reasoning_effort": "reasoning.effort", "messages": "input"}.get(field, field)


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
            return StructuredOutputs(json_object=True, asked_by=_FORMAT)
        if self.schema_ is None:
            return None
        return StructuredOutputs(json=self.schema_, asked_by=_FORMAT)


class TextOptions(StrictModel):
    """How the answer is written."""

    format: OutputFormat | None = None


class ResponseStreamOptions(StrictModel):
    """What a stream tells beside the text."""


class ResponseRequest(ToolsBody, SamplingBody):
    """Instructions and items to be answered."""

    unsupported: ClassVar = RESPONSE
    parameters_field: ClassVar = "parameters"

    input: Annotated[
        Annotated[
            list[Annotated[InputItem, Field(discriminator="type")]],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        ],
        BeforeValidator(as_items, json_schema_input_type=str | list[InputItem]),
    ]
    tools: Annotated[
        Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None,
        BeforeValidator(
            as_chat_tools,
            json_schema_input_type=Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)]
            | None,
        ),
    ] = None
    tool_choice: Annotated[
        ToolChoice,
        BeforeValidator(
            as_chat_choice,
            json_schema_input_type=Literal["none", "auto", "required"]
            | ResponseToolChoice
            | ResponseAllowedTools
            | None,
        ),
    ] = Field(None, description="auto if there are tools, none if there are not.")
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: PositiveCount | None = Field(
        None, description="As many as the context holds if left out."
    )
    include: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)] | None = (
        Field(
            None,
            description=f"{_LOGPROBS!r} tells log probabilities; {_ENCRYPTED_THOUGHTS!r} is taken, "
            "and not needed: thoughts come in the clear. Nothing else is offered.",
        )
    )
    top_logprobs: LogprobCount | None = Field(None, description=f"Needs {_LOGPROBS!r} in include.")
    text: TextOptions | None = None
    structured_outputs: StructuredOutputsBody | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    client_metadata: ClientMetadata | None = Field(
        None, description="What Codex tells of itself. Taken, and not used."
    )
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
                settle_item(item, f"input[{index}].")

    @model_validator(mode="after")
    def _fields_agree(self) -> ResponseRequest:
        for name in self.include or ():
            if name not in (_LOGPROBS, _ENCRYPTED_THOUGHTS):
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
        if not to_messages(self.input) and not self.instructions:
            raise ValueError("input holds no message and no call; send at least one.")
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
        messages = to_messages(self.input)
        if self.instructions:
            messages.insert(0, Message(role="system", content=self.instructions, name=None))
        return _ItemConversation(
            messages=messages,
            reasoning=self.reasoning,
            chat_template_kwargs=self.chat_template_kwargs,
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
