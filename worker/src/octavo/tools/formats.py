"""The ways models write calls and thoughts, by name: how to read each, and the grammar that makes
a model write it.

A model's way is recognised by the marks in its chat template, unless it is named.
"""

from __future__ import annotations

import enum
import json
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.tools import hermes, llama_json, mistral, pythonic
from octavo.tools.hermes import HermesCalls
from octavo.tools.llama_json import LlamaCalls
from octavo.tools.message import CallParser, CallText, MessageParser
from octavo.tools.mistral import MistralCalls
from octavo.tools.pythonic import PythonicCalls

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments."""
    is_strict: bool = False
    """Whether its arguments follow the schema even where the model is free to call or not."""

    @property
    def fault(self) -> str | None:
        """Why no call can have such arguments; None where one can."""
        kinds = self.parameters.get("type", "object")
        if "object" in (kinds if isinstance(kinds, list) else [kinds]):
            return None
        return f"arguments are an object, and its type is {json.dumps(kinds)}; make it object"

    def for_template(self) -> dict[str, Any]:
        """As OpenAI writes it, which is what chat templates read."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function}


Rule = Callable[[object], str]
"""Makes a rule in a grammar's notation of a JSON schema."""
Mark = Callable[[str], str | None]
"""A special token in a grammar's notation; None for a text that is none."""


class CallFormat(enum.Enum):
    """How calls are written."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    PYTHONIC = "pythonic"

    def parser(self, names: Sequence[str], *, is_single: bool = False) -> CallParser:
        """Reads calls of these tools; with ``is_single`` the first of them is the last."""
        kinds: dict[CallFormat, type[CallText]] = {
            CallFormat.HERMES: HermesCalls,
            CallFormat.LLAMA3_JSON: LlamaCalls,
            CallFormat.MISTRAL: MistralCalls,
            CallFormat.PYTHONIC: PythonicCalls,
        }
        return kinds[self](names, is_single=is_single)

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that may be special tokens and have to be seen all the same."""
        return _MARKS[self]

    def why_not(self, tool: Tool) -> str | None:
        """Why calls of a tool cannot be made to follow its schema, whatever the schema's parts;
        None where they can."""
        reason = pythonic.why_not(tool.parameters) if self is CallFormat.PYTHONIC else None
        return reason and f"this model writes keywords, and {reason}"

    def new_id(self) -> str:
        """An id for a call; Mistral's templates take nine letters and digits only."""
        if self is CallFormat.MISTRAL:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"

    def grammar(
        self,
        tools: Sequence[Tool],
        rule: Rule,
        mark: Mark,
        *,
        answer: str | None = None,
    ) -> str:
        """Lark: one or more calls, and nothing else; with ``answer``, calls or what that rule
        says."""
        lines = self._call_rules(tools, rule, mark)
        if answer is None:
            return "\n".join(["start: calls", *lines])
        return "\n".join(["start: calls | answer", f"answer: {answer}", *lines])

    def free_grammar(self, tools: Sequence[Tool], rule: Rule, mark: Mark) -> str:
        """Lark: text, in which calls follow the tools' schemas."""
        if self is CallFormat.HERMES:
            begin = mark(hermes.BEGIN)
            head = f"head: TEXT {begin}" if begin else f"head[lazy]: TEXT {_text(hermes.BEGIN)}"
            inside = [
                f"call{n}: {_object(tool, 'arguments', rule)}" for n, tool in enumerate(tools)
            ]
            tail = f'"\\n" {_mark(hermes.END, mark)}'
            lines = [r"TEXT: /(.|\n)*/", head, f"call: {_any(len(tools))}", *inside]
            return "\n".join(["start: (tag)* TEXT", f'tag: head "\\n" call {tail}', *lines])
        # Elsewhere a call is the whole answer, and its first character tells it from text.
        first = "{" if self is CallFormat.LLAMA3_JSON else "\\["
        lines = self._call_rules(tools, rule, mark)
        return "\n".join(["start: calls | TEXT", rf"TEXT: /([^{first}\s](.|\n)*)?/", *lines])

    def _call_rules(self, tools: Sequence[Tool], rule: Rule, mark: Mark) -> list[str]:
        begin, separator, end = _AROUND[self]
        several = f"call ({_text(separator)} call)*"
        parts = [_mark(begin, mark), _text("[") if end else "", several, _mark(end, mark)]
        return [
            "calls: " + " ".join(filter(None, parts)),
            f"call: {_any(len(tools))}",
            *(f"call{n}: {self._call(tool, rule, mark)}" for n, tool in enumerate(tools)),
        ]

    def _call(self, tool: Tool, rule: Rule, mark: Mark) -> str:
        match self:
            case CallFormat.HERMES:
                begin, end = _mark(hermes.BEGIN, mark), _mark(hermes.END, mark)
                return f'{begin} "\\n" {_object(tool, "arguments", rule)} "\\n" {end}'
            case CallFormat.LLAMA3_JSON:
                return _object(tool, "parameters", rule)
            case CallFormat.MISTRAL:
                return _object(tool, "arguments", rule)
            case CallFormat.PYTHONIC:
                return f"{_text(tool.name + '(')} {_keywords(tool, rule)} {_text(')')}"


_MARKS = {
    CallFormat.HERMES: (hermes.BEGIN, hermes.END),
    CallFormat.LLAMA3_JSON: (llama_json.TAG,),
    CallFormat.MISTRAL: (mistral.MARK, mistral.ARGUMENTS, mistral.CALL_ID),
    CallFormat.PYTHONIC: (),
}
_AROUND = {
    CallFormat.HERMES: ("", "\n", ""),
    CallFormat.LLAMA3_JSON: ("", "; ", ""),
    CallFormat.MISTRAL: (mistral.MARK, ", ", "]"),
    CallFormat.PYTHONIC: ("", ", ", "]"),
}


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _mark(text: str, mark: Mark) -> str:
    return (mark(text) or _text(text)) if text else ""


def _any(count: int) -> str:
    return " | ".join(f"call{number}" for number in range(count))


def _object(tool: Tool, key: str, rule: Rule) -> str:
    head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
    # A schema that names no type takes any value, and arguments are an object.
    return f"{_text(head)} {rule({**tool.parameters, 'type': 'object'})} {_text('}')}"


def _keywords(tool: Tool, rule: Rule) -> str:
    """Keyword arguments in the schema's order: what is required, then what is not."""
    properties = tool.parameters.get("properties") or {}
    shared = {
        key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters
    }
    required = list(dict.fromkeys(tool.parameters.get("required") or ()))
    optional = [name for name in properties if name not in required]

    def keyword(name: str) -> str:
        schema = properties[name]
        whole = {**schema, **shared} if isinstance(schema, Mapping) else schema
        return f"{_text(name + '=')} {rule(whole)}"

    if not required:  # each of them may be the first, or none
        firsts = [
            " ".join(
                [keyword(name), *(f"({_text(', ')} {keyword(rest)})?" for rest in optional[i:])]
            )
            for i, name in enumerate(optional, start=1)
        ]
        return f"({' | '.join(firsts)})?" if firsts else ""
    parts = f" {_text(', ')} ".join(keyword(name) for name in required)
    return " ".join([parts, *(f"({_text(', ')} {keyword(name)})?" for name in optional)])


_THINK = ("<think>", "</think>")
REASONING_FORMATS: Mapping[str, tuple[str, str] | None] = {
    "think": _THINK,
    "magistral": ("[THINK]", "[/THINK]"),
    "qwen3": _THINK,
    "deepseek_r1": _THINK,
    "none": None,
}
"""What opens and what closes thoughts, by the names of ``--reasoning-parser``."""
_TEMPLATE_MARKS = (
    ("[TOOL_CALLS]", CallFormat.MISTRAL),
    ("<tool_call>", CallFormat.HERMES),
    ("<|python_tag|>", CallFormat.LLAMA3_JSON),
    ("Environment: ipython", CallFormat.LLAMA3_JSON),
    ("func_name1(params_name1", CallFormat.PYTHONIC),
)


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """How one model writes its messages."""

    calls: CallFormat
    thoughts: tuple[str, str] | None

    @classmethod
    def of(cls, template: str, calls: str | None, reasoning: str | None) -> MessageFormat:
        """As named, or as the marks in a chat template tell; ``reasoning`` ``none``: no thoughts.

        A template without marks gets Hermes' way, which is explained to the model where the
        template says nothing of tools.
        """
        found = next((kind for mark, kind in _TEMPLATE_MARKS if mark in template), None)
        kind = CallFormat(calls) if calls is not None else found or CallFormat.HERMES
        if reasoning is not None:
            return cls(kind, REASONING_FORMATS[reasoning])
        marks = (pair for pair in REASONING_FORMATS.values() if pair and pair[1] in template)
        return cls(kind, next(marks, None))

    def parser(
        self, names: Sequence[str] | None, *, is_thinking: bool | None, is_single: bool = False
    ) -> MessageParser:
        """``names``: of tools that may be called; None: none may. ``is_thinking``: whether the
        prompt has opened thoughts; None: it has closed them, or there are none. ``is_single``: the
        first call ends the message."""
        calls = None if names is None else self.calls.parser(names, is_single=is_single)
        thoughts = None if is_thinking is None else self.thoughts
        return MessageParser(calls, thoughts, is_thinking=bool(is_thinking))
