"""The vocabulary in a GGUF file's metadata, checked.

Knows the keys ``tokenizer.ggml.*`` and their types; knows nothing of how text is split or merged.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from octavo.errors import ModelLoadError


class TokenType(enum.IntEnum):
    """What a token is for, by llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """The metadata's ``tokenizer.ggml.*``, checked for type and length."""

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special_ids: Mapping[str, int]
    """bos, eos, eot, eom, unk, pad → id; only those the file has."""
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None


def parse_vocabulary(metadata: Mapping[str, object]) -> GGUFVocabulary:
    """Raises ModelLoadError where the metadata has no vocabulary or a broken one."""
    fields = _Fields(metadata)
    tokens = fields.strings("tokens")
    if not tokens:
        raise ModelLoadError(
            "The GGUF file holds no tokenizer (tokenizer.ggml.tokens is absent); serve it with "
            "--skip-tokenizer-init, or use a complete file."
        )
    if len(set(tokens)) != len(tokens):
        token, _ = Counter(tokens).most_common(1)[0]
        raise ModelLoadError(f"The GGUF file's vocabulary has the token {token!r:.80} twice.")
    return GGUFVocabulary(
        model=fields.text("model") or "gpt2",
        pre=fields.text("pre"),
        tokens=tokens,
        types=fields.integers("token_type", len(tokens)) or [TokenType.NORMAL] * len(tokens),
        scores=fields.numbers("scores", len(tokens)),
        merges=fields.strings("merges"),
        special_ids=fields.special_ids(len(tokens)),
        add_bos=fields.flag("add_bos_token"),
        add_eos=fields.flag("add_eos_token"),
        add_space_prefix=fields.flag("add_space_prefix"),
    )


_Item = TypeVar("_Item", str, int, float)


class _Fields:
    """Typed access to ``tokenizer.ggml.*``."""

    _SPECIAL = (
        ("bos", "bos_token_id"),
        ("eos", "eos_token_id"),
        ("eot", "eot_token_id"),
        ("eom", "eom_token_id"),
        ("unk", "unknown_token_id"),
        ("pad", "padding_token_id"),
    )

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata

    def text(self, name: str) -> str | None:
        value = self._get(name)
        if value is not None and not isinstance(value, str):
            raise self._error(name, "a string")
        return value

    def flag(self, name: str) -> bool | None:
        value = self._get(name)
        if value is not None and not isinstance(value, bool):
            raise self._error(name, "true or false")
        return value

    def strings(self, name: str) -> list[str]:
        return self._list(name, "a list of strings", str)

    def integers(self, name: str, length: int) -> list[int]:
        return self._list(name, "a list of integers", int, length)

    def numbers(self, name: str, length: int) -> list[float]:
        return self._list(name, "a list of numbers", float, length)

    def special_ids(self, num_tokens: int) -> dict[str, int]:
        ids: dict[str, int] = {}
        for key, name in self._SPECIAL:
            value = self._get(name)
            if value is None:
                continue
            if type(value) is not int or value < 0:
                raise self._error(name, "a token's id")
            if value < num_tokens:  # some files write 2**32 - 1 for "none"
                ids[key] = value
        return ids

    def _list(
        self, name: str, expected: str, kind: type[_Item], length: int | None = None
    ) -> list[_Item]:
        value = self._get(name)
        if value is None:
            return []
        # A GGUF array has one type: its first item tells.
        if not isinstance(value, list) or (value and type(value[0]) is not kind):
            raise self._error(name, expected)
        if length is not None and len(value) != length:
            raise self._error(name, f"a list of {length}, one for each token")
        return value

    def _get(self, name: str) -> object:
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def _error(self, name: str, expected: str) -> ModelLoadError:
        value = self._get(name)
        shown = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.80}"
        return ModelLoadError(
            f"tokenizer.ggml.{name} is {shown} in the GGUF file; it must be {expected}."
        )
