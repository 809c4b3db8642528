"""From what a client asks for to a grammar in the library's notation.

Knows the kinds of structured outputs and the bounds on each, all checked before any work is done;
loads no library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.grammar import Grammar, ReasoningSpan, StructuredOutputs, cannot_be_honoured
from octavo.structured.json_schema import MAX_SCHEMA_CHARS, check_schema, closed
from octavo.structured.normal_form import normal_form
from octavo.structured.regex_size import check_regex

MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 10_000
MAX_CHOICE_CHARS = 262_144
MAX_TAGS = 256
MAX_TAG_CHARS = 1024
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,48}"
"""Enough to indent twenty levels. Without a bound a model that has lost its way writes white
space until its tokens are used up."""
_HEADER = '%llguidance {"no_forcing": true}\n'
"""Where the grammar leaves one text only, the model still chooses the tokens that spell it."""


def translate(asked: StructuredOutputs, reasoning: ReasoningSpan | None = None) -> Grammar:
    """The grammar for a request.

    Raises InvalidRequestError for what cannot be honoured, with the reason.
    """
    return Grammar(_HEADER + _text(asked), reasoning)


def json_rule(schema: object, *, whitespace: str | None = _WHITESPACE) -> str:
    """``%json {...}`` for use inside a Lark grammar; the schema is checked by the caller.

    ``whitespace``: the pattern of white space between tokens of JSON; None: none at all.
    """
    return "%json " + json.dumps(_with_whitespace(normal_form(schema), whitespace))


def lark_string(text: str) -> str:
    """A string literal of a Lark grammar."""
    return json.dumps(text)


def answer_rule(asked: StructuredOutputs) -> str:
    """The rule for use inside a Lark grammar of a request that asks for JSON.

    Raises InvalidRequestError for what cannot be honoured.
    """
    is_any = asked.kind == "json_object"
    schema = {"type": "object"} if is_any else _decoded(asked.json, asked.param)
    check_schema(schema, asked.param)
    if asked.disable_additional_properties:
        schema = closed(schema)
    whitespace = asked.whitespace_pattern or _WHITESPACE
    if asked.whitespace_pattern is not None:
        check_regex(asked.whitespace_pattern, f"{asked.asked_by}.whitespace_pattern")
    return json_rule(schema, whitespace=None if asked.disable_any_whitespace else whitespace)


def _text(asked: StructuredOutputs) -> str:
    param = asked.param
    match asked.kind:
        case "json" | "json_object":
            return f"start: {answer_rule(asked)}"
        case "regex":
            return _regex(asked.regex or "", param)
        case "choice":
            return _choice(asked.choice or (), param)
        case "grammar":
            return _lark(asked.grammar or "", param)
        case _:
            return _structural_tag(_decoded(asked.structural_tag, param), param)


def _decoded(value: object, param: str) -> object:
    """A schema as an object, or as the text of one (vLLM takes both)."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_SCHEMA_CHARS:
        reason = f"it has {len(value)} characters; at most {MAX_SCHEMA_CHARS} are allowed"
        raise cannot_be_honoured(param, reason)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise cannot_be_honoured(param, f"it is no JSON text ({error})") from None


def _with_whitespace(schema: object, pattern: str | None) -> object:
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    assert isinstance(schema, Mapping), "checked before"
    options: dict[str, Any] = {"whitespace_flexible": False}
    if pattern is not None:
        options = {"whitespace_pattern": pattern}
    return {**schema, "x-guidance": options}


def _regex(pattern: str, param: str) -> str:
    check_regex(pattern, param)
    # Lark's own delimiter and line breaks, unless the pattern has escaped them already.
    escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    return f"start: /{_one_line(escaped)}/"


def _one_line(pattern: str) -> str:
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def _choice(choices: Sequence[str], param: str) -> str:
    if not choices:
        raise cannot_be_honoured(param, "choice is an empty list; give at least one string")
    if len(choices) > MAX_CHOICES:
        raise cannot_be_honoured(
            param, f"choice has {len(choices)} strings; at most {MAX_CHOICES} are allowed"
        )
    if sum(map(len, choices)) > MAX_CHOICE_CHARS:
        raise cannot_be_honoured(
            param, f"the strings of choice have more than {MAX_CHOICE_CHARS} characters"
        )
    if "" in choices:
        raise cannot_be_honoured(param, "choice holds an empty string, which is no output")
    # A terminal is one automaton; as a rule each choice would be an item of the parser's.
    return "start: CHOICE\nCHOICE: " + " | ".join(map(lark_string, dict.fromkeys(choices)))


def _lark(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise cannot_be_honoured(
            param, f"grammar has {len(grammar)} characters; at most {MAX_GRAMMAR_CHARS} are allowed"
        )
    if not grammar.strip():
        raise cannot_be_honoured(param, "grammar is empty")
    if not re.search(r"^\s*[\w<>-]+\s*::=", grammar, re.MULTILINE):
        return grammar
    # Imported here: few requests bring GBNF, and the server does without the library otherwise.
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter raises whatever it meets
        raise cannot_be_honoured(param, f"grammar is no GBNF that can be read ({error})") from error


def _structural_tag(tag: object, param: str) -> str:
    """vLLM's ``{"structures": [{begin, schema, end}], "triggers": [...]}``: free text in which
    each trigger begins one of the structures."""
    if not isinstance(tag, Mapping) or not {"structures", "triggers"} <= tag.keys():
        raise cannot_be_honoured(param, 'structural_tag must have "structures" and "triggers"')
    unknown = tag.keys() - {"type", "structures", "triggers"}
    if unknown:
        raise cannot_be_honoured(
            param, f"structural_tag has unknown fields: {', '.join(sorted(unknown))}"
        )
    triggers = _texts(tag["triggers"], "triggers", param)
    structures = tag["structures"]
    if not isinstance(structures, list) or not 1 <= len(structures) <= MAX_TAGS:
        raise cannot_be_honoured(param, f"structures must be a list of 1 to {MAX_TAGS} objects")
    return tagged_text([_structure(structure, triggers, param) for structure in structures])


def _structure(structure: object, triggers: list[str], param: str) -> tuple[str, str, str, str]:
    """``(trigger, rest of begin, rule, end)``."""
    if not isinstance(structure, Mapping) or not {"begin", "end"} <= structure.keys():
        raise cannot_be_honoured(param, 'each of structures must have "begin", "schema" and "end"')
    if structure.keys() - {"begin", "schema", "end"}:
        raise cannot_be_honoured(
            param, "each of structures has begin, schema and end, and nothing else"
        )
    ends = [structure["begin"], structure["end"]]
    begin, end = _texts(ends, "begin and end", param, may_be_empty=True)
    trigger = next((each for each in triggers if begin.startswith(each)), None)
    if trigger is None:
        raise cannot_be_honoured(
            param, f"begin is {begin!r}, which starts with none of the triggers {triggers}"
        )
    schema = structure.get("schema", True)
    check_schema(schema, param)
    return trigger, begin[len(trigger) :], json_rule(schema), end


def tagged_text(tags: Sequence[tuple[str, str, str, str]]) -> str:
    """Free text in which each trigger is followed by its ``begin``, a rule's text and ``end``.

    ``tags``: ``(trigger, begin, rule, end)``, the rule in Lark's notation.
    """
    names = " | ".join(f"tag{number}" for number in range(len(tags)))
    lines = [f"start: ({names})* text", "text: TEXT", r"TEXT: /(.|\n)*/"]
    for number, (trigger, begin, rule, end) in enumerate(tags):
        body = " ".join(
            [lark_string(begin)] * bool(begin) + [f"body{number}"] + [lark_string(end)] * bool(end)
        )
        lines += [
            f"head{number}[lazy]: TEXT {lark_string(trigger)}",
            f"tag{number}: head{number} {body}",
            f"body{number}: {rule}",
        ]
    return "\n".join(lines)


def _texts(values: object, name: str, param: str, *, may_be_empty: bool = False) -> list[str]:
    if not isinstance(values, list) or not values or len(values) > MAX_TAGS:
        raise cannot_be_honoured(param, f"{name} must be a list of 1 to {MAX_TAGS} strings")
    for value in values:
        if not isinstance(value, str) or len(value) > MAX_TAG_CHARS or not (value or may_be_empty):
            raise cannot_be_honoured(
                param, f"{name} must be strings of 1 to {MAX_TAG_CHARS} characters"
            )
    return values
