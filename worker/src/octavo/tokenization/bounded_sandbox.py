"""A Jinja sandbox in which the usual ways to take all memory or time are closed.

Jinja's own keeps templates from Python's objects, and its ``range`` short. What one may still do
for hours or gigabytes is bounded here: loops that write nothing, macros that call themselves twice,
strings that are doubled, numbers that are squared, and widths that things are filled up to. Not
bounded is what a list of lists, or a text of fields with long arguments, grows to when it is
written: templates come with models, never with requests.
"""

from __future__ import annotations

import functools
import math
import re
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor
from jinja2.exceptions import SecurityError

MAX_CHARACTERS = 1 << 24
"""Of a text, and items of a list: far beyond any context, small beside a server's memory."""
_MAX_BITS = 4096
"""Of a product of integers."""
_MAX_WIDTH = 10_000
_MAX_REFORMED = 1 << 22
"""Characters of a text that is wrapped or filled, which happens piece by piece."""
_FILLING = ("batch", "center", "indent", "slice", "urlize", "wordwrap")
"""Filters that are told a width, or a number of things."""
_NEVER = frozenset({"encode", "expandtabs", "maketrans", "translate"})
"""Methods of texts that make much of little, and that no chat needs."""
_PERCENT_FIELD = re.compile(r"%(?:\([^()]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.)", re.DOTALL)
"""Width, precision and kind. A key with brackets in it ends it at the kind ``(``."""
_NUMBER = re.compile(r"\d+")


class RenderTimeError(Exception):
    """A template has taken longer than it may."""


class _Deadline(threading.local):
    at_s = math.inf


_deadline = _Deadline()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """For what templates do in this thread: RenderTimeError after so long."""
    _deadline.at_s = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at_s = math.inf


def check_time() -> None:
    """Raise RenderTimeError where the limit is reached."""
    if time.monotonic() > _deadline.at_s:
        raise RenderTimeError


class BoundedSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """See above; what is too much raises SecurityError."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        del self.globals["lipsum"]
        for name in _FILLING:
            self.filters[name] = _filling(self.filters[name])
        self.filters["join"] = _join
        self.filters["replace"] = _replace
        self.filters["format"] = _format
        self.filters["_check_time"] = _check_time
        self.filters["_joined"] = _joined

    def _parse(self, *arguments: Any) -> jinja2.nodes.Template:
        tree = super()._parse(*arguments)
        _Checks().visit(tree)
        return tree.set_environment(self)  # type: ignore[return-value]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_refused = isinstance(obj, str) and attr in _NEVER
        return not is_refused and super().is_safe_attribute(obj, attr, value)

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" and not (abs(left) < 1 << 16 and abs(right) < 1 << 5):
            raise SecurityError(f"{left!s:.80} ** {right!s:.80} is too large a number")
        if operator == "*":
            _check_product(left, right)
        elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_percent(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            return _call_method(functools.partial(super().call, context, obj), obj, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


_SIZED = (str, list, tuple)


class _Checks(jinja2.visitor.NodeTransformer):
    """Has each turn of a loop and each call of a macro look at the clock, and ``~`` at sizes."""

    def _timed(self, node: Any) -> jinja2.nodes.Node:
        self.generic_visit(node)
        looks = _filtered(jinja2.nodes.Const(None), "_check_time")
        node.body.insert(0, jinja2.nodes.ExprStmt(looks, lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _timed

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "_joined")


def _filtered(node: jinja2.nodes.Expr, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


@jinja2.pass_context
def _check_time(context: jinja2.runtime.Context, value: None) -> None:
    """A filter; with a context, so that compiling does not evaluate it."""
    check_time()


def _joined(values: list[Any]) -> str:
    """What ``~`` does."""
    return _checked_join("", values)


def _checked_join(separator: str, values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


@jinja2.pass_eval_context
def _join(
    context: jinja2.nodes.EvalContext, values: Any, d: str = "", attribute: str | None = None
) -> str:
    if attribute is not None:
        take = jinja2.filters.make_attrgetter(context.environment, attribute)
        values = map(take, values)
    return _checked_join(str(d), list(values))


def _replace(value: object, old: object, new: object, count: int | None = None) -> str:
    text = str(value)
    _check_replacement(text, str(old), str(new))
    return text.replace(str(old), str(new), -1 if count is None else count)


def _format(value: object, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(value))
    return jinja2.filters.do_format(str(value), *args, **kwargs)


def _filling(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(wrapped)
    def checked(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        width = max((value for value in values if isinstance(value, int)), default=0)
        _check_size(width, _MAX_WIDTH)
        for value in values:
            if isinstance(value, str):
                _check_size(len(value), _MAX_REFORMED)
                _check_size(width * value.count("\n"))
        return wrapped(*args, **kwargs)

    return checked


def _call_method(
    call: Callable[..., Any], method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Of a text."""
    match method.__name__:
        case "replace" if len(args) > 1 and all(isinstance(one, str) for one in args[:2]):
            _check_replacement(method.__self__, args[0], args[1])
        case "join" if args:
            items = list(args[0])
            _check_size(sum(len(one) for one in items if isinstance(one, str)))
            _check_size(len(method.__self__) * len(items))
            args = (items,)
    if any(isinstance(one, int) and one > MAX_CHARACTERS for one in args):
        raise SecurityError("a text of that width is too large")
    return call(*args, **kwargs)


def _check_product(left: Any, right: Any) -> None:
    if isinstance(right, _SIZED):
        left, right = right, left
    if isinstance(left, _SIZED) and isinstance(right, int):
        size = len(left) * right
        if size > MAX_CHARACTERS:
            raise SecurityError(f"a repetition of {size} items is too large")
    are_integers = isinstance(left, int) and isinstance(right, int)
    if are_integers and left.bit_length() + right.bit_length() > _MAX_BITS:
        raise SecurityError(f"a product of more than {_MAX_BITS} bits is too large a number")


def _check_replacement(text: str, old: str, new: str) -> None:
    if len(new) > len(old):
        _check_size(len(text) + text.count(old) * (len(new) - len(old)))


def _check_percent(layout: str) -> None:
    """Of what ``%`` fills in."""
    size = 0
    for width, precision, kind in _PERCENT_FIELD.findall(layout):
        is_any = "*" in (width, precision) or kind == "("
        size += _width(layout, f"{width}.{precision}", is_any=is_any)
    _check_size(size)


def _check_format(layout: str) -> None:
    """Of what ``str.format`` fills in."""
    specs = [spec or "" for _, _, spec, _ in string.Formatter().parse(layout)]
    _check_size(sum(_width(layout, spec, is_any="{" in spec) for spec in specs))


def _width(layout: str, told: str, *, is_any: bool) -> int:
    """Of a field of the layout that is ``told`` this; ``is_any``: an argument says how wide."""
    widths = [int(number) for number in _NUMBER.findall(told)]
    if is_any or max(widths, default=0) > _MAX_WIDTH:
        raise SecurityError(f"{layout!r:.80} has a field that is too wide, or of any width")
    return sum(widths)


def _check_size(size: int, limit: int = MAX_CHARACTERS) -> None:
    if size > limit:
        raise SecurityError(f"a text or list of {size} items is too large; {limit} are possible")
