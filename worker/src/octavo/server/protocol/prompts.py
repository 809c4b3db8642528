"""A prompt in any of OpenAI's four forms: a text, texts, token ids, lists of token ids."""

from __future__ import annotations

from octavo.server.protocol.fields import MAX_INT32

Prompts = str | list[int] | list[str] | list[list[int]]


def as_prompts(field: str, most: int, value: object) -> list[str] | list[list[int]]:
    """Any form of prompt as a list of prompts, all texts or all token ids.

    Done by hand: a union would try every form on every item and report them all.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(
            f"it is {_shown(value)}; it must be a string, a list of strings, "
            "a list of token ids, or a list of such lists."
        )
    if not value:
        raise ValueError("it is an empty list; send at least one prompt.")
    if type(value[0]) is int:
        return [_as_token_ids(value, field)]
    if len(value) > most:
        raise ValueError(
            f"it has {len(value)} prompts; at most {most} are allowed. Send several requests."
        )
    if isinstance(value[0], str):
        return [_as_text(item, index) for index, item in enumerate(value)]
    return [_as_token_ids(item, f"{field}[{index}]") for index, item in enumerate(value)]


def _as_text(item: object, index: int) -> str:
    if not isinstance(item, str):
        raise ValueError(
            f"item {index} is {_shown(item)}; all prompts must be strings like the first."
        )
    return item


def _as_token_ids(value: object, where: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {_shown(value)}; it must be a list of token ids, not empty.")
    for index, token_id in enumerate(value):
        if type(token_id) is not int or not 0 <= token_id <= MAX_INT32:
            raise ValueError(
                f"{where}[{index}] is {_shown(token_id)}; a token id is an integer "
                f"from 0 to {MAX_INT32}."
            )
    return value


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
