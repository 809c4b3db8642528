"""How one chat request's answer is to be made and read: tools, thoughts, what it must follow.

Knows a request's fields, the model's way of writing messages and how its prompt ends; decides what
the engine is told (a grammar, thoughts before it, special tokens to show) and how its text is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from octavo.engine.interface import TokenReader
from octavo.engine.request_options import RequestOptions, TextEnd
from octavo.grammar import ReasoningSpan, StructuredOutputs, cannot_be_honoured
from octavo.sampling_params import SamplingParams
from octavo.server.errors import bad_request
from octavo.server.protocol.tools import ToolsBody
from octavo.structured.json_schema import check_schema
from octavo.structured.translate import answer_rule, json_rule
from octavo.tools.formats import CallFormat, MessageFormat, Tool
from octavo.tools.message import CallEnd, MessageParser

_PROMPT_TAIL = 32
"""Tokens of a prompt's end that may open or close thoughts."""


@dataclass(frozen=True, slots=True)
class MessagePlan:
    """See the module."""

    params: SamplingParams
    format: MessageFormat
    names: tuple[str, ...] | None
    """Of tools that may be called; None: none may."""
    is_thinking: bool | None
    """Whether the prompt has opened thoughts; None: it has closed them, or the model has none."""
    is_single: bool = False
    """Whether the first call ends the answer."""
    is_named: bool = False
    """Whether the request names the function to call."""

    @classmethod
    def of(
        cls,
        body: ToolsBody,
        params: SamplingParams,
        message_format: MessageFormat,
        prompt: Sequence[int],
        tokenizer: TokenReader | None,
    ) -> MessagePlan:
        """Raises InvalidRequestError, or ApiError, for tools that cannot be honoured."""
        tools = body.usable_tools()
        fields = body.schema_fields()
        for tool in tools:
            check_schema(tool.parameters, fields[tool.name])
            if tool.fault is not None:
                raise cannot_be_honoured(fields[tool.name], tool.fault)
        asked = _call_grammar(body, message_format, tools, params, tokenizer)
        if asked is not None:
            params = msgspec.structs.replace(params, structured_outputs=asked)
        names = tuple(tool.name for tool in tools) if tools else None
        is_thinking = _thinks(message_format, prompt, tokenizer)
        is_single = names is not None and not body.may_call_twice
        return cls(params, message_format, names, is_thinking, is_single, body.is_named)

    @property
    def is_plain(self) -> bool:
        """Whether the text is the message: there is nothing to find in it."""
        return self.names is None and self.is_thinking is None

    @property
    def reasoning(self) -> ReasoningSpan | None:
        """Thoughts that may come before what the answer must follow."""
        if self.is_thinking is None or self.format.thoughts is None:
            return None
        return ReasoningSpan(*self.format.thoughts, is_open=self.is_thinking)

    @property
    def shown_special(self) -> tuple[str, ...]:
        """Marks to be seen in the text even if they are special tokens."""
        shown = self.format.calls.marks if self.names is not None else ()
        return (*shown, *(self.format.thoughts or ())) if self.is_thinking is not None else shown

    def options(self, cache_salt: str | None) -> RequestOptions:
        """What the engine is told beside the parameters."""
        return RequestOptions(
            cache_salt=cache_salt,
            reasoning=self.reasoning,
            shown_special=self.shown_special,
            text_end=self._call_end if self.is_single else None,
        )

    def parser(self) -> MessageParser:
        """For one choice."""
        return self.format.parser(
            self.names, is_thinking=self.is_thinking, is_single=self.is_single
        )

    def _call_end(self) -> TextEnd:
        """Watches one choice for the end of its call."""
        return CallEnd(self.parser())


def _thinks(
    message_format: MessageFormat, prompt: Sequence[int], tokenizer: TokenReader | None
) -> bool | None:
    if message_format.thoughts is None or tokenizer is None:
        return None
    begin, end = message_format.thoughts
    tail = tokenizer.decode(prompt[-_PROMPT_TAIL:], skip_special_tokens=False).rstrip()
    if tail.endswith(end):
        return None
    return tail.endswith(begin)


def _check_writable(calls: CallFormat, tools: Sequence[Tool], fields: Mapping[str, str]) -> None:
    for tool in tools:
        reason = calls.why_not(tool)
        if reason is not None:
            raise cannot_be_honoured(fields[tool.name], reason)


def _call_grammar(
    body: ToolsBody,
    message_format: MessageFormat,
    tools: list[Tool],
    params: SamplingParams,
    tokenizer: TokenReader | None,
) -> StructuredOutputs | None:
    """What calls, and the answer beside them, must follow; None where nothing more is asked."""

    def mark(text: str) -> str | None:
        """A special token, which no text contains, by its id."""
        special = () if tokenizer is None else tokenizer.special_ids
        data = text.encode()
        found = (i for i in special if tokenizer is not None and tokenizer.token_bytes(i) == data)
        return next((f"<[{token_id}]>" for token_id in found), None)

    def follow(lark: str, called: list[Tool], *others: StructuredOutputs) -> StructuredOutputs:
        fields = body.schema_fields()
        schemas = (
            StructuredOutputs(json=dict(tool.parameters), asked_by=fields[tool.name])
            for tool in called
        )
        return StructuredOutputs(grammar=lark, asked_by="tools", parts=(*schemas, *others))

    calls = message_format.calls
    if body.is_call_forced:
        forced = body.forced_tools()
        _check_writable(calls, forced, body.schema_fields())
        return follow(calls.grammar(forced, json_rule, mark), forced)
    if not tools:
        return None
    asked = params.structured_outputs
    if asked is not None or any(tool.is_strict for tool in tools):
        _check_writable(calls, tools, body.schema_fields())
    if asked is not None:
        if asked.kind not in ("json", "json_object"):
            raise bad_request(
                f"tools and {asked.asked_by} are both set; beside tools an answer can follow a "
                "JSON schema only: set tool_choice to none, or leave one of them out.",
                asked.asked_by,
            )
        answer = answer_rule(asked)
        lark = calls.grammar(tools, json_rule, mark, answer=answer)
        return follow(lark, tools, asked)
    if not any(tool.is_strict for tool in tools):
        return None
    return follow(calls.free_grammar(tools, json_rule, mark), tools)
