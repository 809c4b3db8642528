"""Values as people write them on a command line: sizes, JSON, short names."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

import msgspec

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(i?B?)")


def count(text: str) -> int:
    """``4096``, ``4k`` (4,000), ``4K`` or ``4KiB`` (4,096); vLLM's reading."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number; write 4096, 4k (4,000) or 4K (4,096)"
        )
    number, unit, suffix = match.groups()
    factors = _DECIMAL | _BINARY
    factor = factors[unit.upper()] if unit and "i" in suffix else factors[unit]
    value = float(number) * factor
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def some(text: str) -> int:
    """A count of at least 1."""
    if not (value := count(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is too few; write 1 or more, or leave it out")
    return value


def temperature(text: str) -> float:
    """A number from 0 on, as far as OpenAI's API goes."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no temperature; write a number from 0 to 2")
    return value


def count_or_auto(text: str) -> int | None:
    """A count, or ``auto`` (vLLM's -1)."""
    return None if text.lower() in ("auto", "-1") else count(text)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a JSON object; write e.g. '{{\"num_hidden_layers\": 2}}'"
        )
    return value


def dtype(text: str) -> str:
    """A dtype's name; vLLM's short names too."""
    return {"half": "float16", "float": "float32"}.get(text, text)


def lora_module(text: str) -> tuple[str, str]:
    """``NAME=PATH``, or vLLM's JSON ``{"name": ..., "path": ...}``."""
    if text.startswith("{"):
        values = json_object(text)
        name, path = values.get("name"), values.get("path")
    else:
        name, _, path = text.partition("=")
    if not isinstance(name, str) or not isinstance(path, str) or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} does not name an adapter; write NAME=PATH")
    return name, path
