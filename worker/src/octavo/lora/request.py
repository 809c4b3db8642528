"""How users of :class:`octavo.LLM` name an adapter."""

from __future__ import annotations

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
    lora_path: str | int
    lora_int_id: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lora_path, int) and isinstance(self.lora_int_id, str):
            path, number = self.lora_int_id, self.lora_path
            object.__setattr__(self, "lora_path", path)
            object.__setattr__(self, "lora_int_id", number)
        if not self.lora_name or not isinstance(self.lora_path, str) or not self.lora_path:
            raise InvalidRequestError(
                f"lora_name is {self.lora_name!r} and lora_path {self.lora_path!r}; give a name "
                "and a folder, or ORG/NAME on the hub.",
                "lora_request",
            )

    @property
    def path(self) -> str:
        """Where it lies."""
        return str(self.lora_path)
