"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from octavo.sampling_params import SamplingParams
from octavo.server.protocol.fields import (
    GenerationBody,
    LogprobCount,
    PositiveCount,
    StrictModel,
)
from octavo.server.protocol.unsupported import CHAT, MESSAGE, settle

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TEMPLATE_KWARGS = 64
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
_KINDS_OF_MEDIA = frozenset(
    {"image_url", "input_image", "input_audio", "audio_url", "video_url", "file"}
)


class TextPart(StrictModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _refuse_media(parts: object) -> object:
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

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)],
        BeforeValidator(_refuse_media, json_schema_input_type=str | list[TextPart]),
    ]
    name: str | None = Field(None, max_length=256, description="Given to the chat template.")

    def for_template(self) -> dict[str, Any]:
        """What chat templates read: a developer is a system, parts are joined by line breaks."""
        text = self.content
        if isinstance(text, list):
            text = "\n".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": text}
        if self.name is not None:
            message["name"] = self.name
        return message


class ChatCompletionRequest(GenerationBody):
    """A conversation to be continued by the assistant."""

    unsupported: ClassVar = CHAT

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: PositiveCount | None = Field(
        None, description="Older name of max_completion_tokens."
    )
    max_completion_tokens: PositiveCount | None = Field(
        None, description="As many as the context holds if left out."
    )
    logprobs: bool | None = False
    top_logprobs: LogprobCount | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: (
        Annotated[dict[TemplateVariable, Any], Field(max_length=MAX_TEMPLATE_KWARGS)] | None
    ) = Field(None, description="More variables for the chat template, e.g. enable_thinking.")

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
        for name in sorted(_OURS & (self.chat_template_kwargs or {}).keys()):
            raise ValueError(
                f"chat_template_kwargs holds {name!r}, which the server sets itself; leave it out."
            )
        return self

    def to_sampling_params(self, defaults: dict[str, float]) -> SamplingParams:
        """See :meth:`GenerationBody.sampling_params`."""
        return self.sampling_params(
            defaults,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )
