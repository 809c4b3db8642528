"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from octavo.sampling_params import SamplingParams
from octavo.server.protocol.fields import (
    GenerationBody,
    LogprobCount,
    PositiveCount,
    RequestBody,
    StrictModel,
)
from octavo.server.protocol.structured import ConstrainedBody
from octavo.server.protocol.tools import MAX_CALLS, MessageToolCall, ToolsBody
from octavo.server.protocol.unsupported import CHAT, MESSAGE, settle

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TEMPLATE_KWARGS = 64
MAX_DOCUMENTS = 256
_OURS = frozenset(
    {
        "self",
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "conversation",
        "chat_template",
    }
)
"""Template variables that the server sets itself, or that are fields of their own."""
TemplateVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
TemplateKwargs = Annotated[
    Annotated[dict[TemplateVariable, Any], Field(max_length=MAX_TEMPLATE_KWARGS)] | None,
    Field(description="More variables for the chat template, e.g. enable_thinking."),
]
_KINDS_OF_MEDIA = frozenset(
    {
        "image_url",
        "input_image",
        "input_audio",
        "audio_url",
        "video_url",
        "file",
        "input_file",
    }
)


class TextPart(StrictModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def refuse_media(parts: object) -> object:
    """Name what is not text, so that the answer is not a mere 'wrong type'."""
    if isinstance(parts, list):
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in _KINDS_OF_MEDIA:
                raise ValueError(
                    f"a content part has type {kind!r}; only 'text' is supported yet. "
                    "Send the text alone."
                )
    return parts


class Message(StrictModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str
        | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
        | None,
        BeforeValidator(refuse_media, json_schema_input_type=str | list[TextPart] | None),
    ] = None
    name: str | None = Field(None, max_length=256, description="Given to the chat template.")
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_CALLS)] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    reasoning_content: Annotated[
        str | None,
        Field(description="Given to the chat template; most leave earlier thoughts out."),
    ] = None

    @model_validator(mode="after")
    def _fields_belong_to_the_role(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; only an assistant's calls do without.")
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content):
            raise ValueError(
                f"role is {self.role!r}; tool_calls and reasoning_content are the assistant's."
            )
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError(
                f"role is {self.role!r}; tool_call_id belongs to role 'tool' and must be there."
            )
        return self

    @property
    def text(self) -> str:
        """The content; its parts are joined by line breaks."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    def for_template(self) -> dict[str, Any]:
        """What chat templates read: a developer is a system."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.for_template()}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


def check_template_kwargs(variables: dict[str, Any] | None) -> None:
    """Raise ValueError for a variable that is not a request's to set."""
    for name in sorted(_OURS & (variables or {}).keys()):
        raise ValueError(
            f"chat_template_kwargs holds {name!r}, which the server sets itself; leave it out."
        )


class Conversation(RequestBody):
    """Messages, and how the model's chat template makes a prompt of them."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    add_generation_prompt: bool = Field(
        True, description="Let the prompt end where the assistant begins to speak."
    )
    continue_final_message: bool = Field(
        False, description="Let the prompt end within the last message, to be continued."
    )
    add_special_tokens: bool = Field(
        False, description="Add special tokens to those that the template writes."
    )
    chat_template_kwargs: TemplateKwargs = None

    @model_validator(mode="after")
    def _template_fields_agree(self) -> Conversation:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message is true and add_generation_prompt is not false; they "
                "exclude each other: set add_generation_prompt to false."
            )
        check_template_kwargs(self.chat_template_kwargs)
        return self

    def template_variables(self) -> dict[str, Any]:
        """What the request gives the template to read beside the messages."""
        return dict(self.chat_template_kwargs or {})

    def field_of(self, variable: str) -> str:
        """The request's field that gives the template this variable."""
        is_own = variable in (self.chat_template_kwargs or {})
        return f"chat_template_kwargs.{variable}" if is_own else variable


class ChatCompletionRequest(Conversation, ToolsBody, ConstrainedBody, GenerationBody):
    """A conversation to be continued by the assistant."""

    unsupported: ClassVar = CHAT

    max_tokens: PositiveCount | None = Field(
        None, description="Older name of max_completion_tokens."
    )
    max_completion_tokens: PositiveCount | None = Field(
        None, description="As many as the context holds if left out."
    )
    logprobs: bool | None = False
    top_logprobs: LogprobCount | None = None
    echo: bool = Field(False, description="Let the text begin with the assistant's last message.")
    documents: (
        Annotated[list[dict[str, str]], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None
    ) = Field(None, description="For chat templates that read documents.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        Field(None, description="For chat templates that read it.")
    )
    return_prompt_text: bool | None = Field(
        False, description="Tell the prompt as the chat template made it."
    )

    @classmethod
    def settle_unsupported(cls, document: dict[str, Any]) -> None:
        """Also those inside the messages."""
        super().settle_unsupported(document)
        messages = document.get("messages")
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                settle(message, MESSAGE, f"messages[{index}].")

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError(
                f"top_logprobs is {self.top_logprobs} and logprobs is not true; "
                "set logprobs to true or leave top_logprobs out."
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                f"{self.max_completion_tokens}; they mean the same: send one of them."
            )
        if self.echo and self.messages[-1].role != "assistant":
            raise ValueError(
                f"echo is true and the last message is the {self.messages[-1].role}'s; only the "
                "assistant's is echoed: leave echo out."
            )
        if self.reasoning_effort and "reasoning_effort" in (self.chat_template_kwargs or {}):
            raise ValueError(
                "reasoning_effort is set, and again in chat_template_kwargs; send one of them."
            )
        return self

    def template_variables(self) -> dict[str, Any]:
        """See :meth:`Conversation.template_variables`."""
        variables = super().template_variables()
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        if self.documents is not None:
            variables["documents"] = self.documents
        return variables

    @property
    def echoed_text(self) -> str:
        """What the answer begins with."""
        return self.messages[-1].text if self.echo else ""

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    def to_sampling_params(self, defaults: dict[str, float]) -> SamplingParams:
        """See :meth:`GenerationBody.sampling_params`."""
        params = self.sampling_params(
            defaults,
            max_tokens=self.token_limit,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
            n=self.n or 1,
        )
        return self.constrain(params)
