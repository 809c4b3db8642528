"""Jinja in Hugging Face's dialect, in :mod:`octavo.tokenization.bounded_sandbox`.

Blocks trimmed, loop controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that does not
escape HTML, and ``{% generation %}`` marks, which serving ignores. Knows nothing of messages.

Source: ``transformers.utils.chat_template_utils`` (the dialect).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from octavo.errors import ModelLoadError
from octavo.tokenization.bounded_sandbox import BoundedSandbox

_MAX_INDENT = 32
"""Of each line that ``tojson`` writes."""


def compile_template(source: str, origin: str) -> jinja2.Template:
    """A template that renders in the sandbox.

    ``origin`` says in errors where it is from. Raises ModelLoadError for one that is not valid.
    """
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as exc:
        raise ModelLoadError(
            f"{origin[0].upper()}{origin[1:]} is not valid: {one_line(exc)}; give another with "
            "--chat-template FILE."
        ) from exc
    except RecursionError as exc:
        raise ModelLoadError(
            f"{origin[0].upper()}{origin[1:]} is nested too deeply; give another with "
            "--chat-template FILE."
        ) from exc


def parse_template(source: str) -> jinja2.nodes.Template:
    """The template's tree, with the sandbox's own checks in it; an empty one where compiling it
    says what is wrong. Who looks at it may evaluate what is constant in it, in the sandbox."""
    environment = _environment()
    try:
        return environment.parse(source)
    except jinja2.TemplateError:
        return environment.parse("")


def _environment() -> BoundedSandbox:
    environment = BoundedSandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationMarks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def one_line(exc: BaseException) -> str:
    """An error's message without line breaks, not too long, and without its final stop."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text[:500].rstrip(".")


class GenerationMarks(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: marks for training; here, only the body."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > _MAX_INDENT:
        raise jinja2.TemplateError(
            f"indent is {width} wide, which is too large; at most {_MAX_INDENT}"
        )
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
