"""Typed reading of one level of a custom resource, with the full path in every error.

Knows the shape of dicts and how to complain; knows no field of ours. Remembers what was read, so
that a misspelt field is found instead of being ignored.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from octavo_operator.errors import ResourceError
from octavo_operator.resources.duration import parse_duration_s
from octavo_operator.resources.quantity import parse_quantity

_T = TypeVar("_T")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_REQUIRED = "is missing"
MAX_SIZE_BYTES = (1 << 63) - 1
"""Kubernetes itself counts no further."""

MAX_OPAQUE_DEPTH = 64
"""Of what the schema lets pass as it is: whoever walks through it may call himself so often."""


class Fields:
    """One object of a resource, e.g. `spec.engine`; absent and null are the same thing."""

    def __init__(self, value: object, path: str, unknown: list[str] | None = None) -> None:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise ResourceError(path, f"is {value!r}", "give an object with named fields")
        self._values: Mapping[str, Any] = value
        self._read: set[str] = set()
        self._unknown = unknown if unknown is not None else []
        self.path = path

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        self._read.add(name)
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The field as it stands, or None."""
        self._read.add(name)
        return self._values.get(name)

    def path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, problem: str, remedy: str) -> ResourceError:
        return ResourceError(self.path_of(name), problem, remedy)

    def section(self, name: str) -> Fields:
        """The object under `name`; an empty one when it is absent."""
        return Fields(self.raw(name), self.path_of(name), self._unknown)

    def optional_section(self, name: str, parse: Callable[[Fields], _T]) -> _T | None:
        """What `parse` makes of the object under `name`, or None when it is absent."""
        return parse(self.section(name)) if self.has(name) else None

    def string(self, name: str, *, max_length: int = 4096) -> str | None:
        """A non-empty string, or None when absent."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}", "give a string (quote it in YAML)")
        if not value or value != value.strip() or "\n" in value:
            raise self.error(name, f"is {value!r}", "give a text without blank ends or line breaks")
        if len(value) > max_length:
            raise self.error(
                name, f"has {len(value)} characters", f"the limit is {max_length}; shorten it"
            )
        return value

    def required_string(self, name: str, remedy: str, *, max_length: int = 4096) -> str:
        value = self.string(name, max_length=max_length)
        if value is None:
            raise self.error(name, _REQUIRED, remedy)
        return value

    def object_name(self, name: str) -> str | None:
        """The name of another Kubernetes object (DNS-1123 subdomain), or None when absent."""
        value = self.string(name)
        if value is not None and (len(value) > 253 or not _NAME.fullmatch(value)):
            raise self.error(
                name,
                f"is {value!r}, which cannot be the name of an object",
                "use lower-case letters, digits, '-' and '.', at most 253 of them",
            )
        return value

    def required_object_name(self, name: str, remedy: str) -> str:
        value = self.object_name(name)
        if value is None:
            raise self.error(name, _REQUIRED, remedy)
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}", "give true or false (not quoted)")
        return value

    def optional_integer(self, name: str, minimum: int, maximum: int) -> int | None:
        """An integer within [minimum, maximum], or None when absent."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"is {value!r}", "give an integer (not quoted)")
        if not minimum <= value <= maximum:
            limit, word = (minimum, "least") if value < minimum else (maximum, "most")
            raise self.error(name, f"is {value}", f"give at {word} {limit}")
        return value

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        value = self.optional_integer(name, minimum, maximum)
        return default if value is None else value

    def fraction(self, name: str) -> Decimal | None:
        """A share in (0, 1] written as a string, since a CRD has no exact floats."""
        value = self.raw(name)
        if value is None:
            return None
        remedy = 'give a quoted decimal above 0 and up to 1, such as "0.9"'
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}, which is not a string", remedy)
        try:
            share = Decimal(value)
        except InvalidOperation:
            raise self.error(name, f"is {value!r}, which is not a decimal", remedy) from None
        if not share.is_finite() or not 0 < share <= 1:
            raise self.error(name, f"is {value!r}", remedy)
        return share

    def duration_s(self, name: str, default_s: float, minimum_s: float, maximum_s: float) -> float:
        """Seconds in a duration such as "5m"."""
        value = self.raw(name)
        if value is None:
            return default_s
        remedy = 'give a number with a unit, such as "5m" or "1h30m"'
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}, which is not a duration", remedy)
        try:
            seconds = parse_duration_s(value)
        except ValueError as problem:
            raise self.error(name, str(problem), remedy) from None
        if not minimum_s <= seconds <= maximum_s:
            raise self.error(name, f"is {value!r}", f"give {minimum_s:g} to {maximum_s:g} seconds")
        return seconds

    def size_bytes(self, name: str) -> int | None:
        """A Kubernetes quantity of memory in whole bytes, or None when absent."""
        value = self.raw(name)
        if value is None:
            return None
        remedy = 'give an amount of memory, such as "80Gi"'
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}, which is not a string", remedy)
        try:
            amount = parse_quantity(value)
        except ValueError as problem:
            raise self.error(name, str(problem), remedy) from None
        if amount <= 0:
            raise self.error(name, f"is {value!r}", remedy)
        if amount > MAX_SIZE_BYTES:
            raise self.error(
                name, f"is {value!r}", f"the limit is {MAX_SIZE_BYTES} bytes; {remedy}"
            )
        return math.ceil(amount)

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.string(name)
        if value is not None and value not in choices:
            raise self.error(name, f"is {value!r}", f"give one of {', '.join(choices)}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings, kept as they are; empty when absent."""
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(
                    f"{name}[{index}]", f"is {value!r}", "give a string (quote it in YAML)"
                )
        return tuple(values)

    def string_map(self, name: str) -> tuple[tuple[str, str], ...]:
        """A mapping of strings to strings, as sorted pairs; empty when absent."""
        values = self.raw(name)
        if values is None:
            return ()
        if not isinstance(values, Mapping):
            raise self.error(name, f"is {values!r}", "give a mapping of names to values")
        for key, value in values.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise self.error(
                    f"{name}.{key}", f"is {value!r}", "give a string (quote it in YAML)"
                )
        return tuple(sorted(values.items()))

    def sections(self, name: str) -> list[Fields]:
        """The objects in the list under `name`; empty when absent."""
        return [
            Fields(value, f"{self.path_of(name)}[{index}]", self._unknown)
            for index, value in enumerate(self._list(name))
        ]

    def opaque(self, name: str) -> dict[str, Any]:
        """An object that is passed on without being looked into; empty when absent."""
        value = self.raw(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(name, f"is {value!r}", "give an object with named fields")
        if _is_deeper(value, MAX_OPAQUE_DEPTH):
            problem = f"has objects and lists more than {MAX_OPAQUE_DEPTH} levels inside each other"
            raise self.error(name, problem, "leave out what lies so deep; no field of a pod does")
        return dict(value)

    def note_unknown(self) -> None:
        """Remember every field that nobody asked for, with a guess at what was meant."""
        for name in self._values:
            if name in self._read:
                continue
            close = difflib.get_close_matches(str(name), sorted(self._read), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            self._unknown.append(f"{self.path_of(str(name))}{hint}")

    @property
    def unknown(self) -> tuple[str, ...]:
        """Fields that nobody asked for, here and below, as far as `note_unknown` was called."""
        return tuple(self._unknown)

    def _list(self, name: str) -> Sequence[Any]:
        values = self.raw(name)
        if values is None:
            return ()
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise self.error(name, f"is {values!r}", "give a list")
        return values


def _is_deeper(value: object, levels: int) -> bool:
    """Whether objects and lists lie more than so many levels inside each other."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return any(isinstance(inner, Mapping | list) for inner in level)
