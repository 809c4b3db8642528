"""What users of an engine in this process may pass as prompts, brought to one form.

Knows Python's values, numpy's and torch's among them; knows nothing of a model but its tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.tokenization.tokenizer import Tokenizer, Truncation

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids (a list, or an array of numpy's or torch's), or ``{"prompt": text}``,
``{"prompt_token_ids": ids}``; both together, where the ids count and the text is for the reader.
With ``"cache_salt"`` only prompts of the same salt share cached prefixes."""

_FORMS = 'pass a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}.'
_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


@dataclass(frozen=True, slots=True)
class OfflinePrompt:
    """One prompt; of text and token ids one is there at least."""

    text: str | None
    token_ids: list[Any] | None
    cache_salt: str | None = None

    @classmethod
    def of(cls, given: object) -> OfflinePrompt:
        """Raises InvalidRequestError for what is no prompt, whose number the caller tells."""
        if isinstance(given, str):
            return cls(given, None)
        if isinstance(given, Mapping):
            return cls._of_mapping(given)
        return cls(None, _token_ids(given))

    @classmethod
    def _of_mapping(cls, given: Mapping[str, Any]) -> OfflinePrompt:
        fields = {name: value for name, value in given.items() if value is not None}
        others = [name for name in fields if name not in _KEYS]
        if others:
            raise _refused(f"has {others[0]!r}, which is not taken; {_FORMS}")
        text, ids, salt = (fields.get(name) for name in _KEYS)
        if text is None and ids is None:
            raise _refused(f"is {given!r:.120}; {_FORMS}")
        for name, value in (("prompt", text), ("cache_salt", salt)):
            if value is not None and not isinstance(value, str):
                raise _refused(f"has the {name} {value!r:.120}, which is no text; {_FORMS}")
        return cls(text, None if ids is None else _token_ids(ids), salt)

    def encode(self, tokenizer: Tokenizer | None, truncation: Truncation | None) -> list[Any]:
        """Its token ids, which are not checked against a vocabulary."""
        if self.token_ids is not None:
            return self.token_ids if truncation is None else truncation.cut(self.token_ids)
        if tokenizer is None:
            raise _refused(
                "is a text, and this model was opened without a tokenizer (skip_tokenizer_init); "
                'pass {"prompt_token_ids": [...]} instead.'
            )
        assert self.text is not None, "one of them is there"
        return tokenizer.encode(self.text, truncation=truncation)


def listed(prompts: object) -> list[Any]:
    """One prompt, or all that an iterable gives; what each is, is checked later."""
    if isinstance(prompts, str | bytes | bytearray | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequestError(f"prompts is {prompts!r:.120}; {_FORMS}", "prompts")
    each: list[Any] = list(prompts)
    return [each] if each and all(map(_is_id, each)) else each


def _token_ids(given: object) -> list[Any]:
    values: Any = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        raise _refused(f"is {given!r:.120}; {_FORMS}")
    ids = list(values)
    wrong = next((one for one in ids if not _is_id(one)), None)
    if wrong is not None:
        raise _refused(f"has {wrong!r:.120} among its token ids, which must be integers; {_FORMS}")
    return ids


def _is_id(value: Any) -> bool:
    """Whether it is an integer, of numpy or torch too; a list of these is one prompt."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return getattr(value, "ndim", None) == 0 and isinstance(value.tolist(), int)


def _refused(words: str) -> InvalidRequestError:
    return InvalidRequestError(f"It {words}", "prompts")
