"""Jinja in Hugging Face's dialect, in a sandbox.

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
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from octavo.errors import ModelLoadError

MAX_CHARACTERS = 1 << 24
"""Longest rendering: far beyond any context, small beside a server's memory."""


def compile_template(source: str, origin: str) -> jinja2.Template:
    """A template that renders in the sandbox.

    ``origin`` says in errors where it is from. Raises ModelLoadError for one that is not valid.
    """
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationMarks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
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
            if size > MAX_CHARACTERS:
                raise SecurityError(f"a repetition of {size} items is too large")
        return super().call_binop(context, operator, left, right)


def _repeated_size(left: object, right: object) -> int:
    if isinstance(right, str | list | tuple):
        left, right = right, left
    if isinstance(left, str | list | tuple) and isinstance(right, int):
        return len(left) * right
    return 0


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
