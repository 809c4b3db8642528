"""What became of an adapter that was to be read, or copied to a slot. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import OctavoError


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter was read for the first time and is in host memory; or, with ``is_known``, its
    files are those of the digest that was named, and nothing was kept."""

    adapter_id: int
    digest: str
    rank: int
    size_bytes: int
    seconds: float
    base_model: str | None
    revision: str | None = None
    """The hub's commit."""
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class OpenFailed:
    """An adapter is not served; nothing of it is kept."""

    adapter_id: int
    error: OctavoError


@dataclass(frozen=True, slots=True)
class Filled:
    """A slot holds an adapter."""

    adapter_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class FillFailed:
    """A slot could not be filled: the adapter's files are gone or have changed."""

    adapter_id: int
    slot: int
    error: OctavoError


Outcome = Opened | OpenFailed | Filled | FillFailed
