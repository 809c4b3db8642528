"""Conversations to prompt text, by the template a model brings.

Templates come with the model, so they run in a sandbox (see
:mod:`octavo.tokenization.jinja_dialect`), their output is bounded, and they are stopped when they
take too long. Knows where templates are kept and how messages are shaped for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.meta
import jinja2.nodes

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.gguf.container import GGUFContainer
from octavo.tokenization.bounded_sandbox import (
    MAX_CHARACTERS,
    RenderTimeError,
    check_time,
    time_limit,
)
from octavo.tokenization.jinja_dialect import compile_template, one_line, parse_template
from octavo.tokenization.tokenizer import Tokenizer, read_tokenizer_config

_MAX_SECONDS = 10.0
_FILE = "chat_template.jinja"
_PROCESSOR_FILE = "chat_template.json"
_DEFAULT, _TOOL_USE = "default", "tool_use"


class ChatTemplate:
    """A compiled template. Safe to use from several threads."""

    def __init__(
        self,
        source: str,
        named_tokens: Mapping[str, str],
        *,
        tool_source: str | None = None,
        origin: str = "the chat template",
    ) -> None:
        """``tool_source``: the template for requests with tools, where the model has another.

        Raises ModelLoadError for a template that is not valid.
        """
        self.source = source
        self._named_tokens = dict(named_tokens)
        self._template = compile_template(source, origin)
        self._tool_template = (
            self._template if tool_source is None else compile_template(tool_source, origin)
        )
        self._wants_parts = _iterates_over_content(source)
        sources = [source] if tool_source is None else [source, tool_source]
        self._variables = frozenset().union(*map(_variables, sources))

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template in a model's folder, a ``.gguf`` file, or a file of its own.

        None for a model that has none. Raises ModelLoadError for one that cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            templates = _in_folder(path)
        elif path.suffix == ".gguf":
            templates = _in_gguf(path)
        else:
            templates = {_DEFAULT: _read(path)}
        if not templates:
            return None
        default = templates.get(_DEFAULT) or next(iter(templates.values()))
        return cls(
            default,
            tokenizer.named_tokens,
            tool_source=templates.get(_TOOL_USE),
            origin=f"the chat template of {path}",
        )

    def reads(self, variable: str) -> bool:
        """Whether the template looks at a variable of this name at all."""
        return variable in self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        ``continue_final_message``: end within the last message, so that the model goes on with
        it. ``variables`` reach the template as they are (``enable_thinking`` and the like).
        Raises InvalidRequestError, for the field ``messages``, where the template refuses or
        fails.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other; set the "
                "second to false.",
                "continue_final_message",
            )
        shown = [self._shape_content(message) for message in messages]
        template = self._tool_template if tools else self._template
        chunks = template.generate(
            {
                **self._named_tokens,
                **variables,
                "messages": shown,
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        text = _collect(chunks)
        return _cut_after_final_message(text, shown) if continue_final_message else text

    def _shape_content(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Text parts as one string for templates that know nothing else, and the reverse."""
        shaped = dict(message)
        content = shaped.get("content")
        if isinstance(content, str) and self._wants_parts:
            shaped["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self._wants_parts and _are_texts(content):
            shaped["content"] = "\n".join(part["text"] for part in content)
        return shaped


def shown_arguments(text: str) -> Any:
    """Of a call in an earlier message, which clients write as JSON; templates write the JSON
    themselves, so they are shown an object where the text is one."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _collect(chunks: Iterable[str]) -> str:
    """The rendering, within its bounds."""
    parts: list[str] = []
    size = 0
    try:
        with time_limit(_MAX_SECONDS):
            for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > MAX_CHARACTERS:
                    raise InvalidRequestError(
                        f"The chat template made more than {MAX_CHARACTERS} characters of these "
                        "messages; send fewer or shorter ones.",
                        "messages",
                    )
                check_time()
    except RenderTimeError as exc:
        raise InvalidRequestError(
            f"The chat template took more than {_MAX_SECONDS:.0f} s for these messages; send fewer "
            "or shorter ones.",
            "messages",
        ) from exc
    except InvalidRequestError:
        raise
    except Exception as exc:  # whatever a template does with whatever a client sent
        raise InvalidRequestError(
            f"The model's chat template does not accept these messages: {one_line(exc)}.",
            "messages",
        ) from exc
    return "".join(parts)


def _cut_after_final_message(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """End where the last message's content ends. Templates trim contents or keep them as is."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        content = next((part.get("text") for part in reversed(content) if "text" in part), None)
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequestError(
            "continue_final_message needs a last message whose content is a text.", "messages"
        )
    start = text.rfind(content)
    if start >= 0:
        return text[: start + len(content)]
    trimmed = content.strip()
    start = text.rfind(trimmed)
    if start < 0:
        raise InvalidRequestError(
            "The model's chat template changes the last message, so it cannot be continued; leave "
            "continue_final_message out.",
            "messages",
        )
    return text[: start + len(trimmed)]


def _variables(source: str) -> set[str]:
    return jinja2.meta.find_undeclared_variables(parse_template(source))


def _iterates_over_content(source: str) -> bool:
    """Whether the template wants content as a list of parts: it loops over it, and never asks
    whether it is a string.
    """
    tree = parse_template(source)
    if any(test.name == "string" for test in tree.find_all(jinja2.nodes.Test)):
        return False
    return any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))


def _is_content(node: jinja2.nodes.Node) -> bool:
    match node:
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
            return True
        case jinja2.nodes.Getattr(attr="content"):
            return True
        case jinja2.nodes.Filter(node=jinja2.nodes.Node() as inner):
            return _is_content(inner)
    return False


def _are_texts(parts: Sequence[Any]) -> bool:
    return all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in parts
    )


def _in_folder(folder: Path) -> dict[str, str]:
    if (folder / _FILE).is_file():
        return {_DEFAULT: _read(folder / _FILE)}
    stored = read_tokenizer_config(folder).get("chat_template")
    if stored is None and (folder / _PROCESSOR_FILE).is_file():
        try:
            stored = json.loads(_read(folder / _PROCESSOR_FILE)).get("chat_template")
        except (ValueError, AttributeError, RecursionError) as exc:
            raise ModelLoadError(f"{folder / _PROCESSOR_FILE} holds no JSON object.") from exc
    if isinstance(stored, str):
        return {_DEFAULT: stored}
    if isinstance(stored, list):
        return {
            entry["name"]: entry["template"]
            for entry in stored
            if isinstance(entry, Mapping)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        }
    return {}


def _in_gguf(path: Path) -> dict[str, str]:
    """llama.cpp's converter writes named templates as ``tokenizer.chat_template.NAME``."""
    metadata = GGUFContainer.open(path).metadata
    templates = {}
    for key, name in (
        ("tokenizer.chat_template", _DEFAULT),
        (f"tokenizer.chat_template.{_TOOL_USE}", _TOOL_USE),
    ):
        value = metadata.get(key)
        if isinstance(value, str):
            templates[name] = value
    return templates


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelLoadError(f"The chat template {path} cannot be read: {exc}.") from exc
