"""Typed, checked access to a checkpoint's ``config.json``.

Knows how to say what is wrong with a value: its key, what it is and what it may be. Knows
nothing of what the values mean.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypeGuard

from octavo.errors import ConfigError, UnsupportedModelError

_MAX_SIZE = 2**31 - 1


class ConfigReader:
    """One JSON object of a configuration. JSON null counts as absent, as Hugging Face has it.

    ``path`` is where the object lies in the file (``rope_scaling.``), for messages.
    Every getter raises :class:`octavo.errors.ConfigError` on a value of another type or range,
    and on an absent one that has no default.
    """

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = values
        self._path = path

    def has(self, key: str) -> bool:
        """Whether the key holds something other than null."""
        return self._values.get(key) is not None

    def names(self, key: str) -> bool:
        """Whether the key is there at all, be it null."""
        return key in self._values

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = _MAX_SIZE
    ) -> int:
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(key, f"an integer of at least {minimum} and at most {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0: every number these files hold is a scale of some kind."""
        value = self._get(key, default)
        if not _is_positive(value):
            raise self.error(key, "a number above 0")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key, None)
        if not isinstance(value, list) or not all(_is_positive(item) for item in value):
            raise self.error(key, "a list of numbers above 0")
        return tuple(float(item) for item in value)

    def section(self, key: str, defaults: Mapping[str, object] | None = None) -> ConfigReader:
        """A nested object, ``defaults`` behind it; an empty one when absent."""
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return ConfigReader({**(defaults or {}), **value}, f"{self._path}{key}.")

    def refuse(self, key: str, reason: str) -> None:
        """Raise UnsupportedModelError if the key is set to anything but null or false."""
        if self._values.get(key) not in (None, False):
            raise UnsupportedModelError(f"{self._describe(key)}: {reason}.")

    def error(self, key: str, expected: str) -> ConfigError:
        """The error for a value that cannot be."""
        return ConfigError(f"{self._describe(key)}; it must be {expected}.")

    def unsupported(self, key: str, supported: str) -> UnsupportedModelError:
        """The error for a value that means something Octavo does not do."""
        return UnsupportedModelError(f"{self._describe(key)}; supported: {supported}.")

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(
                f"{self._path}{key} is missing in the model's config.json; "
                "the model cannot be built without it."
            )
        return default

    def _describe(self, key: str) -> str:
        return f"{self._path}{key} is {self._values.get(key)!r:.200} in the model's config.json"


def _is_positive(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value <= sys.float_info.max
