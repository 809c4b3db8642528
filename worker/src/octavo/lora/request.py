"""How users of :class:`octavo.LLM` name an adapter."""

from __future__ import annotations

import os
from dataclasses import dataclass

from octavo.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter by a name of the user's choice and where it lies: a folder, or ``ORG/NAME`` on
    the hub.

    ``lora_int_id`` is vLLM's and not needed; its order ``LoRARequest(name, id, path)`` is
    understood too.
    """

    lora_name: str
    lora_path: str | os.PathLike[str] | int
    lora_int_id: int | str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lora_path, int) and isinstance(self.lora_int_id, str | os.PathLike):
            path, number = self.lora_int_id, self.lora_path
            object.__setattr__(self, "lora_path", path)
            object.__setattr__(self, "lora_int_id", number)
        self._check("lora_name", self.lora_name, str)
        self._check("lora_path", self.lora_path, str, os.PathLike)

    def _check(self, field: str, value: object, *kinds: type) -> None:
        if not value or not isinstance(value, kinds):
            raise InvalidRequestError(
                f"{field} is {value!r:.120}; give a name, and a folder or ORG/NAME on the hub.",
                "lora_request",
            )

    @property
    def path(self) -> str:
        """Where it lies."""
        assert not isinstance(self.lora_path, int), "checked when it was made"
        return os.fsdecode(self.lora_path)
