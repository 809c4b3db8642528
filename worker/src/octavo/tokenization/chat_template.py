"""Conversations to prompt text, by the template a model brings.

Templates are Jinja in Hugging Face's dialect: blocks trimmed, loop controls, ``raise_exception``,
``strftime_now``, a ``tojson`` that does not escape HTML, and ``{% generation %}`` marks, which
serving ignores. They come with the model, so they run in Jinja's immutable sandbox, their output
is bounded, and they are stopped when they take too long.

Source: ``transformers.utils.chat_template_utils`` (the dialect).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.gguf.container import GGUFContainer
from octavo.tokenization.tokenizer import Tokenizer, read_tokenizer_config

_MAX_CHARACTERS = 1 << 24
"""Longest rendering: far beyond any context, small beside a server's memory."""
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
        self._template = _compile(source, origin)
        self._tool_template = (
            self._template if tool_source is None else _compile(tool_source, origin)
        )
        self._wants_parts = _iterates_over_content(source)

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


def _collect(chunks: Iterable[str]) -> str:
    """The rendering, within its bounds."""
    parts: list[str] = []
    size, deadline = 0, time.monotonic() + _MAX_SECONDS
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > _MAX_CHARACTERS:
                raise InvalidRequestError(
                    f"The chat template made more than {_MAX_CHARACTERS} characters of these "
                    "messages; send fewer or shorter ones.",
                    "messages",
                )
            if time.monotonic() > deadline:
                raise InvalidRequestError(
                    f"The chat template took more than {_MAX_SECONDS:.0f} s for these messages; "
                    "send fewer or shorter ones.",
                    "messages",
                )
    except InvalidRequestError:
        raise
    except Exception as exc:  # whatever a template does with whatever a client sent
        raise InvalidRequestError(
            f"The model's chat template does not accept these messages: {_reason(exc)}.",
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


class _GenerationMarks(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: marks for training; here, only the body."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Repetition and powers are the two ways one expression can exhaust memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" and not (abs(left) < 1 << 16 and abs(right) < 1 << 5):
            raise SecurityError(f"{left} ** {right} is too large a number")
        if operator == "*":
            size = _repeated_size(left, right)
            if size > _MAX_CHARACTERS:
                raise SecurityError(f"a repetition of {size} items is too large")
        return super().call_binop(context, operator, left, right)


def _repeated_size(left: object, right: object) -> int:
    if isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        return len(left) * right
    return 0


def _compile(source: str, origin: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationMarks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as exc:
        raise ModelLoadError(
            f"{origin[0].upper()}{origin[1:]} is not valid: {_reason(exc)}; give another with "
            "--chat-template FILE."
        ) from exc
    except RecursionError as exc:
        raise ModelLoadError(
            f"{origin[0].upper()}{origin[1:]} is nested too deeply; give another with "
            "--chat-template FILE."
        ) from exc


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _iterates_over_content(source: str) -> bool:
    """Whether the template wants content as a list of parts: it loops over it, and never asks
    whether it is a string.
    """
    try:
        tree = jinja2.Environment(extensions=[_GenerationMarks, jinja2.ext.loopcontrols]).parse(
            source
        )
    except jinja2.TemplateError:
        return False  # compiling it says what is wrong
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
        except (ValueError, AttributeError) as exc:
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


def _reason(exc: BaseException) -> str:
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text[:500].rstrip(".")
