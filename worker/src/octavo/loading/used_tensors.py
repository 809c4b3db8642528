"""Which tensors of a checkpoint a model asked for, and what is to be said of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from octavo.errors import WeightError

_MAX_NAMES_SHOWN = 5


class UsedTensors:
    """Remembers what was taken out of a checkpoint, and words its errors.

    ``origin`` is the file or folder, for messages.
    """

    def __init__(self, origin: str, names: Collection[str]) -> None:
        self._origin = origin
        self._names = names
        self._used: set[str] = set()

    def take(self, name: str) -> None:
        """Note that a tensor was asked for. Raises WeightError when there is none."""
        if name not in self._names:
            raise WeightError(
                f"The tensor {name} is not in {self._origin}; its files are incomplete, or its "
                "configuration is another model's."
            )
        self._used.add(name)

    def check_shape(self, name: str, stored: Sequence[int], asked: Sequence[int]) -> None:
        """Raises WeightError where the two differ."""
        if tuple(stored) != tuple(asked):
            raise WeightError(
                f"The tensor {name} in {self._origin} is {list(stored)}, but the configuration "
                f"makes it {list(asked)}; use the configuration that belongs to these weights."
            )

    def check_all(self, can_ignore: Callable[[str], bool]) -> None:
        """Raises WeightError when tensors were left that may not be ignored."""
        left = sorted(n for n in self._names if n not in self._used and not can_ignore(n))
        if not left:
            return
        shown = ", ".join(left[:_MAX_NAMES_SHOWN])
        more = f" and {len(left) - _MAX_NAMES_SHOWN} more" if len(left) > _MAX_NAMES_SHOWN else ""
        raise WeightError(
            f"{self._origin} holds tensors that the model has no place for: {shown}{more}; its "
            "architecture has a feature that is not supported, or its configuration is another "
            "model's."
        )
