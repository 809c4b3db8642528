"""What ``POST /v1/responses`` answers with: OpenAI's response object and the parts of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.server.protocol.answers import TopLogprob
from octavo.server.usage import Usage


class OutputLogprob(msgspec.Struct):
    """One token of an output text."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class OutputText(msgspec.Struct):
    """The text of a message."""

    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[OutputLogprob] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call"):
    """A function the model calls."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class OutputReasoningText(msgspec.Struct):
    """The text of thoughts."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class OutputReasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    """What the model thought before it spoke."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputReasoningText]
    summary: list[dict[str, Any]] = []


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokensDetails(msgspec.Struct):
    """How many of the input's tokens the prefix cache held."""

    cached_tokens: int
    cache_write_tokens: int = 0
    """Those that were written to a cache on request; here all are kept without one."""


class OutputTokensDetails(msgspec.Struct):
    """What the output's tokens were for."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Tokens that were read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """From the accounts of a generation."""
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(usage.reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        )


class IncompleteDetails(msgspec.Struct):
    """Why an answer is not complete."""

    reason: str


class ResponseError(msgspec.Struct):
    """Why an answer failed."""

    code: str
    message: str


class ResponseReasoning(msgspec.Struct):
    """How much the model was asked to think."""

    effort: str | None = None
    summary: str | None = None


class TextFormat(msgspec.Struct):
    """How the answer was to be written."""

    format: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "text"})


class ResponseAnswer(msgspec.Struct, kw_only=True):
    """The answer to ``POST /v1/responses``."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[OutputItem]
    temperature: float
    top_p: float
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: ResponseReasoning = msgspec.field(default_factory=ResponseReasoning)
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = False
    background: bool = False
    text: TextFormat = msgspec.field(default_factory=TextFormat)
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    truncation: str = "disabled"
    user: str | None = None
    object: Literal["response"] = "response"
